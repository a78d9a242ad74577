"""Nine folders of computations recorded from the released code of follow-up methods, and that nothing is overlooked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, ROOT
from safetensors.torch import load_file, save_file

from baselines.parity import parity
from harness.checks.replay import replay
from recipes.core.errors import UserError
from recipes.models.autoencoder import Autoencoder
from recipes.training.import_run import import_checkpoint
from recipes.training.run_folder import load_for_sampling

FOLDERS = sorted(path for path in (GOLDEN / "followups").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_recorded_quantity_is_within_its_bound(folder):
    results = list(replay(folder))
    assert [(r.quantity, r.error) for r in results if not r.passed] == []
    compared = " ".join(r.quantity for r in results)
    meta = json.loads((folder / "meta.json").read_text())
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:  # every output and gradient of every step
            if ".out." in name and not name.startswith("before"):
                kind = name.split(".out.")[1]
                assert kind.split(".")[0] in compared, f"{path.stem}.{name}"
        for step, scalars in enumerate(meta.get("log", {}).get(path.stem, [])):
            for scalar in scalars:
                assert f"{path.stem}.step{step}.{scalar}" in compared
        gradients = sum(".out.grad." in name for name in tensors)
        assert sum(f"{path.stem}.step0.grad." in r.quantity for r in results) >= gradients


@pytest.mark.parametrize(
    ("folder", "file", "key"),
    [
        ("irepa", "conv_k3_steps", "before.sit.projectors.0.projection_layer.weight"),
        ("irepa", "conv_k1_forward", "zs_normalised.alpha0.8"),
        ("reg", "reg_steps", "step1.cls_noise"),
        ("reg", "reg_samplers", "sde_cls_noise"),
        ("haste", "haste_steps", "step1.attn.9"),
        ("layersync", "multiple_sync_steps", "step0.out.grad.blocks.0.attn.qkv.weight"),
        ("sra", "cos_steps", "before.ema.blocks.1.mlp.fc1.weight"),
        ("sra", "sml1_steps", "step2.teacher_u"),
        ("contrastive_fm", "samplers", "interference_vector"),
        ("dispersive", "forward", "loss.ddt_tau0.5.block2"),
        ("repa_paths", "lognormal_cosine_steps", "step0.t_normal"),
        ("muon", "muon_float64", "step1.grad.tall"),
    ],
)
def test_a_changed_number_is_found(folder, file, key, tmp_path):
    def change(tensors):
        tensors[key] = tensors[key] * (1 + 0.01 * torch.linspace(0.5, 1.5, tensors[key].numel())).reshape(
            tensors[key].shape
        ).to(tensors[key])

    assert any(not r.passed for r in replay(_changed(folder, file, tmp_path, change)))


def _changed(folder: str, file: str, tmp_path: Path, change) -> Path:
    copy = tmp_path / folder
    shutil.copytree(GOLDEN / "followups" / folder, copy)
    tensors = load_file(copy / f"{file}.safetensors")
    change(tensors)
    save_file(tensors, copy / f"{file}.safetensors")
    return copy


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    folder = _changed("contrastive_fm", "samplers", tmp_path, lambda t: t.update({"ode_euler.x": t["latents"].clone()}))
    with pytest.raises(UserError, match=r"samplers\.ode_euler\.x is not"):
        list(replay(folder))
    (folder / "contrastive_steps.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks contrastive_steps\.safetensors"):
        list(replay(folder))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"method": "Wonder"}))
    with pytest.raises(UserError, match="there is no replay of the method 'Wonder'"):
        list(replay(folder))


def test_parity_is_what_replay_gives():
    import parity as writing

    assert {name: found.model_dump() for name, found in parity().items()} == writing.measured()
    assert all(found.passed == found.quantities for found in parity().values())
    assert (ROOT / "tests" / "golden" / "followups" / "reg").is_dir()


@pytest.mark.parametrize(
    ("folder", "steps", "forward", "kind"),
    [
        ("reg", "reg_steps", "reg_forward", "reg"),
        ("irepa", "conv_k3_steps", "conv_k3_forward", "irepa"),
        ("sra", "cos_steps", "forward", "sra"),
    ],
)
def test_a_released_checkpoint_is_imported(folder, steps, forward, kind, tmp_path):
    """The recorded weights as the released code saves them, read back, give the recorded outputs."""
    g, seen = (load_file(GOLDEN / "followups" / folder / f"{name}.safetensors") for name in (steps, forward))
    state = {k.removeprefix("before.sit."): v for k, v in g.items() if k.startswith("before.sit.")}
    torch.save({"ema": state, "steps": 7}, tmp_path / "0000007.pt")
    run = import_checkpoint(tmp_path / "0000007.pt", tmp_path / "run", heads=4, classes=7, encoder_depth=2)
    assert run.spec.recipe == kind
    sit, _ = load_for_sampling(run, 7, Autoencoder(run.spec.tokenizer), average=True, device=torch.device("cpu"))
    token = {"class_token": seen["cls"]} if "cls" in seen else {}
    out = sit(seen["x"], seen["t"], seen["y"], **token)
    torch.testing.assert_close(out.velocity, seen["velocity"], rtol=1e-4, atol=1e-5)
    if "projected" in seen:
        torch.testing.assert_close(out.projected[0], seen["projected"], rtol=1e-4, atol=1e-5)
    if kind == "irepa":
        assert sit.bn.running_mean[1] == pytest.approx(-1.15671802)
