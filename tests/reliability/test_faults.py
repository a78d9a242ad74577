"""Damaged files, full disks, two processes, and processes that run out of memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from campaign import state_of
from conftest import ROOT

from harness.records.file import DAMAGED_FILE, RecordFile
from harness.records.provenance import provenance
from harness.records.schema import FloorRecord
from harness.runtime.locks import FILE, SILENT_SECONDS, held
from recipes.core import checkpoint
from recipes.core.errors import DamagedError, UserError

COMMAND = [sys.executable, "-m", "harness.cli"]


def repa_bench(*arguments: object, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    return warm.repa_bench(*arguments, environment={"COLUMNS": "500"}, memory=memory)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of one variant: (results, cache)."""
    root = tmp_path_factory.mktemp("small")
    done = run(root / "out", root / "cache")
    assert done.returncode == 0, done.stderr
    return root / "out", root / "cache"


def run(out: Path, cache: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return repa_bench("run", "--suite", "smoke", "--recipes", "vanilla", "--out", out, "--cache", cache, *more)


def record(name: str, fid: float = 1.0) -> FloorRecord:
    return FloorRecord(
        suite="s", suite_digest="d", notice="n", provenance=provenance(), name=name, fid=fid, n_fake=1, n_real=2
    )


# ---------------------------------------------------------------- damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("lost", ["all", "one"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, remove])
def test_the_newest_good_checkpoint_is_used(small, tmp_path, damage, name, lost):
    """The last checkpoint is damaged, and some of its scores are gone: it is made again from the one before."""
    out, cache = tmp_path / "out", small[1]
    shutil.copytree(small[0], out)
    last = next(out.glob("runs/vanilla-*/checkpoints/0000024"))
    damage(last / name)
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    gone = [line for line in lines if json.loads(line).get("step") == 24]
    gone = gone if lost == "all" else gone[-1:]
    (out / "records.jsonl").write_text("".join(line for line in lines if line not in gone))
    done = _main("run", "--suite", "smoke", "--recipes", "vanilla", "--out", out, "--cache", cache)
    assert done == 0
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (small[0] / "records.jsonl").read_text().splitlines()]
    again, first = (
        {
            (r["step"], r["generation_seed"], r["protocol"]["name"]): (r["metrics"], r["weights_hash"])
            for r in found
            if r["kind"] == "score"
        }
        for found in (rows, before)
    )
    assert again == first
    told = [r for r in rows if r["kind"] == "stage" and r["stage"] == "note"]
    if name == "optimizer.safetensors":  # the weights were good, and nobody trained on
        assert not told
        return
    assert len(told) == 1
    assert "checkpoint 24 was set aside as 0000024.damaged" in told[0]["notes"][0]
    anew = [r for r in rows if r["kind"] == "score" and r["step"] == 24 and r["notes"]]
    assert len(anew) == len(gone)
    assert all("set aside" in r["notes"][0] for r in anew)
    assert "set aside as 0000024.damaged" in (out / "report" / "index.html").read_text()
    assert (last.parent / "0000024.damaged").is_dir()


def _main(*arguments: object) -> int:
    """The command in this process."""
    from harness.cli import app

    before = sys.argv
    sys.argv = ["repa-bench", *map(str, arguments)]
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def test_a_swapped_and_a_foreign_checkpoint_are_seen(small, tmp_path):
    from recipes.training.run_folder import Run

    shutil.copytree(small[0], tmp_path / "out")
    run_folder = next((tmp_path / "out").glob("runs/vanilla-*"))
    opened = Run.open(run_folder)
    shutil.rmtree(opened.checkpoint(16))
    shutil.copytree(opened.checkpoint(8), opened.checkpoint(16))  # another step's
    with pytest.raises(DamagedError, match="holds the checkpoint of step 8"):
        opened.weights(16)
    spec = opened.spec.model_copy(update={"variant": "other"})
    with pytest.raises(DamagedError, match="a checkpoint of another run"):
        Run(spec, run_folder).weights(8)
    one, two = (opened.checkpoint(step) / "weights.safetensors" for step in (8, 24))
    shutil.copy(two, one)  # one file of it
    with pytest.raises(DamagedError, match="SHA-256 is not the manifest's"):
        opened.weights(8)
    assert [told.split(":")[0] for told in opened.repair([8, 16, 24])] == [
        "checkpoint 8 was set aside as 0000008.damaged",
        "checkpoint 16 was set aside as 0000016.damaged",
    ]
    assert opened.steps() == [24]


def test_a_manifest_with_one_changed_number_is_seen(tmp_path):
    checkpoint.save_folder(tmp_path / "c", {"a": {"x": torch.ones(2)}}, {"step": 17})
    path = tmp_path / "c" / "manifest.json"
    path.write_text(path.read_text().replace('"step": 17', '"step": 18'))
    with pytest.raises(DamagedError, match="is not what was written"):
        checkpoint.load_part(tmp_path / "c", "a")


def test_a_damaged_shard_is_made_again(tmp_path):
    from harness.scoring.feature_shards import Shards

    shards = Shards(tmp_path, 1500)
    for indices in shards.ranges():
        shards.save(indices, {"f": torch.full((len(indices), 2), float(indices.start))}, {"key": "k"})
    first, second = shards.ranges()
    assert shards.missing([first, second], "k") == ([], [])
    shutil.rmtree(shards.place(second))
    shutil.copytree(shards.place(first), shards.place(second))  # swapped
    (gone,), notes = shards.missing([first, second], "k")
    assert (gone, len(notes)) == (second, 1)
    assert not shards.place(second).exists()
    flip(shards.place(first) / "outputs.safetensors")
    assert [len(found) for found in shards.missing([first], "k")] == [1, 1]
    shards.save(first, {"f": torch.zeros(len(first), 2)}, {"key": "another"})
    assert [len(found) for found in shards.missing([first], "k")] == [1, 1]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"fid": 2.5', '"fid": 1.5'), ('"name": "two"', '"name": "owt"'), ('"kind": "floor"', '"kind": "flo'), ("{", "")],
)
def test_a_changed_record_is_seen_and_measured_again(tmp_path, old, new):
    file = RecordFile(tmp_path)
    for r in (record("one"), record("two", 2.5), record("three")):
        file.append(r)
    lines = file.path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace(old, new, 1)
    file.path.write_text("".join(lines))
    with pytest.raises(DamagedError, match=r"records\.jsonl, line 2 is damaged"):
        file.all()
    file.append(record("four"))  # a bad line costs no other measurement
    assert file.repair() == [f"{file.path}, line 2 was damaged and is now in {DAMAGED_FILE}"]
    assert [r.name for r in file.all()] == ["one", "three", "four"]
    assert (tmp_path / DAMAGED_FILE).read_text() == lines[1]
    assert file.repair() == []
    file.append(record("two", 2.5))
    assert [r.name for r in file.all()][-1] == "two"


def test_the_same_measurement_is_kept_once(tmp_path):
    file = RecordFile(tmp_path)
    file.append(record("one", 1.0))
    file.append(record("one", 2.0))
    assert [r.fid for r in file.all()] == [1.0]


def _append_many(folder: str, first: int) -> None:
    file = RecordFile(Path(folder))
    for k in range(first, first + 20):
        file.append(record(f"{k}"))
        file.repair()


def test_several_processes_append_to_one_file(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    (tmp_path / "records.jsonl").write_text("damaged from the start\n")
    workers = [spawn.Process(target=_append_many, args=(str(tmp_path), 10 * k)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(int(r.name) for r in RecordFile(tmp_path).all()) == list(range(40))


# ---------------------------------------------------------------- full disks

FILL = r"""
set -u
mount -t tmpfs -o size=$1 none "$2"
shift 2
"$@" 2> "$LOGS/first"; echo $? > "$LOGS/first.code"
find "$DISK" -name '*.tmp' > "$LOGS/left"
mount -o remount,size=256m "$DISK"
"$@" 2> "$LOGS/second"; echo $? > "$LOGS/second.code"
cp -r "$DISK/." "$LOGS/disk"
"""


def _can_mount() -> bool:
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount a small disk (unshare -rm)")
@pytest.mark.parametrize("share", [0.3, pytest.param(0.8, marks=pytest.mark.soak)])
def test_a_full_disk_costs_nothing(small, tmp_path, share):
    """A real file system that is too small: a sentence, nothing half written, and the same command continues."""
    disk, logs = tmp_path / "disk", tmp_path / "logs"
    disk.mkdir()
    logs.mkdir()
    whole = sum(p.stat().st_size for p in small[0].rglob("*") if p.is_file())
    arguments = ["run", "--suite", "smoke", "--recipes", "vanilla", "--out", disk, "--cache", small[1]]
    command = ["unshare", "-rm", "sh", "-c", FILL, "sh", f"{int(whole * share) // 1024}k", disk, *COMMAND, *arguments]
    environment = os.environ | {"DISK": str(disk), "LOGS": str(logs), "COLUMNS": "500"}
    subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, timeout=600, check=True)
    told = (logs / "first").read_text()
    assert (logs / "first.code").read_text().strip() == "2", told
    assert "Error: no space is left" in told
    assert "Traceback" not in told
    assert (logs / "left").read_text() == ""
    assert (logs / "second.code").read_text().strip() == "0", (logs / "second").read_text()
    assert state_of(logs / "disk") == state_of(small[0])


def test_a_record_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = RecordFile(tmp_path)
    file.append(record("one"))
    before = file.path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.append(record("two"))
    assert file.path.read_bytes() == before


# ---------------------------------------------------------------- two processes


def _hold(folder: str, seconds: float) -> None:
    with held(Path(folder)):
        (Path(folder) / "ready").touch()
        time.sleep(seconds)


def _holder(folder: Path, seconds: float) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(folder), seconds))
    process.start()
    while not (folder / "ready").exists():
        time.sleep(0.02)
    (folder / "ready").unlink()
    return process


def test_the_second_is_told_who_was_first_and_a_dead_one_holds_nothing(tmp_path):
    holder = _holder(tmp_path, 60)
    with (
        pytest.raises(UserError, match=rf"worked on by process {holder.pid} on {socket.gethostname()}"),
        held(tmp_path),
    ):
        pass
    assert holder.pid is not None
    (tmp_path / ".half.1.tmp").write_text("")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / FILE).exists()
    with held(tmp_path):
        assert not (tmp_path / ".half.1.tmp").exists()  # what the dead one left
    assert not (tmp_path / FILE).exists()


def test_a_holder_on_another_machine_is_believed_while_it_beats(tmp_path):
    path = tmp_path / FILE
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(UserError, match="process 7 on elsewhere"), held(tmp_path):
        pass
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    with held(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_second_command_is_refused_and_a_report_is_not(small, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(small[0], out)
    folder = next(out.glob("runs/vanilla-*"))
    holder = _holder(folder, 300)
    try:
        second = run(out, small[1], "--steps", 32)
        assert second.returncode == 2
        assert f"is being worked on by process {holder.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        report = repa_bench("report", out, "--out", tmp_path / "report")
        assert report.returncode == 0, report.stderr
    finally:
        holder.kill()
        holder.join()
    assert run(out, small[1], "--steps", 32).returncode == 0


# ---------------------------------------------------------------- signals and memory


def test_ctrl_c_once_saves_and_twice_aborts(small, tmp_path):
    command = ["train", "--suite", "smoke", "--recipes", "vanilla", "--steps", 100000, "--cache", small[1]]
    for times, code in ((1, 130), (2, 130)):
        out = tmp_path / str(times)
        with subprocess.Popen(
            [*COMMAND, *map(str, command), "--out", str(out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            while not any(out.glob("runs/*/log.jsonl")):
                assert process.poll() is None
                time.sleep(0.05)
            if times == 2:  # two at once: the step that the first lets end takes milliseconds
                process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            if times == 2:
                process.send_signal(signal.SIGCONT)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        if times == 1:
            assert "finishing this step, then saving" in errors
            assert "is saved at step" in errors
            assert any(out.glob("runs/*/checkpoints/*/optimizer.safetensors"))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGUSR1])
def test_a_scheduler_s_signal_ends_with_the_code_that_requeues(number, small, tmp_path):
    for at, cache in (("assets", tmp_path / "cache"), ("training", small[1])):
        out = tmp_path / at
        command = ["run", "--suite", "smoke", "--recipes", "vanilla", "--steps", "100000", "--save-every", "50"]
        command += ["--out", str(out), "--cache", str(cache)]
        with subprocess.Popen([*COMMAND, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while not any(cache.glob("digits-data-*") if at == "assets" else out.glob("runs/*/log.jsonl")):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 143, errors
        assert "same command continues" in errors
        assert "Traceback" not in errors
        assert not list(tmp_path.rglob(".lock"))
        assert any(out.glob("runs/*/checkpoints/*/optimizer.safetensors")) == (at == "training")


def test_a_second_ctrl_c_is_not_held_back():
    from harness.runtime.signals import deferred

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred() as came:  # noqa: PT012 (the second of them raises)
        os.kill(os.getpid(), signal.SIGINT)
        assert came() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_out_of_memory_names_the_remedy(error, monkeypatch, capsys):
    from harness.pipeline import run_suite

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run_suite, "run_suite", fail)
    assert _main("run", "--suite", "smoke", "--out", "/nowhere/never") == 2
    told = capsys.readouterr().err
    assert "out of memory" in told
    assert "--micro-batch" in told
    assert "--checkpointing" in told


def test_a_real_process_out_of_memory(small, tmp_path):
    """The machine's own limit, not an error that a test raises."""

    limit = 8 * 2**30
    done = repa_bench(
        "plan", "--suite", "smoke", "--recipes", "vanilla", "--set", "batch_size=100000000", "--probe", "1",
        "--out", tmp_path, "--cache", small[1],
        memory=limit,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- trainings that go wrong


def test_a_training_that_explodes_stops_with_its_own_code(small, tmp_path, capsys):
    """A learning rate of 1e30 makes the weights too large for float32 at the first step; the second has no gradient."""
    command = ("run", "--suite", "smoke", "--recipes", "vanilla", "--set", "sit_optimizer.lr=1e30", "--out", tmp_path)
    assert _main(*command, "--cache", small[1]) == 3
    told = capsys.readouterr().err
    assert "sit: the gradient was not finite (batch" in told
    assert "--on-nan skip" in told
    incident = json.loads(next(tmp_path.glob("runs/*/incidents/*.json")).read_text())
    assert incident["network"] == "sit"
    assert len(incident["images"]) == 16
    assert not list(tmp_path.glob("runs/*/checkpoints/[0-9]*"))
    assert _main(*command, "--cache", small[1], "--on-nan", "skip") == 3
    assert re.search(r"\d+ updates in succession were not finite", capsys.readouterr().err)


def test_what_was_left_out_stands_in_the_records_and_the_report(small, tmp_path, monkeypatch):
    from recipes.core.loop import Update
    from recipes.registry import RECIPES
    from recipes.repa_e import RepaE

    calls = iter(range(10**6))

    class Poisoned(RepaE):
        def updates(self, step):
            call = next(calls)
            bad = {3: "sit", 5: "sit", 6: "vae"}.get(call)
            for update in super().updates(step):
                loss = update.loss * float("nan") if update.network == bad else update.loss
                yield Update(update.network, loss, update.logs)

    monkeypatch.setitem(RECIPES, "repa_e", Poisoned)
    assert _main(
        "run", "--suite", "smoke", "--recipes", "repa_e", "--steps", "8", "--on-nan", "skip", "--out", tmp_path,
        "--cache", small[1],
    ) == 0  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    told = "updates that were not finite and left out: sit 2, vae 1"
    assert {tuple(r["notes"]) for r in rows if r["kind"] == "score"} == {(told,)}
    assert told in (tmp_path / "report" / "index.html").read_text()
    assert (tmp_path / "report" / "report.md").read_text().count(told) == 1


def test_odd_samples_stand_in_the_records_and_the_report(small, tmp_path, monkeypatch, capsys):
    """A checkpoint that draws black images has a number all the same."""
    from harness.sampling.sampler import Sampler

    whole = Sampler.draw

    def black(self, *what):
        images, labels = whole(self, *what)
        return torch.zeros_like(images), labels

    monkeypatch.setattr(Sampler, "draw", black)
    where = ("--suite", "smoke", "--out", tmp_path, "--cache", small[1])
    assert _main("run", "--recipes", "repa_e", "--steps", "2", *where) == 0
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["kind"] == "score"):
        n, place = row["n_fake"], f"at step 2 under {row['protocol']['name']}@2, "
        flat = f"{place}{n} of the {n} samples are of one colour, such as black."
        assert {flat, f"{place}{n - 1} of the {n} samples are copies of others; 1 differ."} <= set(row["notes"])
    assert flat in (tmp_path / "report" / "report.md").read_text()
    capsys.readouterr()
    (run_folder,) = (tmp_path / "runs").iterdir()
    assert _main("score", "--run", run_folder, "--metrics", "kid", *where) == 0
    (told,) = (part for part in json.loads(capsys.readouterr().out).values() if isinstance(part, dict))
    assert told["warnings"][0] == flat.removeprefix(place)
    assert any(warning.startswith("kid: its subsets are of") for warning in told["warnings"])


def test_a_shard_that_does_not_fit_leaves_the_others(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from harness.scoring.feature_shards import Shards

    shards = Shards(tmp_path, 1500)
    first, second = shards.ranges()
    shards.save(first, {"f": torch.zeros(len(first), 2)}, {})

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        shards.save(second, {"f": torch.zeros(len(second), 2)}, {})
    assert raised.value.errno == 28
    assert [p.name for p in tmp_path.iterdir()] == ["0000000"]
    assert shards.missing([first]) == ([], [])


def test_a_mapped_file_takes_its_space_at_once(tmp_path, monkeypatch):
    """A full disk behind a mapped file would kill the process with SIGBUS."""
    from harness.metrics import statistics

    monkeypatch.setattr(statistics, "IN_MEMORY", 0)
    found = statistics.Measured([{"f": torch.arange(8.0).reshape(4, 2)}], folder=tmp_path)
    assert torch.equal(torch.as_tensor(found.points("f")), torch.arange(8.0).reshape(4, 2))
    assert not list(tmp_path.iterdir())  # two commands that gather the same at once have a file each

    def full(handle: int, start: int, size: int) -> None:
        assert (start, size) == (0, 32)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    again = statistics.Measured([{"f": torch.zeros(4, 2)}], folder=tmp_path / "more")
    with pytest.raises(OSError, match="No space left") as raised:
        again.points("f")
    assert raised.value.filename == str(tmp_path / "more")


def test_damaged_odds_and_ends_stop_neither_run_nor_report(small, tmp_path):
    """An empty picture, a torn note and a log with a bad line: of a finished run, and of one that is extended."""
    out = tmp_path / "out"
    shutil.copytree(small[0], out)
    folder = next(out.glob("runs/vanilla-*"))
    for grid in out.glob("samples/*/*.png"):
        grid.write_bytes(b"")
    (folder / "notes.jsonl").write_text('{"text": "torn{"text": "after"}\n')
    (folder / "log.jsonl").write_bytes(b"\xff\n" + (folder / "log.jsonl").read_bytes())
    arguments = ["run", "--suite", "smoke", "--recipes", "vanilla", "--out", out, "--cache", small[1]]
    assert _main(*arguments) == 0
    assert _main("report", out) == 0
    assert "was left out: it is no whole PNG" in (out / "report" / "index.html").read_text()
    assert _main(*arguments, "--steps", 32) == 0
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    notes = next(r["notes"] for r in rows if r["kind"] == "score" and r["step"] == 32)
    assert "1 line of log.jsonl was damaged and is left out" in notes
    assert "1 line of notes.jsonl was damaged and is left out" in notes
