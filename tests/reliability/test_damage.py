"""One bad picture among many stops nothing, and no JSON that somebody wrote is too deep for a sentence."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import imagenet_tree as tree
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.cli.options import overrides
from harness.records import schema
from harness.records.file import RecordFile
from harness.runtime.locks import FILE, held
from recipes.core import checkpoint
from recipes.core.errors import UserError
from recipes.core.jsons import DEPTH, load_json
from recipes.core.spec import TrainSpec
from recipes.data.images import open_images, read_images_manifest
from recipes.data.latents import LatentStore
from recipes.training.run_folder import Run
from reports.build import Wanted, render
from reports.pictures import Pictures

EXAMPLE = ROOT / "reports" / "examples" / "digits"

# ---------------------------------------------------------------- pictures


def _flip(at: float) -> object:
    def damage(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[int(len(raw) * at)] ^= 1
        path.write_bytes(bytes(raw))

    return damage


def _postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(x) (w) file closefile\n")


def _gif(path: Path) -> None:
    Image.new("RGB", (100, 100)).save(path, format="GIF")


def _bomb(path: Path) -> None:
    """A few bytes that say that they are 1.6 thousand million pixels."""
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 40_000, 40_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(bytes(raw))


def _secret(path: Path) -> None:
    secret = path.parents[2] / "secret.png"
    path.rename(secret)
    path.symlink_to(secret)


def _folder_of_secrets(path: Path) -> None:
    """A folder on the way is the link."""
    secrets = path.parents[2] / "secrets"
    path.parent.rename(secrets)
    path.parent.symlink_to(secrets)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


PICTURES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a few bytes short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "bit in the header": _flip(0.002),
    "bit in the pixels": _flip(0.4),
    "bit near the end": _flip(0.99),
    "text": lambda path: path.write_text("no picture"),
    "postscript": _postscript,
    "gif": _gif,
    "bomb": _bomb,
    "one pixel": lambda path: Image.new("RGB", (1, 1)).save(path, format="PNG"),
    "link": _secret,
    "linked folder": _folder_of_secrets,
    "pipe": _pipe,
    "folder": _folder,
    "loop": _loop,
}


def grid(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", PICTURES)
def test_a_bad_picture_is_left_out_and_said(kind, tmp_path):
    PICTURES[kind](grid(tmp_path / "runs" / "samples" / "a.png"))
    pictures = Pictures(SimpleNamespace(roots={"samples/a.png": tmp_path / "runs"}))  # type: ignore[arg-type]
    assert pictures.url("samples/a.png", 3) is None
    assert pictures.url("samples/a.png", 3) is None
    outside = kind in ("link", "linked folder", "pipe", "folder")
    told = "no file below the records' folder" if outside else "no whole PNG"
    assert pictures.notes == [f"samples/a.png was left out: it is {told}"]


def test_a_good_picture_is_shown_wherever_its_folder_lies(tmp_path):
    path = grid(tmp_path / "elsewhere" / "samples" / "a.png")
    (tmp_path / "runs").symlink_to(tmp_path / "elsewhere")
    (path.parent / "b.png").symlink_to("a.png")
    roots = {f"samples/{name}.png": tmp_path / "runs" for name in "abc"}
    pictures = Pictures(SimpleNamespace(roots=roots))  # type: ignore[arg-type]
    for name in "ab":
        url = pictures.url(f"samples/{name}.png", 3)
        assert url is not None
        with Image.open(path) as stored, Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as seen:
            assert np.array_equal(np.asarray(seen), np.asarray(stored)[:30])
    assert pictures.url("samples/c.png") is None  # not there: records may travel without pictures
    assert pictures.notes == []


def test_a_report_is_made_of_what_is_whole(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "runs")
    whole = render(Wanted([tmp_path / "runs"]), ["html"])["index.html"].decode()
    first = next(r for r in RecordFile(tmp_path / "runs").all() if isinstance(r, schema.TokenizerRecord))
    assert first.components is not None
    samples = sorted((tmp_path / "runs" / "samples").rglob("*-g0.png"))
    for path in (*samples, tmp_path / "runs" / first.components):
        path.write_bytes(b"")
    page = render(Wanted([tmp_path / "runs"]), ["html"])["index.html"].decode()
    told = re.findall(r"Picture (\S+) was left out: it is no whole PNG\.</p>", page)
    assert set(told) <= {str(p.relative_to(tmp_path / "runs")) for p in samples} | {first.components}
    assert first.components in told
    assert len(told) > 1
    assert page.count("data:image/png;base64,") == whole.count("data:image/png;base64,") - len(told)
    assert "was left out" not in whole


# ---------------------------------------------------------------- JSON in JSON

DEEP = {"over the stack": "[" * 20_000, "closed": "[" * 20_000 + "]" * 20_000, "under it": "[" * 300 + "]" * 300}


def _in(key: str, deep: str) -> str:
    return f'{{"{key}": {deep}}}'


def _zip(folder: Path, deep: str) -> object:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.png", tree.encoded(tree.picture(16, 16, 0), "png"))
        archive.writestr("dataset.json", _in("labels", deep))
    return open_images(folder / "a.zip")


def _edm2_folder(folder: Path, deep: str) -> object:
    (folder / "a.png").write_bytes(tree.encoded(tree.picture(16, 16, 0), "png"))
    (folder / "dataset.json").write_text(_in("labels", deep))
    return open_images(folder)


def _written(name: str, read: object) -> object:
    def use(folder: Path, deep: str) -> object:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_in("kind", deep))
        return read(folder)  # type: ignore[operator]

    return use


JSONS = {
    "spec.json": _written("spec.json", Run.open),
    "images' manifest": _written("manifest.json", read_images_manifest),
    "latents' manifest": _written("manifest.json", LatentStore.open),
    "checkpoint's manifest": _written("manifest.json", checkpoint.read_manifest),
    "dataset.json in a folder": _edm2_folder,
    "dataset.json in a zip": _zip,
    "asset.json": _written("external/vgg16/asset.json", lambda folder: catalogue.find(Store(folder), "vgg16")),
    "a record": _written("records.jsonl", lambda folder: _ended(folder / "records.jsonl")),
    "--set": lambda folder, deep: overrides([f"sit.depth={deep}"]),
    "a specification": lambda folder, deep: TrainSpec.parse({"seed": _nested(20_000)}, where="spec.json"),
}


def _ended(path: Path) -> object:
    path.write_text(path.read_text() + "\n")
    return RecordFile(path.parent).all()


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", DEEP)
@pytest.mark.parametrize("name", JSONS)
def test_json_that_is_too_deep_is_a_sentence(name, depth, tmp_path):
    with pytest.raises(UserError) as raised:
        JSONS[name](tmp_path, DEEP[depth])
    assert re.search(r"\.jsonl?\b|--set sit\.depth", str(raised.value))
    assert len(str(raised.value)) < 1000


def test_what_is_meant_is_not_too_deep():
    assert load_json("[" * DEPTH + "1" + "]" * DEPTH) is not None
    for text in ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), '{"a":' * 500 + "1" + "}" * 500):
        with pytest.raises(ValueError, match=f"nested deeper than {DEPTH} levels"):
            load_json(text)
    assert load_json('{"a": "[[[["}') == {"a": "[[[["}
    assert load_json("\ufeff[1]".encode()) == [1]
    assert load_json("3") == 3


def test_a_lock_that_holds_too_much_holds_nothing(tmp_path):
    for content in (DEEP["over the stack"], "[]", "3", '{"pid": [], "host": 7}', "\xff"):
        (tmp_path / FILE).write_text(content)
        if content.startswith('{"pid"'):
            os.utime(tmp_path / FILE, (1, 1))
        with held(tmp_path):
            pass


@pytest.mark.parametrize("bit", [1, 2, 4, 0x80])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_flipped_bit_in_the_name_of_a_check_is_damage(at, bit, tmp_path):
    """And no key that a later version writes: the line is set aside, and measured again."""
    lines = (EXAMPLE / "records.jsonl").read_bytes().split(b"\n")[:3]
    key = lines[1].index(b'"check"') + 1
    lines[1] = lines[1][: key + at] + bytes([lines[1][key + at] ^ bit]) + lines[1][key + at + 1 :]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (told,) = RecordFile(tmp_path).repair()
    assert "line 2 was damaged" in told
    assert len(RecordFile(tmp_path).all()) == 2
