"""What is used is what was registered or cached: files that were changed in place are seen, whatever they look like."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import imagenet_tree as tree
import pytest
import torch

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.assets.tokenizers import open_tokenizer
from harness.preparation.image_store import prepare_images
from recipes.core import content
from recipes.core.errors import UserError
from recipes.data.images import open_images
from recipes.data.latents import LatentStore, finish_latents, write_latents


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPA_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settled(monkeypatch) -> Callable[[], None]:
    """Afterwards hashes are remembered as if the files had lain there for long."""

    def later() -> None:
        monkeypatch.setattr(content, "SETTLED_NS", -1)

    return later


def flip(path: Path) -> None:
    """Change one bit; size and time stay."""
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    with path.open("r+b") as file:  # the same file, not another of its name
        file.write(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replace(path: Path) -> None:
    """Another file of the same size and time takes the name."""
    before = path.stat()
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    os.replace(other, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path) -> None:
    """The content of one that is as large."""
    path.write_bytes(path.read_bytes()[::-1])


DAMAGE = [flip, replace, swap]


def _one(folder: Path) -> Path:
    torch.save({"x": torch.ones(4)}, folder / "vae.pt")
    return folder / "vae.pt"


def _beside(folder: Path) -> Path:
    torch.save({"x": torch.ones(4)}, folder / "vae.pt")
    torch.save({"x": torch.zeros(4)}, folder / "vae-latents-stats.pt")
    return folder / "vae.pt"


def _folder(folder: Path) -> Path:
    (folder / "config.json").write_text('{"latent_channels": 4}')
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("make", "touched"),
    [(_one, "vae.pt"), (_beside, "vae.pt"), (_beside, "vae-latents-stats.pt"), (_folder, "config.json")],
)
def test_an_asset_that_was_touched_is_refused(make, touched, damage, tmp_path, settled):
    store, place = Store(tmp_path / "store"), tmp_path / "made"
    place.mkdir()
    settled()
    made = catalogue.register(store, "tuned-vae", make(place))
    assert catalogue.require(store, "tuned-vae") == made
    damage(place / touched)
    for use in (catalogue.require, catalogue.find, lambda store, name: open_tokenizer(store, name)):
        with pytest.raises(UserError, match=r"asset tuned-vae at .* has changed since it was registered.*fetch tuned"):
            use(store, "tuned-vae")
    catalogue.register(store, "tuned-vae", made.path)
    assert catalogue.require(store, "tuned-vae").content != made.content


def test_what_was_not_touched_is_hashed_once(tmp_path, monkeypatch, settled):
    store, read = Store(tmp_path / "store"), []
    (tmp_path / "made").mkdir()
    path = _one(tmp_path / "made")
    monkeypatch.setattr(content, "sha256_of", lambda path: read.append(path) or "a" * 64)
    catalogue.register(store, "tuned-vae", path)
    catalogue.require(store, "tuned-vae")
    assert len(read) == 2  # it may have been written in this very moment, and once more after a look
    settled()
    for _ in range(3):
        catalogue.require(store, "tuned-vae")
    assert len(read) == 3
    assert not catalogue.verify(catalogue.require(store, "tuned-vae"))  # who asks for it reads every byte


@pytest.mark.parametrize(
    "card", ["", "{", "[]", "3", "{}", '{"path": 3}', "[" * 5000, "[" * 300 + "]" * 300, "\xff\xfe"]
)
def test_a_damaged_card_is_a_sentence(card, tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "made").mkdir()
    catalogue.register(store, "tuned-vae", _one(tmp_path / "made"))
    place = store.root / "external" / "tuned-vae" / "asset.json"
    place.write_bytes(card.encode("latin-1"))
    with pytest.raises(UserError, match=r"asset\.json"):
        catalogue.find(store, "tuned-vae")
    assert any("asset.json" in str(found) for _, _, found in catalogue.inventory(store))


def _latents(folder: Path) -> Path:
    images = open_images(tree.write_edm2_zip(folder / "a.zip", tree.make_squares(n=12)))

    def encode(pixels):
        pooled = torch.nn.functional.avg_pool2d(pixels.float() / 64, 4)
        return pooled[:, :2], 0.1 + pooled[:, 1:] / 10

    write_latents(folder / "latents", images, encode, tokenizer="t" * 64, shard_size=5, batch_size=5)
    finish_latents(folder / "latents")
    return folder / "latents"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("shard", [0, 2])
def test_cached_latents_that_were_touched_are_refused(shard, damage, tmp_path, settled):
    folder = _latents(tmp_path)
    settled()
    LatentStore.open(folder)
    if damage is swap:
        path = folder / f"{shard:05d}.npy"
        raw = path.read_bytes()
        path.write_bytes(raw[:128] + raw[128:][::-1])  # the header stays
    else:
        damage(folder / f"{shard:05d}.npy")
    with pytest.raises(UserError, match=rf"{shard:05d}\.npy is damaged: its SHA-256 is not the manifest's"):
        LatentStore.open(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in ("manifest.json", "00000.json", "00002.json") for key in ("mean", "tokenizer", "count")]
    + [("manifest.json", "std"), ("00000.json", "square"), ("00002.json", "variance")],
)
def test_what_is_said_of_cached_latents_is_checked(name, key, tmp_path):
    """Their mean and deviation normalise what is trained on."""
    folder = _latents(tmp_path)
    text = (folder / name).read_text()
    found = re.search(rf'"{key}": \[?\s*"?([\w.-]+)', text)
    assert found is not None
    at = found.start(1) + (2 if "." in found[1] else 0)
    other = "7" if text[at] != "7" else "1"
    (folder / name).write_text(text[:at] + other + text[at + 1 :])
    with pytest.raises(UserError, match=r"manifest\.json is damaged|holds latents with|is missing"):
        LatentStore.open(folder)


def test_prepared_images_are_those_that_were_hashed(tmp_path):
    """Whatever lies beside them."""
    prepare_images(str(tree.write_tree(tmp_path / "raw")), tmp_path / "images", side=16, shard_size=30)
    before, folder = open_images(tmp_path / "images"), tmp_path / "images" / "00000"
    shutil.copy(tmp_path / "images" / "00001" / "data-00000-of-00001.arrow", folder / "other.arrow")
    (folder / "state.json").write_text((folder / "state.json").read_text().replace("data-00000-of-00001", "other"))
    assert (open_images(tmp_path / "images").pixels(0) == before.pixels(0)).all()


@pytest.mark.parametrize("damage", DAMAGE)
def test_prepared_images_that_were_touched_are_refused(damage, tmp_path, settled):
    prepare_images(str(tree.write_tree(tmp_path / "raw")), tmp_path / "images", side=16, shard_size=30)
    settled()
    before = open_images(tmp_path / "images").content
    assert open_images(tmp_path / "images").content == before
    damage(tmp_path / "images" / "00001" / "data-00000-of-00001.arrow")
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow is damaged"):
        open_images(tmp_path / "images")


def test_a_file_that_changed_just_now_is_read_again(tmp_path):
    """The clock of a file system ticks slowly: a second change may leave the time of the first."""
    path = tmp_path / "x"
    path.write_text("one")
    first = content.content_of(path)
    path.write_text("two")
    assert content.content_of(path) != first
    assert time.time() - path.stat().st_ctime < content.SETTLED_NS / 1e9
