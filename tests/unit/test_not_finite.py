"""A tokenizer that gives no numbers is refused wherever one encodes or decodes; one that has collapsed is recorded."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import imagenet_tree as tree
import numpy as np
import pytest
import torch
from builders import SIT, TOKENIZER, make_sit
from tests_support import Toy, pictures

from harness.assets.cache import Store
from harness.metrics.statistics import Measured
from harness.pipeline import alignment, tokenizers
from harness.pipeline import session as pipeline_session
from harness.preparation.base import Evaluator, Reference
from harness.preparation.imagenet import Preparation
from harness.records.file import RecordFile
from harness.records.provenance import provenance
from harness.records.schema import TokenizerRecord
from harness.scoring import score_images
from harness.scoring.paired_images import decoded, encoded
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.data.images import open_images
from recipes.data.latents import write_latents
from recipes.models.autoencoder import Autoencoder, to_signed
from recipes.registry import find_recipe

IMAGES = torch.from_numpy(pictures(0, 24, 16)).permute(0, 3, 1, 2).contiguous()


def tokenizer(part: str | None = None, factor: float = 1.0) -> Autoencoder:
    """One with the weights of a part times a factor; one that is not finite replaces the first number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = Autoencoder(TOKENIZER).eval().requires_grad_(False)
    if part is not None:
        weight = vae.kl.get_submodule(part).weight
        (weight if np.isfinite(factor) else weight[0, 0, 0, 0]).mul_(factor)
    return vae


BAD = {
    "NaN in the decoder": (("decoder.conv_in", float("nan")), "reconstruction 0"),
    "infinity in the decoder": (("decoder.conv_out", float("inf")), "reconstruction 0"),
    "overflow in the decoder": (("decoder.conv_in", 1e30), "reconstruction 0"),
    "NaN in the encoder": (("encoder.conv_in", float("nan")), "the latent of image 0"),
    "overflow in the encoder": (("encoder.conv_in", 1e36), "the latent of image 0"),
    "NaN between them": (("quant_conv", float("nan")), "the latent of image 0"),
    "NaN behind the latents": (("post_quant_conv", float("nan")), "reconstruction 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_score_refuses_it(name, tmp_path):
    change, what = BAD[name]
    np.savez(tmp_path / "reference.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy())
    job = score_images.Job(network=Toy(), features="inception", wanted=("fid", "psnr"), cache=tmp_path)
    with pytest.raises(UserError, match=f"{what} is not a number: the tokenizer's weights are damaged"):
        score_images.score_tokenizer(tmp_path / "reference.npz", tokenizer(*change), "t", job)


def suite_of(tmp_path: Path) -> tuple[pipeline_session.Session, SimpleNamespace]:
    """As much of a session and its assets as measuring a tokenizer looks at."""
    records = RecordFile(tmp_path)
    common = {"suite": "s", "suite_digest": "d", "notice": "n", "provenance": provenance()}
    told: list[str] = []
    session = SimpleNamespace(
        suite=SimpleNamespace(chunk=10, image_size=16),
        world=World(),
        folder=tmp_path,
        records=records,
        common=lambda: common,
        note=lambda text, variant, seed: told.append(text),
        told=told,
    )
    judge = Evaluator(Toy(), lambda: Reference(Measured([Toy()(IMAGES)]), IMAGES, IMAGES))
    return session, SimpleNamespace(evaluator=judge)


@pytest.mark.parametrize("name", BAD)
def test_a_suite_records_nothing_of_it(name, tmp_path):
    change, what = BAD[name]
    session, prepared = suite_of(tmp_path)
    with pytest.raises(UserError, match=f"{what} is not a number"):
        tokenizers.measure_tokenizer(session, prepared, "sd-vae", tokenizer(*change))
    assert list(tmp_path.iterdir()) == []


def test_the_image_is_named_wherever_it_stands():
    vae = tokenizer()
    good = encoded(vae, IMAGES, 0)
    assert torch.equal(good, vae.encode(to_signed(IMAGES, good)).mean)
    assert decoded(vae, good, 0).dtype == torch.uint8
    good[5, 0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="reconstruction 105 is not a number"):
        decoded(vae, good, 100)


def test_a_complete_collapse_is_recorded(tmp_path):
    """An encoder whose output is 0: no rank, no variance, and reconstructions that are all the same."""
    session, prepared = suite_of(tmp_path)
    vae = tokenizer("quant_conv", 0.0)
    record = tokenizers.measure_tokenizer(session, prepared, "sd-vae", vae)
    session.records.append(record)
    (kept,) = session.records.all()
    assert isinstance(kept, TokenizerRecord)
    assert (kept.effective_rank, kept.latent_variance, kept.spatial_variance) == (0.0, 0.0, 0.0)
    assert session.told == ["23 of the 24 reconstructions by sd-vae are copies of others; 1 differ."]


def test_an_ordinary_one_has_no_remark(tmp_path):
    session, prepared = suite_of(tmp_path)
    record = tokenizers.measure_tokenizer(session, prepared, "sd-vae", tokenizer())
    assert record.effective_rank > 1
    assert session.told == []


def test_alignment_refuses_it_and_a_run_that_has_diverged(monkeypatch):
    session = SimpleNamespace(suite=SimpleNamespace(chunk=10), world=World())
    prepared = SimpleNamespace(tokenizer=lambda variant: None)
    spec = SimpleNamespace(variant="repa", name="repa-seed0", method=find_recipe("repa", {}, where="test"), sit=SIT)
    run = SimpleNamespace(spec=spec)
    lost = make_sit()
    torch.nn.init.constant_(lost.blocks[1].attn.proj.weight, float("nan"))
    cases = [
        (make_sit(), tokenizer("encoder.conv_in", float("nan")), "the latent of image 0 is not a number"),
        (lost, tokenizer(), "what the SiT says of image 0 is not a number: repa-seed0 has diverged at step 7"),
    ]
    for sit, vae, sentence in cases:
        found = (sit.eval(), vae)
        monkeypatch.setattr(alignment, "load_for_sampling", lambda *_, found=found, **__: found)
        with pytest.raises(UserError, match=sentence):
            alignment._sit_features(session, prepared, run, 7, IMAGES)


def test_cached_latents_and_their_statistics_refuse_it(tmp_path):
    images = open_images(tree.write_repa_folder(tmp_path / "repa", tree.make_squares(n=6)))
    vae = tokenizer("encoder.conv_in", float("nan"))

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(to_signed(pixels, next(vae.parameters())))
        return posterior.mean, posterior.std

    with pytest.raises(UserError, match=r"The latent of .* is not finite .*check the tokenizer's weights"):
        write_latents(tmp_path / "latents", images, encode, tokenizer="t")
    assert list((tmp_path / "latents").glob("*.json")) == []  # no shard is finished
    preparation = SimpleNamespace(
        images=images,
        context=SimpleNamespace(
            execution=SimpleNamespace(threads=1),
            reporter=SimpleNamespace(),
            stage=lambda *_: nullcontext(lambda done: None),
        ),
        hashes={"sd-vae": "t"},
        world=World(),
        store=Store(tmp_path / "store"),
        _encode=lambda name, pixels: encode(pixels),
    )
    with pytest.raises(UserError, match="the latent of image 0 is not a number"):
        Preparation._measured_statistics(preparation, "sd-vae")
