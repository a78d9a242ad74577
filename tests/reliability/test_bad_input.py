"""What people mistype and what arrives broken: a sentence and exit code 2, no traceback, nothing half written."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from test_faults import _main

from baselines import claims as ledger
from baselines.published import FOLDER, PublishedError, load_file
from harness.cli import app
from harness.cli.options import flag_of
from harness.metrics.adm_reference import read_adm_reference
from harness.records import file as records_file
from harness.results.comparison import load
from harness.results.curve_csv import read_csv
from harness.scoring.image_sets import open_samples
from harness.suites import SUITES, suite
from recipes.core.errors import UserError
from recipes.core.spec import EVERY_FIELD
from recipes.core.weights import load_state
from recipes.data.files import FolderFiles, ZipFiles, labels_of
from recipes.data.images import open_images
from recipes.data.latents import LatentStore
from recipes.training.run_folder import Run
from reports.build import Wanted, render

EXAMPLE = ROOT / "reports" / "examples" / "digits"
SMOKE = ("--suite", "smoke")

# ---------------------------------------------------------------- the command line

MISTAKES: list[tuple[list[str], str]] = [
    (["run", *SMOKE, "--score-every", "0"], "--score-every"),
    (["run", *SMOKE, "--score-every", "-3"], "--score-every"),
    (["run", *SMOKE, "--steps", "1.5"], "--steps"),
    (["run", *SMOKE, "--seeds", "-1"], "--seeds"),
    (["run", *SMOKE, "--seeds", "99999999999999999999999"], "--seeds"),
    (["run", *SMOKE, "--device", "tpu"], "--device"),
    (["run", *SMOKE, "--device", "cuda"], "--device"),
    (["run", *SMOKE, "--micro-batch", "0"], "--micro-batch"),
    (["run", *SMOKE, "--threads", "0"], "--threads"),
    (["run", *SMOKE, "--save-every", "0"], "--save-every"),
    (["run", *SMOKE, "--keep", "0"], "--keep"),
    (["run", *SMOKE, "--on-nan", "ignore"], "--on-nan"),
    (["run", *SMOKE, "--out", "/dev/null/x"], "/dev/null"),
    (["run", *SMOKE, "--cache", "/dev/null/x"], "/dev/null"),
    (["run", *SMOKE, "--out", "/proc/nothing"], "/proc/nothing"),
    (["run", *SMOKE, "--set", ""], "KEY=VALUE"),
    (["run", *SMOKE, "--set", "=3"], "KEY=VALUE"),
    (["run", *SMOKE, "--set", "sit.depth=0"], "sit.depth"),
    (["run", *SMOKE, "--set", "sit.depth=1e9"], "sit.depth"),
    (["run", *SMOKE, "--set", "sit.depth=null"], "sit.depth"),
    (["run", *SMOKE, "--set", "sit.depth.x=3"], "sit.depth"),
    (["run", *SMOKE, "--set", "sit.hidden=50"], "does not divide"),
    (["run", *SMOKE, "--set", "sit.heads=7"], "does not divide"),
    (["run", *SMOKE, "--set", "sit.encoder_depth=9"], "beyond the last block"),
    (["run", *SMOKE, "--set", "sit.channels=3"], "latents"),
    (["run", *SMOKE, "--set", "sit.latent_size=5"], "does not make latents"),
    (["run", *SMOKE, "--set", "batch_size=0"], "batch_size"),
    (["run", *SMOKE, "--set", "sit_optimizer.lr=-1"], "sit_optimizer.lr"),
    (["run", *SMOKE, "--set", "sit_optimizer.lr=Infinity"], "sit_optimizer.lr"),
    (["run", *SMOKE, "--set", "ema.decay=2"], "ema.decay"),
    (["run", *SMOKE, "--set", "variants.repa.recipe=rpea"], "Did you mean 'repa'"),
    (["run", *SMOKE, "--set", "variants.repa.options.alignment=much"], "alignment"),
    (["run", *SMOKE, "--set", "curve_protocol.steps=0"], "curve_protocol.steps"),
    (["run", *SMOKE, "--set", "curve_protocol.solver=rk4"], "curve_protocol.solver"),
    (["train", *SMOKE, "--recipes", "sit"], "no recipe 'sit'"),
    (["score", "--samples", "nowhere.npz"], "go together"),
    (["score", "--samples", "nowhere.npz", "--reference", "nowhere.npz", "--metrics", "fdi"], "did you mean"),
    (["score", "--samples", "a", "--reference", "b", "--features", "inceptoin"], "inception"),
    (["score", "--samples", "a", "--reference", "b", "--weights", "nowhere.pth"], "nowhere.pth"),
    (["score", *SMOKE, "--run", "nowhere"], "is not a run"),
    (["score", *SMOKE, "--run", "nowhere", "--protocol", "sit-sde25"], "Did you mean 'sit-sde250"),
    (["score", *SMOKE, "--protocol", "sit-sde250"], "decides nothing"),
    (["score", *SMOKE, "--metrics", "kid"], "--samples"),
    (["score", *SMOKE, "--json"], "decides nothing"),
    (["score", *SMOKE, "--run", "nowhere", "--features", "inception", "--steps", "3"], "--steps"),
    (["score", "--samples", "a", "--reference", "b", "--seeds", "1"], "--seeds"),
    (["score", "--samples", "a", "--reference", "b", "--out", "."], "a file is meant"),
    (["score", "--tokenizer", "sd-vae"], "--reference"),
    (["run", *SMOKE, "--data", "/data"], "makes its own data"),
    (["sample", *SMOKE, "--recipe", "repa", "--images", "x.npz"], ".png"),
    (["sample", *SMOKE, "--recipe", "repa", "--images", "x.png", "--tokenizer", "sd-vae"], "--run"),
    (["sample", *SMOKE, "--run", "nowhere", "--images", "x.png", "--seed", "3"], "--recipe"),
    (["doctor", "--images", "64"], "--metrics"),
    (["report", str(EXAMPLE), "--check", "nowhere", "--out", "x"], "--out"),
    (["doctor", "--device", "cpu"], "--metrics"),
    (["doctor", "--verify", "--metrics"], "--verify"),
    (["sample", *SMOKE, "--images", "x.png"], "--recipe"),
    (["sample", *SMOKE, "--run", "nowhere", "--images", "x.png"], "is not a run"),
    (["sample", *SMOKE, "--recipe", "repa", "--images", "x.png", "--count", "0"], "--count"),
    (["guidance", *SMOKE, "--scales", "much"], "--scales"),
    (["guidance", *SMOKE, "--scales", "nan"], "--scales"),
    (["guidance", *SMOKE, "--intervals", "1:0"], "--intervals"),
    (["guidance", *SMOKE, "--intervals", "0-1"], "--intervals"),
    (["guidance", *SMOKE, "--samples", "1"], "--samples"),
    (["analyse", *SMOKE, "--count", "3"], "--count"),
    (["speedup"], "folder"),
    (["speedup", "--curves", "nowhere.csv"], "nowhere.csv"),
    (["compare", "nowhere", "elsewhere"], "nowhere"),
    (["claims", "nowhere"], "nowhere"),
    (["claims", "--seeds", "0"], "--seeds"),
    (["speedup", str(EXAMPLE), "--cv", "0.01"], "--cv"),
    (["speedup", str(EXAMPLE), "--until", "3"], "--until"),
    (["speedup", str(EXAMPLE), "--target", "500"], "--target"),
    (["report", str(EXAMPLE), "--seeds", "99"], "--seeds"),
    (["runs", "nowhere"], "nowhere"),
    (["runs", "remove", str(EXAMPLE), "nothing"], "nothing"),
    (["plan", *SMOKE, "--detect", "1.2"], "--detect"),
    (["baselines", "--kind", "guessed"], "--kind"),
    (["report", "nowhere", "--format", "html"], "nowhere"),
    (["report", str(EXAMPLE), "--format", ""], "--format"),
    (["report", str(EXAMPLE), "--out", "/dev/null/x"], "/dev/null"),
    (["plan", *SMOKE, "--devices", "0"], "--devices"),
    (["plan", *SMOKE, "--tflops", "fast"], "--tflops"),
    (["plan", *SMOKE, "--tflops", "0"], "--tflops"),
    (["plan", *SMOKE, "--probe", "-1"], "--probe"),
    (["fetch", "sd-vea"], "sd-vae"),
    (["fetch", "sd-vae", "--from", "/nowhere"], "/nowhere"),
    (["import", "/nowhere", "--out", "x"], "/nowhere"),
    (["export-vae", "/nowhere", "--out", "x"], "/nowhere"),
    (["replay", "/nowhere"], "/nowhere"),
    (["prepare", "--suite", "imagenet-smoke", "--data", "/nowhere"], "/nowhere"),
    (["run", "--suite", "imagenet-smoke", "--set", "variants.repa.size=XS"], "there is no size 'XS'"),
    (["nonsense"], "nonsense"),
    (["cahce"], "cache"),
    (["cache", "list", "--cache", "/dev/null/x"], "/dev/null"),
    (["cache", "remove"], "--spare"),
    (["cache", "remove", "nothing", "--yes"], "no 'nothing'"),
    (["cache", "verify", "nothing"], "no 'nothing'"),
    (["run", *SMOKE, "--recipes", "repa,rapa_e"], "no recipe 'rapa_e'. Did you mean 'repa_e'"),
    (["run", *SMOKE, "--seeds", "0,x"], "--seeds"),
    (["run", *SMOKE, "--set", "sit.depth=2", "sit.hidden=50"], "does not divide"),
    (["report", str(EXAMPLE), "--format", "html", "docx"], "no format 'docx'"),
    (["report", str(EXAMPLE.parent)], "reports/examples/digits"),
    (["plan", *SMOKE, "--jobs", "0"], "--jobs"),
    (["plan", "--suite", "imagenet256", "--jobs", "2"], "--jobs"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[" ".join(a)[:60] for a, _ in MISTAKES])
def test_a_mistake_on_the_command_line(arguments, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("REPA_BENCH_CACHE", str(tmp_path / "cache"))
    assert _main(*arguments) == 2
    output = capsys.readouterr()
    assert told.lower() in " ".join(output.err.replace("│", " ").split()).lower(), output.err
    assert "Traceback" not in output.err
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "cache" not in p.parts]
    assert not left


#: What an option cannot be, where its type does not say it.
NONSENSE = {
    "--device": "tpu", "--suite": "digts", "--set": "x", "--recipes": "nothing", "--recipe": "nothing",
    "--protocol": "nothing", "--out": "/dev/null/x", "--cache": "/dev/null/x", "--data": "/nowhere",
    "--features": "nothing", "--metrics": "nothing", "--weights": "/nowhere", "--samples": "/nowhere",
    "--reference": "/nowhere", "--run": "/nowhere", "--tokenizer": "/nowhere", "--adm-evaluator": "/nowhere",
    "--adm-python": "/nowhere", "--images": "/dev/null/x.png", "--intervals": "1:0", "--on-nan": "ignore",
    "--format": "docx", "--check": "/nowhere", "--curves": "/nowhere", "--baseline": "nothing", "--from": "/nowhere",
    "--kind": "guessed", "--name": "a/b", "--recipe-file": "/nowhere",
    "--tflops": "fast", "--wandb": "a/b", "--grid": "x", "--on": "cloud", "--cell": "repa", "--cluster": "/nowhere",
    "--partition": "x", "--account": "x",
    "--constraint": "x", "--time": "soon", "--flag": "x",
}  # fmt: skip
#: A search that finds nothing is no mistake, and a plan writes nothing.
NO_MISTAKE = {("baselines", f) for f in ("--method", "--model", "--group", "--text")} | {("plan", "--out")}
#: Where a suite would be the mistake.
NO_SUITE = ("--suite", "--samples", "--reference")
#: What else a command must be given.
NEEDED = {
    "sample": ["--recipe", "repa", "--images", "x.png"],
    "fetch": ["inception"],
    "import": ["sit-repae-sdvae", "--out", "x"],
    "export-vae": ["/nowhere", "--out", "x"],
    "report": [str(EXAMPLE)],
    "speedup": [str(EXAMPLE)],
    "claims": [str(EXAMPLE)],
    "league": [str(EXAMPLE)],
}


def without(arguments: list[str], flag: str) -> list[str]:
    at = arguments.index(flag) if flag in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def nonsense() -> Iterator[list[str]]:
    """For every option of every command, a call in which only that option is wrong."""
    for command in (command for theme in app.THEMES for command in theme.commands.registered_commands):
        name = command.name or command.callback.__name__
        options = {}
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            flag, kind = flag_of(parameter.annotation), str(parameter.annotation.__origin__)
            if flag and "bool" not in kind:
                options[flag] = ["much", "-1"] if "int" in kind or "float" in kind else None
        for flag, numbers in options.items():
            if (name, flag) not in NO_MISTAKE:
                suite = ["--suite", "smoke"] if "--suite" in options and flag not in NO_SUITE else []
                needed = [] if (name, flag) == ("speedup", "--curves") else without(NEEDED.get(name, []), flag)
                needed = without(needed, "--recipe") if flag == "--run" else needed
                for value in numbers or [NONSENSE[flag]]:
                    yield [name, *needed, *suite, flag, value]


@pytest.mark.parametrize("arguments", list(nonsense()), ids=lambda a: " ".join((a[0], *a[-2:])))
def test_every_option_refuses_what_it_cannot_be(arguments, tmp_path, capsys, monkeypatch):
    """Before anything is prepared or trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("REPA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.pipeline.session.prepare", lambda *_: pytest.fail("too late"))
    assert _main(*arguments) == 2
    told = capsys.readouterr().err
    assert arguments[-1] in told or arguments[-2] in told, told
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*"))


# ---------------------------------------------------------------- mutations of what is right

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, -(10**30), 2**63, 0.5, -0.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "x", "<b>", "../..", "0"]),
    st.lists(st.integers(-1, 1), max_size=2),
    st.dictionaries(st.sampled_from(["a", "steps"]), st.integers(0, 2), max_size=1),
)  # fmt: skip


@contextmanager
def or_a_sentence(kind: type[Exception] = UserError, naming: str = "") -> Iterator[None]:
    """What may fail, if it does so in one line."""
    told = None
    try:
        yield
    except kind as error:
        told = str(error)
    if told is not None:
        assert len(told.splitlines()) == 1
        assert naming in told


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Nested data with one to three places replaced, removed or added to."""
    changed = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([p for p in places(changed) if p] or [()])) or (None,)
        node = changed
        for key in parents:
            node = node[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del node[last]
        elif action == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(["extra", "Steps", ""]))] = draw(JUNK)
        else:
            node[last] = draw(JUNK)
        if not changed:
            break
    return changed


SPECS = {name: json.loads(make().model_dump_json()) for name, make in SUITES.items()}


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_suite_is_a_suite_or_a_sentence(data):
    name = data.draw(st.sampled_from(sorted(SUITES)))
    changed = data.draw(mutated(SPECS[name]))
    with or_a_sentence():
        assert type(SUITES[name]()).parse(changed, where="--set").identity()


FLAT = [".".join(map(str, p)) for p in places(SPECS["smoke"]) if p and not any(isinstance(k, int) for k in p)]


@settings(max_examples=100)
@given(key=st.sampled_from(FLAT), value=JUNK)
def test_an_overridden_suite_can_be_built_or_is_a_sentence(key, value):
    """Values that the types allow but that do not fit together are told before anything is made."""
    with or_a_sentence():
        found: Any = json.loads(suite("smoke", {key: value}).model_dump_json(context=EVERY_FIELD))
        for part in key.split("."):
            found = found[part]
        assert found == value or value == {}  # which is filled up with defaults


@cache
def run_spec() -> dict[str, Any]:
    return json.loads(suite("smoke").run_spec("repa_e", 0, {"data": "0" * 64}).model_dump_json())


@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_run_opens_or_is_a_sentence(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "spec.json").write_text(json.dumps(data.draw(mutated(run_spec()))))
    with or_a_sentence():
        assert Run.open(folder).spec.digest()
    shutil.rmtree(folder)


@cache
def example_rows() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (EXAMPLE / records_file.FILE).read_text().splitlines()]
    for row in rows:
        row.pop("check", None)
    return rows


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_record_is_a_record_or_a_sentence(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    row = data.draw(mutated(data.draw(st.sampled_from(example_rows()))))
    (folder / records_file.FILE).write_text(json.dumps(row) + "\n")
    with or_a_sentence(naming="records.jsonl, line 1"):
        assert len(list(records_file.read(folder / records_file.FILE))) == 1
    shutil.rmtree(folder)


@settings(max_examples=40)
@given(data=st.data())
def test_a_report_of_changed_records_is_a_report_or_a_sentence(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = list(example_rows())
    for _ in range(3):
        k = data.draw(st.integers(0, len(rows) - 1))
        rows[k] = data.draw(mutated(rows[k]))
    valid = []
    for row in rows:
        with or_a_sentence(naming="row"):
            records_file.parse(json.dumps(row), "row")
            valid.append(row)
    (folder / records_file.FILE).write_text("".join(json.dumps(row) + "\n" for row in valid))
    with or_a_sentence():
        assert set(render(Wanted([folder]), ["tex", "csv"])) == {"tables.tex", "results.csv"}
        load([folder]).observations()
    shutil.rmtree(folder)


YAML = {path: yaml.safe_load(path.read_text()) for path in [*sorted(FOLDER.glob("*.yaml")), ledger.FILE]}


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_published_row_or_claim_is_one_or_a_sentence(data, tmp_path_factory):
    path = data.draw(st.sampled_from(sorted(YAML)))
    key = "claims" if path == ledger.FILE else "rows"
    rows = [data.draw(st.sampled_from(YAML[path][key]))]
    content = data.draw(mutated({**YAML[path], key: rows}))
    changed = tmp_path_factory.mktemp("yaml") / path.name
    changed.write_text(yaml.safe_dump(content, allow_unicode=True))
    with or_a_sentence(PublishedError, naming=str(changed)):
        found = (ledger.load_claims if path == ledger.FILE else load_file)(changed)
        assert all(row.source for row in found)
    shutil.rmtree(changed.parent)


# ---------------------------------------------------------------- broken files, in every loader


def _npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), mu=np.zeros(4), sigma=np.eye(4))
    return folder / "a.npz"


def _npz_deflated(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", arr_0=np.arange(576, dtype=np.uint8).reshape(3, 8, 8, 3))
    return folder / "a.npz"


def _tensors(folder: Path) -> Path:
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def _pickle(folder: Path) -> Path:
    torch.save({"a": torch.ones(3), "n": 3}, folder / "a.pt")
    return folder / "a.pt"


def _old_pickle(folder: Path) -> Path:
    torch.save({"a": torch.ones(3), "n": 3}, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def _image_zip(folder: Path) -> Path:
    picture, path = io.BytesIO(), folder / "a.zip"
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(picture, format="PNG")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00000/img00000000.png", picture.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [["00000/img00000000.png", 3]]}))
    return path


def _csv(folder: Path) -> Path:
    with (folder / "a.csv").open("w") as file:
        csv.writer(file).writerows([["recipe", "seed", "generation_seed", "step", "fid"], ["vanilla", 0, 0, 8, 3.5]])
    return folder / "a.csv"


def _read_samples(path: Path) -> object:
    images = open_samples(path, flag="--samples")
    return images.read(0, len(images))


def _read_images(path: Path) -> object:
    images = open_images(path)
    return np.stack([images.pixels(k) for k in range(len(images))])


def _read_zip(path: Path) -> object:
    files = ZipFiles(path)
    return [files.read(k) for k in range(len(files.names))], labels_of(files, ["00000/img00000000.png"])


def _are_images(found: Any) -> bool:
    return found.dtype == torch.uint8 and found.ndim == 4 and found.shape[1] == 3


def _are_images_and_labels(found: Any) -> bool:
    files, labels = found
    return all(isinstance(file, bytes) for file in files) and labels.dtype == torch.int64


def _are_finite(found: Any) -> bool:
    return all(math.isfinite(row.fid) and row.fid >= 0 for row in found)


def _is_a_reference(found: Any) -> bool:
    return all(bool(m.mean.isfinite().all() & m.covariance.isfinite().all()) for m in found.moments.values())


def _is_plain(found: Any) -> bool:
    """Tensors and numbers by name, and nothing that could do something."""
    return all(type(name) is str and type(value) in (torch.Tensor, int) for name, value in found.items())


#: How a file is made, how it is read, and what then is true of it however it was broken.
LOADERS = {
    "samples": (_npz, _read_samples, _are_images),
    "samples, compressed": (_npz_deflated, _read_samples, _are_images),
    "reference": (_npz, read_adm_reference, _is_a_reference),
    "safetensors": (_tensors, load_state, _is_plain),
    "pickle": (_pickle, load_state, _is_plain),
    "old pickle": (_old_pickle, load_state, _is_plain),
    "images": (_image_zip, _read_images, lambda found: found.dtype == np.uint8 and found.ndim == 4),
    "zip": (_image_zip, _read_zip, _are_images_and_labels),
    "curves": (_csv, read_csv, _are_finite),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_broken_file_is_read_or_a_sentence(name, data, tmp_path_factory):
    make, read, sound = LOADERS[name]
    folder = tmp_path_factory.mktemp("broken")
    path = make(folder)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, max(0, len(content) - 1)))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
        if action == "flip" and content:
            content[where] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "cut":
            del content[where:]
        elif action == "insert":
            content[where:where] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[where : where + 8] = b"\0" * len(content[where : where + 8])
    path.write_bytes(bytes(content))
    with or_a_sentence():
        assert sound(read(path))
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", LOADERS)
def test_a_whole_file_is_read(name, tmp_path):
    make, read, sound = LOADERS[name]
    assert sound(read(make(tmp_path)))


def test_folders_with_nothing_in_them(tmp_path):
    for read in (_read_samples, _read_images, LatentStore.open):
        with pytest.raises(UserError):
            read(tmp_path)
    assert FolderFiles(tmp_path).names == []
