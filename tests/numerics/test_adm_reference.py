"""Statistics that somebody published: what is no mean and covariance is refused, what is odd is told."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests_support import Toy, pictures

from harness.metrics.adm_reference import is_adm_reference, read_adm_reference
from harness.scoring import score_images
from harness.scoring.image_sets import open_samples
from recipes.core.errors import UserError

DIM = 12
#: Of the size of the toy network's features.
MEAN = 10 + np.random.default_rng(0).normal(size=DIM)
SIGMA = np.cov(np.random.default_rng(1).normal(size=(DIM, 200)) * np.arange(1, DIM + 1)[:, None])


def block(keep: int) -> np.ndarray:
    """Of a covariance of which rows and columns from `keep` on were lost."""
    out = np.zeros_like(SIGMA)
    out[:keep, :keep] = SIGMA[:keep, :keep]
    return out


def lost(rows: int) -> np.ndarray:
    out = SIGMA.copy()
    out[rows:] = 0
    return out


def one(place: tuple[int, int], value: float) -> np.ndarray:
    out = SIGMA.copy()
    out[place] = value
    return out


REFUSED = {
    "upper triangle": (MEAN, np.triu(SIGMA), "not symmetric"),
    "lower triangle": (MEAN, np.tril(SIGMA), "not symmetric"),
    "lost rows": (MEAN, lost(6), "not symmetric"),
    "lost columns": (MEAN, lost(6).T, "not symmetric"),
    "one number changed": (MEAN, one((3, 7), SIGMA[3, 7] + 1e-3), "not symmetric"),
    "rolled rows": (MEAN, np.roll(SIGMA, 1, axis=0), "not symmetric"),
    "factor of Cholesky": (MEAN, np.linalg.cholesky(SIGMA), "not symmetric"),
    "negative definite": (MEAN, -SIGMA, "variances on its diagonal are negative"),
    "one negative variance": (MEAN, one((5, 5), -1.0), "variances on its diagonal are negative"),
    "no diagonal": (MEAN, SIGMA - np.diag(np.diag(SIGMA)), "it has no variance at all"),
    "zero": (MEAN, 0 * SIGMA, "it has no variance at all"),
    "all zero": (0 * MEAN, 0 * SIGMA, "it has no variance at all"),
    "empty": (MEAN[:0], SIGMA[:0, :0], "it has no variance at all"),
    "complex": (MEAN, SIGMA + 0j, "sigma is complex128"),
    "complex mean": (MEAN + 0j, SIGMA, "mu is complex128"),
    "strings": (MEAN.astype(str), SIGMA.astype(str), "mu is <U"),
    "whole numbers": (MEAN, SIGMA.astype(np.int64), "sigma is int64"),
    "booleans": (MEAN, SIGMA > 0, "sigma is bool"),
    "exchanged": (SIGMA, MEAN, "look exchanged"),
    "standard deviations": (MEAN, np.sqrt(np.diag(SIGMA)), "standard deviations or variances are not enough"),
    "mean of one row": (MEAN[None], SIGMA, r"mu \(1, 12\)"),
    "mean of other length": (MEAN[:7], SIGMA, r"mu \(7,\) and sigma \(12, 12\)"),
    "beyond any features": (MEAN, 1e300 * SIGMA, "which no features do"),
    "oblong": (MEAN, SIGMA[:, :7], r"sigma \(12, 7\)"),
    "NaN": (MEAN, one((2, 2), np.nan), "not a finite mean"),
    "overflow of float16": (MEAN, one((2, 2), np.inf).astype(np.float16), "not a finite mean"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_covariance_is_refused(name, tmp_path):
    mean, covariance, sentence = REFUSED[name]
    for names in (("mu", "sigma"), ("mu_s", "sigma_s")):
        np.savez(tmp_path / "bad.npz", **dict(zip(names, (mean, covariance), strict=True)))
        with pytest.raises(UserError, match=r"bad\.npz") as told:
            read_adm_reference(tmp_path / "bad.npz")
        assert re.search(sentence.replace("mu", names[0]).replace("sigma", names[1]), str(told.value))
        assert "again." in str(told.value)


@pytest.mark.parametrize(("shape", "sentence"), [((60_000, 60_000), "8,192 features"), ((12, 12), "has 0 bytes")])
def test_small_files_that_ask_for_much_are_refused(shape, sentence, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        with archive.open("mu.npy", "w") as file:
            np.save(file, MEAN)
        archive.writestr("sigma.npy", head.getvalue())
    with pytest.raises(UserError, match=f"sigma .*{sentence}"):
        read_adm_reference(tmp_path / "bad.npz")


def test_half_a_pair_is_refused(tmp_path):
    """With images too: nobody meant these to stand for the statistics."""
    np.savez(tmp_path / "half.npz", mu=MEAN, arr_0=pictures(0, 4))
    with pytest.raises(UserError, match="holds mu and no sigma"):
        read_adm_reference(tmp_path / "half.npz")


def bfloat16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


ODD = {
    "float16": (SIGMA.astype(np.float16), "sigma was rounded to 16 bits"),
    "float16 in float64": (SIGMA.astype(np.float16).astype(np.float64), "sigma was rounded to 16 bits"),
    "bfloat16 in float32": (bfloat16(SIGMA), "sigma was rounded to 16 bits"),
    "correlations": (SIGMA / np.sqrt(np.outer(np.diag(SIGMA), np.diag(SIGMA))), "every variance of sigma is 1"),
    "a block lost": (block(7), "rank 7 of 12: it is of about 8 images, or parts of it are lost"),
    "of few images": (np.cov(np.random.default_rng(2).normal(size=(DIM, 5))), "rank 4 of 12: it is of about 5 images"),
    "one variance lost": (block(11), "rank 11 of 12"),
    "negative mass": (
        3 * SIGMA - 2 * np.diag(np.diag(SIGMA)) + 5 * (1 - np.eye(DIM)),
        "of the eigenvalues' mass is negative",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_told_beside_the_number(name, tmp_path):
    sigma, sentence = ODD[name]
    np.savez(tmp_path / "odd.npz", mu=MEAN, sigma=sigma)
    found = score(tmp_path, tmp_path / "odd.npz")
    assert found["fid"] > 0
    assert any(sentence in warning for warning in found["warnings"]), found["warnings"]


ODD_MEANS = {
    "centred": (0 * MEAN, ["mu is 0 everywhere"]),
    "turned round": (-MEAN, ["mu is negative in places"]),
    "another network's": (1e10 * MEAN, ["the mean of the features is"]),
}


@pytest.mark.parametrize("name", ODD_MEANS)
def test_odd_means_are_told_beside_the_number(name, tmp_path):
    mean, sentences = ODD_MEANS[name]
    np.savez(tmp_path / "odd.npz", mu=mean, sigma=SIGMA)
    found = score(tmp_path, tmp_path / "odd.npz")
    for sentence in sentences:
        assert any(sentence in warning for warning in found["warnings"]), found["warnings"]


@pytest.mark.parametrize("factor", [1e-5, 1e3])
def test_covariances_of_another_scale_are_told(factor, tmp_path):
    np.savez(tmp_path / "odd.npz", mu=MEAN, sigma=factor * SIGMA)
    found = score(tmp_path, tmp_path / "odd.npz")
    what = "samples" if factor > 1 else "reference"
    assert any(f"the features of the {what} vary by less than 1/100" in w for w in found["warnings"])


@pytest.mark.parametrize("names", [("MU", "SIGMA"), ("mean", "cov"), ("m", "s")])
def test_statistics_under_other_names_are_named(names, tmp_path):
    np.savez(tmp_path / "named.npz", **dict(zip(names, (MEAN, SIGMA), strict=True)))
    with pytest.raises(UserError, match=rf"named\.npz holds .*{names[0]}.*mu, its covariance as sigma"):
        read_adm_reference(tmp_path / "named.npz")


def score(tmp_path: Path, reference: Path) -> dict:
    np.savez(tmp_path / "samples.npz", arr_0=pictures(0, 40))
    job = score_images.Job(network=Toy(), features="inception", wanted=("fid",), cache=tmp_path)
    found = score_images.score(open_samples(tmp_path / "samples.npz", flag="--samples"), reference, job)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_what_is_one_passes_without_a_word(dtype, tmp_path):
    """Somebody's float32 is symmetric to its own rounding: then the mean of both triangles counts."""
    uneven = SIGMA.astype(dtype)
    uneven[0, 1] *= 1 + 1e-7
    np.savez(tmp_path / "good.npz", mu=MEAN.astype(dtype), sigma=uneven)
    held = read_adm_reference(tmp_path / "good.npz")
    (moments,) = held.moments.values()
    np.testing.assert_allclose(moments.covariance, SIGMA, rtol=1e-6)
    assert (moments.covariance == moments.covariance.T).all()
    assert score(tmp_path, tmp_path / "good.npz")["warnings"] == []


def test_a_reference_is_known_by_its_name_or_by_what_it_holds(tmp_path):
    np.savez(tmp_path / "x.npz", mu=MEAN, sigma=SIGMA)
    for name in ("x.NPZ", "statistics", "fid.stats"):
        (tmp_path / name).write_bytes((tmp_path / "x.npz").read_bytes())
        assert score(tmp_path, tmp_path / name)["fid"] == score(tmp_path, tmp_path / "x.npz")["fid"]
    np.savez(tmp_path / "y.npz", other=MEAN)
    for name in ("y.zip", "y"):
        (tmp_path / name).write_bytes((tmp_path / "y.npz").read_bytes())
    (tmp_path / "text").write_text("mu")
    others = (tmp_path, *(tmp_path / name for name in ("y.zip", "y", "text", "nowhere.npz")))
    assert not any(map(is_adm_reference, others))
