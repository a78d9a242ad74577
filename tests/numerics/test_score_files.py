"""`score --samples` against torch-fidelity and clean-fid on a random Inception of the real format, and wrong files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import warm
from conftest import ROOT
from tests_support import Toy, pictures, write_sets

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.assets.tokenizers import open_tokenizer
from harness.checks import adm_evaluator, crosscheck
from harness.cli.commands_score import _tell
from harness.features import inception
from harness.features import inception as features_inception
from harness.features.base import CLEAN, FEATURES, LOGITS, SPATIAL, FeatureNetworks
from harness.features.inception import CleanInception
from harness.metrics import adm_reference, evaluate
from harness.metrics.floor import frechet_floor
from harness.metrics.frechet import Moments, frechet_distance
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kid
from harness.runtime.progress import Reporter
from harness.scoring import feature_shards, score_images
from harness.scoring.array_files import NpzImages
from harness.scoring.image_files import write_npz
from harness.scoring.image_sets import FolderImages, batches, open_samples
from harness.scoring.paired_images import Beside, Paired, Reconstructed, on_uint8_images
from recipes.core.errors import UserError
from recipes.models.autoencoder import Autoencoder, to_signed
from recipes.released.autoencoder import save_autoencoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights.pth, real.npz (24 images), fake.npz (20), and real/ and fake/ with the same as PNGs."""
    root = tmp_path_factory.mktemp("score")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features_inception.write_inception(root).rename(root / "weights.pth")
    return write_sets(root, real=pictures(0, 24), fake=pictures(1, 20))


@pytest.fixture(scope="module")
def network(place: Path) -> inception.Inception:
    return inception.load(place / "weights.pth", CPU)


def make_job(place: Path, network, wanted, **changes) -> score_images.Job:
    return score_images.Job(
        network=network,
        features="inception",
        wanted=tuple(wanted),
        cache=changes.pop("cache", place / "cache"),
        **changes,
    )


def score(place: Path, network, wanted, *, samples="fake.npz", reference="real.npz", **changes) -> dict:
    job = make_job(place, network, wanted, **changes)
    found = score_images.score(open_samples(place / samples, flag="--samples"), place / reference, job)
    assert found is not None
    return found


SETS = ("real", "fake")
SINGLE = ("fid", "sfid", "is", "precision", "recall", "f_score", "density", "coverage", "kid")


@pytest.fixture(scope="module")
def toy(place: Path) -> dict:
    """What the toy network measures."""
    return score(place, Toy(), SINGLE, cache=place / "toy-cache")


@pytest.fixture(scope="module")
def found(place: Path, network: inception.Inception) -> dict:
    return score(place, network, SINGLE)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, path: Path) -> None:
        self.images = np.load(path)["arr_0"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


def fidelity(place: Path, **what) -> dict:
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=Pictures(place / "fake.npz"),
        input2=Pictures(place / "real.npz"),
        cuda=False, batch_size=8, samples_shuffle=False, isc_splits=1, cache=False, verbose=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(place / "weights.pth"),
        **what,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_equal_to_torch_fidelity(place, found):
    theirs = fidelity(place, fid=True, isc=True, prc=True)
    # 20 images leave 2,000 eigenvalues of torch-fidelity's product that are rounding; see the next test.
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert found["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_fid_of_features_that_the_samples_span(place, network):
    """The network's first 12 of 2,048 features, of 20 and 24 images: all three libraries agree to 1e-6."""
    from cleanfid.fid import fid_from_feats
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, fake = (
        torch.cat([network(b)[FEATURES] for b in batches(NpzImages(place / f"{n}.npz"), 8)])[:, :12].double()
        for n in ("real", "fake")
    )
    ours = frechet_distance(real=Moments.of(real), fake=Moments.of(fake))
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (fake, real)), verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours == pytest.approx(float(fid_from_feats(fake.numpy(), real.numpy())), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_clean_fid_is_its_librarys(place, network):
    from cleanfid.fid import get_folder_features

    ours = CleanInception(network)(next(batches(NpzImages(place / "fake.npz"), 20)))[FEATURES]
    theirs = get_folder_features(
        str(place / "fake"), network.pool, num_workers=0, batch_size=8, device=CPU, mode="clean", verbose=False
    )
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)


def test_the_network_without_its_resize(network):
    """`pool` runs the layers one by one: on images of 299 pixels, where the resize does nothing, it is the network."""
    images = torch.from_numpy(pictures(3, 2, 299)).permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(network.pool(images.float()), network(images)[FEATURES], rtol=1e-6, atol=1e-6)


def test_clean_fid_is_another_number_in_the_same_pass(place, network, found):
    both = FeatureNetworks(network, {CLEAN: CleanInception(network)})
    again = score(place, both, ("fid", "clean_fid"))
    assert again["fid"] == pytest.approx(found["fid"], rel=1e-9)
    assert abs(again["clean_fid"] / again["fid"] - 1) > 1e-3
    assert again["digests"]["protocol"] != found["digests"]["protocol"]


def test_the_result_says_what_it_is_of(found):
    assert set(SINGLE) <= set(found)
    assert (found["n_fake"], found["n_real"], found["protocol"]) == (20, 24, "adm-files@2")
    assert all(len(v) == 64 for v in found["digests"].values())
    assert "20 samples are fewer than the 2,048 features" in found["warnings"][0]


def test_the_spatial_layer_and_its_order(place, network):
    """An independent hook on the branch itself, and the flattening written as loops."""
    kept = []
    handle = network.network.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, o: kept.append(o))
    spatial = network(NpzImages(place / "fake.npz").read(0, 2))[SPATIAL]
    handle.remove()
    branch = kept[0]
    assert branch.shape[1:] == (192, 17, 17)
    assert float(branch.min()) >= 0  # after the ReLU
    by_hand = [branch[1, c, h, w] for h in range(17) for w in range(17) for c in range(7)]
    assert torch.equal(spatial[1], torch.stack(by_hand))
    assert spatial.shape == (2, 2023)


def test_sfid_is_the_frechet_distance_of_that_layer(place, network, found):
    real, fake = (
        torch.cat([network(b)[SPATIAL] for b in batches(NpzImages(place / f"{n}.npz"), 8)]) for n in ("real", "fake")
    )
    assert found["sfid"] == pytest.approx(frechet_distance(real=Moments.of(real), fake=Moments.of(fake)), rel=1e-5)


def test_batches_decide_nothing(place, network, found, toy, tmp_path):
    """The fixtures take 64 at once."""
    again = score(place, network, SINGLE, batch=7, cache=tmp_path)
    by_one = score(place, Toy(), SINGLE, batch=1, cache=tmp_path)
    for name in SINGLE:
        assert again[name] == pytest.approx(found[name], rel=1e-5)
        assert by_one[name] == pytest.approx(toy[name], rel=1e-5)
    assert again["digests"] == found["digests"]


def test_a_folder_is_its_npz(place, toy, tmp_path):
    again = score(place, Toy(), ("fid",), samples="fake", reference="real", cache=tmp_path)
    assert again["fid"] == toy["fid"]
    assert again["digests"]["samples"] == toy["digests"]["samples"]  # of the pixels, in whatever file


def test_an_interrupted_pass_goes_on(place, toy, tmp_path, monkeypatch):
    """Shards of 6 images: the first call dies in the samples' first; the second looks only at what is missing."""
    monkeypatch.setattr(feature_shards, "SHARD", 6)

    class Dies(Toy):
        def __call__(self, images: torch.Tensor) -> dict:
            if self.looked == 27:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        score(place, Dies(), SINGLE, batch=3, cache=tmp_path)
    assert len(list(tmp_path.glob("measured-*/0*"))) == 4  # the reference's
    network = Toy()
    again = score(place, network, SINGLE, batch=3, cache=tmp_path)
    assert network.looked == 20
    for name in SINGLE:
        assert again[name] == pytest.approx(toy[name], rel=1e-5)
    # The reference is kept for the next set, the samples' shards are gone.
    assert len(list(tmp_path.glob("measured-*/0*"))) == 4


def test_a_shard_that_changed_is_measured_again(place, tmp_path):
    first = score(place, Toy(), ("fid",), cache=tmp_path)
    (file,) = tmp_path.glob("measured-*/0*/outputs.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    again = score(place, Toy(), ("fid",), cache=tmp_path)
    assert again["fid"] == first["fid"]
    assert again["digests"] == first["digests"]


def test_a_set_that_changed_is_measured_again(place, tmp_path):
    told = []
    for seed in (5, 6):
        np.savez(tmp_path / "a.npz", arr_0=pictures(seed, 8))
        told.append(score(tmp_path, Toy(), ("fid",), samples="a.npz", reference=place / "real.npz", cache=tmp_path))
    assert told[0]["digests"]["samples"] != told[1]["digests"]["samples"]
    assert told[0]["fid"] != told[1]["fid"]


def test_two_processes_are_one(place, toy, tmp_path):
    """Shards of 3 images shared by two processes of torchrun."""
    worker = Path(__file__).parent / "score_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(worker), str(place), str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["looked"] == [11, 9]  # images of the samples: shards 0, 2, 4, 6 and 1, 3, 5
    for name in SINGLE:
        assert told["found"][name] == pytest.approx(toy[name], rel=1e-5)


def with_statistics(place: Path, path: Path, **more) -> Path:
    _, real = make_job(place, Toy(), ("fid",)).measure(open_samples(place / "real.npz", flag="--reference"), "real")
    arrays = {}
    for output, (mean, covariance) in adm_reference.STATISTICS.items():
        moments = real.moments(output)
        arrays |= {mean: moments.mean, covariance: moments.covariance}
    np.savez(path, **arrays, **more)
    return path


def test_statistics_stand_for_images(place, toy, tmp_path):
    """mu, sigma, mu_s, sigma_s of a reference give what its images give, and are enough for FID, sFID and IS."""
    statistics = with_statistics(place, tmp_path / "statistics.npz")
    again = score(place, Toy(), ("fid", "sfid", "is"), reference=statistics)
    for name in ("fid", "sfid", "is"):
        assert again[name] == pytest.approx(toy[name], rel=1e-9)
    assert again["n_real"] is None
    with pytest.raises(UserError, match=r"has no images \(arr_0\), which precision, recall need"):
        score(place, Toy(), evaluate.DEFAULT, reference=statistics)


def test_the_parts_of_fid_and_a_covariance_that_is_none(place, toy, tmp_path):
    parts = toy["frechet"]["fid"]
    assert parts["mean_term"] + parts["trace_term"] == pytest.approx(toy["fid"], rel=1e-9)
    assert parts["negative_mass"] < 1e-9
    good = with_statistics(place, tmp_path / "good.npz")
    with np.load(good) as file:
        held = dict(file)
    np.savez(tmp_path / "bad.npz", **held | {"sigma": held["sigma"] - 0.01 * np.trace(held["sigma"]) * np.eye(12)})
    told = score(place, Toy(), ("fid",), reference=tmp_path / "bad.npz")
    assert any("of the eigenvalues' mass is negative" in warning for warning in told["warnings"])


def test_an_adm_reference_has_both(place, toy, tmp_path):
    """FID from its statistics, precision and recall from its images; other networks see its images alone."""
    both = with_statistics(place, tmp_path / "adm.npz", arr_0=np.load(place / "real.npz")["arr_0"][:10])
    again = score(place, Toy(), ("fid", "precision", "recall"), reference=both)
    assert again["fid"] == pytest.approx(toy["fid"], rel=1e-9)
    assert again["n_real"] is None
    told = score(place, FeatureNetworks(Toy(), {CLEAN: Toy()}), ("fid", "clean_fid"), reference=both)
    assert told["fid"] == pytest.approx(toy["fid"], rel=1e-9)
    assert told["clean_fid"] != pytest.approx(told["fid"], rel=1e-3)  # against 10 images, not 24
    assert any("clean_fid is against the 10 images in adm.npz" in warning for warning in told["warnings"])


def test_statistics_that_are_none_are_refused(tmp_path):
    cases = {
        "cannot be read as an": {"mu": np.array([{}], dtype=object), "sigma": np.eye(2)},
        r"mu \(3,\) and sigma \(2, 2\) are not a finite mean": {"mu": np.zeros(3), "sigma": np.eye(2)},
        "are not a finite mean": {"mu": np.array([0, np.nan]), "sigma": np.eye(2)},
    }
    for sentence, arrays in cases.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(UserError, match=sentence):
            adm_reference.read_adm_reference(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="cannot be read as an"):
        adm_reference.read_adm_reference(tmp_path / "absent.npz")


def test_statistics_of_another_network_are_refused(place, tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(UserError, match="statistics are of 64 features and the network gives 12"):
        score(place, Toy(), ("fid",), reference=tmp_path / "other.npz")


def test_a_reference_without_statistics_or_images(place, tmp_path):
    np.savez(tmp_path / "empty.npz", other=np.zeros(3))
    with pytest.raises(UserError, match=r"holds neither statistics \(mu, sigma\) nor images \(arr_0\)"):
        score(place, Toy(), ("fid",), reference=tmp_path / "empty.npz")


def test_a_set_against_itself_is_zero(place, network):
    same = score(place, network, ("fid", "sfid", "precision", "recall"), samples="real.npz")
    assert abs(same["fid"]) < 1e-8
    assert abs(same["sfid"]) < 1e-8
    assert (same["precision"], same["recall"]) == (1.0, 1.0)


def test_a_collapsed_set_is_precise_and_recalls_nothing_and_a_wild_one_the_reverse(place, network, tmp_path):
    """Slight changes of one reference image; then images of noise of all strengths around all reference images."""
    rng = np.random.default_rng(0)
    real = np.load(place / "real.npz")["arr_0"].astype(int)
    one = real[[0] * 20] + rng.integers(-1, 2, (20, 32, 32, 3))
    np.savez(tmp_path / "collapsed.npz", arr_0=one.clip(0, 255).astype(np.uint8))
    strength = np.linspace(0, 250, 20)[:, None, None, None]
    wild = real[:20] + strength * rng.normal(size=(20, 32, 32, 3))
    np.savez(tmp_path / "wild.npz", arr_0=wild.clip(0, 255).astype(np.uint8))
    collapsed, spread = (
        score(place, network, ("precision", "recall"), samples=tmp_path / f"{name}.npz")
        for name in ("collapsed", "wild")
    )
    assert collapsed["precision"] > 0.9
    assert collapsed["recall"] < 0.1
    assert spread["precision"] < 0.5
    assert spread["recall"] > 0.9


# --- image by image ---------------------------------------------------------------------------------------------------


def test_pairs_of_images(place, tmp_path):
    """PSNR and SSIM against another computation; a set against itself."""
    from scipy.ndimage import correlate1d

    a, b = pictures(1, 20), (pictures(1, 20).astype(int) + np.random.default_rng(0).integers(-20, 20)).clip(0, 255)
    np.savez(tmp_path / "a.npz", arr_0=a)
    np.savez(tmp_path / "b.npz", arr_0=b.astype(np.uint8))
    told = score(place, Toy(), ("psnr", "ssim"), samples=tmp_path / "a.npz", reference=tmp_path / "b.npz")
    assert told["psnr"] == pytest.approx(
        np.mean([10 * np.log10(255**2 / np.mean((x.astype(float) - y) ** 2)) for x, y in zip(a, b, strict=True)])
    )
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def blur(x):
        return correlate1d(correlate1d(x, window, axis=0, mode="mirror"), window, axis=1, mode="mirror")

    values = []
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        for c in range(3):
            u, v = x[..., c], y[..., c]
            mu, mv = blur(u), blur(v)
            su, sv, suv = blur(u * u) - mu**2, blur(v * v) - mv**2, blur(u * v) - mu * mv
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(((2 * mu * mv + c1) * (2 * suv + c2) / ((mu**2 + mv**2 + c1) * (su + sv + c2))).mean())
    assert told["ssim"] == pytest.approx(np.mean(values), rel=1e-5)
    same = score(place, Toy(), ("psnr", "ssim", "fid"), samples="real.npz")
    assert same["ssim"] == pytest.approx(1)
    assert same["psnr"] > 100
    assert same["digests"]["samples"] == score(place, Toy(), ("fid",), samples="real.npz")["digests"]["samples"]


def test_pairs_that_do_not_fit_are_sentences(place, tmp_path):
    with pytest.raises(UserError, match="there are 20 samples and 24 reference images"):
        score(place, Toy(), ("psnr",))
    np.savez(tmp_path / "small.npz", arr_0=pictures(1, 24, 16))
    with pytest.raises(UserError, match="the samples are 16 x 16 pixels, the reference 32 x 32"):
        score(place, Toy(), ("psnr",), samples=tmp_path / "small.npz")
    with pytest.raises(ValueError, match="lpips needs a network"):
        Paired(network, ["lpips"])


def test_a_tokenizer_is_measured_by_what_it_reconstructs(place, tmp_path):
    from builders import TOKENIZER, MeanSquares

    torch.manual_seed(0)
    tokenizer = Autoencoder(TOKENIZER).eval()
    originals = NpzImages(place / "real.npz")
    mean_squares = on_uint8_images(lambda a, b: MeanSquares()(a, b).expand(len(a)), CPU)
    job = make_job(place, Toy(), score_images.OF_A_TOKENIZER, lpips=mean_squares, batch=24)
    told = score_images.score_tokenizer(place / "real.npz", tokenizer, "t", job)
    assert {"rfid", "psnr", "ssim", "lpips"} <= set(told)
    assert not {"fid", "fid_floor"} & set(told)
    with torch.no_grad():
        images = to_signed(originals.read(0, 24), next(tokenizer.parameters()))
        rebuilt = ((tokenizer.decode(tokenizer.encode(images).mean).clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    write_npz(tmp_path / "rebuilt.npz", iter([rebuilt]), 24)
    by_hand = score(place, Toy(), ("fid", "psnr", "ssim"), samples=tmp_path / "rebuilt.npz")
    assert told["rfid"] == pytest.approx(by_hand["fid"], rel=1e-6)
    assert (told["psnr"], told["ssim"]) == pytest.approx((by_hand["psnr"], by_hand["ssim"]), rel=1e-6)
    squares = (2 * rebuilt.float() / 255 - 2 * originals.read(0, 24).float() / 255).square().mean()
    assert told["lpips"] == pytest.approx(float(squares), rel=1e-5)
    np.savez(tmp_path / "odd.npz", arr_0=pictures(0, 4, 30))
    with pytest.raises(UserError, match="wants sides that 4 divides"):
        Reconstructed(NpzImages(tmp_path / "odd.npz"), tokenizer, "t")


def test_an_image_and_its_original_are_read_together(place):
    beside = Beside(NpzImages(place / "fake.npz"), FolderImages(place / "fake"))
    both = beside.read(3, 9)
    assert both.shape == (6, 6, 32, 32)
    assert torch.equal(both[:, :3], both[:, 3:])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_read_in_any_order(tmp_path, compressed):
    images = pictures(0, 30, 8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", arr_0=images, other=np.zeros(4))
    found = NpzImages(tmp_path / "x.npz")
    for start, stop in ((20, 30), (0, 5), (5, 9), (3, 4), (0, 30)):
        assert torch.equal(found.read(start, stop), torch.from_numpy(images[start:stop]).permute(0, 3, 1, 2))


def test_written_samples_are_adms_form(tmp_path):
    images = torch.from_numpy(pictures(0, 10, 8)).permute(0, 3, 1, 2)
    labels = torch.arange(10)
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", iter(images.split(4)), 10, labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert file["labels"].tolist() == [*range(10)]
    with pytest.raises(ValueError, match=r"10 images for an \.npz of 11"):
        write_npz(tmp_path / "c.npz", iter(images.split(4)), 11)
    assert not list(tmp_path.glob("c.*"))


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_that_are_wrong_are_sentences(tmp_path):
    images = pictures(0, 2)
    with_nan = images.astype(np.float32)
    with_nan[0, 0, 0, 0] = np.nan
    cases = {
        "is float32 of shape": write(tmp_path / "float.npz", arr_0=with_nan),
        r"shape \(N, H, W, 3\)": write(tmp_path / "shape.npz", arr_0=images.transpose(0, 3, 1, 2)),
        "holds no image": write(tmp_path / "none.npz", arr_0=images[:0]),
        r"no images .* in arr_0: mu is float64 of shape": write(
            tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3)
        ),
        "there is no such file": tmp_path / "nowhere.npz",
    }
    for sentence, path in cases.items():
        with pytest.raises(UserError, match=sentence):
            open_samples(path, flag="--samples")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        open_samples(tmp_path / "empty", flag="--samples")


def test_too_few_images_are_sentences(place, tmp_path):
    np.savez(tmp_path / "one.npz", arr_0=pictures(0, 1))
    np.savez(tmp_path / "three.npz", arr_0=pictures(0, 3))
    with pytest.raises(UserError, match="one image has no covariance"):
        score(place, Toy(), ("fid",), samples=tmp_path / "one.npz")
    with pytest.raises(UserError, match="one image has no covariance"):
        score(place, Toy(), ("fid",), reference=tmp_path / "one.npz")
    with pytest.raises(
        UserError, match=r"precision look at the 3 nearest neighbours: give more than 3 samples .*3 and 24"
    ):
        score(place, Toy(), ("precision",), samples=tmp_path / "three.npz")


def test_folders_that_are_wrong(tmp_path):
    for name, side in (("a.png", 8), ("b.png", 9)):
        PIL.Image.fromarray(pictures(0, 1, side)[0]).save(tmp_path / name)
    with pytest.raises(UserError, match=r"b\.png is 9 x 9 pixels and the first image 8 x 8"):
        list(batches(FolderImages(tmp_path), 4))
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b\.png cannot be decoded"):
        list(batches(FolderImages(tmp_path), 4))
    (tmp_path / "b.png").unlink()
    PIL.Image.fromarray(pictures(0, 1, 8)[0]).save(tmp_path / "b.jpg")
    assert "1 of 2 images" in FolderImages(tmp_path).warnings[0]
    assert "JPEGs, WebPs or GIFs: compression changes FID" in FolderImages(tmp_path).warnings[0]


def test_an_npz_cut_short_is_named(tmp_path):
    path = write(tmp_path / "whole.npz", arr_0=pictures(0, 20))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"whole\.npz"):
        list(batches(open_samples(path, flag="--samples"), 4))


def test_an_npz_with_a_flipped_bit_is_named(tmp_path):
    path = write(tmp_path / "whole.npz", arr_0=pictures(0, 20))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"whole\.npz cannot be read to its end .*damaged or cut short"):
        list(batches(open_samples(path, flag="--samples"), 4))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold Inception-2015"):
        inception.load(tmp_path / "other.pth", CPU)


def test_metrics_are_named(place):
    assert evaluate.parse("fid, is,fid,clean-fid") == ("fid", "is", "clean_fid")
    assert evaluate.parse(None) == evaluate.DEFAULT
    with pytest.raises(UserError, match=r"no metric 'fidd'\. Did you mean 'fid'\?"):
        evaluate.parse("fidd")
    with pytest.raises(UserError, match="--metrics names none"):
        evaluate.parse(" ,")
    with pytest.raises(UserError, match="is of Inception; with --features dinov2-vit-b ask for fd"):
        score_images.Job(network=Toy(), features="dinov2-vit-b", wanted=("fid",), cache=place)
    with pytest.raises(UserError, match="Inception's is called fid"):
        make_job(place, Toy(), ("fd",))


def test_inception_score_needs_no_reference_images(place, toy, tmp_path):
    np.savez(tmp_path / "blank.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    alone = score(place, Toy(), ("is",), reference=tmp_path / "blank.npz", cache=tmp_path)
    assert alone["is"] == pytest.approx(toy["is"], rel=1e-12)
    logits = torch.cat([Toy()(b)[LOGITS] for b in batches(NpzImages(place / "fake.npz"), 64)])
    assert (alone["is"], alone["is_se"]) == pytest.approx(inception_score(logits), rel=1e-9)


def test_every_number_has_its_error_or_its_floor(place, toy, capsys):
    """Beside the keys that were there."""
    keys = [name for name in toy if isinstance(toy[name], float)]
    assert keys == [*SINGLE[:3], "is_se", *SINGLE[3:], "kid_se", "fid_floor", "sfid_floor"]
    real, fake = (torch.cat([Toy()(b)[FEATURES] for b in batches(NpzImages(place / f"{n}.npz"), 64)]) for n in SETS)
    assert toy["fid_floor"] == pytest.approx(frechet_floor(Moments.of(real), 20), rel=1e-9)
    assert toy["kid_se"] == pytest.approx(kid(real=real, fake=fake, subset_size=20).se, rel=1e-9)
    assert toy["is_se"] > 0
    _tell(SimpleNamespace(out=None, as_json=False), toy)
    lines = capsys.readouterr().out.splitlines()
    assert f"fid          {toy['fid']:.6g}   floor {toy['fid_floor']:.4g}" in lines
    assert f"is           {toy['is']:.6g} ± {toy['is_se']:.2g}" in lines
    assert f"recall       {toy['recall']:.6g}" in lines
    assert "±: standard error; floor: of as many perfect samples, were features Gaussian" in lines


# --- the command ------------------------------------------------------------------------------------------------------


def command(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.repa_bench("score", *arguments, environment={"REPA_BENCH_CACHE": str(place / "cli-cache")})


ADM = """
import sys
import numpy as np
print("warming up TensorFlow...")
reference, samples = (np.load(path) for path in sys.argv[1:])
assert samples["arr_0"].shape == (20, 32, 32, 3), samples["arr_0"].shape
print("Computing evaluations...")
print("Inception Score: 1.25")
print("FID:", float(reference["arr_0"].shape[0]))
print("sFID: 6.140433703346162")
print("Precision: 0.8265")
print("Recall: 0.5309")
"""
PRINTED = {"is": 1.25, "fid": 24.0, "sfid": 6.140433703346162, "precision": 0.8265, "recall": 0.5309}


def test_the_command(place, tmp_path):
    """Its form is fixed: one JSON object. With ADM's evaluator, its numbers stand beside ours."""
    both = ("--samples", place / "fake", "--reference", place / "real.npz", "--weights", place / "weights.pth")
    out, evaluator = tmp_path / "result.json", tmp_path / "evaluator.py"
    evaluator.write_text(ADM)
    done = command(place, *both, "--metrics", "fid,precision", "--out", out, "--json", "--adm-evaluator", evaluator)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert json.loads(out.read_text()) == told
    assert told.pop("adm") == PRINTED
    difference = {"fid": told["fid"] - 24.0, "precision": told["precision"] - 0.8265}
    assert told.pop("adm_difference") == pytest.approx(difference)
    keys = "fid fid_floor precision frechet n_fake n_real sizes protocol rules digests warnings"
    assert set(keys.split()) == set(told)


def test_mistakes_in_the_command(place):
    alone = command(place, "--samples", place / "fake")
    assert alone.returncode == 2
    assert "--samples and --reference go together" in alone.stderr
    missing = command(
        place, "--tokenizer", "sd-vaee", "--reference", place / "real.npz", "--weights", place / "weights.pth"
    )
    assert missing.returncode == 2
    assert "Did you mean 'sd-vae'" in missing.stderr


def test_adms_evaluator(place, tmp_path):
    """A script of its form, as a real process: a folder is handed to it as an .npz, an .npz as it is."""
    evaluator, python = tmp_path / "evaluator.py", Path(sys.executable)
    evaluator.write_text(ADM)
    for samples in (place / "fake", place / "fake.npz"):
        assert adm_evaluator.run_evaluator(python, evaluator, samples, place / "real.npz") == PRINTED
    evaluator.write_text("raise SystemExit('no TensorFlow here')")
    with pytest.raises(UserError, match="failed with code 1 and printed no numbers: no TensorFlow here"):
        adm_evaluator.run_evaluator(python, evaluator, place / "fake", place / "real.npz")
    with pytest.raises(UserError, match=r"nowhere\.py: there is no such file"):
        adm_evaluator.run_evaluator(python, tmp_path / "nowhere.py", place / "fake", place / "real.npz")
    with pytest.raises(UserError, match=r"is no \.npz"):
        adm_evaluator.run_evaluator(python, evaluator, place / "fake", place / "real")
    assert adm_evaluator.parse_printed("FID: 3\nxFID: 2\nInception Score: nan\n")["fid"] == 3


def test_a_tokenizer_by_its_file(place, tmp_path):
    """In the released form."""
    from builders import TOKENIZER

    torch.manual_seed(1)
    vae = Autoencoder(TOKENIZER.model_copy(update={"base_width": 32, "norm_groups": 32, "unshuffle": 1}))
    save_autoencoder(tmp_path, "toy", vae, torch.zeros(4), torch.ones(4))
    found, content = open_tokenizer(Store(tmp_path), str(tmp_path / "toy.pt"))
    assert found.spec == vae.spec
    told = score_images.score_tokenizer(place / "real.npz", found, content, make_job(place, Toy(), ("fid", "psnr")))
    assert told["rfid"] > 0
    assert told["digests"]["tokenizer"] == content
    with pytest.raises(UserError, match="--tokenizer nowhere: there is no such asset, file or folder"):
        open_tokenizer(Store(tmp_path), "nowhere")


# --- doctor --metrics -------------------------------------------------------------------------------------------------


@pytest.mark.soak  # each metric is compared with its library above
def test_the_doctor_compares_three_libraries(place, tmp_path):
    store = Store(tmp_path)
    catalogue.register(store, "inception", place / "weights.pth", published=False)
    checks, said = crosscheck.crosscheck(store, CPU, 20, Reporter(quiet=True))
    assert said.startswith("Inception-2015, SHA-256")
    assert {c.metric for c in checks} >= {"FID", "IS", "precision", "recall", "KID"}
    assert {c.whose for c in checks} == {"torch-fidelity", "clean-fid"}
    assert [c.metric for c in checks if not c.passed] == []


def test_a_check_fails_where_it_should():
    assert crosscheck.Check("FID", 2.0, 2.0 + 1e-7, "x", 1e-6).passed
    assert not crosscheck.Check("FID", 2.0, 2.0 + 1e-5, "x", 1e-6).passed
    assert not crosscheck.Check("FID", float("nan"), 2.0, "x", 1e-6).passed
    assert crosscheck.Check("recall", 0.0, 1e-7, "x", 1e-6, absolute=True).passed


def test_adms_printed_numbers_are_compared(place, tmp_path, monkeypatch):
    """Its own samples are not here: with others, in its form, every number is far off, and said to be."""
    store = Store(tmp_path / "cache")
    monkeypatch.setattr(crosscheck, "load_network", lambda *_: Toy())
    with pytest.raises(UserError, match="asset 'adm-samples' is missing"):
        crosscheck.known_answer(store, CPU, Reporter(quiet=True))
    reference = with_statistics(place, tmp_path / "adm.npz", arr_0=np.load(place / "real.npz")["arr_0"])
    catalogue.register(store, "adm-samples", place / "fake.npz", published=False)
    catalogue.register(store, "adm-reference", reference, published=False)
    checks = {c.metric: c for c in crosscheck.known_answer(store, CPU, Reporter(quiet=True))}
    assert checks["fid"].theirs == pytest.approx(3.9426, abs=1e-4)
    assert not any(c.passed for c in checks.values())
