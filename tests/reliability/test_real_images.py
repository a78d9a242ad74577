"""Sets of images as people have them: in which forms, under which names, with what beside them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import imagenet_tree as tree
import numpy as np
import PIL.Image
import pytest
import torch
from tests_support import Toy, pictures

from harness.cli import app as cli_app
from harness.cli import printing
from harness.preparation.crop import center_crop
from harness.preparation.image_sources import open_source
from harness.preparation.image_store import prepare_images
from harness.scoring import array_files, feature_shards
from harness.scoring import score_images as scoring_files
from harness.scoring.image_sets import ImageSet, open_samples
from harness.scoring.paired_images import Beside, paired_by_name
from recipes.core import content
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.data import hdf5
from recipes.data.decoding import UNDECODABLE, decode, oddities, opened
from recipes.data.images import open_images

N = 6
IMAGES = pictures(0, N, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(content.CACHE_VARIABLE, str(folder))
    return folder


def opened_set(path: Path) -> ImageSet:
    return open_samples(path, flag="--samples")


def pixels(path: Path) -> np.ndarray:
    images = opened_set(path)
    return images.read(0, len(images)).permute(0, 2, 3, 1).numpy()


def write_folder(folder: Path, images=IMAGES, name="{:06d}.png") -> Path:
    for k, image in enumerate(images):
        path = folder / name.format(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    return folder


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def score(samples: Path, reference: Path, cache: Path, wanted=("fid",)) -> dict:
    job = scoring_files.Job(network=Toy(), features="inception", wanted=wanted, cache=cache)
    found = scoring_files.score(opened_set(samples), reference, job)
    assert found is not None
    return found


# --- one picture ------------------------------------------------------------------------------------------------------

GREY = IMAGES[0][..., 0]
DEEP = GREY.astype(np.uint16) * 257
RGB = IMAGES[0]


def png(depth: int, colour: int, samples: np.ndarray) -> bytes:
    """A PNG of big-endian samples, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wide(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, -1).astype(">u2")


BIG_ENDIAN = PIL.Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes())
DEEP_FORMS = {
    "png": encoded(PIL.Image.fromarray(DEEP), "png"),
    "png rgb": png(16, 2, wide(DEEP, DEEP, DEEP)),
    "png grey and alpha": png(16, 4, wide(DEEP, np.full_like(DEEP, 65535))),
    "png rgba": png(16, 6, wide(DEEP, DEEP, DEEP, np.full_like(DEEP, 65535))),
    "tiff": encoded(PIL.Image.fromarray(DEEP), "tiff"),
    "tiff, compressed": encoded(PIL.Image.fromarray(DEEP), "tiff", compression="tiff_lzw"),
    "tiff, big-endian": encoded(BIG_ENDIAN, "tiff"),
    "pgm": encoded(PIL.Image.fromarray(DEEP), "ppm"),
}


@pytest.mark.parametrize("form", DEEP_FORMS)
def test_sixteen_bits_are_eight_by_their_high_byte(form):
    assert oddities(opened(DEEP_FORMS[form])) == ("16-bit",)
    assert np.array_equal(decode(DEEP_FORMS[form], "x"), np.stack([GREY] * 3, -1))


WHITE_IS_ZERO = bytearray(encoded(PIL.Image.fromarray(DEEP), "tiff"))
_at = WHITE_IS_ZERO.index(struct.pack("<HHI", 262, 3, 1)) + 8
WHITE_IS_ZERO[_at : _at + 2] = b"\0\0"
RANGELESS = {
    "float": encoded(PIL.Image.fromarray(GREY.astype(np.float32) / 255), "tiff"),
    "32 bits": encoded(PIL.Image.fromarray(GREY.astype(np.int32)), "tiff"),
    "0 is white": bytes(WHITE_IS_ZERO),
}


@pytest.mark.parametrize("form", RANGELESS)
def test_pixels_without_an_agreed_range_are_refused(form, tmp_path):
    write_folder(tmp_path / "tree" / "a", IMAGES[:2], "{}.png")
    (tmp_path / "tree" / "a" / "2.tif").write_bytes(RANGELESS[form])
    with pytest.raises(UserError, match=r"a/2\.tif cannot be decoded \("):
        pixels(tmp_path / "tree")
    facts = prepare_images(str(tmp_path / "tree"), tmp_path / "out", side=16)
    assert [line["name"] for line in facts["rejected"]] == ["a/2.tif"]


ALPHA = np.where(np.arange(16)[:, None] < 8, 0, 255) * np.ones((1, 16))
SHOWN = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)
HALF = np.dstack([RGB, np.full((16, 16), 128, np.uint8)])
KEYED = np.where(ALPHA == 0, 7, np.where(GREY == 7, 8, GREY)).astype(np.uint8)
KEYED_SHOWN = np.stack([np.where(ALPHA == 0, 255, KEYED)] * 3, -1)
KEYED_DEEP = KEYED.astype(np.uint16) * 257
PALETTE = PIL.Image.fromarray(KEYED).convert("P")
CLEAR = {
    "rgba": (encoded(PIL.Image.fromarray(np.dstack([RGB, ALPHA.astype(np.uint8)])), "png"), SHOWN),
    "webp": (encoded(PIL.Image.fromarray(np.dstack([RGB, ALPHA.astype(np.uint8)])), "webp", lossless=True), SHOWN),
    "half": (encoded(PIL.Image.fromarray(HALF), "png"), 0.5 * RGB + 0.5 * 255),
    "grey and alpha": (
        encoded(PIL.Image.fromarray(np.dstack([KEYED, ALPHA.astype(np.uint8)]), "LA"), "png"), KEYED_SHOWN,
    ),
    "grey with a colour": (encoded(PIL.Image.fromarray(KEYED), "png", transparency=7), KEYED_SHOWN),
    "16 bits with a colour": (encoded(PIL.Image.fromarray(KEYED_DEEP), "png", transparency=7 * 257), KEYED_SHOWN),
    "palette": (encoded(PALETTE, "png", transparency=7), KEYED_SHOWN),
    "gif": (encoded(PALETTE, "gif", transparency=7), KEYED_SHOWN),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("form", CLEAR)
def test_what_is_transparent_is_shown_on_white(form):
    raw, shown = CLEAR[form]
    assert "transparent" in oddities(opened(raw))
    assert np.abs(decode(raw, "x") - shown).max() <= 1


OPAQUE = np.dstack([RGB, np.full((16, 16), 255, np.uint8)])
PLAIN = {
    "opaque": (encoded(PIL.Image.fromarray(OPAQUE), "png"), RGB),
    "opaque palette": (encoded(PALETTE, "png", transparency=b"\xff\xff"), np.stack([KEYED] * 3, -1)),
    "1 bit": (encoded(PIL.Image.fromarray(GREY > 128), "png"), np.stack([(GREY > 128) * np.uint8(255)] * 3, -1)),
    "bmp": (encoded(PIL.Image.fromarray(RGB), "bmp"), RGB),
    "ppm": (encoded(PIL.Image.fromarray(RGB), "ppm"), RGB),
    "tiff": (encoded(PIL.Image.fromarray(RGB), "tiff"), RGB),
}


@pytest.mark.parametrize("form", PLAIN)
def test_what_is_plain_is_read_without_a_word(form):
    raw, shown = PLAIN[form]
    assert oddities(opened(raw)) == ()
    assert np.array_equal(decode(raw, "x"), shown)


SECOND = PIL.Image.fromarray(255 - RGB)
MOVING = {"gif": {}, "webp": {"lossless": True}, "png": {}, "tiff": {}}


@pytest.mark.parametrize("kind", MOVING)
def test_of_several_frames_the_first_is_taken(kind):
    first = PIL.Image.fromarray(RGB)
    raw = encoded(first, kind, save_all=True, append_images=[SECOND], **MOVING[kind])
    alone = encoded(first, kind, **MOVING[kind])
    assert oddities(opened(raw)) == ("frames",)
    assert np.array_equal(decode(raw, "x"), decode(alone, "x"))


def test_orientation_is_not_applied_and_said():
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    raw = encoded(PIL.Image.fromarray(RGB), "png", exif=turned)
    assert oddities(opened(raw)) == ("turned",)
    assert np.array_equal(decode(raw, "x"), RGB)


def test_odd_pictures_are_counted_in_scoring_and_preparation(tmp_path):
    folder = write_folder(tmp_path / "tree" / "a", IMAGES[:2], "{}.png")
    (folder / "2.png").write_bytes(DEEP_FORMS["png"])
    (folder / "3.png").write_bytes(CLEAR["rgba"][0])
    (folder / "4.png").write_bytes(PLAIN["opaque"][0])
    (folder / "5.png").write_bytes(encoded(PIL.Image.fromarray(RGB), "jpeg"))
    told = "\n".join(opened_set(tmp_path / "tree").warnings)
    assert "1 of 6 images in" in told
    for sentence in ("have 16 bits a channel: the high byte", "have transparent pixels: they are", "are JPEGs"):
        assert told.count(sentence) == 1
    facts = prepare_images(str(tmp_path / "tree"), tmp_path / "out", side=16)
    assert facts["converted"] == {"16-bit": 1, "I;16": 1, "RGBA": 2, "transparent": 1}
    assert [w for w in facts["warnings"] if "transparent pixels" in w] == [
        "1 of 6 images have transparent pixels: they are shown on white"
    ]
    assert np.array_equal(pixels(tmp_path / "tree"), pixels(tmp_path / "out"))


def test_no_other_reader_of_pillow_is_reached(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    write_folder(tmp_path / "a", IMAGES[:2], "{}.png")
    for name in ("2.png", "2.JPEG"):
        (tmp_path / "a" / name).write_bytes(postscript)
        with pytest.raises(UserError, match="no whole picture that is PNG"):
            pixels(tmp_path)
    facts = prepare_images(str(tmp_path), tmp_path / "out", side=16)
    assert [line["reason"] for line in facts["rejected"]] == [
        "ValueError: no whole picture that is PNG, JPEG, WEBP, BMP, GIF, TIFF or PPM"
    ] * 2


def test_pillow_is_given_formats_everywhere():
    root = Path(cli_app.__file__).parent.parent.parent
    for path in [
        p for package in ("harness", "recipes", "baselines", "reports") for p in (root / package).rglob("*.py")
    ]:
        text = path.read_text()
        assert text.count("Image.open(") == text.count("formats="), path


# --- what lies beside the images --------------------------------------------------------------------------------------

JUNK = (
    ".ipynb_checkpoints/000000-checkpoint.png", ".thumbnails/a.png", ".Trash-1000/files/a.png", "._000000.png",
    "__MACOSX/._000000.png", "__MACOSX/a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "lost+found/a.png", ".a.png",
    "thumbnails/a.png", "Thumbs/a.png",
)  # fmt: skip


def write_zip(path: Path, folder: Path, **more: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
        for name, text in more.items():
            archive.writestr(name.replace("_json", ".json"), text)
    return path


def write_h5(path: Path, folder: Path) -> Path:
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = np.frombuffer((folder / name).read_bytes(), np.uint8)
    path.with_name(f"{path.stem}_h5.json").write_text(json.dumps(names))
    return path


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("kind", ["folder", "zip", "h5"])
def test_what_no_sampler_drew_is_left_out_and_counted(kind, junk, tmp_path):
    folder = write_folder(tmp_path / "a")
    (folder / junk).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(255 - IMAGES[0]).save(folder / junk)
    place = folder if kind == "folder" else {"zip": write_zip, "h5": write_h5}[kind](tmp_path / f"a.{kind}", folder)
    assert np.array_equal(pixels(place), IMAGES)
    (told,) = opened_set(place).warnings
    assert "1 left out, hidden, or made by a file manager" in told
    assert junk in told


def test_lossy_pictures_in_a_tiff_are_counted(tmp_path):
    folder = write_folder(tmp_path / "a")
    PIL.Image.fromarray(IMAGES[0]).save(folder / "000000.tif", compression="jpeg")
    (folder / "000000.png").unlink()
    (told,) = opened_set(folder).warnings
    assert "1 of" in told
    assert "compression changes FID" in told


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.npz", "join their arr_0"), ("a.txt", "are as a.txt"), ("a.heic", "write PNGs"), ("", "empty")],
)
def test_a_folder_without_a_picture_says_what_it_holds(name, remedy, tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    if name:
        (place / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"holds no image .*{remedy}"):
        opened_set(place)


@pytest.mark.parametrize("name", ["a.npz", "late.npy", "00002"])
def test_a_folder_without_classes_or_a_data_set(name, tmp_path):
    for animal in ("cat", "dog", "emu"):
        (tmp_path / "set" / animal).mkdir(parents=True)
        (tmp_path / "set" / animal / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"no Hugging Face data set; its files are as cat/{name}"):
        open_source(str(tmp_path / "set"))


@pytest.mark.parametrize("name", ["late.png", "00001/late.png", "00002"])
def test_images_that_a_list_of_names_lacks_are_counted(name, tmp_path):
    place = write_h5(tmp_path / "a.h5", write_folder(tmp_path / "a", name="00001/{:06d}.png"))
    assert opened_set(place).warnings == ()
    with h5py.File(place, "a") as file:
        file[f"{name}/x.png" if "." not in name else name] = np.zeros(9, np.uint8)
    (told,) = opened_set(place).warnings
    assert f"1 left out, not in the list of names ({name})" in told
    place.with_name("a_h5.json").unlink()
    with pytest.raises(UserError, match=r"has no a_h5\.json beside it"):
        opened_set(place)


def test_the_same_is_left_out_of_training_and_preparation(tmp_path):
    folder = write_folder(tmp_path / "a", name="x/{:06d}.png")
    (folder / "x" / "._000000.png").write_bytes(b"AppleDouble")
    (folder / "x" / "Thumbs.db").write_bytes(b"thumbs")
    (folder / "x" / "late.avif").write_bytes(b"no reader")
    labels = [[f"x/{k:06d}.png", 0] for k in range(N)]
    facts = prepare_images(str(folder), tmp_path / "out", side=16)
    assert (facts["count"], [line["name"] for line in facts["rejected"]]) == (N, ["x/late.avif"])
    assert sum("hidden, or made by" in w for w in facts["warnings"]) == 1
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert len(open_images(folder)) == N
    assert "1 left out, in a format that is not read (x/late.avif)" in "\n".join(opened_set(folder).warnings)


def test_folders_with_a_suffix_and_other_files_are_passed_over(tmp_path):
    folder = write_folder(tmp_path / "a")
    (folder / "000024.png").mkdir()
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "README"):
        (folder / name).write_bytes(b"x")
    assert np.array_equal(pixels(folder), IMAGES)
    assert opened_set(folder).warnings == ()


@pytest.mark.parametrize("name", ["array.npy", "a.jfif", "a.jpe", "a.pnm", "a.dib", "picture", "inner.zip", "more.tar"])
def test_what_may_hold_more_pictures_is_counted(name, tmp_path):
    folder = write_folder(tmp_path / "a")
    (folder / name).write_bytes(b"x")
    assert np.array_equal(pixels(folder), IMAGES)
    assert [f"1 left out, {''}" in told and name in told for told in opened_set(folder).warnings] == [True]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zips_in_every_packing_that_is_read(method, tmp_path):
    folder, path = write_folder(tmp_path / "a"), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    assert np.array_equal(pixels(path), IMAGES)


def test_a_packing_that_is_not_read_is_named(tmp_path):
    folder, path = write_folder(tmp_path / "a"), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    with pytest.raises(UserError, match=r"packed by LZMA or another method\. Zip it with deflate"):
        pixels(path)


@pytest.mark.parametrize("shape", [(-4, 8, 8, 3), (4, -8, -8, 3), (4, 0, 8, 3), (0, 8, 8, 3)])
def test_arrays_without_a_picture(shape, tmp_path):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(abs(int(np.prod(shape)))))
    with pytest.raises(UserError, match=r"holds no image|negative side"):
        opened_set(path)


@pytest.mark.parametrize(
    ("kind", "remedy"), [("bool", r"astype\(np.uint8\) \* 255"), ("complex64", "no pixels"), ("U3", "no pixels")]
)
def test_arrays_of_other_kinds_are_told_their_own_remedy(kind, remedy, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), kind))
    with pytest.raises(UserError, match=remedy):
        opened_set(tmp_path / "x.npy")


def test_a_pipe_is_no_set(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(UserError, match="is a pipe or a device"):
        opened_set(tmp_path / "x.npz")


def test_a_thin_picture_takes_no_memory():
    with pytest.raises(ValueError, match="too thin"):
        center_crop(PIL.Image.new("RGB", (1, 40_000)), 256)


def test_signed_pixels_are_refused(tmp_path):
    signed = PIL.Image.new("L", (8, 8), 200)
    signed.save(tmp_path / "a.tif", tiffinfo={339: 2})
    with pytest.raises(UserError, match="signed pixels have no agreed range"):
        pixels(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\x89PNG\r\n\x1a\n", b"no image"])
def test_a_broken_picture_is_named(raw, tmp_path):
    write_folder(tmp_path)
    (tmp_path / "000009.png").write_bytes(raw)
    with pytest.raises(UserError, match=r"000009\.png cannot be decoded"):
        pixels(tmp_path)


def test_linked_folders_and_files_are_followed(tmp_path):
    store = write_folder(tmp_path / "store" / "a", IMAGES[:3]).parent
    write_folder(store / "b", IMAGES[3:])
    for name in ("linked", "half", "files"):
        (tmp_path / name).mkdir()
    for k, place in ((0, "linked/a"), (1, "linked/b"), (1, "half/b")):
        (tmp_path / place).symlink_to(store / "ab"[k])
    shutil.copytree(store / "a", tmp_path / "half" / "a")
    for k, file in enumerate(sorted(store.rglob("*.png"))):
        (tmp_path / "files" / f"{k}.png").symlink_to(file)
    (tmp_path / "top").symlink_to(store)
    for name in ("store", "linked", "half", "files", "top"):
        assert np.array_equal(pixels(tmp_path / name), IMAGES), name
        assert opened_set(tmp_path / name).warnings == ()
    labels = prepare_images(str(tmp_path / "linked"), tmp_path / "out", side=16)
    assert (labels["count"], labels["num_classes"]) == (N, 2)


@pytest.mark.parametrize("what", ["nowhere", "itself", "above", "pipe"])
def test_links_that_lead_nowhere_are_counted(what, tmp_path):
    folder = write_folder(tmp_path / "a" / "x").parent
    odd = folder / "x" / "zz.png"
    if what == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"nowhere": "gone.png", "itself": "zz.png", "above": folder}[what])
    assert np.array_equal(pixels(folder), IMAGES)
    assert (
        "1 left out, links that lead nowhere or in a circle, or no files (x/zz.png)" in opened_set(folder).warnings[0]
    )
    facts = prepare_images(str(folder), tmp_path / "out", side=16)
    assert facts["count"] == N
    assert any("x/zz.png" in w for w in facts["warnings"])


# --- names ------------------------------------------------------------------------------------------------------------

ODD_NAMES = (b"caf\xe9.png", "фото 猫 [é].png".encode(), b"a\nb.png", b"\xff\xfe.png", b"x:y;$(z).png")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_in_any_encoding(name, tmp_path, capsys):
    folder = write_folder(tmp_path / "tree" / "n01440764")
    write_folder(tmp_path / "tree" / "n02102040")
    os.rename(folder / "000003.png", os.fsencode(folder) + b"/" + name)
    order = [k for _, k in sorted((os.fsdecode(name) if k == 3 else f"{k:06d}.png", k) for k in range(N))]
    assert np.array_equal(pixels(folder), IMAGES[order])
    assert score(folder, folder, tmp_path / "cache")["fid"] == pytest.approx(0, abs=1e-9)
    facts = prepare_images(str(tmp_path / "tree"), tmp_path / "out", side=16)
    assert facts["count"] == 2 * N
    assert open_images(tmp_path / "out").name(order.index(3)).startswith("n01440764/")
    shown = os.fsdecode(name)
    (folder / "dataset.json").write_text(json.dumps({"labels": [[n, 1] for n in [*os.listdir(folder), shown]]}))
    images = open_images(folder)
    assert images.labels.tolist() == [1] * N
    assert len(images.content) == 64


def test_classes_and_broken_files_whose_names_are_not_utf8(tmp_path):
    write_folder(tmp_path / "tree" / "a", IMAGES[:2])
    os.mkdir(os.fsencode(tmp_path) + b"/tree/b\xe9")
    (tmp_path / "tree" / os.fsdecode(b"b\xe9") / os.fsdecode(b"\xe8.png")).write_bytes(b"no image")
    facts = prepare_images(str(tmp_path / "tree"), tmp_path / "out", side=16)
    assert [line["name"] for line in facts["rejected"]] == ["b\\udce9/\\udce8.png"]
    with pytest.raises(UserError, match="cannot be decoded"):
        pixels(tmp_path / "tree")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_result_is_printed_whatever_the_names(encoding, tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding.split(":")[0], errors="strict"))
    monkeypatch.setattr(sys, "argv", ["repa-bench", "list"])
    monkeypatch.setattr(cli_app.typer.main, "get_command", lambda app: SayName())
    with pytest.raises(SystemExit) as ended:
        cli_app.main()
    assert not ended.value.code
    sys.stdout.flush()
    assert b"caf\\udce9.png" in raw.getvalue()


class SayName:
    """Stands for a command that tells of a file."""

    params = ()

    def main(self, *args, **kwargs) -> int:
        printing.say("caf\udce9.png ± 1")
        return 0


# --- arrays -----------------------------------------------------------------------------------------------------------


def save(path: Path, **arrays: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def save_packed(path: Path, x: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.savez_compressed(file, arr_0=x)
    return path


def save_npy(path: Path, x: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, x)
    return path


FORTRAN = np.asfortranarray(IMAGES)
ARRAYS = {
    "right.npz": lambda p: save(p, arr_0=IMAGES),
    "RIGHT.NPZ": lambda p: save(p, arr_0=IMAGES),
    "no_suffix": lambda p: save(p, arr_0=IMAGES),
    "name.zip": lambda p: save(p, arr_0=IMAGES),
    "with_labels.npz": lambda p: save(p, arr_0=IMAGES, arr_1=np.arange(N)),
    "with_statistics": lambda p: save(p, arr_0=IMAGES, mu=np.zeros(3), sigma=np.eye(3)),
    "labels_first.npz": lambda p: save(p, arr_0=np.arange(N), arr_1=IMAGES),
    "named.npz": lambda p: save(p, samples=IMAGES, labels=np.arange(N)),
    "named": lambda p: save(p, samples=IMAGES),
    "packed.npz": lambda p: save_packed(p, IMAGES),
    "fortran.npz": lambda p: save(p, arr_0=FORTRAN),
    "fortran_packed.npz": lambda p: save_packed(p, FORTRAN),
    "a.npy": lambda p: save_npy(p, IMAGES),
    "a.NPY": lambda p: save_npy(p, IMAGES),
    "npy": lambda p: save_npy(p, IMAGES),
    "fortran.npy": lambda p: save_npy(p, FORTRAN),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_any_form_is_read(name, tmp_path):
    path = ARRAYS[name](tmp_path / name)
    assert np.array_equal(pixels(path), IMAGES)
    images = opened_set(path)
    for start, stop in ((3, 5), (0, 2), (5, 6)):
        assert np.array_equal(images.read(start, stop).permute(0, 2, 3, 1), IMAGES[start:stop])
    elsewhere = name.startswith(("named", "labels_first"))
    assert len(images.warnings) == elsewhere
    assert (images.size, images.names) == ((16, 16), None)
    assert images.adm == (not elsewhere and "fortran" not in name and "npy" not in name.lower())


REMEDIES = {
    "channels_first": (IMAGES.transpose(0, 3, 1, 2), r"x\.transpose\(0, 2, 3, 1\)"),
    "float": (IMAGES / np.float32(255), r"\(255 \* x\)\.round"),
    "double": (IMAGES.astype(float), r"x\.astype\(np\.uint8\) if in 0\.\.255"),
    "int64": (IMAGES.astype(np.int64), r"x\.astype\(np\.uint8\)"),
    "uint16": (IMAGES.astype(np.uint16), r"x\.astype\(np\.uint8\)"),
    "grey": (IMAGES[..., 0], r"it is grey: save np\.repeat"),
    "grey, with its channel": (IMAGES[..., :1], r"it is grey: save np\.repeat"),
    "rgba": (np.concatenate([IMAGES, IMAGES[..., :1]], -1), "alpha channel"),
    "one": (IMAGES[0], r"it is one image: save x\[None\]"),
    "nested": (IMAGES[None], r"save x\.reshape\(-1"),
    "flat": (IMAGES.reshape(N, -1), r"np\.savez\(path, arr_0=x\)"),
    "objects": (np.array([*IMAGES, None], dtype=object), "holds a pickle, which is never loaded"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_an_array_that_is_no_images_is_told_its_remedy(name, tmp_path):
    x, mend = REMEDIES[name]
    with pytest.raises(UserError, match=rf"images are uint8 of shape \(N, H, W, 3\): .*{mend}"):
        opened_set(save(tmp_path / "a.npz", arr_0=x))


def test_what_is_there_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"a is float64 of shape \(2,\); b is float64 of shape \(3,\)\. Name them arr_0"
    ):
        opened_set(save(tmp_path / "a.npz", a=np.zeros(2), b=np.zeros(3)))
    with pytest.raises(UserError, match="there is no array"):
        opened_set(save(tmp_path / "b.npz"))
    two = opened_set(save(tmp_path / "two.npz", arr_0=IMAGES, more=IMAGES))
    assert "more holds images too; arr_0 is measured" in two.warnings[0]


def test_other_files_are_told_what_to_give(tmp_path):
    torch.save(torch.from_numpy(IMAGES), tmp_path / "x.pt")
    torch.save(torch.from_numpy(IMAGES), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    write_folder(tmp_path / "a")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a")
    (tmp_path / "text").write_text("hello")
    for name, told in (
        ("x.pt", r"is a file of PyTorch: save np\.savez\(path, arr_0=x\.numpy\(\)\)"),
        ("old.pth", "is a file of PyTorch"),
        ("a.tar", "is a tar archive: unpack it"),
        ("a/000000.png", "is one image: give the folder"),
        ("text", r"give an \.npz or \.npy"),
    ):
        with pytest.raises(UserError, match=told):
            opened_set(tmp_path / name)


@pytest.mark.parametrize("where", ["first", "middle", "last", "header", "other order"])
@pytest.mark.parametrize("name", ["right.npz", "labels_first.npz", "fortran.npz", "packed.npz"])
def test_a_flipped_bit_is_seen_on_every_python(name, where, tmp_path):
    """Without zipfile's check, which from Python 3.12 on is not made after a seek."""
    path = ARRAYS[name](tmp_path / name)
    raw = bytearray(path.read_bytes())
    array = raw.index(IMAGES.tobytes()[:40]) if name in ("right.npz", "labels_first.npz") else 200
    at = {
        "first": array,
        "middle": array + 900,
        "last": array + 1400,
        "header": raw.index(b"16") if b"16" in raw else array,
    }
    raw[at.get(where, array + 5)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"\bdamaged\b|images are uint8"):
        pixels(path) if where != "other order" else [opened_set(path).read(k, k + 1) for k in (2, 0, 5)]


def test_a_header_that_says_fewer_images_is_seen(tmp_path):
    path = save_npy(tmp_path / "a.npy", IMAGES)
    path.write_bytes(path.read_bytes().replace(b"(6, ", b"(5, "))
    with pytest.raises(UserError, match=r"its array has 4,608 bytes and \(5, 16, 16, 3\) are 3,840"):
        opened_set(path)


# --- labels, and files of others beside the images --------------------------------------------------------------------

BESIDE = {
    "null": {"dataset_json": '{"labels": null}'},
    "plain": {},
    "vectors": {"dataset_json": json.dumps({"labels": [[f"{k:06d}.png", [1.0, k]] for k in range(N)]})},
    "some": {"dataset_json": json.dumps({"labels": [["000000.png", 0]]})},
    "own dataset": {"dataset_json": '{"name": "my run"}'},
    "own manifest": {"manifest_json": '{"prompts": ["a", "b"], "seed": 3}'},
    "own plan": {"plan_json": '{"budget": 3}'},
    "broken": {"manifest_json": "{", "dataset_json": "["},
    "deep": {"manifest_json": "[" * 100_000, "dataset_json": "[" * 100_000},
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_score_needs_no_labels(beside, kind, tmp_path):
    folder = write_folder(tmp_path / "a")
    if kind == "zip":
        folder = write_zip(tmp_path / "a.zip", folder, **BESIDE[beside])
    else:
        for name, text in BESIDE[beside].items():
            (folder / name.replace("_json", ".json")).write_text(text)
    assert np.array_equal(pixels(folder), IMAGES)
    if "dataset_json" in BESIDE[beside]:
        with pytest.raises(UserError, match=r"dataset\.json"):  # training does
            open_images(folder)


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path):
    write_folder(tmp_path / "tree", [IMAGES[k % N] for k in range(12)], "{}/0.png")
    source = open_source(str(tmp_path / "tree"))
    assert source.synsets == tuple(map(str, range(12)))
    assert [int(name.split("/")[0]) for name in source.names] == source.labels
    assert source.notes == ()
    shutil.rmtree(tmp_path / "tree" / "3")
    assert "the classes are numbered 0, 1, 2, 4...; their labels are" in open_source(str(tmp_path / "tree")).notes[0]


def test_a_flat_folder_is_one_class(tmp_path):
    facts = prepare_images(str(write_folder(tmp_path / "flat")), tmp_path / "out", side=16)
    assert (facts["count"], facts["num_classes"]) == (N, 1)
    assert open_images(tmp_path / "out").labels.tolist() == [0] * N
    assert np.array_equal(pixels(tmp_path / "out"), IMAGES)


def test_images_outside_the_classes_are_counted(tmp_path):
    folder = write_folder(tmp_path / "tree", name="a/{}.png")
    for name in ("grid.png", "a/deeper/x.png", "b/deeper/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "a" / "0.png", folder / name)
    facts = prepare_images(str(folder), tmp_path / "out", side=16)
    assert facts["count"] == N
    assert any("3 images left out, not directly in a class folder" in w for w in facts["warnings"])


def test_a_source_without_an_image_is_refused(tmp_path):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 1 files is an image \(a/x\.png: ValueError"):
        prepare_images(str(tmp_path / "tree"), tmp_path / "out", side=16)


# --- pairs ------------------------------------------------------------------------------------------------------------

#: Names of samples, and the number of the original of each.
PAIRS = {
    "the same": ("{:06d}.png", 0),
    "unpadded": ("{}.png", 0),
    "a prefix": ("recon_{}.png", 0),
    "a prefix with digits": ("epoch10_{}.png", 0),
    "a suffix": ("{}_seed42.png", 0),
    "another format": ("{:06d}.bmp", 0),
    "classes": ("c{0}/{0:06d}.png", 0),
    "classes and a prefix": ("c{0}/x{0}.png", 0),
}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_are_by_name(form, tmp_path):
    images = np.concatenate([IMAGES, 255 - IMAGES])
    originals = write_folder(tmp_path / "a", images)
    samples = write_folder(tmp_path / "b", images, PAIRS[form][0])
    both = Beside(opened_set(samples), opened_set(originals)).read(0, 12)
    assert torch.equal(both[:, :3], both[:, 3:])
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        (["1.png", "2.png", "3.png"], ["0.png", "1.png", "2.png"], r"1\.png and 0\.png"),
        (["a.png", "b.png"], ["a.png", "c.png"], r"b\.png and c\.png"),
        (["1.png", "01.png"], ["1.png", "2.png"], "1.png and "),
        (["x/1.png", "y/1.png"], ["1.png", "2.png"], "1.png and "),
    ],
)  # fmt: skip
def test_the_first_pair_that_differs_is_named(a, b, first):
    with pytest.raises(UserError, match=rf"the first that differ are \S*{first}"):
        paired_by_name(a, b)


def test_equal_lists_and_equal_letters_pair():
    assert paired_by_name(["1.png", "01.png", "1.jpg"], ["01.png", "1.jpg", "1.png"]) == [2, 0, 1]
    assert paired_by_name(["cafe\u0301.png"], ["caf\u00e9.png"]) == [0]


def test_arrays_pair_by_position_and_files_beside_them_where_it_is_sure(tmp_path):
    images = np.concatenate([IMAGES, 255 - IMAGES])
    array = opened_set(save(tmp_path / "a.npz", arr_0=images))
    padded = Beside(opened_set(write_folder(tmp_path / "a", images)), array).read(0, 12)
    assert torch.equal(padded[:, :3], padded[:, 3:])
    with pytest.raises(UserError, match=r"10\.png comes before 2\.png as text and after it as a number"):
        Beside(opened_set(write_folder(tmp_path / "b", images, "{}.png")), array)


# --- what was cached --------------------------------------------------------------------------------------------------


def as_before(path: Path, like: os.stat_result) -> None:
    """Set the time of a file back, as tar, rsync and cp -p do."""
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def bmps(folder: Path, images: np.ndarray, labels: bool) -> Path:
    write_folder(folder, images, "{:03d}.bmp")
    if labels:
        (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{k:03d}.bmp", 0] for k in range(len(images))]}))
    return folder


REPLACED = {
    "npz": lambda p, x: save(p / "r.npz", arr_0=x),
    "npy": lambda p, x: save_npy(p / "r.npy", x),
    "folder": lambda p, x: bmps(p / "r", x, False),
    "prepared": lambda p, x: bmps(p / "r", x, True),
    "zip": lambda p, x: write_zip(p / "r.zip", bmps(p / "r", x, False)),
    "h5": lambda p, x: write_h5(p / "r.h5", bmps(p / "r", x, False)),
}


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("kind", REPLACED)
def test_a_reference_that_was_replaced_is_another(kind, settled, tmp_path, monkeypatch, cache):
    if settled:  # so that hashes are remembered at once
        monkeypatch.setattr(content, "SETTLED_NS", -1)
    samples = save(tmp_path / "samples.npz", arr_0=pictures(3, 8, 16))
    write = REPLACED[kind]
    reference = write(tmp_path, pictures(4, 8, 16))
    first = score(samples, reference, tmp_path / "cache")
    assert score(samples, reference, tmp_path / "cache") == first
    assert any((cache / "content").glob("*.json")) == settled
    before = {p: p.stat() for p in tmp_path.rglob("r*") if p.is_file()} | {
        p: p.stat() for p in (tmp_path / "r").rglob("*.bmp")
    }
    write(tmp_path, pictures(5, 8, 16))
    for path, facts in before.items():
        assert path.stat().st_size == facts.st_size
        as_before(path, facts)
    second = score(samples, reference, tmp_path / "cache")
    assert second["fid"] == score(samples, reference, tmp_path / "empty")["fid"] != first["fid"]
    assert second["digests"]["reference"] != first["digests"]["reference"]


def test_the_same_images_elsewhere_and_later_are_not_looked_at_again(tmp_path):
    samples, toy = save(tmp_path / "s.npz", arr_0=IMAGES), Toy()
    job = scoring_files.Job(network=toy, features="inception", wanted=("fid",), cache=tmp_path / "cache")
    for name in ("a", "b"):
        reference = write_folder(tmp_path / name)
        for path in reference.iterdir():
            os.utime(path)
        scoring_files.score(opened_set(samples), reference, job)
    assert toy.looked == 3 * N  # the samples twice, the reference once


def test_a_hash_that_is_not_whole_is_made_again(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(content, "SETTLED_NS", -1)
    path = save(tmp_path / "a.npz", arr_0=IMAGES)
    right = content.content_of(path)
    (memo,) = (cache / "content").glob("*.json")
    for text in ("", "[]", "{}", '{"sha256": "x", "check": "y"}', memo.read_text().replace(right[:4], "0000")):
        memo.write_text(text)
        assert content.content_of(path) == right


def test_a_training_set_is_known_by_its_bytes(tmp_path):
    folder = bmps(tmp_path / "r", IMAGES, True)
    first, path = open_images(folder).content, folder / "002.bmp"
    facts, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    as_before(path, facts)
    assert open_images(folder).content != first


def test_a_prepared_reference_is_seen_to_be_what_was_prepared(tmp_path):
    prepare_images(str(write_folder(tmp_path / "a")), tmp_path / "out", side=16)
    (arrow,) = (tmp_path / "out").rglob("*.arrow")
    facts, raw = arrow.stat(), bytearray(arrow.read_bytes())
    raw[len(raw) // 2] ^= 1
    arrow.write_bytes(raw)
    as_before(arrow, facts)
    with pytest.raises(UserError, match="is damaged: its SHA-256"):
        score(save(tmp_path / "s.npz", arr_0=IMAGES), tmp_path / "out", tmp_path / "cache")


@pytest.mark.parametrize("settled", [True, False])
def test_a_source_that_was_replaced_under_its_names_is_refused(settled, tmp_path, monkeypatch):
    if settled:
        monkeypatch.setattr(content, "SETTLED_NS", -1)
    folder = write_folder(tmp_path / "tree", name="a/{}.bmp")
    write_folder(folder, name="b/{}.bmp")
    prepare = lambda: prepare_images(str(folder), tmp_path / "out", side=16, shard_size=4)  # noqa: E731
    first = prepare()["content"]
    for path in folder.rglob("*.bmp"):  # another time, the same bytes
        os.utime(path)
    assert prepare()["content"] == first
    path = folder / "b" / "3.bmp"
    facts = path.stat()
    PIL.Image.fromarray(255 - IMAGES[0]).save(path)
    as_before(path, facts)
    with pytest.raises(UserError, match=r"images from b/2\.bmp to b/5\.bmp changed since .* remove"):
        prepare()


# --- what lies outside, and what is too large -------------------------------------------------------------------------


def h5_with(path: Path, write) -> Path:
    with h5py.File(path, "w") as file:
        write(file)
    path.with_name(f"{path.stem}_h5.json").write_text('["x/a.png"]')
    return path


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((8,), np.uint8)
    layout[:] = h5py.VirtualSource(str(other), "a", (8,))
    file.create_virtual_dataset("x/a.png", layout)


OUTSIDE = {
    "external link": lambda f, o: f.create_group("x").__setitem__("a.png", h5py.ExternalLink(str(o), "/a")),
    "external group": lambda f, o: f.__setitem__("x", h5py.ExternalLink(str(o), "/group")),
    "soft link": lambda f, o: (f.__setitem__("y", h5py.ExternalLink(str(o), "/group")),
                               f.__setitem__("x", h5py.SoftLink("/y"))),
    "external storage": lambda f, o: f.create_dataset("x/a.png", (8,), np.uint8, external=[(str(o), 0, 8)]),
    "virtual": _virtual,
}  # fmt: skip


@pytest.mark.parametrize("how", OUTSIDE)
def test_an_hdf5_file_reads_no_other(how, tmp_path):
    raw = np.frombuffer(encoded(PIL.Image.fromarray(RGB), "png"), np.uint8)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["a"], other["group/a.png"] = raw, raw
    path = h5_with(tmp_path / "x.h5", lambda file: OUTSIDE[how](file, tmp_path / "other.h5"))
    for read in (opened_set, hdf5.H5Files(path).read):
        with pytest.raises(UserError, match=r"x/a\.png is a link or lies in another file"):
            read(path if read is opened_set else 0)


@pytest.mark.parametrize("spelled", ["./{}", "x//../{}", "{}"])
def test_names_as_find_prints_them(spelled, tmp_path):
    folder = write_folder(tmp_path / "a", name="00001/{:06d}.png")
    place = write_h5(tmp_path / "a.h5", folder)
    listing = place.with_name("a_h5.json")
    names = json.loads(listing.read_text())
    listing.write_text(json.dumps([spelled.format(name) for name in names]))
    if ".." in spelled:
        with pytest.raises(UserError, match="holds no image"):
            opened_set(place)
    else:
        assert np.array_equal(pixels(place), IMAGES)


def test_a_group_is_no_image(tmp_path):
    path = h5_with(tmp_path / "x.h5", lambda file: file.create_group("x/a.png"))
    with pytest.raises(UserError, match=r"x/a\.png is no image\. Take it out of x_h5\.json"):
        opened_set(path)


def directory_of(raw: bytearray, number: int) -> int:
    """Where a member's entry in a zip's directory begins."""
    at = -1
    for _ in range(number + 1):
        at = raw.index(b"PK\1\2", at + 1)
    return at


FLIPS = {
    "a long comment hides members": (33, 0x01, "its end says"),
    "another suffix": (46 + len("000001.p"), 0x08, "left out, by their suffix no pictures"),
    "no signature": (0, 0x20, "is not a whole zip file"),
    "an unknown method": (11, 0x80, "packed by|is not a whole|cannot be"),
    "a torn extra field": (30, 0x08, "is not a whole zip file|left out|damaged"),
    "an offset beyond the file": (44, 0x40, "damaged|is not a whole"),
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_flipped_bit_in_the_directory_of_a_zip_is_seen(name, tmp_path):
    place = write_zip(tmp_path / "a.zip", write_folder(tmp_path / "a"))
    raw = bytearray(place.read_bytes())
    offset, bit, sentence = FLIPS[name]
    raw[directory_of(raw, 1) + offset] ^= bit
    place.write_bytes(raw)
    try:
        found = opened_set(place)
        told = " ".join(found.warnings)
        found.read(0, len(found))
    except UserError as error:
        told = str(error)
    assert re.search(sentence, told), told


def test_labels_of_images_that_are_not_there_are_refused(tmp_path):
    place = tree.write_edm2_zip(tmp_path / "a.zip", tree.make_squares(n=6))
    open_images(place)
    with zipfile.ZipFile(place) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    lost = next(name for name in kept if name.endswith(".png"))
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in kept.items():
            if name != lost:
                archive.writestr(name, content)
    with pytest.raises(UserError, match=f"has labels of 1 images that are not there .{lost}.*Restore them"):
        open_images(place)


def test_small_files_that_ask_for_much_are_refused(tmp_path):
    huge = h5_with(tmp_path / "x.h5", lambda f: f.create_dataset("x/a.png", (2**33,), np.uint8, chunks=(2**20,)))
    assert huge.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"x/a\.png has 8,589,934,592 bytes, more than the 268,435,456"):
        opened_set(huge)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(257 * 2**20), compresslevel=1)
    with pytest.raises(UserError, match=r"a\.png has 269,484,032 bytes, more than"):
        opened_set(tmp_path / "a.zip")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (3, 2**16, 2**16)})
    with pytest.raises(ValueError, match=r"0 bytes where uint8 of shape \(3, 65536, 65536\) has 12,884,901,888"):
        decode(head.getvalue(), "a.npy")
    bomb = png(8, 0, np.zeros((1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 10_000, 10_000))
    with pytest.raises(UNDECODABLE):
        opened(bomb)
    with pytest.raises(UserError, match="images of 16384 x 16384 pixels are too large"):
        array_files.NpzImages(_sparse(tmp_path / "a.npy", (1, 2**14, 2**14, 3)))


def _sparse(path: Path, shape: tuple[int, ...]) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))
    return path


def test_large_pictures_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """64 of 4096 x 4096 pixels would be 3 GB."""
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    monkeypatch.setattr(feature_shards, "MOST_PIXELS", 2 * IMAGES.shape[1] * IMAGES.shape[2])
    seen = []

    class Watched(Toy):
        def __call__(self, images):
            seen.append(len(images))
            return super().__call__(images)

    shards = feature_shards.Shards(tmp_path / "shards", len(IMAGES))
    found = feature_shards.measure(opened_set(tmp_path / "x.npz"), Watched(), shards, batch=64, world=World())
    assert (found.rows, max(seen)) == (len(IMAGES), 2)


def planar_tiff(image: np.ndarray) -> bytes:
    """16 bits a channel, a plane for each channel."""
    height, width, _ = image.shape
    planes = (image.astype("<u2") * 256).transpose(2, 0, 1).tobytes()
    size, start = height * width * 2, 8
    offsets = start + len(planes)
    bits = offsets + 12
    counts = bits + 6
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, offsets), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 3, counts), (284, 3, 1, 2),
    ]  # fmt: skip
    tail = struct.pack("<3I", *(start + k * size for k in range(3))) + struct.pack("<3H", 16, 16, 16)
    tail += struct.pack("<3I", size, size, size)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", offsets + len(tail)) + planes + tail + directory + bytes(4)


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("x.tif", planar_tiff(IMAGES[0]), "planes of channels"),
        ("x.ppm", b"P6 16 16 65535\n" + (IMAGES[0].astype(">u2") * 256).tobytes(), "PPM of more than 8 bits"),
        ("x.ppm", b"P6 16 16 1023\n" + (IMAGES[0].astype(">u2") * 4).tobytes(), "PPM of more than 8 bits"),
    ],
)
def test_deep_pictures_that_pillow_takes_for_shallow_are_refused(name, raw, told):
    with pytest.raises(ValueError, match=told):
        decode(raw, name)


def test_a_ppm_of_8_bits_is_read():
    assert np.array_equal(decode(b"P6 16 16 255\n" + IMAGES[0].tobytes(), "x.ppm"), IMAGES[0])


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_grey_of_few_bits(bits):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) % 2**bits
    rows = np.packbits(np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(4, -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", body)
    shown = decode(raw + chunk(b"IEND", b""), "x.png")[..., 0]
    assert np.array_equal(shown, np.where(levels == 1, 255, levels * (255 // (2**bits - 1))))


def test_replaced_rows_of_a_data_set_are_seen(tmp_path):
    import datasets

    def save(shift: int) -> None:
        cells = []
        for image in IMAGES:
            file = io.BytesIO()
            PIL.Image.fromarray(np.roll(image, shift, 0)).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        made = datasets.Dataset.from_dict({"image": cells, "label": [k % 2 for k in range(N)]}, features=kinds)
        made.to_parquet(str(tmp_path / "x.parquet"))

    save(0)
    first = prepare_images(str(tmp_path / "x.parquet"), tmp_path / "out", side=16)
    prepare_images(str(tmp_path / "x.parquet"), tmp_path / "out", side=16)  # nothing to do
    before = (tmp_path / "x.parquet").stat()
    save(3)
    os.utime(tmp_path / "x.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and tar do
    with pytest.raises(UserError, match="changed"):
        prepare_images(str(tmp_path / "x.parquet"), tmp_path / "out", side=16)
    again = prepare_images(str(tmp_path / "x.parquet"), tmp_path / "new", side=16)
    assert again["content"] != first["content"]


def test_trees_that_say_no_class_are_refused(tmp_path):
    for animal in ("cat", "dog"):
        write_folder(tmp_path / "nested" / animal / "2020")
        write_folder(tmp_path / "split" / {"cat": "train", "dog": "test"}[animal])
    with pytest.raises(UserError, match="folders of folders"):
        open_source(str(tmp_path / "nested"))
    with pytest.raises(UserError, match=r"splits \(test, train\) and no classes"):
        open_source(str(tmp_path / "split"))
    write_folder(tmp_path / "tree" / "n00000001")
    (tmp_path / "tree" / "n00000002").mkdir()
    assert "1 of the 2 classes have no image (n00000002)" in open_source(str(tmp_path / "tree")).notes[-1]
