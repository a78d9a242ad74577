"""The paper-scale path, whole, on a small ImageNet-shaped tree with tiny random networks: real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import warm
from conftest import ROOT
from imagenet_tree import write_tree
from safetensors.torch import load_file

SUITE = ("--suite", "imagenet-smoke")
RECIPES = ("vanilla", "repa", "repa_e")


@dataclass(frozen=True)
class Place:
    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def command(self, *arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
        own = {"REPA_BENCH_CACHE": str(self.root / "cache"), "COLUMNS": "200"}
        if processes == 1:
            return warm.repa_bench(*arguments, environment=own)
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
        ]
        environment, command = os.environ | own, [*start, "harness.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)

    def ok(self, *arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
        done = self.command(*arguments, processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Traceback" not in done.stderr
        return done

    def run(self, variant: str, out: Path | None = None) -> Path:
        (found,) = ((out or self.out) / "runs").glob(f"{variant}-seed0-*")
        return found

    def weights(self, variant: str, out: Path | None = None) -> dict[str, torch.Tensor]:
        return load_file(self.run(variant, out) / "checkpoints" / "0000006" / "weights.safetensors")


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """prepare, then 6 steps and scores of each recipe."""
    place = Place(tmp_path_factory.mktemp("paper"))
    tree = write_tree(place.root / "tree")
    told = place.ok("prepare", *SUITE, "--data", tree, "--out", place.out)
    assert "n03000684_107.JPEG" in told.stderr  # the truncated one is named, and left out
    assert "latents of sd-vae: 59 posteriors, 0.00 GB" in told.stderr
    place.ok("run", *SUITE, "--out", place.out)  # the data's place is remembered
    return place


def records(place: Place, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (place.out / "records.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_every_recipe_trains_and_is_scored(paper):
    scored = records(paper, "score")
    assert {(r["variant"], r["step"]) for r in scored} == {(variant, 6) for variant in RECIPES}
    for row in scored:
        assert np.isfinite([v for v in row["metrics"].values() if v is not None]).all()
        assert row["n_fake"] == 8
        assert row["device_seconds"] == pytest.approx(row["train_seconds"])
    assert [t["variant"] for t in records(paper, "tokenizer")] == [None, "repa_e"]
    logged = [json.loads(line) for line in (paper.run("repa_e") / "log.jsonl").read_text().splitlines()]
    terms = {"l1", "perceptual", "kl", "gan", "vae_align", "disc", "denoising", "sit_align", "latent_variance"}
    assert terms <= set(logged[0])
    assert {"grad_norm_vae", "grad_norm_discriminator", "grad_norm_sit"} <= set(logged[0])


def test_the_manifest_tells_what_was_converted_and_left_out(paper):
    (folder,) = (paper.root / "cache" / "imagenet-smoke").glob("images-64-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["count"] == 59
    assert [r["name"] for r in manifest["rejected"]] == ["n03000684/n03000684_107.JPEG"]
    assert set(manifest["converted"]) == {"L", "CMYK", "RGBA"}


def test_two_processes_train_what_one_does(paper):
    """Same losses and gradient norms to 1e-3 and weights to 1e-5, in float32, through the whole path."""
    out = paper.root / "two"
    paper.ok("train", *SUITE, "--out", out, processes=2)
    for variant in RECIPES:
        ours, theirs = paper.weights(variant), paper.weights(variant, out)
        assert set(ours) == set(theirs)
        for key, value in ours.items():
            off = (theirs[key].double() - value.double()).abs()
            # Adam's first steps have the size of the rate however small a gradient is: a rare one that is all rounding
            # may go another way.
            assert (off > 1e-5 + 1e-5 * value.abs()).double().mean() < 1e-3, f"{variant} {key}"
            assert off.max() < 1e-4, f"{variant} {key}"
        for a, b in zip(
            *((paper.run(variant, o) / "log.jsonl").read_text().splitlines() for o in (None, out)), strict=True
        ):
            one, two = ({k: v for k, v in json.loads(row).items() if k not in ("seconds", "check")} for row in (a, b))
            assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


def test_two_stage_trains_on_the_exported_tokenizer(paper):
    exported = paper.root / "exported"
    paper.ok("export-vae", paper.run("repa_e"), "--out", exported)
    theirs = diffusers.AutoencoderKL.from_pretrained(exported / "tuned-vae-hf").state_dict()
    for key, value in paper.weights("repa_e").items():
        if key.startswith("vae.kl."):
            assert torch.equal(theirs[key.removeprefix("vae.kl.")], value), key
    missing = paper.command("train", *SUITE, "--recipes", "two_stage", "--out", paper.out)
    assert missing.returncode == 2
    assert "asset 'tuned-vae' is missing" in missing.stderr
    paper.ok("fetch", "tuned-vae", "--from", exported / "tuned-vae.pt", *SUITE)
    paper.ok("run", *SUITE, "--recipes", "two_stage", "--out", paper.out)
    assert "two_stage" in {r["variant"] for r in records(paper, "score")}
    own, tuned = paper.weights("repa"), paper.weights("two_stage")
    assert not torch.equal(own["sit.bn.running_var"], tuned["sit.bn.running_var"])
    statistics = paper.weights("repa_e")["ema.sit.bn.running_var"]
    torch.testing.assert_close(tuned["sit.bn.running_var"], statistics)


def test_samples_of_a_trained_and_of_an_imported_checkpoint_are_equal(paper):
    """Our run, written out in the released form and imported again, draws the same images."""
    from recipes.training.run_folder import Run

    run = Run.open(paper.run("repa_e"))
    weights = run.weights(6)
    from recipes.released.autoencoder import autoencoder_to_compvis

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    folder = paper.root / "released"
    (folder / "checkpoints").mkdir(parents=True)
    arguments = {"path_type": "linear", "encoder_depth": 2, "seed": 0, "batch_size": 4}
    (folder / "args.json").write_text(json.dumps(arguments))
    levels = len(run.spec.tokenizer.multipliers)
    torch.save(
        {
            "model": part("sit."),
            "ema": part("ema.sit."),
            "vae": autoencoder_to_compvis(part("vae.kl."), levels=levels),
            "discriminator": part("discriminator."),
            "steps": 6,
        },
        folder / "checkpoints" / "0000006.pt",
    )
    imported = paper.root / "imported"
    told = paper.ok("import", folder, "--out", imported, "--heads", 4)
    assert "repa_e, step 6" in told.stdout
    for name, chosen in (("trained", ("--recipe", "repa_e")), ("imported", ("--run", imported))):
        images = paper.root / f"{name}.png"
        paper.ok("sample", *SUITE, *chosen, "--out", paper.out, "--images", images, "--count", 5)
    drawn = [np.load(paper.root / f"{name}.npz")["arr_0"] for name in ("trained", "imported")]
    assert drawn[0].shape == (5, 64, 64, 3)
    assert np.array_equal(*drawn)


def test_a_runs_folder_is_scored_with_more_metrics(paper):
    asked = ("--run", paper.run("repa"), "--tokenizer", "sd-vae", "--metrics", "kid,clean_fid")
    told = paper.ok("score", *SUITE, *asked, "--out", paper.root / "scored")
    assert list(paper.root.glob("scored/samples/**/*.png"))
    found = json.loads(told.stdout)["smoke-sde4@2"]
    ours = next(r for r in records(paper, "score") if r["variant"] == "repa" and r["protocol"]["name"] == "smoke-sde4")[
        "metrics"
    ]
    for name in ("fid", "sfid", "precision", "recall", "inception_score"):
        assert found[name] == pytest.approx(ours[name], rel=1e-5)
    assert np.isfinite([found["kid"], found["clean_fid"]]).all()
    assert found["clean_fid"] != pytest.approx(found["fid"], rel=1e-3)


def test_a_terminated_run_saves_and_continues(paper):
    out = paper.root / "stopped"
    environment = os.environ | {"REPA_BENCH_CACHE": str(paper.root / "cache")}
    command = [sys.executable, "-m", "harness.cli", "train", *SUITE, "--recipes", "vanilla", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--steps", "5000"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if list(out.glob("runs/*/log.jsonl")):
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "is saved at step" in told
    step = max(int(p.name) for p in (paper.run("vanilla", out) / "checkpoints").iterdir())
    assert 0 < step < 5000
    paper.ok(*command[3:], "--steps", step + 2)
    assert (paper.run("vanilla", out) / "checkpoints" / f"{step + 2:07d}").exists()


def test_plan_counts_and_names_what_is_missing(paper):
    told = json.loads(paper.ok("plan", "--suite", "imagenet256", "--devices", 8, "--seeds", 0, 1, "--json").stdout)
    cells = {cell["variant"]: cell for cell in told["cells"]}
    assert set(cells) == set(RECIPES)
    assert cells["vanilla"]["parameters"] == {"sit": 675_111_184}
    assert cells["repa_e"]["parameters"]["vae"] == 83_653_863
    assert cells["repa"]["layout"] == "256 = 8 GPUs x 32 x 1"
    assert cells["vanilla"]["training_flops"] == cells["vanilla"]["flops_per_step"] * 400_000 * 2
    assert cells["repa_e"]["flops_per_step"] > cells["repa"]["flops_per_step"] > cells["vanilla"]["flops_per_step"]
    assert told["missing"]["sd-vae"] == "repa-bench fetch sd-vae"
    assert 20e9 < told["disk"]["latents of sd-vae, float16"] < 22e9
    tiny = json.loads(paper.ok("plan", *SUITE, "--probe", 0.2, "--json").stdout)
    assert tiny["missing"] == {}
    assert all(cell["peak_bytes"] > 0 for cell in tiny["cells"])


def test_doctor_finds_what_is_broken(paper, tmp_path):
    weights = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, weights)
    refused = paper.command("fetch", "vgg16", "--from", weights)
    assert refused.returncode == 2
    assert "is not the published vgg16: its SHA-256 begins with" in refused.stderr
    encoder = tmp_path / "encoder.pth"
    encoder.write_bytes(b"weights")
    cache = ("--cache", tmp_path / "cache")
    paper.ok("fetch", "dinov2-vit-b", "--from", encoder, *cache)
    assert json.loads(paper.ok("doctor", "--json", *cache).stdout)["faults"] == []
    encoder.write_bytes(b"WEIGHTS")
    told = paper.command("doctor", "--verify", *cache)
    assert told.returncode == 1
    assert "has changed since it was registered: its SHA-256 began with" in " ".join(told.stdout.split())
    encoder.unlink()
    gone = paper.command("doctor", *cache)
    assert gone.returncode == 1
    assert "is gone; repa-bench fetch dinov2-vit-b --from PATH" in gone.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--suite", "imagenet256"), "asset 'sd-vae' is missing"),
        (("fetch", "dinov9"), "there is no asset 'dinov9'"),
        (("fetch", "sd-vae", "--from", "/nowhere.pt"), "there is no such file or folder"),
        (("fetch", "images"), "is not published for download"),
        (("sample", "--images", "x.png"), "either --recipe NAME or --run FOLDER"),
        (("sample", "--images", "x.png", "--run", "/nowhere"), "is not a run"),
        (("export-vae", "/nowhere", "--out", "x"), "is not a run"),
        (("import", "/nowhere", "--out", "x"), "/nowhere"),
        (("plan", "--suite", "imagenet256", "--set", 'variants.repa.encoders=["dinov9"]'), "no encoder 'dinov9'"),
    ],
)
def test_mistakes_are_sentences(paper, arguments, sentence):
    done = paper.command(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
