"""What TensorBoard reads is what the log and the records say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.pipeline.events import events_of
from harness.records.file import RecordFile
from harness.records.schema import ScoreRecord


@pytest.fixture
def record(example):
    return next(r for r in RecordFile(example).all() if isinstance(r, ScoreRecord))


@pytest.fixture
def example():
    from conftest import ROOT

    return ROOT / "reports" / "examples" / "digits"


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_losses_and_metrics_by_step(tmp_path, record):
    run = SimpleNamespace(folder=tmp_path)
    with events_of(run, None, on=True, begin=0) as events:
        for step in (1, 25, 50):
            events.row({"step": step, "seconds": step / 10, "denoising": 1 / step, "grad_norm_sit": None})
    with events_of(run, None, on=True, begin=25) as events:  # it was killed after its checkpoint of step 25
        events.row({"step": 50, "seconds": 6.0, "denoising": 0.5})
    PIL.Image.fromarray(np.full((8, 16, 3), 200, np.uint8)).save(tmp_path / "grid.png")
    with events_of(run, None, on=True) as events:
        events.score(record, tmp_path / "grid.png")
    found = read(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/denoising")] == [
        (1, 1.0),
        (25, pytest.approx(0.04)),
        (50, 0.5),
    ]
    assert "train/grad_norm_sit" not in found.Tags()["scalars"]
    of = record.protocol.label
    assert [(e.step, e.value) for e in found.Scalars(f"fid/{of}")] == [(record.step, pytest.approx(record.metrics.fid))]
    picture = found.Images(f"samples/{of}")[0]
    assert (picture.step, picture.width, picture.height) == (record.step, 16, 8)


def test_only_the_main_process_writes(tmp_path):
    with events_of(SimpleNamespace(folder=tmp_path), None, on=False) as events:
        assert events is None
    assert not [*tmp_path.iterdir()]


def test_weights_and_biases_gets_the_same(tmp_path, record, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = SimpleNamespace(digest=lambda: "a" * 64, variant="repa", model_dump=lambda mode: {"recipe": "repa"})
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "grid.png")
    with events_of(SimpleNamespace(folder=tmp_path, spec=spec), "project", on=True, begin=0) as events:
        events.row({"step": 1, "denoising": 2.0})
        events.score(record, tmp_path / "grid.png")
    assert len([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == 1
