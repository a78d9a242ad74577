"""Every released file format, written here with the recorded weights, read back, and computing the recorded outputs."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import compvis_state
from conftest import GOLDEN
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.checks.replay import relative_error
from recipes.core import atomic, checkpoint
from recipes.core.errors import UserError
from recipes.core.loop import subset
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.sit import SIZES, SiT, SiTSpec
from recipes.released.autoencoder import (
    TOKENIZERS,
    autoencoder_to_compvis,
    compvis_name,
    diffusers_name,
    diffusers_spec,
    load_autoencoder,
    load_discriminator,
    save_autoencoder,
)
from recipes.released.sit import ReleasedCheckpoint, read_checkpoint, sit_spec
from recipes.training.flops import flops_per_step
from recipes.training.import_run import import_checkpoint
from recipes.training.run_folder import Run, load_for_sampling
from recipes.training.spec import RunSpec

BOUND = 1e-5
HEADS = 4
State = dict[str, Tensor]


@functools.cache
def golden(name: str) -> State:
    return load_file(GOLDEN / f"{name}.safetensors")


def released_sit() -> State:
    """The recorded SiT, float32, as REPA-E's code has it."""
    return subset(golden("sit_forward"), "sit")


def released_vae() -> State:
    return subset(golden("autoencoder"), "vae")


def released_discriminator() -> State:
    return subset(golden("autoencoder"), "disc")


def moved(state: State, by: float = 0.01) -> State:
    """Other weights of the same form: what a raw model is beside its average."""
    return {k: v + by if v.is_floating_point() and not k.startswith("bn.") else v for k, v in state.items()}


def arguments(**changes: Any) -> dict[str, Any]:
    """What the released script records."""
    return {
        "model": "SiT-XL/2", "num_classes": 10, "encoder_depth": 2, "qk_norm": False, "bn_momentum": 0.1,
        "path_type": "linear", "prediction": "v", "weighting": "uniform", "cfg_prob": 0.1, "enc_type": "dinov2-vit-b",
        "proj_coeff": 0.5, "vae": "f8d4", "vae_align_proj_coeff": 1.5, "batch_size": 256, "seed": 7, "resolution": 256,
        "learning_rate": 1e-4, "vae_learning_rate": 1e-4, "disc_learning_rate": 1e-4, "mixed_precision": "fp16",
        "disc_pretrained_ckpt": None,
    } | changes  # fmt: skip


def optimizer_state() -> dict[str, Any]:
    return {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}


def write_checkpoint(path: Path, args: dict[str, Any] | None = None, **parts: Any) -> Path:
    """`torch.save` of the dictionary that the released training scripts save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    namespace = argparse.Namespace(**(arguments() if args is None else args))
    torch.save({**parts, "opt": optimizer_state(), "args": namespace}, path)
    return path


@pytest.fixture
def repa_e_folder(tmp_path) -> Path:
    folder = tmp_path / "sit-repae-sdvae"
    write_checkpoint(
        folder / "checkpoints" / "0400000.pt",
        model=moved(released_sit()),
        ema=released_sit(),
        vae=released_vae(),
        discriminator=released_discriminator(),
        opt_vae=optimizer_state(),
        opt_disc=optimizer_state(),
        steps=400000,
    )
    (folder / "args.json").write_text(json.dumps(arguments(), indent=4))
    return folder


def tokenizer() -> Autoencoder:
    """Stands for a frozen tokenizer that is loaded from its own file."""
    return Autoencoder(
        AutoencoderSpec(latent_channels=4, base_width=8, multipliers=(1, 1), residual_blocks=1, norm_groups=4)
    )


def velocity(sit: SiT, t: Tensor | None = None) -> Tensor:
    g = golden("sit_forward")
    with torch.no_grad():
        out = sit(g["x"], g["t"] if t is None else t, g["y"]).velocity
    assert out is not None
    return out


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert relative_error(ours, theirs) <= BOUND


# Checkpoints


def test_repa_e_folder(tmp_path, repa_e_folder):
    run = import_checkpoint(repa_e_folder, tmp_path / "run", heads=HEADS)
    g, a = golden("sit_forward"), golden("autoencoder")
    sit, vae = load_for_sampling(run, 400000, tokenizer(), average=True)
    assert_close(velocity(sit), g["velocity"])
    with torch.no_grad():
        assert_close(sit(g["x"], g["t"], g["y"]).features, g["features"])
        posterior = vae.encode(a["image"])
        assert_close(posterior.mean, a["posterior_mean"])
        assert_close(posterior.std, a["posterior_std"])
        assert_close(vae.decode(a["z"]), a["recon"])
    raw, _ = load_for_sampling(run, 400000, tokenizer(), average=False)
    assert relative_error(velocity(raw), g["velocity"]) > 0.01
    # the folder is one of ours
    spec = RunSpec.parse(json.loads((run.folder / "spec.json").read_text()), where="spec.json")
    assert spec == run.spec == Run.open(run.folder).spec
    assert (spec.suite, spec.variant, spec.recipe) == ("imported", "repa_e", "repa_e")
    assert (spec.train.seed, spec.train.batch_size, spec.train.precision) == (7, 256, "fp16")
    assert (spec.options["path"], spec.options["vae_alignment"]) == ("linear", 1.5)
    assert (spec.sit.heads, spec.sit.encoder_depth, spec.sit.encoder_widths) == (HEADS, 2, (24,))
    manifest = checkpoint.read_manifest(run.checkpoint(400000))
    file = repa_e_folder / "checkpoints" / "0400000.pt"
    assert (manifest["step"], manifest["seconds"], manifest["run"]) == (400000, 0.0, spec.digest())
    assert manifest["imported"]["sha256"] == spec.inputs["source"] == atomic.sha256_of(file)
    assert manifest["imported"]["args"] == arguments()
    assert manifest["imported"]["raw"] == "model"
    assert spec.perceptual == "released"
    larger = spec.model_copy(update={"sit": spec.sit.model_copy(update={"latent_size": 8})})
    assert flops_per_step(larger, 16) > 0  # VGG16 wants 16 pixels
    names = set(run.weights(400000))
    assert {"sit.pos_embed", "ema.sit.bn.running_var", "vae.kl.encoder.conv_in.weight"} <= names
    assert "discriminator.main.0.weight" in names
    assert not any("opt" in name.split(".") for name in names)


def test_a_file_alone_and_another_step_of_its_run(tmp_path, repa_e_folder):
    file = repa_e_folder / "checkpoints" / "0400000.pt"
    other = torch.load(file, weights_only=False) | {"steps": 50000}
    torch.save(other, repa_e_folder / "checkpoints" / "0050000.pt")
    run = import_checkpoint(file, tmp_path / "run", heads=HEADS)
    import_checkpoint(repa_e_folder, tmp_path / "run", step=50000, heads=HEADS)
    assert run.steps() == [50000, 400000]
    assert read_checkpoint(repa_e_folder, heads=HEADS).step == 400000
    with pytest.raises(UserError, match=r"holds no 1\.pt; it has 50000, 400000"):
        read_checkpoint(repa_e_folder, step=1, heads=HEADS)
    with pytest.raises(UserError, match="holds another run"):
        import_checkpoint(file, tmp_path / "run", heads=HEADS, encoder_depth=1)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_parallel_and_compiled_training(tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in released_sit().items()}
    path = write_checkpoint(tmp_path / "x.pt", model=state, ema=released_sit(), steps=3)
    read = read_checkpoint(path, heads=HEADS)
    assert read.model is not None
    assert read.ema is not None
    assert read.model.keys() == read.ema.keys()


def test_repa_e_latent_diffusion_alone(tmp_path):
    """A frozen tokenizer: no vae in the file, the statistics in the batch norm."""
    path = write_checkpoint(
        tmp_path / "sit-ldm" / "checkpoints" / "4000000.pt", model=released_sit(), ema=released_sit(), steps=4000000
    )
    run = import_checkpoint(path, tmp_path / "run", heads=HEADS)
    assert (run.spec.recipe, run.spec.tokenizer) == ("repa", TOKENIZERS["f8d4"])
    given = tokenizer()
    sit, vae = load_for_sampling(run, 4000000, given, average=True)
    assert vae is given
    assert_close(velocity(sit), golden("sit_forward")["velocity"])
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    bn = subset(released_sit(), "bn")
    expected = z * bn["running_var"].sqrt().view(1, 4, 1, 1) + bn["running_mean"].view(1, 4, 1, 1)
    torch.testing.assert_close(sit.bn.denormalize(z), expected)


def without_bn(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("bn.")}


def repa_arguments() -> dict[str, Any]:
    """REPA's script knows no tokenizer but SD-VAE."""
    own = ("vae", "vae_align_proj_coeff", "vae_learning_rate", "disc_learning_rate", "bn_momentum")
    return {name: value for name, value in arguments().items() if name not in own}


def test_repa(tmp_path):
    state = without_bn(released_sit())
    path = write_checkpoint(tmp_path / "0400000.pt", repa_arguments(), model=state, ema=state, steps=400000)
    run = import_checkpoint(path, tmp_path / "run", heads=HEADS)
    assert (run.spec.variant, run.spec.recipe) == ("repa", "repa")
    sit, _ = load_for_sampling(run, 400000, tokenizer(), average=True)
    assert_close(velocity(sit), golden("sit_forward")["velocity"])
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sit.bn.denormalize(z), z / 0.18215)


def legacy_blocks(state: State) -> State:
    """REPA's first files: the blocks after the alignment are `decoder_blocks`."""
    out = {}
    for name, value in state.items():
        out[name.replace("blocks.2.", "decoder_blocks.0.")] = value
    return out


def legacy_projector(name: str, state: State) -> State:
    return {k.replace("projectors.0.", f"{name}."): v for k, v in state.items()}


@pytest.mark.parametrize("name", ["decoder_blocks", "projector", "proj", "mlp"])
def test_repa_legacy_names(tmp_path, name):
    state = without_bn(released_sit())
    old = legacy_blocks(state) if name == "decoder_blocks" else legacy_projector(name, state)
    assert old.keys() != state.keys()
    path = tmp_path / "ema.pt"
    torch.save({"ema": old}, path)
    read = read_checkpoint(path, heads=HEADS)
    assert read.kind == "repa"
    assert read.model is None
    # where alignment is shows in the old names alone
    assert read.sit.encoder_depth == (2 if name == "decoder_blocks" else 3)
    run = import_checkpoint(path, tmp_path / "run", heads=HEADS, encoder_depth=2, step=400000)
    sit, _ = load_for_sampling(run, 400000, tokenizer(), average=True)
    assert_close(velocity(sit), golden("sit_forward")["velocity"])
    with pytest.raises(UserError, match=r"the average \(EMA\) alone, and raw weights are asked for"):
        load_for_sampling(run, 400000, tokenizer(), average=False)
    imported = checkpoint.read_manifest(run.checkpoint(400000))["imported"]
    assert (imported["raw"], imported["ema"]) == (None, "ema")


def test_vanilla_by_the_code_of_repa(tmp_path):
    """Without an encoder that code makes one projector to zero features."""
    state = without_bn(released_sit())
    state |= {"projectors.0.4.weight": torch.zeros(0, 32), "projectors.0.4.bias": torch.zeros(0)}
    args = repa_arguments() | {"enc_type": "None"}
    run = import_checkpoint(
        write_checkpoint(tmp_path / "x.pt", args, ema=state, steps=5), tmp_path / "run", heads=HEADS
    )
    assert (run.spec.variant, run.spec.recipe, run.spec.sit.encoder_widths) == ("sit", "vanilla", ())
    sit, _ = load_for_sampling(run, 5, tokenizer(), average=True)
    assert_close(velocity(sit), golden("sit_forward")["velocity"])


def sit_code_state(*, learn_sigma: bool) -> State:
    """SiT's own release: no projectors, no batch norm, and as many channels again for a variance."""
    state = {k: v for k, v in without_bn(released_sit()).items() if not k.startswith("projectors.")}
    if learn_sigma:
        g = torch.Generator().manual_seed(0)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            pixels = state[name].unflatten(0, (-1, 4))  # (p * p, C, ...)
            noise = torch.randn(pixels.shape, generator=g)
            state[name] = torch.cat((pixels, noise), dim=1).flatten(0, 1)
    return state


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_sit(tmp_path, learn_sigma, bare):
    """SiT's code runs from noise at t = 0 to data at t = 1: our velocity at t is minus its velocity at 1 - t."""
    state, path = sit_code_state(learn_sigma=learn_sigma), tmp_path / "SiT-XL-2-256x256.pt"
    args = {"path_type": "Linear", "prediction": "velocity", "global_seed": 0, "global_batch_size": 128}
    torch.save(state if bare else {"model": state, "ema": state, "args": argparse.Namespace(**args)}, path)
    run = import_checkpoint(path, tmp_path / "run", heads=HEADS, step=7000000)
    assert (run.spec.variant, run.spec.recipe, run.spec.options["path"]) == ("sit", "vanilla", "linear")
    assert run.spec.train.batch_size == (256 if bare else 128)
    sit, _ = load_for_sampling(run, 7000000, tokenizer(), average=True)
    g = golden("sit_forward")
    assert_close(velocity(sit, 1 - g["t"]), -g["velocity"])
    assert relative_error(velocity(sit), g["velocity"]) > 0.1
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sit.bn.denormalize(z), z / 0.18215)


def test_learned_variance_is_cut_from_every_pixel_of_a_patch(tmp_path):
    """With patches of 2 x 2, against the released order: unpatchify, then the first half of the channels."""
    spec = SiTSpec(latent_size=4, channels=4, num_classes=3, patch_size=2, hidden=32, depth=1, heads=4, encoder_depth=1)
    g = torch.Generator().manual_seed(0)
    wide = SiT(spec)
    wide.final_layer.linear = torch.nn.Linear(32, 2 * 2 * 2 * 4)
    for p in wide.parameters():
        p.data.normal_(0, 0.2, generator=g)
    state = {k: v for k, v in wide.state_dict().items() if not k.startswith("bn.")}
    torch.save(state, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt", heads=4)
    assert read.sit.channels == 4
    ours = SiT(read.sit)
    ours.load_state_dict(read.ema)
    x, t, y = torch.randn(3, 4, 4, 4, generator=g), torch.rand(3, generator=g), torch.tensor([0, 1, 3])
    tokens = []
    wide.final_layer.register_forward_hook(lambda _, __, out: tokens.append(out[0]))
    wide.spec = spec.model_copy(update={"channels": 8})
    with torch.no_grad():
        theirs = wide(x, t, y).velocity.chunk(2, dim=1)[0]
        assert tokens[0].shape == (3, 4, 32)
        assert_close(ours(x, 1 - t, y).velocity, -theirs)


def refused(tmp_path: Path, match: str, ema: State, args: dict[str, Any] | None = None, **parts: Any) -> None:
    path = write_checkpoint(tmp_path / "x.pt", args, ema=ema, steps=1, **parts)
    with pytest.raises(UserError, match=match):
        import_checkpoint(path, tmp_path / "run", heads=HEADS)
    assert not (tmp_path / "run").exists()


def less(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


def test_what_cannot_be_imported_is_named(tmp_path):
    whole = released_sit()
    refused(tmp_path, r"x\.pt: 't_embedder\.mlp\.0\.weight' is not in the", less(whole, "t_embedder.mlp.0.weight"))
    refused(tmp_path, r"x\.pt: ema lacks 't_embedder\.mlp\.2\.bias'", less(whole, "t_embedder.mlp.2.bias"))
    refused(tmp_path, "ema lacks 'bn.running_var'", less(whole, "bn.running_var"))
    refused(tmp_path, r"lacks 'blocks\.0\.attn\.k_norm\.bias'", whole | {"blocks.0.attn.q_norm.weight": torch.ones(8)})
    refused(tmp_path, r"'pos_embed' is \(1, 15, 32\)", whole | {"pos_embed": whole["pos_embed"][:, 1:]})
    refused(tmp_path, "has 11 rows, not 1000 classes", whole, arguments(num_classes=1000))
    refused(tmp_path, "trained on the path 'VP'", whole, arguments(path_type="VP"))
    refused(tmp_path, "the file holds a tuned VAE", without_bn(whole), vae=released_vae())
    refused(tmp_path, r"vae is not a KL autoencoder: 'codebook\.weight'", whole,
            vae=released_vae() | {"codebook.weight": torch.zeros(1)})  # fmt: skip
    refused(tmp_path, r"vae: the autoencoder lacks 'quant_conv\.bias'", whole,
            vae=less(released_vae(), "quant_conv.bias"))  # fmt: skip
    refused(tmp_path, "it predicts noise", sit_code_state(learn_sigma=False), {"prediction": "noise"})
    with pytest.raises(UserError, match="none of the papers'"):
        read_checkpoint(write_checkpoint(tmp_path / "x.pt", ema=whole, steps=1))
    torch.save(sit_code_state(learn_sigma=True), tmp_path / "DiT-XL-2-256x256.pt")
    with pytest.raises(UserError, match="is a DiT"):
        import_checkpoint(tmp_path / "DiT-XL-2-256x256.pt", tmp_path / "run", heads=HEADS)


# Sizes


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_of_the_papers_are_recognised(size, millions, patch):
    """Published counts are those of SiT-X/2 on 4 channels, without projectors."""
    hidden, depth, heads = SIZES[size]
    side, channels = (32, 4) if patch == 2 else (16, 32)
    spec = SiTSpec(
        latent_size=side, channels=channels, num_classes=1000, patch_size=patch, hidden=hidden, depth=depth,
        heads=heads, encoder_widths=(768, 1024),
    )  # fmt: skip
    with torch.device("meta"):
        sit = SiT(spec)
    assert sit_spec(sit.state_dict(), num_classes=1000) == spec
    counted = sum(p.numel() for name, p in sit.named_parameters() if not name.startswith("projectors."))
    assert counted / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(("name", "millions"), [("f8d4", 83.65), ("f16d32", 69.84)])
def test_tokenizers_of_the_papers(name, millions):
    spec = TOKENIZERS[name]
    with torch.device("meta"):
        vae = Autoencoder(spec)
        latents = vae.encode(torch.zeros(1, 3, 256, 256)).mean
    assert sum(p.numel() for p in vae.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert latents.shape == ((1, 4, 32, 32) if name == "f8d4" else (1, 32, 16, 16))
    config = json.loads(json.dumps(dict(vae.kl.config)))
    assert diffusers_spec(config, where="config.json") == spec


# Autoencoders


def statistics() -> tuple[Tensor, Tensor]:
    return torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([4.0, 5.5, 3.0, 7.0])


def write_released_vae(folder: Path) -> Path:
    mean, std = statistics()
    torch.save(released_vae(), folder / "sdvae-f8d4.pt")
    torch.save(
        {"latents_scale": (1 / std).view(1, 4, 1, 1), "latents_bias": mean.view(1, 4, 1, 1)},
        folder / "sdvae-f8d4-latents-stats.pt",
    )
    torch.save(released_discriminator(), folder / "sdvae-f8d4-discriminator-ckpt.pt")
    return folder / "sdvae-f8d4.pt"


def assert_recorded(vae: Autoencoder) -> None:
    g = golden("autoencoder")
    with torch.no_grad():
        posterior = vae.eval().encode(g["image"])
        assert_close(posterior.mean, g["posterior_mean"])
        assert_close(posterior.std, g["posterior_std"])
        assert_close(vae.decode(g["z"]), g["recon"])


def test_released_autoencoder(tmp_path):
    vae, found = load_autoencoder(write_released_vae(tmp_path))
    assert_recorded(vae)
    mean, std = statistics()
    assert found is not None
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.std, std)
    (tmp_path / "sdvae-f8d4-latents-stats.pt").unlink()
    assert load_autoencoder(tmp_path / "sdvae-f8d4.pt")[1] is None


def test_our_own_state_dict(tmp_path):
    vae, _ = load_autoencoder(write_released_vae(tmp_path))
    save_file(vae.state_dict(), tmp_path / "ours.safetensors")
    again, found = load_autoencoder(tmp_path / "ours.safetensors")
    assert again.spec == vae.spec
    assert found is None
    assert_recorded(again)
    spec = AutoencoderSpec(
        latent_channels=3, base_width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, unshuffle=2
    )
    save_file(Autoencoder(spec).kl.state_dict(), tmp_path / "tiny.safetensors")
    assert load_autoencoder(tmp_path / "tiny.safetensors", norm_groups=4)[0].spec == spec
    with pytest.raises(UserError, match="32 norm groups"):
        load_autoencoder(tmp_path / "tiny.safetensors")


def test_round_trip_is_bit_identical(tmp_path):
    path = write_released_vae(tmp_path)
    vae, found = load_autoencoder(path)
    assert found is not None
    save_autoencoder(tmp_path / "out", "again", vae, found.mean, found.std)
    again = torch.load(tmp_path / "out" / "again.pt", weights_only=True)
    assert again.keys() == released_vae().keys()
    for name, value in released_vae().items():
        assert again[name].shape == value.shape
        assert torch.equal(again[name], value)
        assert again[name].dtype == value.dtype
    stats = torch.load(tmp_path / "out" / "again-latents-stats.pt", weights_only=True)
    theirs = torch.load(tmp_path / "sdvae-f8d4-latents-stats.pt", weights_only=True)
    for name, value in theirs.items():
        assert stats[name].shape == (1, 4, 1, 1)
        torch.testing.assert_close(stats[name], value, rtol=1e-6, atol=0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["again-hf", "again-latents-stats.pt", "again.pt"]


SPECS = [
    AutoencoderSpec(latent_channels=3, base_width=32, multipliers=(1, 2, 4), residual_blocks=2),
    AutoencoderSpec(latent_channels=8, base_width=32, multipliers=(1, 1, 2), residual_blocks=1, attention_levels=(2,)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: str(s.multipliers))
def test_names_there_and_back(spec):
    levels = len(spec.multipliers)
    for name in compvis_state(spec):
        assert compvis_name(diffusers_name(name, levels), levels) == name
    vae = Autoencoder(spec)
    back = autoencoder_to_compvis(vae.kl.state_dict())
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in compvis_state(spec).items()}
    for foreign in ("encoder.mid_block.attentions.0.to_z.weight", "loss.weight"):
        with pytest.raises(KeyError):
            compvis_name(foreign, levels)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: str(s.multipliers))
def test_diffusers_loads_what_we_write(tmp_path, spec, generator):
    from diffusers import AutoencoderKL

    vae = Autoencoder(spec).eval()
    c = spec.latent_channels
    mean, std = torch.randn(c, generator=generator), torch.rand(c, generator=generator) + 0.5
    save_autoencoder(tmp_path, "e2e", vae, mean, std)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "e2e-hf").eval()
    assert theirs.config.scaling_factor == 0.18215
    images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        ours = vae.encode(images)
        assert torch.equal(ours.mean, theirs.encode(images).latent_dist.mean)
        assert torch.equal(vae.decode(ours.mean), theirs.decode(ours.mean).sample)
    for path in (tmp_path / "e2e-hf", tmp_path / "e2e.pt"):
        again, found = load_autoencoder(path)
        assert again.spec == spec
        assert all(torch.equal(again.state_dict()[k], v) for k, v in vae.state_dict().items())
        assert found is not None
        torch.testing.assert_close(found.mean, mean)
        torch.testing.assert_close(found.std, std)


def published_folder(folder: Path, **changes: Any) -> Path:
    """A folder as SD-VAE's is published: attention's old names, and a scaling factor."""
    vae, _ = load_autoencoder(write_released_vae(folder))
    vae.kl.save_pretrained(folder / "hub")
    config = json.loads((folder / "hub" / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("latents_mean", "latents_std", "use_quant_conv")} | changes
    (folder / "hub" / "config.json").write_text(json.dumps(config))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in vae.kl.state_dict().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        state[name] = value
    (folder / "hub" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, folder / "hub" / "diffusion_pytorch_model.bin")
    return folder / "hub"


def test_a_published_folder_with_old_names(tmp_path):
    vae, found = load_autoencoder(published_folder(tmp_path, scaling_factor=0.25, shift_factor=0.5))
    assert_recorded(vae)
    assert found is not None
    assert found.std.tolist() == [4.0] * 4
    assert found.mean.tolist() == [0.5] * 4
    torch.save(
        {"latents_scale": torch.ones(1, 4, 1, 1), "latents_bias": torch.zeros(1, 4, 1, 1)},
        tmp_path / "hub-latents-stats.pt",
    )
    found = load_autoencoder(tmp_path / "hub")[1]
    assert found is not None
    assert found.std.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"_class_name": "AutoencoderKLWan"}, "_class_name"),
        ({"temporal": 3}, "temporal"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "up_block_types"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ({"block_out_channels": [32, 48]}, "block_out_channels"),
        ({"in_channels": 4}, "in_channels"),
    ],
)
def test_configs_that_cannot_be_expressed_name_the_key(tmp_path, changes, key):
    with pytest.raises(UserError, match=rf"config\.json: {key}.* = "):
        load_autoencoder(published_folder(tmp_path, **changes))


def test_autoencoder_files_that_are_wrong(tmp_path):
    path = write_released_vae(tmp_path)
    torch.save({"latents_scale": torch.ones(1, 4, 1, 1)}, tmp_path / "sdvae-f8d4-latents-stats.pt")
    with pytest.raises(UserError, match=r"latents-stats\.pt lacks 'latents_bias'"):
        load_autoencoder(path)
    torch.save(
        {"latents_scale": torch.zeros(1, 4, 1, 1), "latents_bias": torch.zeros(1, 4, 1, 1)},
        tmp_path / "sdvae-f8d4-latents-stats.pt",
    )
    with pytest.raises(UserError, match="4 positive numbers"):
        load_autoencoder(path)
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not a KL autoencoder"):
        load_autoencoder(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_autoencoder(tmp_path)


# Discriminators


@pytest.mark.parametrize("form", ["bare", "loss", "nested", "parallel"])
def test_released_discriminator(tmp_path, form):
    state = released_discriminator()
    path = tmp_path / "sdvae-f8d4-discriminator-ckpt.pt"
    inside = {f"discriminator.{k}": v for k, v in state.items()}
    torch.save(
        {
            "bare": state,
            "loss": inside | {"perceptual_loss.x": torch.ones(1), "logvar": torch.zeros(1)},
            "nested": {"discriminator": state},
            "parallel": {f"module.{k}": v for k, v in state.items()},
        }[form],
        path,
    )
    discriminator = load_discriminator(path).eval()
    g = golden("autoencoder")
    with torch.no_grad():
        assert_close(discriminator(g["image"]), g["disc_logits"])


def test_other_discriminators_are_refused(tmp_path):
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"not a PatchGAN: 'main\.0\.weight'"):
        load_discriminator(tmp_path / "x.pt")
    torch.save(less(released_discriminator(), "main.3.bias"), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"lacks 'main\.3\.bias'"):
        load_discriminator(tmp_path / "x.pt")


def test_a_checkpoint_says_what_it_read(repa_e_folder):
    read = read_checkpoint(repa_e_folder, heads=HEADS)
    assert isinstance(read, ReleasedCheckpoint)
    assert (read.kind, read.step, read.args["seed"]) == ("repa_e", 400000, 7)
    assert read.discriminator is not None
    assert read.discriminator.keys() == released_discriminator().keys()
    assert read.tokenizer is not None
    assert read.tokenizer.base_width == 32


def test_equal_tensors_are_equal_files(tmp_path, monkeypatch):
    vae = Autoencoder(AutoencoderSpec(latent_channels=4, base_width=32, multipliers=(1, 1), residual_blocks=1))
    for pid, name in enumerate(("one", "two")):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        save_autoencoder(tmp_path / name, "vae", vae, torch.zeros(4), torch.ones(4))
    for file in ("vae.pt", "vae-latents-stats.pt"):
        assert atomic.sha256_of(tmp_path / "one" / file) == atomic.sha256_of(tmp_path / "two" / file)
