"""Frozen encoders: the table, preprocessing, weights in every published naming."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError
from recipes.models.encoder import ENCODERS, Encoder, EncoderSpec, load_encoder

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# Millions, of the networks without classifier and pooling.
MILLIONS = {
    "dinov2-vit-b": 85.7, "dinov2-vit-l": 303.2, "dinov2-vit-g": 1134.8, "dinov3-vit-b": 85.6, "dinov3-vit-l": 303.1,
    "dinov2reg-vit-b": 85.7, "dinov2reg-vit-l": 303.2, "dinov2reg-vit-g": 1134.8,
    "mocov3-vit-b": 85.8, "mocov3-vit-l": 303.4,
    "dinov1-vit-b": 85.8, "mae-vit-l": 303.4, "jepa-vit-h": 630.8, "clip-vit-L": 303.2, "siglip-vit-b": 85.8,
}  # fmt: skip


def tiny(name: str) -> EncoderSpec:
    return ENCODERS[name].model_copy(update={"width": 32, "kwargs": TINY})


def original(spec: EncoderSpec, image_size: int) -> torch.nn.Module:
    """timm's own network, with its classifier or pooling, at the size that it was trained at."""
    torch.manual_seed(0)
    network = timm.create_model(spec.architecture, pretrained=False, img_size=image_size, **spec.kwargs).eval()
    for parameter in network.parameters():  # timm leaves biases at zero and scales at one: names would not matter
        parameter.data.normal_(0, 0.1)
    return network


def photos(n: int = 2, side: int = 256) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 8, 8, generator=g) * 255
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("spec", ENCODERS.values(), ids=ENCODERS.keys())
def test_every_entry_builds_and_gives_256_tokens(spec):
    assert spec.kwargs == {}
    assert spec.tokens == 256
    with torch.device("meta"):
        encoder = Encoder(spec)
        tokens = encoder(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
    assert tokens.shape == (2, 256, spec.width)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(
        MILLIONS[spec.name] - 0.002 * (not spec.final_norm), abs=0.06
    )


def expected(spec: EncoderSpec, network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The released preprocessing, written out for each encoder, on timm's network."""
    x = images.float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    if spec.name == "clip-vit-L":
        x = (F.interpolate(x, 224, mode="bicubic") - mean) / std
    elif spec.name.startswith(("dinov2", "jepa")):
        x = F.interpolate((x - mean) / std, 224, mode="bicubic")
    else:
        x = (x - mean) / std
    blocks = []
    network.blocks[-1].register_forward_hook(lambda _, __, out: blocks.append(out))
    with torch.no_grad():
        normed = network.forward_features(x)
    return (normed if spec.final_norm else blocks[0])[:, -256:]


@pytest.mark.parametrize("name", ["dinov2-vit-b", "dinov3-vit-b", "dinov1-vit-b", "mae-vit-l", "jepa-vit-h",
                                  "clip-vit-L", "siglip-vit-b", "dinov2-vit-g"])  # fmt: skip
def test_timm_weights_and_the_released_preprocessing(tmp_path, name):
    spec = tiny(name)
    network = original(spec, spec.input_size)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(spec, tmp_path / "w.safetensors")
    tokens = encoder(photos())
    assert tokens.shape == (2, 256, 32)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, expected(spec, network, photos()), rtol=1e-4, atol=1e-5)
    assert encoder.content == sha256_of(tmp_path / "w.safetensors")


def dinov2_names(state):
    """Meta's file: the same names, and a mask token."""
    return {k: v for k, v in state.items() if not k.startswith("head")} | {"mask_token": torch.zeros(1, 32)}


def jepa_names(state):
    return {"encoder": {f"module.{k}": v for k, v in state.items() if not k.startswith("head")}, "epoch": 300}


def mae_names(state):
    return {"model": {k: v for k, v in state.items() if not k.startswith(("head", "fc_norm"))}}


def dinov3_names(state):
    """Meta's DINOv3: other names for registers and layer scales, and rope and masks that are computed."""
    out = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, value in state.items():
        renamed = name.replace("reg_token", "storage_tokens")
        renamed = renamed.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        out[renamed] = value
        if name.endswith("qkv.weight"):
            out[renamed.replace("weight", "bias")] = torch.zeros(len(value))
            out[renamed.replace("weight", "bias_mask")] = torch.zeros(len(value))
    return {k: v for k, v in out.items() if not k.startswith("head")}


def clip_names(state):
    """OpenAI's state dict, with a key of the text tower."""
    out = {"visual.proj": torch.zeros(32, 8), "text_projection": torch.zeros(8, 8)}
    swaps = [("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"),
             ("attn.proj.", "attn.out_proj."), ("attn.qkv.", "attn.in_proj_"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"), ("norm1", "ln_1"), ("norm2", "ln_2")]  # fmt: skip
    for name, value in state.items():
        if name.startswith("head"):
            continue
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        name = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}.get(name, name)
        name = name.replace("norm.", "ln_post.") if name.startswith("norm.") else name
        value = value[0, 0] if name == "class_embedding" else value[0] if name == "positional_embedding" else value
        out[f"visual.{name}"] = value
    return out


PUBLISHED = {
    "dinov2-vit-b": (518, dinov2_names),
    "dinov1-vit-b": (224, lambda state: {k: v for k, v in state.items() if not k.startswith("head")}),
    "mae-vit-l": (224, mae_names),
    "jepa-vit-h": (224, jepa_names),
    "clip-vit-L": (224, clip_names),
    "dinov3-vit-b": (256, dinov3_names),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_namings_and_sizes(tmp_path, name, capsys):
    """The published file through our reader against timm's network with the position embedding resampled by hand."""
    from timm.layers import resample_abs_pos_embed

    size, rename = PUBLISHED[name]
    spec = tiny(name)
    network = original(spec, size)
    torch.save(rename(network.state_dict()), tmp_path / "w.pth")
    reference = original(spec, spec.input_size)
    state = network.state_dict()
    if size != spec.input_size:
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16])
    reference.load_state_dict(state)
    tokens = load_encoder(spec, tmp_path / "w.pth")(photos(1))
    torch.testing.assert_close(tokens, expected(spec, reference, photos(1)), rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out == ""


def test_frozen_in_eval_mode_and_in_float32_under_autocast():
    encoder = Encoder(tiny("dinov2-vit-b")).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    full = encoder(photos(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prepared = encoder._prepared(photos(1))
        tokens = encoder(photos(1))
    assert prepared.dtype == tokens.dtype == torch.float32
    assert not torch.equal(tokens, full)
    torch.testing.assert_close(tokens, full, rtol=0.1, atol=0.1)


def test_images_of_another_size_are_resized():
    assert Encoder(tiny("dinov1-vit-b"))(photos(1, 32)).shape == (1, 256, 32)


def test_wrong_files_are_refused(tmp_path):
    spec = tiny("dinov2-vit-b")
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w\.safetensors, the weights of dinov2-vit-b, is not there; download https"):
        load_encoder(spec, path)
    state = original(spec, 224).state_dict()
    save_file({k: v for k, v in state.items() if k != "blocks.1.ls2.gamma"}, path)
    with pytest.raises(UserError, match=r"dinov2-vit-b lacks 'blocks\.1\.ls2\.gamma'"):
        load_encoder(spec, path)
    save_file(state | {"reg_token": torch.zeros(1, 4, 32)}, path)
    with pytest.raises(UserError, match="holds 'reg_token'"):
        load_encoder(spec, path)
    save_file(original(tiny("dinov1-vit-b"), 224).state_dict(), path)
    with pytest.raises(UserError, match=r"lacks 'blocks\.0\.ls1\.gamma'"):
        load_encoder(spec, path)
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(UserError, match="not such a state dict"):
        load_encoder(spec, tmp_path / "w.pth")


def test_a_specification_that_the_network_contradicts_is_a_bug():
    with torch.device("meta"), pytest.raises(ValueError, match="dinov2-vit-b says"):
        Encoder(ENCODERS["dinov2-vit-b"].model_copy(update={"prefix_tokens": 5}))
