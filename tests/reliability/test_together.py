"""Several commands at once, what dead ones left, file systems without locks, links, and full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tests_support import pictures

from harness.assets import fetch
from harness.assets.cache import Store
from harness.records.file import DAMAGED_FILE, RecordFile
from harness.records.provenance import provenance
from harness.records.schema import FloorRecord
from harness.runtime import locks
from harness.runtime.locks import FILE, held
from harness.scoring.feature_shards import Shards
from harness.scoring.image_files import save_grid, write_npz
from recipes.core import atomic, checkpoint
from recipes.core.atomic import temporary, write_text, written
from recipes.core.errors import UserError
from recipes.core.json_lines import append_row


def record(name: str) -> FloorRecord:
    return FloorRecord(
        suite="s", suite_digest="d", notice="n", provenance=provenance(), name=name, fid=1.0, n_fake=1, n_real=2
    )


# ---------------------------------------------------------------- at once


def together(work: str, count: int, root: Path, rounds: int, kind: str) -> None:
    """See `together.py`."""
    here = Path(__file__).with_name("together.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "REPA_BENCH_CACHE": str(root / "content")}
    command = [sys.executable, here, work, count, root, rounds, kind]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["held", "alone", "held without locks", "alone without locks"])
def test_one_at_a_time_holds_what_eight_want(kind, tmp_path):
    rounds = 25
    (tmp_path / "number").write_text("0")
    together("count_up", 8, tmp_path, rounds, kind)
    assert (tmp_path / "number").read_text() == str(8 * rounds)
    assert {p.name for p in tmp_path.rglob("*")} - {"number", "folder", "x"} == set()


def test_two_commands_score_one_set_on_one_cache(tmp_path):
    """Ten times, both from an empty cache for the samples; the reference's shards stay."""
    np.savez(tmp_path / "real.npz", arr_0=pictures(0, 1100))
    np.savez(tmp_path / "fake.npz", arr_0=pictures(1, 1100))
    together("score", 2, tmp_path, 10, "-")
    lines = (tmp_path / "told").read_text().splitlines()
    assert len(lines) == 20
    assert len(set(lines)) == 1
    kept = sorted(p.name for p in (tmp_path / "cache").iterdir())
    assert len(kept) == 1  # the reference's
    assert kept[0].startswith("measured-")


def test_a_picture_and_an_archive_of_one_name_are_written_at_once(tmp_path):
    images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)

    def parts():
        yield images[:2]
        save_grid(tmp_path / "a.png", images, 2)
        write_npz(tmp_path / "a.npz", iter([images]), 4)
        write_npz(tmp_path / "a.b.npz", iter([images]), 4)
        yield images[2:]

    write_npz(tmp_path / "a.npz", parts(), 4)
    for name in ("a.npz", "a.b.npz"):
        assert np.array_equal(np.load(tmp_path / name)["arr_0"], images.permute(0, 2, 3, 1).numpy())
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a.npz", "a.b.npz"}


def test_one_file_is_written_twice_at_once(tmp_path):
    with written(tmp_path / "x") as one:
        one.write(b"one, and")
        write_text(tmp_path / "x", "two")
        assert (tmp_path / "x").read_text() == "two"
        one.write(b" more")
    assert (tmp_path / "x").read_text() == "one, and more"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_replaced_by_two_at_once(tmp_path, monkeypatch):
    """The other process puts its folder there, and takes it away, whenever this one looks."""
    tensors, rename, turns = {"a": {"x": torch.ones(2)}}, Path.rename, []

    def also(self: Path, target: Path) -> Path:
        if self.name == "f" and not turns:  # the other has moved the old one away just now
            turns.append(1)
            rename(self, self.with_name("theirs"))
        return rename(self, target)

    checkpoint.save_folder(tmp_path / "f", tensors, {"n": 1})
    monkeypatch.setattr(Path, "rename", also)
    checkpoint.save_folder(tmp_path / "f", tensors, {"n": 2})
    assert turns
    assert checkpoint.read_manifest(tmp_path / "f") == {"n": 2}
    assert {p.name for p in tmp_path.iterdir()} == {"f", "theirs"}


def test_a_download_of_another_file_keeps_what_was_there(tmp_path, monkeypatch):
    """Two fetch one name: each has a folder of its own, and what is not the published file replaces nothing."""
    monkeypatch.setenv("REPA_BENCH_CACHE", str(tmp_path / "content"))
    store, names = Store(tmp_path / "cache"), []

    def inner(known: object, folder: Path) -> None:
        names.append(folder.name)
        (folder / "a.pt").write_bytes(b"inner")

    def outer(known: object, folder: Path) -> None:
        names.append(folder.name)
        (folder / "a.pt").write_bytes(b"outer")
        monkeypatch.setattr(fetch, "_download", inner)
        assert fetch.fetch(store, "sd-vae").path.read_bytes() == b"inner"

    monkeypatch.setattr(fetch, "_download", outer)
    assert fetch.fetch(store, "sd-vae").path.read_bytes() == b"outer"
    assert len(set(names)) == 2
    with pytest.raises(UserError, match="is not the published vgg16"):
        fetch.fetch(store, "vgg16")
    assert not (store.root / "external" / "vgg16" / "files").exists()


# ---------------------------------------------------------------- what others left


def _dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


@pytest.mark.parametrize(
    ("maker", "old", "stays"),
    [
        ("{host}-{parent}-0", 0, True),
        ("{parent}", 0, True),
        ("{host}-{dead}-7", 0, False),
        ("{dead}", 0, False),
        ("{host}-{own}-0a9c", 0, False),  # of the process that had our number before, as in a container
        ("0a1b2c3d-{dead}-0", 0, True),  # another machine's: nobody here can ask
        ("0a1b2c3d-{parent}-0", 2 * atomic.ABANDONED_SECONDS, False),
        ("gone", 0, True),
        ("gone", 2 * atomic.ABANDONED_SECONDS, False),
    ],
)
@pytest.mark.parametrize("name", ["plain", "guided[0,0.7]*?"])
def test_temporaries_of_the_dead_go_and_of_the_living_stay(name, maker, old, stays, tmp_path):
    told = maker.format(host=atomic._HOST, parent=os.getppid(), dead=_dead_pid(), own=os.getpid())
    theirs = tmp_path / f".{name}.{told}.tmp"
    theirs.mkdir()
    (theirs / "half").write_text("half")
    os.utime(theirs, (time.time() - old,) * 2)
    for write in (
        lambda: checkpoint.save_folder(tmp_path / name, {"a": {"x": torch.ones(1)}}, {}),
        lambda: checkpoint.remove_folder(tmp_path / name),
        lambda: write_text(tmp_path / name, "x"),
    ):
        write()
        assert theirs.exists() == stays
        theirs.mkdir(exist_ok=True)
        os.utime(theirs, (time.time() - old,) * 2)


def test_shards_of_a_killed_run_go_whatever_a_protocol_is_called(tmp_path):
    from types import SimpleNamespace

    from harness.pipeline import score

    run = SimpleNamespace(folder=tmp_path / "runs" / "variant-seed0-12345678")
    names = ["0000008-sit-cfg1.5[0,0.7]-g0", "0000008-a*-g0", "0000008-a?b-g0"]
    others = ["0000008-sit-cfg1.50-g0", "0000008-a*-g01", "0000008-axb-g0"]
    for name in names + others:
        (tmp_path / "shards" / f"{run.folder.name}-{name}-0123456789ab").mkdir(parents=True)
    cells = [SimpleNamespace(run=run, name=name) for name in names]
    score._clear_leftovers(SimpleNamespace(folder=tmp_path), cells)  # type: ignore[arg-type]
    left = sorted(p.name for p in (tmp_path / "shards").iterdir())
    assert left == sorted(f"{run.folder.name}-{name}-0123456789ab" for name in others)


# ---------------------------------------------------------------- file systems without locks


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_records_are_written_and_a_folder_is_held(number, tmp_path, monkeypatch):
    def flock(handle: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    file = RecordFile(tmp_path)
    file.append(record("one"))
    file.append(record("two"))
    assert [r.name for r in file.all()] == ["one", "two"]
    assert file.repair() == []
    shards = Shards(tmp_path / "shards", 3)
    with shards.alone():
        shards.clear()
    with held(tmp_path):
        with pytest.raises(UserError, match=rf"is being worked on by process {os.getpid()} on"), held(tmp_path):
            pass
        assert (tmp_path / FILE).exists()
    with held(tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"records.jsonl"}


@pytest.mark.parametrize(
    ("holder", "silent", "free"),
    [
        ('{{"pid": {dead}, "host": "{here}"}}', 0, True),
        ('{{"pid": {parent}, "host": "{here}"}}', 0, False),
        ('{{"pid": {dead}, "host": "elsewhere"}}', 0, False),
        ('{{"pid": {dead}, "host": "elsewhere"}}', locks.SILENT_SECONDS + 1, True),
        ("", 0, False),  # just made
        ("", locks.SILENT_SECONDS + 1, True),
        ("[" * 5000, locks.SILENT_SECONDS + 1, True),
    ],
)
def test_without_locks_a_dead_holder_holds_nothing(holder, silent, free, tmp_path, monkeypatch):
    def flock(handle: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    claim = tmp_path / f"{FILE}.claim"
    claim.write_text(holder.format(dead=_dead_pid(), parent=os.getppid(), here=locks._HOST))
    os.utime(claim, (time.time() - silent,) * 2)
    if not free:
        with pytest.raises(UserError, match="is being worked on"), held(tmp_path):
            pass
        return
    with held(tmp_path):
        assert f'"pid": {os.getpid()}' in claim.read_text()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- links


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not there yet"))


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


IN_PLACE = {
    FILE: lambda folder: held(folder).__enter__(),
    "records.jsonl": lambda folder: RecordFile(folder).append(record("one")),
    ".records.jsonl.lock": lambda folder: RecordFile(folder).append(record("one")),
    "log.jsonl": lambda folder: append_row(folder / "log.jsonl", {"step": 1}),
    DAMAGED_FILE: lambda folder: ((folder / "records.jsonl").write_text("damaged\n"), RecordFile(folder).repair()),
}


@pytest.mark.parametrize("plant", [_link, _dangling, _pipe])
@pytest.mark.parametrize("name", IN_PLACE)
def test_nothing_is_written_through_a_link_or_into_a_pipe(name, plant, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious\n")
    folder.mkdir()
    plant(folder / name, victim)
    with pytest.raises(UserError, match="is a link, a pipe or a device"):
        IN_PLACE[name](folder)
    assert victim.read_text() == "precious\n"
    assert {p.name for p in tmp_path.iterdir()} == {"victim", "out"}


def test_a_link_at_the_place_of_a_temporary_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda length: "0" * 2 * length)  # somebody guesses it
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("x.png", "x.npz", "x"):
        with temporary(folder / name) as made:
            pass
        made.symlink_to(victim)
    (folder / "x.tmp").symlink_to(victim)
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    save_grid(folder / "x.png", images, 1)
    write_npz(folder / "x.npz", iter([images]), 1)
    write_text(folder / "x", "text")
    (folder / "y").symlink_to(victim)
    write_text(folder / "y", "text")  # the link itself is replaced
    assert victim.read_text() == "precious"
    assert not (folder / "y").is_symlink()
    assert (folder / "x").read_text() == "text"


# ---------------------------------------------------------------- full disks


def _can_mount() -> bool:
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


EXPORT = """
import sys
from pathlib import Path
import torch
from builders import TOKENIZER
from harness.cli.app import main
from recipes.training import export_vae as exports
from recipes.models.autoencoder import Autoencoder

vae = Autoencoder(TOKENIZER)
weights = {f"vae.{k}": v for k, v in vae.state_dict().items()}
weights |= {"ema.sit.bn.running_mean": torch.zeros(4), "ema.sit.bn.running_var": torch.ones(4)}

class Stub:
    spec = type("Spec", (), {"recipe": "repa_e", "tokenizer": TOKENIZER})
    open = classmethod(lambda cls, folder: cls())
    steps = lambda self: [8]
    weights = lambda self, step: weights

exports.Run = Stub
sys.argv = ["repa-bench", "export-vae", "run", "--out", sys.argv[1]]
main()
"""


@pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount a small disk (unshare -rm)")
@pytest.mark.parametrize("kilobytes", [pytest.param(100, marks=pytest.mark.soak), 300])
def test_an_export_that_does_not_fit_leaves_nothing(kilobytes, tmp_path):
    """Of 413 kB: in the weights of diffusers' form, and in the released form."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size={kilobytes}k none "$1"; shift; "$@"; code=$?; find {disk} -type f; exit $code'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), sys.executable, "-c", EXPORT, str(disk / "out")]
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}", "COLUMNS": "500"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Error: no space is left" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("error", ["safetensors", "torch", "pillow"])
def test_a_full_disk_is_one_error_whatever_the_library_says(error, tmp_path):
    from safetensors import SafetensorError

    def fail() -> None:
        if error == "safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            if error == "torch":
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904
            raise

    with pytest.raises(OSError, match="No space left on device") as raised, written(tmp_path / "x"):
        fail()
    assert (raised.value.errno, raised.value.filename) == (28, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())
