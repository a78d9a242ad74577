"""What `plan` says of a comparison that is not rehearsed: every stage at its own rate, and the disk at its peak."""

from __future__ import annotations

import pytest
import test_run as runs

from harness.pipeline import stages
from harness.pipeline.stages import PEAKS, Rates, draws, lost_to_a_kill, stages_of, storage_of
from harness.suites import suite
from harness.suites.base import IMAGENET_TRAIN, Budget
from recipes.core import checkpoint
from recipes.core.spec import Execution
from recipes.training.flops import flops_to
from recipes.training.run_folder import Run
from recipes.training.train import TrainingOptions, train_run

SUITE = suite("imagenet256")
BUDGET = Budget(steps=200, score_every=100)
SPECS = {name: SUITE.run_spec(name, 0, {}) for name in ("vanilla", "repa_e")}


def found(rates: Rates, **changes):
    given = {"images": True, "latents": ["sd-vae"], **changes}
    return {stage.name: stage for stage in stages_of(SUITE, BUDGET, SPECS, 2, rates, **given)}


def test_every_stage_has_its_own_rate():
    """Of two seeds, each: two checkpoints under 10,000 samples, the last under 50,000; the first seed's once more."""
    rates = Rates({"bf16": 4e14, "tf32": 2e14, "fp32": 5e13}, "given", prepare=100.0)
    by = found(rates)
    assert list(by) == [
        "prepare images", "encode by sd-vae", "train", "sample", "decode samples", "features of samples", "metrics",
    ]  # fmt: skip
    assert by["prepare images"].seconds == IMAGENET_TRAIN / 100
    training = 2 * sum(flops_to(spec, 256, 200) for spec in SPECS.values())
    assert by["train"].seconds == pytest.approx(training / 4e14)
    nfe = sum(p.nfe * p.samples * sets for p, sets in draws(SUITE, BUDGET, 2))
    assert {(p.samples, sets) for p, sets in draws(SUITE, BUDGET, 2)} == {(10_000, 5), (50_000, 2)}
    each = [stages.flops_per_evaluation(spec) for spec in SPECS.values()]
    assert by["sample"].seconds == pytest.approx(nfe * sum(each) / 2e14)
    encode, decode = stages.tokenizer_flops(SPECS["vanilla"].tokenizer, 256)
    assert by["encode by sd-vae"].seconds == pytest.approx(IMAGENET_TRAIN * encode / 5e13)
    assert by["decode samples"].seconds == pytest.approx(2 * 150_000 * decode / 2e14)
    assert by["features of samples"].seconds == pytest.approx(2 * 150_000 * stages.inception_flops() / 5e13)
    assert by["metrics"].seconds == pytest.approx(2 * (2 * 78.8 + 5 * (68 / 25 + 10.8 / 5)))
    assert {name for name, stage in by.items() if not stage.on_device} == {"prepare images", "metrics"}


def test_what_is_there_is_no_stage():
    assert next(iter(found(Rates({"bf16": 1e14}, "given"), images=False, latents=[]))) == "train"


def test_a_rate_that_is_not_known_follows_from_one_that_is():
    assert Rates({"bf16": 4e14}, "given").of("tf32")[0] == 2e14
    assert Rates({"tf32": 2e14}, "given").of("fp32")[0] == pytest.approx(4e14 * PEAKS["fp32"])
    assert Rates({"fp32": 1e11}, "measured", cpu=True).of("tf32") == (1e11, "as fp32")


def test_operations_of_known_networks():
    """Inception-v3 has 5.7 G multiply-adds; the SD-VAE's decoder costs more than its encoder."""
    assert stages.inception_flops() == pytest.approx(11.4e9, rel=0.01)
    encode, decode = stages.tokenizer_flops(SPECS["vanilla"].tokenizer, 256)
    assert 1e11 < encode < decode < 1e13


def test_storage_is_what_a_run_has_on_the_disk_at_its_peak(tmp_path, monkeypatch):
    run, peaks = Run(runs.make_spec("repa_e", hidden=96), tmp_path / "run"), list[int]()

    def size() -> int:
        return sum(path.stat().st_size for path in run.folder.rglob("*.safetensors"))

    save = checkpoint.save_folder
    monkeypatch.setattr(checkpoint, "save_folder", lambda *a: (save(*a), peaks.append(size())))  # before the older go
    options = TrainingOptions(Execution(device="cpu", save_every=1, keep=2))
    train_run(run, runs.make_inputs(), [5, 10], options)
    trainer = runs.build_trainer(run.spec, runs.make_inputs(), execution=options.execution, world=options.world)
    parameters = {name: sum(p.numel() for p in n.parameters()) for name, n in trainer.recipe.networks.items()}
    planned = storage_of(parameters, 2, 2)
    assert max(peaks) == pytest.approx(planned.finished + planned.working, rel=0.05)
    assert size() == pytest.approx(planned.finished, rel=0.05)


@pytest.mark.parametrize(
    ("minutes", "every", "lost"), [(15, None, 900), (0, 50, 100), (15, 50, 100), (1, 50, 60), (0, None, 2000)]
)
def test_lost_to_a_kill(minutes, every, lost):
    assert lost_to_a_kill(2.0, minutes, every, 1000) == lost
