"""Released checkpoints as runs of ours, so that everything that reads a run reads them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from recipes.core import checkpoint
from recipes.core.errors import UserError
from recipes.core.precision import Precision
from recipes.core.spec import OptimizerSpec, TrainSpec
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec
from recipes.models.encoder import ENCODERS
from recipes.registry import recipe, recipe_options
from recipes.released import TOKENIZERS
from recipes.released_sit import Kind, ReleasedCheckpoint, read_checkpoint
from recipes.run import WEIGHTS, Run, RunSpec

SUITE = "imported"
RECIPES: dict[Kind, str] = {"repa_e": "repa_e", "repa": "repa", "sit": "vanilla"}
#: What the scripts of REPA and REPA-E (small letters) and of SiT call the paths that we have.
_PATHS = {"linear": "linear", "cosine": "cosine", "Linear": "linear", "GVP": "cosine"}
#: Our option, by the released scripts' argument.
_OPTIONS = {
    "weighting": "time_sampling",
    "cfg_prob": "label_dropout",
    "proj_coeff": "alignment",
    "vae_align_proj_coeff": "vae_alignment",
}
_PRECISIONS: dict[str, Precision] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def import_checkpoint(
    path: Path, out: Path, *, step: int | None = None, encoder_depth: int | None = None, heads: int | None = None
) -> Run:
    """Write a released checkpoint as a run's folder.

    Args:
        path: see `recipes.released_sit.read_checkpoint`.
        out: the run's folder. Other steps of the same training may be imported into it.
        step: which of a folder's checkpoints; or what to call a file that does not say its step.
        encoder_depth: the block after which tokens are aligned, where the arguments do not say it.
        heads: attention heads, where the size is none of the papers'.

    Returns:
        The run, for `recipes.run.load_for_sampling`. Where the file holds only the average, it stands for the raw
        weights too; the manifest says so under ``imported.raw``.

    Raises:
        UserError: the file cannot be imported, or `out` is another run's.
    """
    released = read_checkpoint(path, step=step, encoder_depth=encoder_depth, heads=heads)
    if released.path.name.lower().startswith("dit"):
        raise UserError(f"{released.path} is a DiT, which predicts noise at 1000 steps; give a checkpoint of a SiT.")
    content = checkpoint.sha256_of(released.path)
    spec = _run_spec(released, content)
    run = _run_in(out, spec)
    imported = {
        "name": released.path.name,
        "sha256": content,
        "args": released.args,
        "raw": "model" if released.model is not None else "ema",
    }
    meta = {"step": released.step, "seconds": 0.0, "run": run.spec.digest(), "imported": imported}
    checkpoint.save_folder(run.checkpoint(released.step), {WEIGHTS: _weights(released)}, meta)
    checkpoint.write_text(out / "spec.json", run.spec.model_dump_json(indent=1))
    return run


def _run_in(out: Path, spec: RunSpec) -> Run:
    """The run that a folder has; it may differ in the file that it came from, as another step of it does."""
    if not (out / "spec.json").exists():
        return Run(spec, out)
    there = Run.open(out)
    if there.spec.model_copy(update={"inputs": spec.inputs}) != spec:
        raise UserError(f"{out} holds another run; choose another folder.")
    return there


def _weights(released: ReleasedCheckpoint) -> dict[str, Tensor]:
    raw = released.model if released.model is not None else released.ema
    average = released.ema if released.ema is not None else released.model
    parts = {"sit": raw, "ema.sit": average, "vae": released.vae, "discriminator": released.discriminator}
    # Cloned, because a safetensors file may not name one tensor twice.
    return {f"{prefix}.{name}": v.clone() for prefix, state in parts.items() for name, v in (state or {}).items()}


def _run_spec(released: ReleasedCheckpoint, content: str) -> RunSpec:
    args, name = released.args, RECIPES[released.kind]
    given = _options(released)
    options = recipe_options(name, given, where=f"{released.path}: arguments").model_dump(mode="json")
    networks = {"sit": "learning_rate"}
    if released.kind == "repa_e":
        networks |= {"vae": "vae_learning_rate", "discriminator": "disc_learning_rate"}
    gan = released.discriminator
    encoders = tuple(ENCODERS[e] for e in str(args.get("enc_type")).split(",") if e in ENCODERS)
    return RunSpec(
        suite=SUITE,
        arm=released.kind,
        recipe=name,
        options=options,
        sit=released.sit,
        tokenizer=released.tokenizer or _frozen_tokenizer(released),
        discriminator=_discriminator_spec(gan) if gan else DiscriminatorSpec(),
        encoders=encoders if tuple(e.width for e in encoders) == released.sit.encoder_widths else (),
        perceptual="released" if released.kind == "repa_e" else None,
        train=TrainSpec(
            seed=int(args.get("seed") or 0),
            batch_size=int(args.get("batch_size") or args.get("global_batch_size") or 256),
            optimizers={network: _optimizer(args, rate) for network, rate in networks.items()},
            precision=_PRECISIONS.get(str(args.get("mixed_precision")), "fp32"),
        ),
        inputs={"source": content},
    )


def _options(released: ReleasedCheckpoint) -> dict[str, JsonValue]:
    """The recipe's options that the arguments say; the rest stays at its default."""
    args = released.args
    path = str(args.get("path_type", "linear"))
    if path not in _PATHS:
        raise UserError(
            f"{released.path} was trained on the path '{path}'; only linear and cosine (GVP) can be imported."
        )
    named: dict[str, JsonValue] = {ours: args[theirs] for theirs, ours in _OPTIONS.items() if theirs in args}
    known = recipe(RECIPES[released.kind]).Options.model_fields
    return {"path": _PATHS[path]} | {name: value for name, value in named.items() if name in known}


def _optimizer(args: Mapping[str, Any], rate: str) -> OptimizerSpec:
    defaults = OptimizerSpec()
    return OptimizerSpec(
        lr=float(args.get(rate, defaults.lr)),
        betas=(float(args.get("adam_beta1", defaults.betas[0])), float(args.get("adam_beta2", defaults.betas[1]))),
        eps=float(args.get("adam_epsilon", defaults.eps)),
        weight_decay=float(args.get("adam_weight_decay", defaults.weight_decay)),
        clip_norm=float(args.get("max_grad_norm", defaults.clip_norm)),
    )


def _discriminator_spec(state: Mapping[str, Tensor]) -> DiscriminatorSpec:
    layers = sum(name.endswith("running_mean") for name in state)
    return DiscriminatorSpec(base_width=state["main.0.weight"].shape[0], layers=layers)


def _frozen_tokenizer(released: ReleasedCheckpoint) -> AutoencoderSpec:
    """The tokenizer that the arguments name, or that has so many channels; its weights are not in the file."""
    named = str(released.args.get("vae"))
    found = [spec for spec in TOKENIZERS.values() if spec.latent_channels == released.sit.channels]
    if named not in TOKENIZERS and not found:
        raise UserError(
            f"{released.path}: no known tokenizer has {released.sit.channels} latent channels "
            f"({', '.join(TOKENIZERS)} are known); a checkpoint that holds its own VAE can be imported."
        )
    return TOKENIZERS.get(named) or found[0]
