"""The recorded computations of the released code, and that replay reads every size from the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

from harness.checks.replay import Folder, Replayed, relative_error, replay
from recipes.core.errors import UserError
from recipes.core.loop import subset


def test_every_recorded_quantity_is_within_its_bound():
    results = list(replay(GOLDEN))
    assert [r.quantity for r in results if not r.passed] == []
    heads = {r.quantity.split(".")[0] for r in results}
    assert heads == {"sit_forward", "samplers", "autoencoder", "vanilla_steps", "repa_steps", "repa_e_steps"}
    changes = {r.quantity for r in results if ".change." in r.quantity}
    assert len(changes) == 2 + 2 + 4  # sit and ema three times; vae and disc once
    # every scalar that the released code logged, at every step
    meta = json.loads((GOLDEN / "meta.json").read_text())
    logged = sum(len(step) for name in ("vanilla_log", "repa_log", "repa_e_log") for step in meta[name])
    assert sum(".step" in r.quantity for r in results) == logged
    # every solver, path and guidance setting
    assert sum(r.quantity.startswith("samplers.") for r in results) == 3 * 2 * 3


def copy(tmp_path: Path, name: str, change) -> Path:
    """The golden folder with one file changed."""
    for path in GOLDEN.glob("*.safetensors"):
        if path.stem != name:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "meta.json").write_text((GOLDEN / "meta.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "key", "broken"),
    [
        ("sit_forward", "sit.blocks.1.attn.qkv.weight", "sit_forward.velocity"),
        ("samplers", "sit.final_layer.linear.bias", "samplers.ode_euler.linear.cfg1.0.0.0-1.0"),
        ("autoencoder", "vae.decoder.up.0.block.1.conv2.weight", "autoencoder.recon"),
        ("repa_e_steps", "after.ema.pos_embed", "repa_e_steps.change.ema"),
        ("repa_e_steps", "step1.noise", "repa_e_steps.step1.denoising"),
        ("vanilla_steps", "before.sit.blocks.0.attn.qkv.weight", "vanilla_steps.step0.grad_norm_sit"),
    ],
)
def test_a_changed_number_is_found(tmp_path, file, key, broken):
    def change(tensors):
        tensors[key] = tensors[key] * 1.01

    failed = {r.quantity for r in replay(copy(tmp_path, file, change)) if not r.passed}
    assert broken in failed


def test_a_sampler_key_that_cannot_be_read_is_not_skipped(tmp_path):
    def change(tensors):
        tensors["ode_euler.linear.cfgX"] = tensors["latents"].clone()

    with pytest.raises(UserError, match=r"ode_euler\.linear\.cfgX"):
        list(replay(copy(tmp_path, "samplers", change)))


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "meta.json").write_text((GOLDEN / "meta.json").read_text())
    with pytest.raises(UserError, match="sit_forward"):
        list(replay(tmp_path))


def test_nan_fails():
    assert not Replayed("x", float("nan"), 1.0).passed
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")


def test_sizes_come_from_the_folder(tmp_path):
    """Another patch size, depth, width, number of levels, blocks, channels and discriminator layers."""
    from builders import compvis_state
    from recorder import DIMS, LAYERS, record

    from recipes.models.autoencoder import AutoencoderSpec

    spec = AutoencoderSpec(
        latent_channels=DIMS["zc"], base_width=DIMS["ch"], multipliers=tuple(DIMS["mult"]), residual_blocks=DIMS["nres"]
    )
    record(tmp_path, list(compvis_state(spec)))
    folder = Folder(tmp_path)
    discriminator = subset(folder.tensors("autoencoder"), "disc")
    assert folder.discriminator(discriminator).main[-1].weight.shape[1] == DIMS["ndf"] * 2**LAYERS
    results = list(replay(tmp_path))
    assert [(r.quantity, r.error) for r in results if not r.passed] == []
    assert len(results) > 50
