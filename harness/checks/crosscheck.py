"""Our metrics beside torch-fidelity's and clean-fid's on a generated mini set, and ADM's printed numbers."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.assets.networks import load_network
from harness.checks import adm_evaluator
from harness.features.base import CLEAN, FEATURES, FeatureNetworks
from harness.features.inception import CleanInception, Inception
from harness.metrics import frechet
from harness.metrics import kid as metrics_kid
from harness.metrics.evaluate import evaluate
from harness.metrics.frechet import Moments
from harness.metrics.statistics import Measured
from harness.runtime.progress import Reporter
from harness.scoring.array_files import NpzImages
from harness.scoring.image_files import write_npz
from harness.scoring.image_sets import FolderImages
from harness.scoring.score_images import Job, score
from recipes.core.draws import seed_of

SIDE = 64
#: Number of clean-fid features compared: few enough that the covariance has full rank and its matrix square root is
#: accurate.
SPANNED = 16
#: Relative differences that float32 features explain. With fewer images than features, torch-fidelity's FID sums the
#: roots of two thousand eigenvalues that are rounding.
TIGHT, RANK_DEFICIENT = 1e-6, 1e-4


@dataclass(frozen=True)
class Check:
    """One number, computed twice."""

    metric: str
    ours: float
    theirs: float
    whose: str
    bound: float
    """On the difference: relative for distances and scores, absolute for shares and for KID, which is near zero."""
    absolute: bool = False

    @property
    def difference(self) -> float:
        """See `bound`."""
        gap = abs(self.ours - self.theirs)
        return gap if self.absolute else gap / max(abs(self.theirs), 1e-12)

    @property
    def passed(self) -> bool:
        """Whether it is within the bound; NaN is not."""
        return self.difference <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"difference": self.difference, "passed": self.passed}


def mini_set(name: str, count: int) -> Tensor:
    """Smooth random pictures, uint8 (count, 3, 64, 64); `name` decides which."""
    g = torch.Generator().manual_seed(seed_of(0, "mini set", name))
    coarse = torch.rand(count, 3, 5, 5, generator=g)
    smooth = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    return (255 * (smooth + 0.1 * torch.rand(smooth.shape, generator=g))).clamp(0, 255).to(torch.uint8)


def crosscheck(store: Store, device: torch.device, count: int, reporter: Reporter) -> tuple[list[Check], str]:
    """Score the mini set by every library.

    Args:
        store: the cache; where it holds no Inception, a network of its form with random weights serves.
        device: of ours; the other libraries run on the CPU.
        count: images of each set.
        reporter: progress.

    Returns:
        the checks, and in words what the feature network was.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        network, said = _network(store, device, place)
        for name in ("real", "fake"):
            write_npz(place / f"{name}.npz", iter([mini_set(name, count)]), count)
        job = Job(
            network=FeatureNetworks(network, {CLEAN: CleanInception(network)}),
            features="inception",
            wanted=("fid", "is", "precision", "recall", "clean_fid"),
            cache=place,
            reporter=reporter,
        )
        _, real = job.measure(NpzImages(place / "real.npz"), "reference")
        _, fake = job.measure(NpzImages(place / "fake.npz"), "samples")
        assert real is not None
        assert fake is not None
        ours = evaluate(job.wanted, real=real, fake=fake).values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy's and torch-fidelity's, of their own code
            with reporter.stage("torch-fidelity", 1):
                checks = list(_torch_fidelity(ours, real, fake, network, place, count))
            with reporter.stage("clean-fid", 1):
                checks += list(_clean_fid(real, fake, network, place))
    return checks, said


def _network(store: Store, device: torch.device, place: Path) -> tuple[Inception, str]:
    from harness.features.inception import write_inception

    if catalogue.find(store, "inception") is not None:
        network = load_network("inception", store, device)
        assert isinstance(network, Inception)
        return network, f"Inception-2015, SHA-256 {network.content[:16]}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = write_inception(place)
    from harness.features.inception import load

    return load(weights, device), "a random network of Inception's form (real one: repa-bench fetch inception)"


class _Pixels(torch.utils.data.Dataset[Tensor]):
    """The images as the Dataset that torch-fidelity expects."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def _torch_fidelity(
    ours: dict[str, Any], real: Measured, fake: Measured, network: Inception, place: Path, count: int
) -> Iterator[Check]:
    from torch_fidelity import calculate_metrics

    # It unpickles its weights without restriction, so it is given a file that was written here.
    state = {k: v.cpu() for k, v in network.network.state_dict().items()}
    torch.save(state, place / "state.pth")
    theirs = calculate_metrics(
        input1=_Pixels(mini_set("fake", count)),
        input2=_Pixels(mini_set("real", count)),
        fid=True,
        isc=True,
        prc=True,
        kid=True,
        kid_subset_size=count,
        kid_subsets=1,
        isc_splits=1,
        samples_shuffle=False,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=16,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(place / "state.pth"),
    )
    whose, width = "torch-fidelity", real.moments(FEATURES).mean.numel()
    bound = TIGHT if count > width else RANK_DEFICIENT
    yield Check("FID", ours["fid"], theirs["frechet_inception_distance"], whose, bound)
    yield Check("IS", ours["is"], theirs["inception_score_mean"], whose, TIGHT)
    yield Check("precision", ours["precision"], theirs["precision"], whose, TIGHT, absolute=True)
    yield Check("recall", ours["recall"], theirs["recall"], whose, TIGHT, absolute=True)
    # Of all images at once, since the two draw other subsets.
    kid = metrics_kid.kid(real=real.points(FEATURES), fake=fake.points(FEATURES), subsets=1, subset_size=count)
    yield Check("KID", kid.mean, theirs["kernel_inception_distance_mean"], whose, 1e-5, absolute=True)


def _clean_fid(real: Measured, fake: Measured, network: Inception, place: Path) -> Iterator[Check]:
    from cleanfid.fid import frechet_distance, get_folder_features
    from PIL import Image

    ours = {name: torch.as_tensor(m.points(CLEAN)).double() for name, m in (("real", real), ("fake", fake))}
    theirs = {}
    for name, m in ours.items():
        folder = place / name
        folder.mkdir()
        for k, image in enumerate(mini_set(name, len(m)).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(folder / f"{k:06d}.png")
        assert len(FolderImages(folder)) == len(m)
        theirs[name] = get_folder_features(
            str(folder), network.pool, num_workers=0, batch_size=16, device=torch.device("cpu"), verbose=False
        ).astype(np.float64)
    gap = max(float((ours[n] - torch.from_numpy(theirs[n])).abs().max()) for n in ours)
    scale = max(float(np.abs(t).max()) for t in theirs.values())
    yield Check("features behind its resize, largest difference", gap / scale, 0.0, "clean-fid", 1e-5, absolute=True)
    few = {n: Moments.of(x[:, :SPANNED]) for n, x in ours.items()}
    expected = frechet_distance(
        *(v for n in ("fake", "real") for v in (theirs[n][:, :SPANNED].mean(0), np.cov(theirs[n][:, :SPANNED].T)))
    )
    found = frechet.frechet_distance(real=few["real"], fake=few["fake"])
    yield Check(f"clean_fid of {SPANNED} of its features", found, float(expected), "clean-fid", 1e-5)


def known_answer(store: Store, device: torch.device, reporter: Reporter) -> list[Check]:
    """ADM's own samples against its reference: what its README prints, and what we find.

    Raises:
        UserError: a file is not on this machine.
    """
    paths = {name: catalogue.require(store, name).path for name in ("adm-samples", "adm-reference")}
    job = Job(
        network=load_network("inception", store, device),
        features="inception",
        wanted=tuple(adm_evaluator.KNOWN),
        cache=store.root,
        reporter=reporter,
    )
    found = score(NpzImages(paths["adm-samples"]), paths["adm-reference"], job)
    assert found is not None
    return [
        Check(name, found[name], value, "ADM's README", below if found[name] < value else above, absolute=True)
        for name, (value, below, above) in adm_evaluator.KNOWN.items()
    ]
