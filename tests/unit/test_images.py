"""Image sets in every format, and the preparation of ImageNet."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import datasets
import imagenet_tree as tree
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.preparation import image_store
from harness.preparation.crop import center_crop
from harness.preparation.image_sources import open_source
from harness.preparation.image_store import prepare_images, prepare_shard
from recipes.core.errors import UserError
from recipes.data.images import StoredImages, open_images, stack

SIDE = 32


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return tree.write_tree(tmp_path_factory.mktemp("imagenet") / "train")


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "images"
    return out, prepare_images(str(raw), out, side=SIDE, shard_size=16)


@pytest.fixture(scope="module")
def squares():
    return tree.make_squares()


def check_same(images, squares):
    assert images.side == squares.pixels.shape[1]
    assert images.labels.tolist() == squares.labels
    assert images.labels.dtype == torch.int64
    assert images.num_classes == max(squares.labels) + 1
    assert len(images) == len(squares.labels)
    for i, pixels in enumerate(squares.pixels):
        assert np.array_equal(images.pixels(i), pixels)
    assert len(images.content) == 64


# The formats of others.


@pytest.mark.parametrize("npy", [False, True])
@pytest.mark.parametrize("deflated", [False, True])
def test_edm2_zip_and_folder(squares, tmp_path, npy, deflated):
    path = tree.write_edm2_zip(tmp_path / "images.zip", squares, npy=npy, deflated=deflated)
    check_same(open_images(path), squares)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    check_same(open_images(tmp_path / "folder"), squares)


@pytest.mark.parametrize("labels_in_images", [False, True])
def test_repa_folder(squares, tmp_path, labels_in_images):
    check_same(open_images(tree.write_repa_folder(tmp_path, squares, labels_in_images=labels_in_images)), squares)


def test_repa_e_h5(squares, tmp_path):
    folder = tree.write_h5(tmp_path / "h5", squares)
    check_same(open_images(folder), squares)
    check_same(open_images(folder / "images.h5"), squares)


def test_reading_from_many_threads(squares, tmp_path):
    for images in (
        open_images(tree.write_edm2_zip(tmp_path / "images.zip", squares)),
        open_images(tree.write_h5(tmp_path / "h5", squares)),
    ):
        wanted = [3, 3, 0, 9, 1] * 20
        with ThreadPoolExecutor(4) as pool:
            got = stack(images, wanted, pool)
        assert torch.equal(got, stack(images, wanted))
        assert np.array_equal(got[3].permute(1, 2, 0).numpy(), squares.pixels[9])


def test_content_follows_the_content(squares, tmp_path):
    one = open_images(tree.write_edm2_zip(tmp_path / "a.zip", squares)).content
    same = open_images(tree.write_edm2_zip(tmp_path / "b.zip", squares)).content
    other = open_images(tree.write_edm2_zip(tmp_path / "c.zip", tree.make_squares(n=11))).content
    assert one == same != other


def test_a_damaged_member_of_a_zip_is_named(squares, tmp_path):
    path = tree.write_edm2_zip(tmp_path / "images.zip", squares)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("00001/img00000005.png").header_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 120] ^= 255
    path.write_bytes(raw)
    images = open_images(path)
    with pytest.raises(UserError, match=r"images\.zip: 00001/img00000005\.png is damaged"):
        images.pixels(5)


def test_what_is_not_an_image_is_named(squares, tmp_path):
    root = tree.write_repa_folder(tmp_path, squares)
    (root / "images" / "00000" / "img00000002.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (root / "images" / "00000" / "img00000003.png").write_bytes(tree.encoded(squares.pixels[3][:8], "png"))
    images = open_images(root)
    with pytest.raises(UserError, match=r"00000/img00000002\.png is not an image"):
        images.pixels(2)
    with pytest.raises(UserError, match=r"00000/img00000003\.png is 16x8 where 16x16"):
        images.pixels(3)


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "img0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["img0.npy", 0]]}))
    with pytest.raises(UserError, match=r"img0\.npy is not an image \(Object arrays cannot be loaded"):
        open_images(tmp_path)


def test_latents_are_not_images(squares, tmp_path):
    with pytest.raises(UserError, match="float32 of shape"):
        open_images(tree.write_repa_folder(tmp_path, squares) / "vae-sd")


def test_labels_must_be_there(squares, tmp_path):
    path = tree.write_edm2_zip(tmp_path / "images.zip", squares)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    labels = tmp_path / "folder" / "dataset.json"
    labels.write_text(json.dumps({"labels": json.loads(labels.read_text())["labels"][1:]}))
    with pytest.raises(UserError, match=r"no label for 00002/img00000009\.png"):
        open_images(tmp_path / "folder")
    labels.write_text(json.dumps({"labels": None}))
    with pytest.raises(UserError, match="does not read"):
        open_images(tmp_path / "folder")


def test_what_is_not_recognised(raw, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "nothing")
    for path in (raw, raw.parent):
        with pytest.raises(UserError, match=rf"prepare --suite imagenet256 --data {raw}`"):
            open_images(path)
    with pytest.raises(UserError, match="an EDM2 zip"):
        open_images(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="an EDM2 zip"):
        open_images(tmp_path / "text")


# ADM's crop.


def crop_again(image, side):
    """The same facts told another way: one recursive halving, then the box filter of `resize` does the cut."""
    width, height = image.size
    if min(width, height) >= 2 * side:
        return crop_again(image.resize((width // 2, height // 2), resample=PIL.Image.BOX), side)
    factor = side / min(width, height)
    scaled = np.asarray(image.resize((round(width * factor), round(height * factor)), resample=PIL.Image.BICUBIC))
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


@given(height=st.integers(20, 150), width=st.integers(20, 150))
def test_crop_of_any_size(height, width):
    image = PIL.Image.fromarray(tree.picture(height, width, seed=height * width))
    assert np.array_equal(center_crop(image, SIDE), crop_again(image, SIDE))


def test_crop_leaves_what_fits():
    pixels = tree.picture(256, 256, seed=0)
    assert np.array_equal(center_crop(PIL.Image.fromarray(pixels), 256), pixels)
    wide = tree.picture(256, 301, seed=0)
    assert np.array_equal(center_crop(PIL.Image.fromarray(wide), 256), wide[:, 22:278])


def test_halving_is_a_mean_of_four():
    pixels = tree.picture(64, 64, seed=2)
    mean = pixels.reshape(32, 2, 32, 2, 3).astype(float).mean(axis=(1, 3))
    # Pillow rounds after each of its two passes.
    assert np.abs(center_crop(PIL.Image.fromarray(pixels), 32) - mean).max() <= 1


# The preparation.


def test_store_holds_the_crops(raw, prepared):
    folder, facts = prepared
    images = open_images(folder)
    assert isinstance(images, StoredImages)
    assert (images.side, images.num_classes, len(images)) == (SIDE, 3, 59)
    assert images.content == facts["content"]
    names = [images.name(i) for i in range(len(images))]
    assert names == sorted(names)
    for i, name in enumerate(names):
        assert images.labels[i] == tree.SYNSETS.index(name.split("/")[0])
        with PIL.Image.open(raw / name) as source:
            assert np.array_equal(images.pixels(i), center_crop(source.convert("RGB"), SIDE))
    images.verify()


def test_what_was_rejected_and_converted(prepared):
    _, facts = prepared
    assert [line["name"] for line in facts["rejected"]] == [tree.file_name(*tree.TRUNCATED)]
    assert "truncated" in facts["rejected"][0]["reason"]
    assert facts["converted"] == {"CMYK": 1, "L": 1, "RGBA": 1}
    assert "59 images of 3 classes" in facts["warnings"][0]
    assert facts["complete"]


def test_a_shard_is_a_hugging_face_dataset(prepared):
    folder, _ = prepared
    shard = datasets.load_from_disk(str(folder / "00001"))
    assert set(shard.column_names) == {"image", "label", "name"}
    assert np.array_equal(np.asarray(shard[2]["image"]), open_images(folder).pixels(16 + 2))


def test_manifest_does_not_depend_on_who_prepares(raw, prepared, tmp_path):
    folder, _ = prepared
    for rank in (1, 0):
        facts = prepare_images(str(raw), tmp_path / "two", side=SIDE, shard_size=16, rank=rank, world=2)
        assert facts["complete"] == (rank == 0)
    prepare_images(str(raw), tmp_path / "pool", side=SIDE, shard_size=16, processes=2)
    wanted = (folder / "manifest.json").read_bytes()
    assert (tmp_path / "two" / "manifest.json").read_bytes() == wanted
    assert (tmp_path / "pool" / "manifest.json").read_bytes() == wanted


def test_killed_preparation_continues(raw, prepared, tmp_path, monkeypatch):
    folder, _ = prepared
    out = tmp_path / "images"

    def killed(out, shard, source, side):
        if shard == 2:
            (out / ".00002.4194305.tmp").mkdir()
            (out / ".00002.4194305.tmp" / "half.arrow").write_bytes(b"half")
            raise KeyboardInterrupt
        return prepare_shard(out, shard, source, side)

    with monkeypatch.context() as patch:
        patch.setattr(image_store, "prepare_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_images(str(raw), out, side=SIDE, shard_size=16)
    with pytest.raises(UserError, match="is not finished"):
        open_images(out)
    kept = [(out / f"{i:05d}").stat().st_ino for i in (0, 1)]
    assert prepare_images(str(raw), out, side=SIDE, shard_size=16)["complete"]
    assert [(out / f"{i:05d}").stat().st_ino for i in (0, 1)] == kept
    assert (out / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert not list(out.glob(".*"))


def test_a_folder_holds_one_preparation(raw, prepared, tmp_path):
    folder, _ = prepared
    with pytest.raises(UserError, match="begun with side 32, not 16"):
        prepare_images(str(raw), folder, side=16, shard_size=16)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        prepare_images(str(raw), tmp_path, side=SIDE)


def test_a_damaged_shard_is_named(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    arrow = folder / "00001" / "data-00000-of-00001.arrow"
    raw = bytearray(arrow.read_bytes())
    raw[len(raw) // 2] ^= 1
    arrow.write_bytes(raw)
    with pytest.raises(UserError, match=r"00001/data-00000-of-00001\.arrow is damaged: its SHA-256"):
        StoredImages(folder).verify()
    arrow.write_bytes(raw[:-10])
    with pytest.raises(UserError, match=r"00001/data-00000-of-00001\.arrow is damaged"):
        open_images(folder)


def test_a_shard_of_rejects_and_files_that_are_no_images(tmp_path):
    for synset, name in (("n00000001", "a.JPEG"), ("n00000001", "notes.txt"), ("n00000002", "b.JPEG")):
        (tmp_path / "raw" / synset).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / synset / name).write_bytes(b"no image")
    good = tree.encoded(tree.picture(40, 40, 0), "png")
    (tmp_path / "raw" / "n00000002" / "c.JPEG").write_bytes(good)
    facts = prepare_images(str(tmp_path / "raw"), tmp_path / "out", side=SIDE, shard_size=2)
    assert [x["name"] for x in facts["rejected"]] == ["n00000001/a.JPEG", "n00000001/notes.txt", "n00000002/b.JPEG"]
    images = open_images(tmp_path / "out")
    assert (len(images), images.name(0), images.labels.tolist()) == (1, "n00000002/c.JPEG", [1])


def test_too_small_a_disk_is_refused(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(UserError, match=r"needs .* GB for the images and its disk has 0\.0 GB free: make room"):
        prepare_images(str(raw), tmp_path / "out", side=SIDE)


def hub_rows(raw):
    """The tree's files as the Hugging Face copy of ImageNet holds them: other names, other order."""
    rows = []
    for path in sorted(raw.glob("*/*.JPEG"), key=lambda p: p.name[::-1]):
        synset = path.parent.name
        image = {"bytes": path.read_bytes(), "path": f"{path.stem}_{synset}.JPEG"}
        rows.append({"image": image, "label": tree.SYNSETS.index(synset)})
    return rows


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_hugging_face_copy_gives_the_same_content(raw, prepared, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    classes = datasets.ClassLabel(names=["tench", "springer", "saw"])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    made = datasets.Dataset.from_list(hub_rows(raw), features=features)
    source = tmp_path / kind
    if kind == "saved":
        made.save_to_disk(str(source))
    else:
        (source / "data").mkdir(parents=True)
        made.to_parquet(str(source / "data" / "train-00000-of-00001.parquet"))
    found = open_source(str(source))
    assert found.synsets == tree.SYNSETS
    facts = prepare_images(str(source), tmp_path / "out", side=SIDE, shard_size=16, processes=2)
    assert facts["content"] == prepared[1]["content"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (prepared[0] / "manifest.json").read_bytes()


def test_sources_that_are_not_there(raw, tmp_path):
    with pytest.raises(UserError, match="does not exist: give a folder"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=f"give {raw}"):
        open_source(str(raw.parent))
    with pytest.raises(UserError, match="no Hugging Face data set; it is empty"):
        open_source(str(tmp_path))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"needs one image column|could not be loaded"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"could not be loaded .*accept its terms.*HF_HUB_OFFLINE=0"):
        open_source("nobody/nothing")


def test_png_is_lossless():
    pixels = tree.picture(33, 33, seed=5)
    with PIL.Image.open(io.BytesIO(image_store._png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)
