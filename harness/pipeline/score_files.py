"""How image files are scored: networks, metrics and processes, from what a person named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.assets import catalogue, networks
from harness.assets.cache import Store
from harness.features.base import FeatureNetworks
from harness.metrics import evaluate
from harness.runtime.progress import Reporter
from harness.scoring import score_images
from harness.scoring.paired_images import on_uint8_images
from recipes.core.distributed import world
from recipes.models.perceptual import load_perceptual


@contextmanager
def opened_job(
    store: Store,
    *,
    features: str = "inception",
    weights: Path | None = None,
    metrics: str | None = None,
    device: str = "auto",
    of_tokenizer: bool = False,
    quiet: bool = False,
) -> Iterator[score_images.Job]:
    """Load what a scoring job needs; joins the other processes under torchrun.

    Args:
        store: the cache.
        features: the feature network's name.
        weights: its file; by default what lies in the cache.
        metrics: names with commas between; by default those of the network, or of a tokenizer.
        device: cpu, cuda or auto.
        of_tokenizer: whether images are compared with their reconstructions.
        quiet: say nothing of the progress.

    Raises:
        UserError: no such network or metric, or a file that is missing.
    """
    name = networks.network_name(features)
    default: tuple[str, ...] = evaluate.DEFAULT if name == "inception" else evaluate.DEFAULT_ELSEWHERE
    if of_tokenizer:
        has_lpips = catalogue.find(store, "vgg16") is not None
        default = tuple(m for m in score_images.OF_A_TOKENIZER if m != "lpips" or has_lpips)
    text = metrics.replace("rfid", "fid") if metrics and of_tokenizer else metrics
    wanted = evaluate.parse(text, default)
    with world(device) as here:
        first = networks.load_network(name, store, here.device, weights)
        outputs = [evaluate.METRICS[m].output for m in wanted]
        others = networks.extra_networks(outputs, first, store, here.device)
        lpips = None
        if "lpips" in wanted:
            vgg = load_perceptual(catalogue.require(store, "vgg16").path, input_range="unit")
            lpips = on_uint8_images(vgg.to(here.device), here.device)
        yield score_images.Job(
            network=FeatureNetworks(first, others) if others else first,
            features=name,
            wanted=wanted,
            cache=store.root,
            world=here,
            reporter=Reporter(quiet=quiet or not here.main),
            lpips=lpips,
        )
