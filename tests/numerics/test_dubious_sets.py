"""Sets that give a number and should not be believed: what is said beside it, and what its protocol's digest says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tests_support import Toy, pictures

from harness.features.base import FEATURES
from harness.features.pixels import FLAT, HASH, rows_about
from harness.metrics.evaluate import Rules
from harness.metrics.statistics import Measured
from harness.scoring import doubts, score_images
from harness.scoring.feature_shards import Shards
from harness.scoring.image_sets import open_samples
from recipes.core.errors import UserError

#: As many as Toy has features, and more.
MANY = 30


def told(tmp_path: Path, samples: np.ndarray | Path, reference: np.ndarray | Path, metrics: str, **changes) -> dict:
    paths = []
    for name, images in (("samples.npz", samples), ("reference.npz", reference)):
        paths.append(images if isinstance(images, Path) else tmp_path / name)
        if not isinstance(images, Path):
            np.savez(tmp_path / name, arr_0=images)
    job = score_images.Job(
        network=Toy(), features="inception", wanted=tuple(metrics.split(",")), cache=tmp_path / "cache", **changes
    )
    found = score_images.score(open_samples(paths[0], flag="--samples"), paths[1], job)
    assert found is not None
    return found


def with_flat(images: np.ndarray, count: int, level: int, spread: int = 0) -> np.ndarray:
    """The first `count` of one colour, but for `spread` levels."""
    out = images.copy()
    noise = np.random.default_rng(0).integers(0, spread + 1, out[:count].shape)
    out[:count] = level + noise
    return out


def repeated(images: np.ndarray, *places: int) -> np.ndarray:
    out = images.copy()
    out[list(places)] = out[0]
    return out


FAKE, REAL = pictures(1, MANY), pictures(2, MANY)
WIDE, TALL = pictures(1, MANY, 64)[:, :32], pictures(2, MANY, 64)[:, :, :32]
NARROW = ["features of the samples vary by less than 1/100 that of the reference", "mean of the features is 0 long"]
NEARLY = REAL[:1] // 2 + np.random.default_rng(0).integers(0, 3, REAL.shape, dtype=np.uint8)
SETS = {
    "one image with a little noise": (NEARLY, REAL, "fid", [NARROW[0]]),
    "a reference of one image": (FAKE, NEARLY, "fid", ["features of the reference vary by less than 1/100"]),
    "black": (with_flat(FAKE, 3, 0), REAL, "fid", ["3 of the 30 samples are of one colour", "2 of the 30 .* copies"]),
    "one white": (with_flat(FAKE, 1, 255), REAL, "fid", ["1 of the 30 samples are of one colour"]),
    "grey behind a JPEG": (with_flat(FAKE, 4, 128, 2), REAL, "fid", ["4 of the 30 samples are of one colour"]),
    "all black": (0 * FAKE, REAL, "fid", ["30 of the 30 samples are of one colour", "29 of the 30 .* copies", *NARROW]),
    "black reference": (FAKE, with_flat(REAL, 2, 0), "fid", ["2 of the 30 reference images are of one", "1 of the 30"]),
    "a copy": (repeated(FAKE, 7), REAL, "fid", ["1 of the 30 samples are copies of others; 29 differ"]),
    "copies": (repeated(FAKE, 3, 9, 20), REAL, "fid", ["3 of the 30 samples are copies of others; 27 differ"]),
    "collapsed": (repeated(FAKE, *range(MANY)), REAL, "fid", ["29 of the 30 .* copies of others; 1 diff", NARROW[0]]),
    "a reference twice": (FAKE, repeated(REAL, 1), "fid", ["1 of the 30 reference images are copies"]),
    "a set twice": (np.concatenate((FAKE, FAKE)), REAL, "fid", ["30 of the 60 samples are copies of others"]),
    "one of its own": (np.concatenate((FAKE, REAL[4:5])), REAL, "fid", ["1 of the 31 samples are the reference's own"]),
    "all its own": (REAL[::-1], REAL, "fid", ["30 of the 30 samples are the reference's own"]),
    "pairs of its own": (np.concatenate((FAKE[:29], REAL[:1])), REAL, "psnr", ["1 of the 30 samples are the ref"]),
    "smaller": (pictures(1, MANY, 16), REAL, "fid", ["samples are 16 x 16 pixels and the reference's images 32 x 32"]),
    "oblong": (WIDE, WIDE[::-1, ::-1], "fid", ["samples are 64 x 32 pixels: .* squeeze", "reference's .* squeeze"]),
    "turned": (WIDE, TALL, "kid", ["64 x 32 pixels and the reference's images 32 x 64", "squeeze", "squeeze", "kid"]),
    "few samples": (FAKE[:12], REAL, "fid", ["12 samples are fewer than the 12 features of fid"]),
    "few references": (FAKE, REAL[:9], "fid", ["9 reference images are fewer than the 12 features of fid"]),
    "few for two": (FAKE[:7], REAL, "fid,sfid", ["7 samples are fewer than the 12 features of fid, sfid"]),
    "few for one": (FAKE[:10], REAL, "fid,sfid", ["10 samples are fewer than the 12 features of fid:"]),
    "few for KID": (FAKE[:20], REAL, "kid", ["subsets are of 20 images instead of 1,000"]),
    "few references for KID": (FAKE, REAL[:8], "kid", ["subsets are of 8 images .* 30 samples and 8 reference images"]),
    "few for IS": (FAKE[:2], REAL, "is", ["is: it is of one split of 2 samples instead of 5,000"]),
    "few for balls": (FAKE, REAL, "precision,recall", ["precision, recall: 30 samples and 30 .* fewer than 10,000"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_dubious_set_has_its_warnings_and_no_others(name, tmp_path):
    samples, reference, metrics, sentences = SETS[name]
    found = told(tmp_path, samples, reference, metrics)
    assert all(isinstance(found[metric], float) for metric in metrics.split(","))
    warnings = [w for w in found["warnings"] if "below half" not in w]  # see the next but one
    for sentence in sentences:
        assert any(re.search(sentence, warning) for warning in warnings), warnings
    assert len(warnings) == len(sentences), warnings


def test_an_ordinary_set_has_none(tmp_path):
    assert told(tmp_path, FAKE, REAL, "fid,sfid")["warnings"] == []
    assert told(tmp_path, WIDE, WIDE[::-1].copy() // 2, "psnr")["warnings"] == []  # nobody squeezes it


def test_the_same_images_in_another_file_are_its_own(tmp_path):
    """A folder of PNGs against an .npz: the pixels count."""
    (tmp_path / "folder").mkdir()
    for k in (3, 5):
        PIL.Image.fromarray(REAL[k]).save(tmp_path / "folder" / f"{k}.png")
    found = told(tmp_path, tmp_path / "folder", REAL, "kid")
    assert any(w.startswith("2 of the 2 samples are the reference's own images") for w in found["warnings"])


def test_closer_than_chance(tmp_path):
    """Statistics do not say of which images they are; an FID of 0 against them does."""
    features = Toy()(torch.from_numpy(REAL).permute(0, 3, 1, 2))[FEATURES].double().numpy()
    statistics = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    np.savez(tmp_path / "statistics.npz", **statistics)
    found = told(tmp_path, REAL, tmp_path / "statistics.npz", "fid")
    assert found["fid"] < 1e-5 * found["fid_floor"]  # by the network's float32
    (warning,) = found["warnings"]
    assert warning.startswith("fid: below half of what as many perfect samples have")
    assert told(tmp_path, FAKE, tmp_path / "statistics.npz", "fid")["warnings"] == []
    assert told(tmp_path, FAKE, tmp_path / "statistics.npz", "is")["is"] >= 1  # of which only the digest is wanted
    np.savez(tmp_path / "both.npz", arr_0=REAL, **statistics)
    found = told(tmp_path, tmp_path / "both.npz", tmp_path / "both.npz", "fid")
    own = f"{len(REAL)} of the {len(REAL)} samples are the reference's own images, pixel by pixel, among its first"
    assert any(w.startswith(own) for w in found["warnings"])
    np.savez_compressed(tmp_path / "again.npz", arr_0=REAL[::-1])
    found = told(tmp_path, tmp_path / "again.npz", tmp_path / "both.npz", "fid")
    assert any(w.startswith(own) for w in found["warnings"])
    found = told(tmp_path, FAKE[:, ::2, ::2], tmp_path / "both.npz", "fid")
    assert found["sizes"] == {"samples": [16, 16], "reference": [32, 32]}
    assert any("16 x 16 pixels and the reference's images 32 x 32" in w for w in found["warnings"])


def test_sizes_are_width_and_height(tmp_path):
    assert told(tmp_path, WIDE, REAL, "fid")["sizes"] == {"samples": [64, 32], "reference": [32, 32]}
    assert told(tmp_path, WIDE, REAL, "is")["sizes"] == {"samples": [64, 32]}  # nobody looks at the reference


def test_the_last_split_of_an_inception_score(tmp_path):
    """It counts like a whole one in the mean over splits."""
    found = told(tmp_path, FAKE, REAL, "is", rules=Rules(split=28))
    assert found["warnings"] == ["is: its last split has 2 samples instead of 28: IS is lower the smaller a split is."]
    assert found["rules"]["is"] == {"splits": 2, "of": 28, "last_of": 2}
    assert told(tmp_path, FAKE, REAL, "is", rules=Rules(split=15))["warnings"] == []


def test_what_few_images_come_to_is_in_the_digest(tmp_path):
    def digest(metrics: str, samples: int, references: int = MANY) -> str:
        return told(tmp_path, FAKE[:samples], REAL[:references], metrics)["digests"]["protocol"]

    assert len({digest("kid", n) for n in (30, 25, 20)}) == 3
    assert digest("kid", 20) == digest("kid", 20, 25)  # the same subsets
    assert digest("kid", 20) != digest("kid", 20, 20)  # 100 of them, and one
    assert len({digest("is", n) for n in (30, 25, 2)}) == 3
    assert digest("is", 20) == digest("is", 20, 25)
    assert digest("fid", 20) == digest("fid", 30)
    assert told(tmp_path, FAKE, REAL, "kid")["rules"]["kid"] == {"subsets": 1, "of": 30}
    assert told(tmp_path, FAKE[:20], REAL, "kid")["rules"]["kid"] == {"subsets": 100, "of": 20}


def test_equal_sets_are_zero(tmp_path):
    """The unbiased KID of equal sets is truly below 0, and stays so."""
    found = told(tmp_path, REAL, REAL, "fid,sfid,kid")
    assert (found["fid"], found["sfid"]) == (0.0, 0.0)
    assert found["kid"] < -1e-9
    black = told(tmp_path, 0 * FAKE, 0 * REAL, "fid,sfid,kid")
    assert (black["fid"], black["sfid"], black["kid"]) == (0.0, 0.0, 0.0)


def test_shards_of_a_version_without_hashes(tmp_path):
    """And a set of which only some shards have them."""
    old = Measured([{FEATURES: torch.zeros(4, 2)}])
    mixed = Measured([{FEATURES: torch.zeros(2, 2)}, {FEATURES: torch.zeros(2, 2), HASH: torch.zeros(2)}])
    new = Measured([{HASH: torch.arange(4), FLAT: torch.zeros(4, dtype=torch.bool)}])
    for fake, real in ((old, mixed), (mixed, old), (old, new), (new, old)):
        assert doubts.of_sets(("fid",), fake, real, rebuilt=False) == []


def test_originals_are_hashed_beside_their_images():
    images = torch.from_numpy(pictures(0, 3)).permute(0, 3, 1, 2)
    rows = rows_about(torch.cat((images, images[[0, 2, 1]]), 1))
    assert rows["hash"].tolist() != rows["hash_of_original"].tolist()
    assert sorted(rows["hash"].tolist()) == sorted(rows["hash_of_original"].tolist())
    assert rows["hash"].tolist() == rows_about(images)["hash"].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features", "logits"])
def test_a_network_that_gives_no_numbers_is_named(tmp_path, name, value):
    class Damaged(Toy):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            out = super().__call__(images)
            out[name][2] = value
            return out

    np.savez(tmp_path / "fake.npz", arr_0=FAKE)
    job = score_images.Job(network=Damaged(), features="inception", wanted=("is",), cache=tmp_path, batch=10)
    with pytest.raises(UserError, match=f"{name} of image 2 is not a number"):
        job.measure(open_samples(tmp_path / "fake.npz", flag="--samples"), "samples")
    shards = Shards(tmp_path / "shards", 2048)
    with pytest.raises(UserError, match="x of image 1029 is not a number"):
        shards.save(range(1024, 2048), {"x": torch.where(torch.arange(1024) == 5, value, 0.0)}, {})
