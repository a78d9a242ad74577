"""Real `repa-bench` processes on the smoke suite."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import warm
from conftest import GOLDEN, ROOT
from PIL import Image

from harness.records.file import RecordFile
from harness.records.schema import ScoreRecord

# Of a run that repeats another one, only these may differ.
VOLATILE = {"provenance", "train_seconds", "device_seconds", "step_seconds", "sample_seconds", "check"}


def repa_bench(*arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    return warm.repa_bench(
        *arguments, environment=({"REPA_BENCH_CACHE": str(cache)} if cache else {}) | {"COLUMNS": "200"}
    )


def scores(folder: Path) -> dict[tuple, dict]:
    """The scores of a results folder, without what may differ between equal runs."""
    out: dict[tuple, dict] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] in ("score", "tokenizer", "floor"):
            key = tuple(
                str(row.get(k)) for k in ("kind", "variant", "seed", "step", "protocol", "generation_seed", "name")
            )
            assert key not in out, f"measured twice: {key}"
            out[key] = {k: v for k, v in row.items() if k not in VOLATILE}
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An uninterrupted run of the smoke suite: (results, cache)."""
    root = tmp_path_factory.mktemp("smoke")
    done = repa_bench("run", "--suite", "smoke", "--out", root / "out", cache=root / "cache")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return root / "out", root / "cache"


def test_run_scores_every_variant_at_every_checkpoint(finished):
    rows = [json.loads(line) for line in (finished[0] / "records.jsonl").read_text().splitlines()]
    curve = {(r["variant"], r["step"]) for r in rows if r["kind"] == "score" and r["protocol"]["name"] == "smoke-ode4"}
    assert curve == {(variant, step) for variant in ("vanilla", "repa", "repa_e") for step in (8, 16, 24)}
    first = next(r for r in rows if r["kind"] == "score")
    assert first["n_fake"] == 128
    assert first["schema_version"] == 2
    assert first["metrics"]["sfid"] > 0
    assert first["metrics"]["inception_score_se"] > 0
    assert len(first["protocol_digest"]) == 64
    assert first["flops"] > 0
    assert first["provenance"]["versions"]["torch"]
    after = [r for r in rows if r["kind"] == "tokenizer"]
    assert [r["variant"] for r in after] == [None, "repa_e"]


def test_report_is_one_page_without_network(finished):
    folder = finished[0] / "report"
    page = (folder / "index.html").read_text()
    assert "smoke suite: proves that the path works" in page
    assert "<svg" in page
    assert page.count("data:image/png;base64,") >= 8

    class Links(HTMLParser):
        found: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag in ("img", "link", "script", "iframe"):
                self.found += [v or "" for k, v in attrs if k in ("src", "href")]

    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert "| REPA-E |" in (folder / "report.md").read_text()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5
    assert {row["protocol"] for row in rows} == {"smoke-ode4@2", "smoke-sde4@2"}
    with Image.open(folder / "figures" / "fid.png") as image:
        assert image.width > 1000


def test_a_report_is_a_function_of_the_records(finished, tmp_path):
    for name in ("one", "two"):
        assert repa_bench("report", finished[0], "--out", tmp_path / name).returncode == 0
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) == 4 + 3 * 4  # the pages and tables; four figures as SVG, PNG and PDF
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_every_row_of_a_report_names_its_runs(finished):
    page = (finished[0] / "report" / "index.html").read_text()
    recorded = {row["run"][:8] for row in scores(finished[0]).values() if row["kind"] == "score"}
    assert len(recorded) == 3
    for run in recorded:
        assert page.count(f'<tr id="run-{run}">') == 1
        assert page.count(f'href="#run-{run}"') >= 4  # speedup, FID, metrics, cost
    text = (finished[0] / "report" / "report.md").read_text()
    assert all(text.count(run) >= 5 for run in recorded)


def test_every_figure_of_the_csv_is_a_record(finished):
    recorded = {
        (row["variant"], str(row["step"]), f"{row['protocol']['name']}@2", str(row["generation_seed"])): row["metrics"]
        for row in map(json.loads, (finished[0] / "records.jsonl").read_text().splitlines())
        if row["kind"] == "score"
    }
    with (finished[0] / "report" / "results.csv").open() as file:
        for row in csv.DictReader(file):
            metrics = recorded[row["variant"], row["step"], row["protocol"], row["generation_seed"]]
            assert float(row["fid"]) == metrics["fid"]
            assert float(row["inception_score_se"]) == metrics["inception_score_se"]


def test_the_noise_floor_stands_beside_fid(finished):
    """What as many training images have; not the halves of the reference, which are another number of images."""
    floor = next(r for r in rows_of(finished[0], "floor") if r["n_fake"] == 128)
    assert floor["n_real"] == 768
    text = (finished[0] / "report" / "report.md").read_text()
    assert f"Lower is better; as many real images have {floor['fid']:.3f}." in text
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \S.* \| smoke-.*@2 \| 24 \|", line)]
    assert len(rows) == 3 * 2
    assert {row[4] for row in rows} == {f"{floor['fid']:.3f}"}
    assert all(re.fullmatch(r"\d+\.\d\d \(se \d+\.\d\d\)", row[6]) for row in rows)


def test_running_again_does_nothing_again(finished):
    out, cache = finished
    before = (out / "records.jsonl").read_text()
    again = repa_bench("run", "--suite", "smoke", "--out", out, cache=cache)
    assert again.returncode == 0, again.stderr
    assert (out / "records.jsonl").read_text() == before
    assert "train" not in again.stderr


def test_another_seed_reuses_the_assets(finished, tmp_path):
    _, cache = finished
    made = sorted(cache.iterdir())
    done = repa_bench(
        "run", "--suite", "smoke", "--recipes", "vanilla", "--seeds", "5", "6", "--out", tmp_path, cache=cache
    )
    assert done.returncode == 0, done.stderr
    assert sorted(cache.iterdir()) == made
    seeds = {key[2] for key in scores(tmp_path) if key[0] == "score"}
    assert seeds == {"5", "6"}


def test_more_steps_extend_a_run(finished, tmp_path):
    _, cache = finished
    arguments = ("run", "--suite", "smoke", "--recipes", "vanilla", "--out", tmp_path, "--score-every", "8")
    assert repa_bench(*arguments, "--steps", "8", cache=cache).returncode == 0
    assert repa_bench(*arguments, "--steps", "24", cache=cache).returncode == 0
    whole = scores(finished[0])
    for key, row in scores(tmp_path).items():
        if key[0] == "score" and key[3] != "8" and "smoke-ode4" in key[4]:
            assert row == whole[key]


def test_sample_writes_a_grid_and_an_npz(finished, tmp_path):
    import numpy as np

    out, cache = finished
    done = repa_bench(
        "sample", "--suite", "smoke", "--recipe", "repa_e", "--out", out, "--count", "20",
        "--images", tmp_path / "grid.png", cache=cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "grid.npz") as saved, Image.open(tmp_path / "grid.png") as grid:
        assert saved["arr_0"].shape == (20, 16, 16, 3)
        assert saved["labels"].shape == (20,)
        rows = saved["arr_0"].reshape(2, 10, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(32, 160, 3)
        assert np.array_equal(rows, np.asarray(grid))


def test_speedup_json(finished):
    done = repa_bench("speedup", finished[0], "--json")
    found = json.loads(done.stdout)
    assert set(found["speedups"]) == {"repa", "repa_e"}
    currencies = {"iterations", "images", "flops", "device_seconds"}
    assert set(found["speedups"]["repa"]) == currencies | {"device_seconds+tokenizer"}
    assert found["baseline"] == "vanilla"
    assert found["notice"].startswith("smoke suite")


def test_replay_passes_on_the_recorded_folder_and_fails_on_a_changed_one(tmp_path):
    done = repa_bench("replay", GOLDEN, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert len(result["quantities"]) > 90

    meta = json.loads((GOLDEN / "meta.json").read_text())
    for path in GOLDEN.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    meta["repa_e_log"][1]["vae_align"] += 1e-4
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    wrong = repa_bench("replay", tmp_path)
    assert wrong.returncode == 1
    assert [line.split()[-1] for line in wrong.stdout.splitlines() if line.startswith("FAIL")] == [
        "repa_e_steps.step1.vae_align"
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--suite", "digit"], "Did you mean 'digits'"),
        (["run", "--recipes", "repa-e"], "Did you mean 'repa_e'"),
        (["run", "--recipes", "repa+repa_e"], "Write them with spaces between: repa repa_e."),
        (["run", "--seeds", "0-3"], "--seeds 0-3: spans are not read; name each, as --seeds 0 1 2."),
        (["run", "--seeds", "0..3"], "--seeds 0..3: spans are not read"),
        (["report", __file__], "it is a file: name the results folder that it lies in"),
        (["run", "--set", "sit.dept=3"], "Did you mean 'depth'"),
        (["run", "--set", "sit.depth"], "write it as KEY=VALUE"),
        (["run", "--set", "sit.depth=deep"], "sit.depth"),
        (["run", "--set", "variants.repa.options.allignment=1"], "'alignment'"),
        (["run", "--seeds", "one"], "Invalid value for '--seeds'"),
        (["run", "--seedz", "1"], "--seeds"),
        (["rum"], "run"),
        (["run", "--steps", "0"], "--steps"),
        (["report", "nowhere"], "nowhere holds no scores"),
        (["score", "--run", "nowhere", "--metrics", "psnr"], "samples of a run have none"),
        (["speedup", "nowhere"], "nowhere holds no scores"),
        (["replay", "nowhere"], "not a replay folder"),
        (["sample", "--suite", "smoke", "--recipe", "vanila", "--images", "x.png"], "Did you mean 'vanilla'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path):
    if arguments[0] in ("run", "sample"):
        arguments = [*arguments, "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = repa_bench(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_another_specification_are_refused(finished):
    out, cache = finished
    before = (out / "records.jsonl").read_text()
    done = repa_bench("run", "--suite", "smoke", "--set", "sit.depth=3", "--out", out, cache=cache)
    assert done.returncode == 2
    assert "choose another --out" in " ".join(done.stderr.split())
    assert (out / "records.jsonl").read_text() == before


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_second_specification_of_a_seed_is_refused_before_it_is_trained(command, finished, tmp_path):
    """As after a tokenizer was made again."""
    out, cache = finished
    there = RecordFile(tmp_path)
    for record in RecordFile(out).all():
        if isinstance(record, ScoreRecord) and record.variant == "vanilla":
            record = record.model_copy(update={"run": "another0" + record.run})
        there.append(record)
    done = repa_bench(command, "--suite", "smoke", "--out", tmp_path, cache=cache)
    assert done.returncode == 2, done.stderr
    assert f"repa-bench runs remove {tmp_path} vanilla-seed0-another0` takes the first away" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_milestones_that_were_passed_by_are_refused(finished, tmp_path):
    _, cache = finished
    base = ("run", "--suite", "smoke", "--recipes", "vanilla", "--out", tmp_path, "--steps", "8")
    assert repa_bench(*base, "--score-every", "8", cache=cache).returncode == 0
    done = repa_bench(*base, "--score-every", "3", cache=cache)
    assert done.returncode == 2
    assert "keep --score-every as it was" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "prepare",
        "train",
        "sample",
        "score",
        "guidance",
        "speedup",
        "claims",
        "baselines",
        "compare",
        "report",
        "replay",
        "list",
        "doctor",
    ],
)
def test_every_command_has_help_with_an_example(command):
    done = repa_bench(command, "--help")
    assert done.returncode == 0
    assert f"repa-bench {command}" in " ".join(done.stdout.split())
    assert "Example" in done.stdout


def test_list_and_doctor(finished):
    listed = repa_bench("list")
    assert listed.returncode == 0
    assert "naive_e2e *" in listed.stdout
    looked = repa_bench("doctor", cache=finished[1])
    assert looked.returncode == 0
    assert "digits-tokenizer-" in looked.stdout


def test_two_processes_score_what_one_does(finished, tmp_path):
    """Training, sampling and scoring shared by two processes: every metric of every checkpoint is the same."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*launcher, "harness.cli", "run", "--suite", "smoke", "--out", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"REPA_BENCH_CACHE": str(finished[1])}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = scores(finished[0]), scores(tmp_path)
    assert set(ours) == set(theirs)
    for key, row in ours.items():
        if key[0] == "score":
            assert theirs[key]["metrics"] == pytest.approx(row["metrics"], rel=1e-3), key
    assert not list((tmp_path / "shards").iterdir())


def test_a_finished_shard_is_not_drawn_again(finished, tmp_path, monkeypatch):
    """Scoring interrupted between two shards goes on with the second, and ends with the same numbers."""
    from harness.assets.cache import Store
    from harness.pipeline import run_suite
    from harness.pipeline.session import Session
    from harness.runtime.progress import Reporter
    from harness.sampling.sampler import Sampler
    from harness.suites import suite
    from harness.suites.base import Budget

    chosen = suite("smoke")
    session = Session(chosen, Budget(steps=8, score_every=8), tmp_path, Store(finished[1]), Reporter(quiet=True))
    monkeypatch.setattr(type(chosen), "chunk", 32)
    drawn: list[int] = []
    whole = Sampler.draw

    def draw(self, protocol, seed, indices):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(int(indices[0]))
        return whole(self, protocol, seed, indices)

    monkeypatch.setattr(Sampler, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        run_suite.run_suite(session, ["vanilla"], [0])
    assert drawn == [0, 32]
    monkeypatch.setattr(Sampler, "draw", lambda s, p, g, i: drawn.append(int(i[0])) or whole(s, p, g, i))
    run_suite.run_suite(session, ["vanilla"], [0])
    assert drawn[2:4] == [64, 96]
    ours = {k: v for k, v in scores(tmp_path).items() if k[3] == "8" and "ode4" in k[4]}
    assert ours
    for key, row in ours.items():
        if key in scores(finished[0]):
            assert row["metrics"] == pytest.approx(scores(finished[0])[key]["metrics"], rel=1e-4)


def rows_of(folder: Path, kind: str = "score") -> list[dict]:
    return [
        r for line in (folder / "records.jsonl").read_text().splitlines() if (r := json.loads(line))["kind"] == kind
    ]


def test_guidance_is_chosen_on_other_seeds_than_reported(finished, tmp_path):
    """Both variants get the same settings, seeds and samples; what is tried never becomes a result."""
    out, cache = tmp_path / "out", finished[1]
    shutil.copytree(finished[0], out)
    before = repa_bench("speedup", out, "--json").stdout
    command = ("guidance", "--suite", "smoke", "--recipes", "vanilla", "repa_e", "--out", out, "--samples", "64")
    grid = ("--scales", "1.5", "3", "--intervals", "0:1", "0.2:0.7", "--search-seeds", "1000", "1001")
    done = repa_bench(*command, *grid, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "Guidance, chosen on other seeds (smoke-sde4-n64)" in done.stdout
    rows = rows_of(out)
    tried = {variant: [r for r in rows if r["search"] and r["variant"] == variant] for variant in ("vanilla", "repa_e")}
    cells = {
        variant: sorted((r["protocol"]["name"], r["generation_seed"], r["n_fake"]) for r in tried[variant])
        for variant in tried
    }
    assert cells["vanilla"] == cells["repa_e"]
    assert len(cells["vanilla"]) == 5 * 2  # no guidance, and two scales in two intervals
    for variant, searches in tried.items():
        assert {r["generation_seed"] for r in searches} == {1000, 1001}
        mean = {}
        for r in searches:
            mean.setdefault(r["protocol"]["name"].split("+")[1], []).append(r["metrics"]["fid"])
        best = min(mean, key=lambda name: sum(mean[name]))
        results = [
            r for r in rows if r["variant"] == variant and not r["search"] and r["protocol"]["name"].endswith(best)
        ]
        assert [(r["generation_seed"], r["n_fake"]) for r in results] == [(0, 128)]
        assert results[0]["nfe"] > 4  # guided steps cost two evaluations
    assert repa_bench("speedup", out, "--json").stdout == before
    assert "Guidance, chosen on other seeds" in (out / "report" / "index.html").read_text()
    assert repa_bench(*command, *grid, cache=cache).returncode == 0
    assert len(rows_of(out)) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--search-seeds", "1"), "--search-seeds 1: that seed's samples are results"),
        (("--search-seeds", "7", "--generation-seeds", "7"), "--search-seeds 7: that seed's samples are results"),
        (("--scales", "1"), "--scales: give at least one above 1"),
        (("--intervals", "0.7:0.2"), "--intervals 0.7:0.2: write LOW:HIGH with 0 <= LOW < HIGH <= 1"),
        (("--intervals", "all"), "--intervals all: write LOW:HIGH, as in 0:0.7"),
        (("--steps", "20"), "keeps 8, 16, 24"),
    ],
)
def test_mistakes_of_a_sweep(finished, arguments, sentence):
    done = repa_bench("guidance", "--suite", "smoke", "--out", finished[0], *arguments, cache=finished[1])
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.replace("│", " ").split())


def test_samples_are_kept_if_asked_for(finished, tmp_path):
    """The .npz that stays is what was scored: drawn again by `sample`, the same pixels."""
    import numpy as np

    out, cache = tmp_path / "out", finished[1]
    shutil.copytree(finished[0], out)
    kept = [r for r in map(json.loads, (out / "records.jsonl").read_text().splitlines()) if r["kind"] != "score"]
    (out / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    command = ("score", "--suite", "smoke", "--recipes", "vanilla", "--out", out, "--keep-samples")
    done = repa_bench(*command, cache=cache)
    assert done.returncode == 0, done.stderr
    again, before = ({k: v for k, v in scores(f).items() if k[1] == "vanilla"} for f in (out, finished[0]))
    assert {k: v["metrics"] for k, v in again.items()} == {k: v["metrics"] for k, v in before.items()}
    row = next(r for r in rows_of(out) if r["step"] == 24 and r["generation_seed"] == 1)
    with np.load(out / row["samples"]) as file:
        images, labels = file["arr_0"], file["labels"]
    assert images.shape == (128, 16, 16, 3)
    assert sorted(np.bincount(labels)) == [12] * 2 + [13] * 8
    with Image.open(out / row["grid"]) as grid:  # a column for each class
        pixels = np.asarray(grid)
    for k in range(10):
        assert np.array_equal(pixels[:, 16 * k : 16 * k + 16], np.concatenate(images[labels == k][:10]))
    drawn = repa_bench(
        "sample", "--suite", "smoke", "--recipe", "vanilla", "--out", out, "--count", "128",
        "--images", tmp_path / "x.png", "--generation-seed", "1", cache=cache,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "x.npz").read_bytes() == (out / row["samples"]).read_bytes()
    assert not list(out.glob("shards/*"))


def test_a_report_in_every_format_and_checked(finished, tmp_path):
    out = finished[0]
    done = repa_bench("report", out, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "index.html", "report.md", "tables.tex", "results.csv", "figures",
    }  # fmt: skip
    assert r"\begin{tabular}{lrrrrr}" in (tmp_path / "r" / "tables.tex").read_text()
    page = (tmp_path / "r" / "index.html").read_text()
    assert "15.8 log-log" in page  # the claims ledger
    assert page.count('type="radio"') == page.count('<div class="pane">') == 3  # iterations, FLOPs, device-seconds
    assert repa_bench("report", out, "--check", tmp_path / "r").returncode == 0
    (tmp_path / "r" / "results.csv").write_text("changed")
    wrong = repa_bench("report", out, "--check", tmp_path / "r")
    assert (wrong.returncode, wrong.stdout.strip().endswith("results.csv differs")) == (1, True)
    one = repa_bench("report", out, "--out", tmp_path / "one", "--format", "csv")
    assert one.returncode == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["results.csv"]
    for arguments, sentence in (
        (("--format", "docx"), "there is no format 'docx'"),
        (("--check", tmp_path / "nowhere"), "there is no report"),
    ):
        bad = repa_bench("report", out, *arguments)
        assert bad.returncode == 2
        assert sentence in " ".join(bad.stderr.split())


def test_a_folder_compares_with_itself(finished):
    told = json.loads(repa_bench("compare", finished[0], finished[0], "--json").stdout)["pairs"]
    assert {(p["variant"], p["step"]) for p in told} == {
        (a, s) for a in ("vanilla", "repa", "repa_e") for s in (8, 16, 24)
    }
    assert all(p["ratio"] == 1 and p["verdict"] is None for p in told)  # of a single seed


def test_alignment_is_measured_once_for_every_checkpoint(finished, tmp_path):
    out, cache = tmp_path / "out", finished[1]
    shutil.copytree(finished[0], out)
    command = ("analyse", "--suite", "smoke", "--out", out, "--count", "64")
    done = repa_bench(*command, cache=cache)
    assert done.returncode == 0, done.stderr
    rows = [r for r in map(json.loads, (out / "records.jsonl").read_text().splitlines()) if r["kind"] == "alignment"]
    assert {(r["variant"], r["step"]) for r in rows} == {
        (a, s) for a in ("vanilla", "repa", "repa_e") for s in (8, 16, 24)
    }
    assert all(len(r["cknna"]) == 2 and min(r["cknna"]) >= -1 and max(r["cknna"]) <= 1 for r in rows)
    assert "Alignment with the encoder after block 1 (CKNNA)" in (out / "report" / "index.html").read_text()
    assert repa_bench(*command, cache=cache).returncode == 0
    again = [r for r in map(json.loads, (out / "records.jsonl").read_text().splitlines()) if r["kind"] == "alignment"]
    assert again == rows
    alone = repa_bench("analyse", "--suite", "smoke", "--recipes", "vanilla", "--out", out, cache=cache)
    assert alone.returncode == 2
    assert "none of them has an encoder" in alone.stderr
