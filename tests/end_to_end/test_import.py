"""Other people's files through the command line, in this process: what is said of them stands beside the numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import compvis_state, make_sit
from tests_support import Toy, pictures

from harness.assets import networks
from harness.cli import app
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.sit import SiTSpec

SPEC = SiTSpec(latent_size=4, channels=4, num_classes=10, patch_size=2, hidden=32, depth=2, heads=4, encoder_depth=1)
VAE = AutoencoderSpec(latent_channels=4, base_width=32, multipliers=(1, 2), residual_blocks=1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder with raw.pt, both.pt and a tokenizer in half precision."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPA_BENCH_CACHE", str(tmp_path / "cache"))
    raw, ema = ({n: v for n, v in make_sit(k, SPEC).state_dict().items() if not n.startswith("bn.")} for k in (0, 1))
    torch.save({"model": raw}, "raw.pt")
    torch.save({"model": raw, "model_ema": ema}, "both.pt")
    torch.manual_seed(0)
    torch.save({"state_dict": {f"first_stage_model.{n}": v.half() for n, v in compvis_state(VAE).items()}}, "vae.ckpt")
    return tmp_path


def run(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["repa-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        app.main()
    return int(left.value.code or 0), *capsys.readouterr()


def sample(capsys, monkeypatch, folder: str, protocol: str) -> tuple[int, str]:
    asked = ("--run", folder, "--tokenizer", "vae.ckpt", "--protocol", protocol, "--count", 2, "--out", "scratch")
    code, _, err = run(capsys, monkeypatch, "sample", "--suite", "smoke", *asked, "--images", f"{folder}.png")
    return code, err


def test_raw_weights_alone_are_sampled_only_by_their_name(place, capsys, monkeypatch):
    for name in ("raw", "both"):
        code, out, err = run(capsys, monkeypatch, "import", f"{name}.pt", "--out", name, "--heads", 4)
        assert code == 0, err
        assert ("holds raw weights alone ('model')" in out) == (name == "raw")
    code, err = sample(capsys, monkeypatch, "raw", "ode50-10k")
    assert code == 2
    assert "raw weights alone, and their average (EMA) is asked for: name a protocol of raw weights" in err
    assert not (place / "raw.npz").exists()
    drawn = {}
    for folder, protocol in (("raw", "ode50-10k+raw"), ("both", "ode50-10k+raw"), ("both", "ode50-10k")):
        code, err = sample(capsys, monkeypatch, folder, protocol)
        assert code == 0, err
        assert "vae.ckpt: its weights are float16" in err
        drawn[folder, protocol] = np.load(place / f"{folder}.npz")["arr_0"]
    assert np.array_equal(drawn["raw", "ode50-10k+raw"], drawn["both", "ode50-10k+raw"])
    assert not np.array_equal(drawn["both", "ode50-10k"], drawn["both", "ode50-10k+raw"])


def test_a_tokenizer_in_half_precision_is_said_beside_its_numbers(place, capsys, monkeypatch):
    monkeypatch.setattr(networks, "load_network", lambda *_: Toy())
    np.savez(place / "images.npz", arr_0=pictures(0, 12))
    asked = ("--tokenizer", "vae.ckpt", "--reference", "images.npz", "--metrics", "psnr", "--json")
    code, out, err = run(capsys, monkeypatch, "score", *asked)
    assert code == 0, err
    assert any("vae.ckpt: its weights are float16" in warning for warning in json.loads(out)["warnings"])


@pytest.mark.parametrize("name", ["vae.ckpt", "images"])
def test_what_is_no_sit_is_refused_with_what_it_holds(place, capsys, monkeypatch, name):
    (place / "images").mkdir()
    code, _, err = run(capsys, monkeypatch, "import", name, "--out", "x")
    assert code == 2
    assert "it holds 'state_dict'" in err if name == "vae.ckpt" else "of weights files not one but none" in err
    assert not (place / "x").exists()
