"""Frozen networks in people's files: a wrapper around the weights changes nothing of what they compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import compvis_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.assets.cache import Store
from harness.assets.tokenizers import open_tokenizer, tokenizer_files
from harness.features import dinov2, inception
from harness.features import inception as features_inception
from harness.preparation import stand_ins
from recipes.core.errors import UserError
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator
from recipes.models.encoder import DINOV2, ENCODERS, EncoderSpec, load_encoder
from recipes.models.perceptual import load_perceptual
from recipes.released.autoencoder import load_autoencoder, load_discriminator

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CPU = torch.device("cpu")
State = dict[str, Tensor]
Wrap = Callable[[State], dict[str, Any]]

#: What people's scripts put around a state dict.
WRAPPERS: dict[str, Wrap] = {
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "two": lambda s: {"state_dict": {"model": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "model_ema": lambda s: {"model_ema": s, "model": {n: v + 1 for n, v in s.items()}},
    "data parallel": lambda s: {f"module.{n}": v for n, v in s.items()},
    "compiled": lambda s: {"model": {f"_orig_mod.{n}": v for n, v in s.items()}},
    "averaged": lambda s: {f"module.{n}": v for n, v in s.items()} | {"n_averaged": torch.tensor(3)},
    "backbone": lambda s: {"state_dict": {f"backbone.{n}": v for n, v in s.items()} | {"head.x": torch.ones(1)}},
    "dino": lambda s: {
        "teacher": {f"backbone.{n}": v for n, v in s.items()},
        "student": {f"module.backbone.{n}": v + 1 for n, v in s.items()},
    },
}
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


def pixels(side: int = 224, count: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


def random_like(state: State) -> State:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(v.shape, generator=g) / 10 if v.is_floating_point() else v for name, v in state.items()}


def tiny(name: str) -> EncoderSpec:
    return (DINOV2 | ENCODERS)[name].model_copy(update={"width": 32, "kwargs": TINY})


@cache
def vision_transformer(name: str) -> State:
    """A file as it is published, with a position embedding of another grid."""
    import timm

    spec, size = tiny(name), {"dinov2-vit-b": 518, "dinov2reg-vit-b": 518}.get(name, 224)
    network = timm.create_model(spec.architecture, num_classes=0, img_size=size, **spec.kwargs)
    return random_like({n: v for n, v in network.state_dict().items() if not n.startswith(("head", "fc_norm"))})


def meta(state: State) -> State:
    """As Meta names DINOv2's registers: the class token has a position of its own."""
    out = {n: v for n, v in state.items() if n not in ("reg_token", "pos_embed")}
    position = torch.cat((torch.zeros(1, 1, 32), state["pos_embed"]), 1)
    return out | {"register_tokens": state["reg_token"], "pos_embed": position, "mask_token": torch.zeros(1, 32)}


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@every_wrapper
@pytest.mark.parametrize("name", ["dinov2-vit-b", "dinov2reg-vit-b", "mocov3-vit-b", "dinov1-vit-b"])
def test_encoders(tmp_path, name, wrapper):
    spec, state = tiny(name), vision_transformer(name)
    bare = load_encoder(spec, written(tmp_path / "bare.pth", state))
    found = load_encoder(spec, written(tmp_path / "wrapped.pth", WRAPPERS[wrapper](state)))
    assert torch.equal(found(pixels()), bare(pixels()))


@every_wrapper
def test_dinov2_as_a_feature_network(tmp_path, monkeypatch, wrapper):
    """Its position embedding is resampled by DINOv2's own rule, whatever lies around the weights."""
    monkeypatch.setitem(DINOV2, "dinov2-vit-b", tiny("dinov2-vit-b"))
    state = vision_transformer("dinov2-vit-b")
    bare = dinov2.load("dinov2-vit-b", written(tmp_path / "bare.pth", state), CPU)
    found = dinov2.load("dinov2-vit-b", written(tmp_path / "wrapped.pth", WRAPPERS[wrapper](state)), CPU)
    assert torch.equal(bare.encoder.network.pos_embed, dinov2.resample_position(state["pos_embed"], 16))
    assert torch.equal(found.encoder.network.pos_embed, bare.encoder.network.pos_embed)
    assert torch.equal(found(pixels())["features"], bare(pixels())["features"])


def test_weights_of_half_precision_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(DINOV2, "dinov2-vit-b", tiny("dinov2-vit-b"))
    state = vision_transformer("dinov2-vit-b")
    assert dinov2.load("dinov2-vit-b", written(tmp_path / "whole.pth", state), CPU).notes == ()
    (note,) = dinov2.load(
        "dinov2-vit-b", written(tmp_path / "half.pth", {n: v.half() for n, v in state.items()}), CPU
    ).notes
    assert "half.pth: its weights are float16: numbers differ" in note


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    return features_inception.write_inception(tmp_path_factory.mktemp("inception"))


def assert_equal(network: torch.nn.Module, other: torch.nn.Module) -> None:
    """Networks of equal weights, which compute the same."""
    state, expected = network.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_inception(tmp_path, inception_file):
    state = torch.load(inception_file, weights_only=True)
    bare = inception.load(inception_file, CPU)
    for wrapper in ("model", "state_dict", "data parallel", "averaged"):
        found = inception.load(written(tmp_path / "wrapped.pth", WRAPPERS[wrapper](state)), CPU)
        assert_equal(found.network, bare.network)


def test_inception_that_is_none(tmp_path, inception_file):
    state = torch.load(inception_file, weights_only=True)
    name = "Conv2d_2a_3x3.conv.weight"
    with pytest.raises(UserError, match=rf"'{name}' holds NaN"):
        inception.load(written(tmp_path / "nan.pth", {"model": state | {name: state[name] * float("inf")}}), CPU)
    with pytest.raises(UserError, match=r"does not hold Inception-2015 in torch-fidelity's format: .* it holds 'x'"):
        inception.load(written(tmp_path / "other.pth", {"x": {"y": torch.ones(1)}}), CPU)


def test_perceptual(tmp_path):
    state = torch.load(stand_ins._vgg16(tmp_path), weights_only=True)
    bare = load_perceptual(tmp_path / "vgg16.pth")
    for wrapper in ("model", "state_dict", "data parallel", "compiled"):
        assert_equal(load_perceptual(written(tmp_path / "wrapped.pth", WRAPPERS[wrapper](state))), bare)
    broken = state | {"features.2.bias": state["features.2.bias"] / 0}
    with pytest.raises(UserError, match=r"VGG16: 'features\.2\.bias' holds NaN"):
        load_perceptual(written(tmp_path / "nan.pth", broken))


def test_encoders_that_are_none(tmp_path):
    spec, state = tiny("dinov1-vit-b"), vision_transformer("dinov1-vit-b")
    broken = state | {"blocks.1.norm1.weight": torch.full((32,), float("nan"))}
    with pytest.raises(UserError, match=r"'blocks\.1\.norm1\.weight' holds NaN"):
        load_encoder(spec, written(tmp_path / "x.pth", {"model": broken}))
    with pytest.raises(UserError, match=r"several such networks: 'a', 'b'"):
        load_encoder(spec, written(tmp_path / "x.pth", {"a": state, "b": random_like(state) | {"x": torch.ones(1)}}))


# Encoders in their own publishers' files


def test_mocov3_in_its_own_file(tmp_path):
    """The base encoder, not the momentum encoder; RCG's ViT-L has names of its own for two layers."""
    spec, state = tiny("mocov3-vit-b"), vision_transformer("mocov3-vit-b")
    head = {"head.0.weight": torch.ones(2, 32), "head.1.running_mean": torch.zeros(2)}
    published = {f"module.base_encoder.{n}": v for n, v in (state | head).items()}
    published |= {f"module.momentum_encoder.{n}": v + 1 for n, v in (state | head).items()}
    published |= {"module.predictor.0.weight": torch.ones(2, 2)}
    for old, new in (("norm1.", "norm13."), ("mlp.fc1.", "mlp.fc13.")):
        published = {n.replace(f"blocks.0.{old}", f"blocks.0.{new}"): v for n, v in published.items()}
    for old, new in (("norm2.", "norm14."), ("mlp.fc2.", "mlp.fc14.")):
        published = {n.replace(f"blocks.1.{old}", f"blocks.1.{new}"): v for n, v in published.items()}
    path = written(tmp_path / "vit-b-300ep.pth.tar", {"epoch": 300, "arch": "vit_base", "state_dict": published})
    bare = load_encoder(spec, written(tmp_path / "bare.pth", state))
    assert torch.equal(load_encoder(spec, path)(pixels(256)), bare(pixels(256)))


def test_registers_of_dinov2_in_metas_file(tmp_path):
    """Against timm's own reading of the file at the published size, with the position resampled by hand."""
    import timm
    from timm.layers import resample_abs_pos_embed

    spec, state = tiny("dinov2reg-vit-b"), vision_transformer("dinov2reg-vit-b")
    encoder = load_encoder(spec, written(tmp_path / "reg.pth", meta(state)))
    network = timm.create_model(spec.architecture, num_classes=0, img_size=224, **spec.kwargs).eval()
    position = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=0)
    network.load_state_dict(state | {"pos_embed": position})
    normed = (pixels().float() / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels()), network.forward_features(normed)[:, 5:], rtol=1e-5, atol=1e-6)


def test_the_context_encoder_of_ijepa(tmp_path):
    spec, state = tiny("jepa-vit-h"), vision_transformer("jepa-vit-h")
    inside = {f"module.{n}": v for n, v in state.items()}
    published = {"encoder": inside, "target_encoder": {n: v + 1 for n, v in inside.items()}, "predictor": {}}
    bare = load_encoder(spec, written(tmp_path / "bare.pth", state))
    assert torch.equal(load_encoder(spec, written(tmp_path / "x.pth.tar", published))(pixels()), bare(pixels()))


# Discriminators and tokenizers

VAE = AutoencoderSpec(latent_channels=4, base_width=32, multipliers=(1, 2), residual_blocks=1)


@cache
def tokenizer() -> State:
    """Under CompVis names."""
    return random_like(compvis_state(VAE))


LDM = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s},
    "with its loss": lambda s: {
        "state_dict": s | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    },
    "with counters of an average": lambda s: {
        "state_dict": s | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)}
    },
    "with LitEma's average": lambda s: {
        "state_dict": {n: v + 1 for n, v in s.items()} | {f"model_ema.{n.replace('.', '')}": v for n, v in s.items()}
    },
    "a latent diffusion checkpoint": lambda s: {
        "state_dict": {f"first_stage_model.{n}": v for n, v in s.items()}
        | {"model.diffusion_model.time_embed.0.weight": torch.ones(4, 4), "scale_factor": torch.tensor(0.18215)}
        | {"cond_stage_model.embedding.weight": torch.ones(2, 2), "model_ema.diffusion_modeltime": torch.ones(2)}
    },
    "compiled": lambda s: {f"_orig_mod.{n}": v for n, v in s.items()},
    "model and average": lambda s: {"model": {n: v + 1 for n, v in s.items()}, "ema": s},
    "in a checkpoint of REPA-E": lambda s: {"ema": {"x_embedder.proj.weight": torch.ones(2)}, "vae": s},
    "beside a text encoder": lambda s: {f"vae.{n}": v for n, v in s.items()} | {"text.weight": torch.ones(2)},
}  # fmt: skip


@pytest.mark.parametrize("form", LDM)
def test_tokenizers(tmp_path, form):
    vae, _ = load_autoencoder(written(tmp_path / "x.ckpt", LDM[form](tokenizer())))
    bare, _ = load_autoencoder(written(tmp_path / "bare.pt", tokenizer()))
    assert vae.spec == VAE
    assert_equal(vae, bare)
    assert vae.notes == ()


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.bias"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_tokenizers_that_are_not_finite(tmp_path, name, number):
    value = tokenizer()[name].clone()
    value.view(-1)[0] = number
    with pytest.raises(UserError, match=rf"x\.pt: the autoencoder: '{name}' holds NaN"):
        load_autoencoder(written(tmp_path / "x.pt", tokenizer() | {name: value}))


def hub(folder: Path) -> Path:
    """A folder in diffusers' form."""
    vae = Autoencoder(VAE)
    vae.load_state_dict({n: torch.full_like(v, 0.01) for n, v in vae.state_dict().items()})
    vae.kl.save_pretrained(folder)
    return folder


def half(folder: Path, variant: str = "fp16", kind: torch.dtype = torch.float16) -> None:
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({n: v.to(kind) for n, v in state.items()}, folder / f"diffusion_pytorch_model.{variant}.safetensors")


def test_a_variant_is_read_where_the_whole_is_not_there(tmp_path):
    folder = hub(tmp_path / "vae-hf")
    half(folder, kind=torch.float32)
    (folder / "diffusion_pytorch_model.safetensors").rename(tmp_path / "whole")
    assert "is a variant, of lower precision by its name" in load_autoencoder(folder)[0].notes[0]
    (tmp_path / "whole").rename(folder / "diffusion_pytorch_model.safetensors")
    half(folder)
    half(folder, "bf16", torch.bfloat16)
    assert load_autoencoder(folder)[0].notes == ()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    vae, _ = load_autoencoder(folder)
    assert len(vae.notes) == 1
    assert "fp16.safetensors: its weights are float16: numbers differ" in vae.notes[0]
    assert next(vae.parameters()).dtype == torch.float32
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert "bfloat16" in load_autoencoder(folder)[0].notes[0]
    (folder / "diffusion_pytorch_model.bf16.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither diffusion_pytorch_model"):
        load_autoencoder(folder)


def test_shards_of_a_folder_are_joined(tmp_path):
    folder = hub(tmp_path / "vae-hf")
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    whole, _ = load_autoencoder(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for k, name in enumerate(names):
        save_file(dict(list(state.items())[k::2]), folder / name)
    index = {"weight_map": {n: names[k % 2] for k, n in enumerate(state)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    again, _ = load_autoencoder(folder)
    assert_equal(again, whole)
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=f"'{names[1]}' is not beside it"):
        load_autoencoder(folder)


@pytest.mark.parametrize("place", ["vae", "snapshots/0a1b", "snapshots/0a1b/vae"])
def test_the_autoencoder_of_a_pipeline(tmp_path, place):
    hub(tmp_path / "pipeline" / place)
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    vae, content = open_tokenizer(Store(tmp_path / "cache"), str(tmp_path / "pipeline"))
    assert vae.spec == VAE
    assert content == open_tokenizer(Store(tmp_path / "cache"), str(tmp_path / "pipeline" / place))[1]
    if place.startswith("snapshots"):
        shutil.copytree(tmp_path / "pipeline" / "snapshots" / "0a1b", tmp_path / "pipeline" / "snapshots" / "2c3d")
        with pytest.raises(UserError, match="holds 0 tokenizers"):
            tokenizer_files(tmp_path / "pipeline")


def test_a_folder_with_a_checkpoint_of_any_name(tmp_path):
    written(tmp_path / "last.ckpt", {"state_dict": tokenizer()})
    assert tokenizer_files(tmp_path) == (tmp_path / "last.ckpt", None)


@pytest.mark.parametrize("prefix", ["", "discriminator.", "loss.discriminator.", "module.discriminator._orig_mod."])
def test_discriminators(tmp_path, prefix):
    network = PatchDiscriminator(DiscriminatorSpec(base_width=4, layers=1))
    state = {f"{prefix}{n}": v for n, v in network.state_dict().items()} | {"loss.logvar": torch.zeros(1)}
    if not prefix:
        state.pop("loss.logvar")
    assert_equal(load_discriminator(written(tmp_path / "x.pt", {"state_dict": state})), network)


@pytest.mark.parametrize(
    "change",
    [{"block_out_channels": "abc"}, {"block_out_channels": None}, {"block_out_channels": [0, 0]},
     {"in_channels": "3"}, {"scaling_factor": "x"}, {"latents_mean": ["a"], "latents_std": ["b"]}, []],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_is_none(tmp_path, change):
    folder = hub(tmp_path / "vae")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change if isinstance(change, dict) else change))
    with pytest.raises(UserError, match=r"config\.json"):
        load_autoencoder(folder)


@pytest.mark.parametrize("kind", ["meta", "sparse", "expanded"])
def test_tensors_without_their_numbers(tmp_path, kind):
    state = tokenizer()
    name = "decoder.conv_in.weight"
    made = {
        "meta": lambda: state[name].to("meta"),
        "sparse": lambda: state[name].to_sparse(),
        "expanded": lambda: torch.zeros((), dtype=torch.float16).expand(10**6, 10**5),
    }
    with pytest.raises(UserError, match=r"is no plain tensor|read safely|give a file of this size"):
        load_autoencoder(written(tmp_path / "x.pt", state | {name: made[kind]()}))
