"""Cached posterior moments."""

from __future__ import annotations

import shutil

import imagenet_tree as tree
import numpy as np
import pytest
import torch

from recipes.core.errors import UserError
from recipes.data.images import open_images
from recipes.data.latents import (
    LatentStore,
    LatentSums,
    disk_estimate,
    finish_latents,
    share,
    write_latents,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_images(tree.write_edm2_zip(tmp_path_factory.mktemp("images") / "a.zip", tree.make_squares(n=23)))


def encode(pixels):
    """Two channels of 4x4 from 16x16 pixels."""
    pooled = torch.nn.functional.avg_pool2d(pixels.float() / 64, 4)
    return pooled[:, :2], 0.1 + pooled[:, 1:] / 10


def write(folder, images, encode=encode, **more):
    options = {"tokenizer": "t" * 64, "shard_size": 5, "batch_size": 2, **more}
    write_latents(folder, images, encode, **options)
    return folder


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    return finish_latents(write(tmp_path_factory.mktemp("latents") / "one", images))


def everything(images):
    return encode(torch.stack([torch.from_numpy(images.pixels(i).copy()).permute(2, 0, 1) for i in range(len(images))]))


def test_take(images, store):
    mean, std = (x.half().float() for x in everything(images))
    indices = torch.tensor([22, 0, 5, 4, 5, 17])
    taken = store.take(indices)
    assert taken[0].dtype == taken[1].dtype == torch.float32
    assert torch.equal(taken[0], mean[indices])
    assert torch.equal(taken[1], std[indices])
    assert (len(store), store.channels, store.height, store.width) == (23, 2, 4, 4)
    assert store.images == images.content


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_statistics(images, tmp_path, dtype):
    made = finish_latents(write(tmp_path, images, dtype=dtype))
    mean, std = made.take(torch.arange(23))
    mean, std = mean.double(), std.double()
    assert torch.allclose(made.mean, mean.mean(dim=(0, 2, 3)), atol=1e-12)
    spread = (mean.var(dim=(0, 2, 3), correction=0) + std.square().mean(dim=(0, 2, 3))).sqrt()
    assert torch.allclose(made.std, spread, atol=1e-12)
    mean, std = made.take(torch.arange(len(made)))
    assert torch.allclose(made.mean, mean.double().mean((0, 2, 3)), atol=1e-12)


def test_sums_merge():
    moments = np.random.default_rng(0).normal(size=(600, 2, 3, 2, 2)).astype(np.float16)
    whole, parts = LatentSums.of(moments), LatentSums.of(moments[:100]) + LatentSums.of(moments[100:])
    assert torch.allclose(torch.stack(whole.statistics()), torch.stack(parts.statistics()), atol=1e-12)


def test_ranks_write_the_same_bytes(images, store, tmp_path):
    for rank in (1, 0):
        write(tmp_path, images, rank=rank, world=2, threads=2)
    made = finish_latents(tmp_path)
    assert made.content == store.content
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (store.folder / name).read_bytes(), name


def test_shares_add_up():
    assert share(23, 5) == 23
    assert [share(23, 5, rank, 2) for rank in (0, 1)] == [13, 10]
    assert share(4, 5, 1, 2) == 0


def test_killed_writing_continues(images, store, tmp_path):
    calls = []

    def dies(pixels):
        calls.append(len(pixels))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, images, dies)
    with pytest.raises(UserError, match="is not finished"):
        LatentStore.open(tmp_path)
    with pytest.raises(UserError, match=r"00001\.npy is missing \(and so for 3 more\)"):
        finish_latents(tmp_path)
    (tmp_path / ".00001.npy.4194305.tmp").write_bytes(b"half")
    (tmp_path / "00002.npy").write_bytes(b"named, but its sidecar was never written")
    before = (tmp_path / "00000.npy").stat().st_mtime_ns
    told = []
    write(tmp_path, images, on_done=told.append)
    assert told[0] == 5
    assert told[-1] == 23
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == before
    assert finish_latents(tmp_path).content == store.content
    assert not list(tmp_path.glob(".*"))


def test_other_latents_are_not_mixed_in(images, tmp_path):
    write(tmp_path, images)
    with pytest.raises(UserError, match=r"holds latents with tokenizer ttt.* and uuu.* is wanted"):
        write(tmp_path, images, tokenizer="u" * 64)
    with pytest.raises(UserError, match="holds latents with dtype float16, and float32 is wanted"):
        write(tmp_path, images, dtype="float32")


def test_damage_is_named(images, store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(store.folder, folder)
    LatentStore.open(folder).verify()
    raw = bytearray((folder / "00003.npy").read_bytes())
    raw[-1] ^= 1
    (folder / "00003.npy").write_bytes(raw)
    with pytest.raises(UserError, match=r"00003\.npy is damaged: its SHA-256"):
        LatentStore.open(folder).verify()
    (folder / "00003.npy").write_bytes(raw[:-4])
    with pytest.raises(UserError, match=r"00003\.npy is damaged"):
        LatentStore.open(folder)
    (folder / "00003.npy").unlink()
    with pytest.raises(UserError, match=r"00003\.npy is missing"):
        LatentStore.open(folder)


def test_pickles_are_not_loaded(store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(store.folder, folder)
    np.save(folder / "00000.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"00000\.npy is damaged"):
        LatentStore.open(folder)


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "is not finite"), (1e5, "overflows float16: keep")])
def test_values_that_do_not_fit(images, tmp_path, value, told):
    def broken(pixels):
        mean, std = encode(pixels)
        if len(pixels) == 2:
            mean[1, 0, 0, 0] = value
        return mean, std

    with pytest.raises(UserError, match=rf"latent of 00000/img00000001\.png {told}"):
        write(tmp_path, images, broken)


def test_too_small_a_disk_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(UserError, match=r"needs 0\.0 GB for the latents and its disk has 0\.0 GB free"):
        write(tmp_path, images)


def test_disk_estimates():
    assert round(disk_estimate(1_281_167, 4, 32, "float16") / 1e9) == 21
    assert round(disk_estimate(1_281_167, 32, 16, "float16") / 1e9) == 42
    assert disk_estimate(10, 4, 32, "float32") == 2 * disk_estimate(10, 4, 32)


def test_estimate_is_what_is_written(images, tmp_path):
    write(tmp_path, images)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert 0 <= size - disk_estimate(23, 2, 4) <= 5 * 128  # the headers


def test_what_holds_no_latents(tmp_path):
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path, tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no cached latents"):
            LatentStore.open(path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not the manifest of cached latents"):
        LatentStore.open(tmp_path)
