"""`score --samples` against torch-fidelity on a random Inception of the real format, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT

from harness import inception, scoring
from harness.samples import FolderImages, NpzImages, open_samples
from harness.suites import stand_ins
from recipes.core.errors import UserError

CPU = torch.device("cpu")


def pictures(seed: int, count: int, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(PIL.Image.fromarray(c).resize((side, side), PIL.Image.BICUBIC)) for c in coarse])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights.pth, real.npz (24 images), fake.npz (20), and fake/ with the same as PNGs."""
    root = tmp_path_factory.mktemp("score")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stand_ins.write_inception(root).rename(root / "weights.pth")
    np.savez(root / "real.npz", arr_0=pictures(0, 24))
    np.savez(root / "fake.npz", arr_0=pictures(1, 20))
    (root / "fake").mkdir()
    for k, image in enumerate(pictures(1, 20)):
        PIL.Image.fromarray(image).save(root / "fake" / f"{k:06d}.png")
    return root


@pytest.fixture(scope="module")
def network(place: Path) -> inception.Inception:
    return inception.load(place / "weights.pth", CPU)


@pytest.fixture(scope="module")
def found(place: Path, network: inception.Inception) -> dict:
    return scoring.score(place / "fake.npz", place / "real.npz", network, "w", scoring.METRICS)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, path: Path) -> None:
        self.images = np.load(path)["arr_0"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_torch_fidelity(place, found):
    from torch_fidelity import calculate_metrics

    theirs = calculate_metrics(
        input1=Pictures(place / "fake.npz"),
        input2=Pictures(place / "real.npz"),
        fid=True, isc=True, prc=True,
        cuda=False, batch_size=8, samples_shuffle=False, isc_splits=1, cache=False, verbose=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(place / "weights.pth"),
    )  # fmt: skip
    # 20 images leave 2,000 eigenvalues of torch-fidelity's product that are rounding; features that span their space
    # agree to 1e-8 (test_metrics.py).
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert found["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_the_result_says_what_it_is_of(found):
    assert set(scoring.METRICS) <= set(found)
    assert (found["n_fake"], found["n_real"], found["protocol"]) == (20, 24, "adm-files@1")
    assert all(len(v) == 64 for k, v in found["digests"].items() if k != "weights")
    assert "20 samples are fewer than the 2,048 features" in found["warnings"][0]


def test_the_spatial_layer_and_its_order(place, network):
    """An independent hook on the branch itself, and the flattening written as loops."""
    kept = []
    handle = network.network.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, o: kept.append(o))
    images = next(NpzImages(place / "fake.npz").batches(2))
    spatial = network(images).spatial
    handle.remove()
    branch = kept[0]
    assert branch.shape[1:] == (192, 17, 17)
    assert float(branch.min()) >= 0  # after the ReLU
    by_hand = [branch[1, c, h, w] for h in range(17) for w in range(17) for c in range(7)]
    assert torch.equal(spatial[1], torch.stack(by_hand))
    assert spatial.shape == (2, 2023)


@pytest.mark.parametrize("batch", [1, 7])
def test_batches_decide_nothing(place, network, found, batch):
    again = scoring.score(
        place / "fake.npz", place / "real.npz", network, "w", ("fid", "sfid", "is", "precision"), batch=batch
    )
    for name in ("fid", "sfid", "is", "precision"):
        assert again[name] == pytest.approx(found[name], rel=1e-5)


def test_a_folder_is_its_npz(place, network, found):
    again = scoring.score(place / "fake", place / "real.npz", network, "w", ("fid",))
    assert again["fid"] == found["fid"]
    assert again["digests"]["samples"] != found["digests"]["samples"]


def test_statistics_stand_for_images(place, network, found, tmp_path):
    """mu, sigma, mu_s, sigma_s of a reference give what its images give, and are enough for FID, sFID and IS."""
    with_images = scoring.open_reference(place / "real.npz", network, ("fid",), tmp_path, lambda done: None)
    assert with_images.moments is not None
    assert with_images.spatial is not None
    statistics = tmp_path / "statistics.npz"
    np.savez(
        statistics,
        mu=with_images.moments.mean,
        sigma=with_images.moments.covariance,
        mu_s=with_images.spatial.mean,
        sigma_s=with_images.spatial.covariance,
    )
    again = scoring.score(place / "fake.npz", statistics, network, "w", ("fid", "sfid", "is"))
    for name in ("fid", "sfid", "is"):
        assert again[name] == pytest.approx(found[name], rel=1e-9)
    assert again["n_real"] is None
    with pytest.raises(UserError, match=r"has no images \(arr_0\), which precision, recall need"):
        scoring.score(place / "fake.npz", statistics, network, "w", scoring.DEFAULT_METRICS)


def test_a_set_against_itself_is_zero(place, network):
    same = scoring.score(place / "real.npz", place / "real.npz", network, "w", ("fid", "precision", "recall"))
    assert abs(same["fid"]) < 1e-8
    assert (same["precision"], same["recall"]) == (1.0, 1.0)


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_that_are_wrong_are_sentences(tmp_path):
    images = pictures(0, 2)
    cases = {
        "is float32 of shape": write(tmp_path / "float.npz", arr_0=images.astype(np.float32)),
        r"shape \(N, H, W, 3\)": write(tmp_path / "shape.npz", arr_0=images.transpose(0, 3, 1, 2)),
        "holds no image": write(tmp_path / "none.npz", arr_0=images[:0]),
        "not an .npz with images in arr_0": write(tmp_path / "other.npz", samples=images),
        "there is no such file": tmp_path / "nowhere.npz",
    }
    for sentence, path in cases.items():
        with pytest.raises(UserError, match=sentence):
            open_samples(path, flag="--samples")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        open_samples(tmp_path / "empty", flag="--samples")


def test_folders_that_are_wrong(tmp_path):
    for name, side in (("a.png", 8), ("b.png", 9)):
        PIL.Image.fromarray(pictures(0, 1, side)[0]).save(tmp_path / name)
    with pytest.raises(UserError, match=r"b\.png is 9 x 9 pixels and the first image 8 x 8"):
        list(FolderImages(tmp_path).batches(4))
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b\.png cannot be decoded"):
        list(FolderImages(tmp_path).batches(4))
    (tmp_path / "b.png").unlink()
    PIL.Image.fromarray(pictures(0, 1, 8)[0]).save(tmp_path / "b.jpg")
    assert "1 of 2 images" in FolderImages(tmp_path).warnings[0]
    assert "JPEGs: compression changes FID" in FolderImages(tmp_path).warnings[0]


def test_an_npz_cut_short_is_named(tmp_path):
    path = write(tmp_path / "whole.npz", arr_0=pictures(0, 20))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"whole\.npz"):
        list(open_samples(path, flag="--samples").batches(4))


def test_statistics_of_objects_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(2))
    with pytest.raises(UserError, match="cannot be read as an"):
        scoring.read_statistics(path)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold Inception-2015"):
        inception.load(tmp_path / "other.pth", CPU)


def test_metrics_are_named():
    assert scoring.parse_metrics("fid, is,fid") == ("fid", "is")
    assert scoring.parse_metrics(None) == scoring.DEFAULT_METRICS
    with pytest.raises(UserError, match=r"no metric 'fidd'\. Did you mean 'fid'\?"):
        scoring.parse_metrics("fidd")


def test_the_command(place):
    """Its form is fixed: one JSON object."""
    import json
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "score",
        "--samples",
        place / "fake",
        "--reference",
        place / "real.npz",
    ]
    out = place / "result.json"
    done = subprocess.run(
        [*command, "--weights", place / "weights.pth", "--metrics", "fid,precision", "--out", out, "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert json.loads(out.read_text()) == told
    assert {"fid", "precision", "n_fake", "n_real", "protocol", "digests", "warnings"} == set(told)
    alone = subprocess.run(command[:-2], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 2
    assert "--samples and --reference go together" in alone.stderr
