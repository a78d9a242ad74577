"""Import released checkpoints as run folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

from pydantic import JsonValue
from torch import Tensor

from recipes.core import atomic, checkpoint
from recipes.core.errors import UserError
from recipes.core.precision import Precision
from recipes.core.spec import OptimizerSpec, TrainSpec
from recipes.core.weights import content_of
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec
from recipes.models.encoder import ENCODERS
from recipes.registry import find_recipe, recipe_class
from recipes.released.arguments import number, path_of, whole
from recipes.released.autoencoder import TOKENIZERS
from recipes.released.sit import Given, Kind, ReleasedCheckpoint, read_checkpoint
from recipes.training.run_folder import WEIGHTS, Run
from recipes.training.spec import RunSpec

SUITE = "imported"
RECIPES: dict[Kind, str] = {
    "repa_e": "repa_e", "repa": "repa", "sit": "vanilla", "irepa": "irepa", "reg": "reg", "sra": "sra",
}  # fmt: skip
#: Our option, by the released scripts' argument.
_OPTIONS = {
    "weighting": "time_sampling",
    "cfg_prob": "label_dropout",
    "proj_coeff": "alignment",
    "vae_align_proj_coeff": "vae_alignment",
}
_PRECISIONS: dict[str, Precision] = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def import_checkpoint(
    path: Path, out: Path, *, on_note: Callable[[str], None] = lambda note: None, **given: Unpack[Given]
) -> Run:
    """Write a released checkpoint as a run's folder.

    Args:
        path: see `recipes.released.sit.read_checkpoint`.
        out: the run's folder. Other steps of the same training may be imported into it.
        on_note: told what one should know of the checkpoint, a sentence at a time.
        given: what the file does not say of itself.

    Returns:
        The run, for `recipes.training.run_folder.load_for_sampling`. Where the file holds only the average or only raw
        weights, so does the run; the manifest says under ``imported`` where in the file they were, and what one should
        know of it.

    Raises:
        UserError: the file cannot be imported, or `out` is another run's.
    """
    released = read_checkpoint(path, **given)
    content = content_of(released.path)
    spec = _run_spec(released, content)
    run = _run_in(out, spec)
    imported = {
        "name": released.path.name,
        "sha256": content,
        "args": released.args,
        "raw": released.places.get("raw"),
        "ema": released.places.get("ema"),
        "notes": released.notes,
    }
    meta = {"step": released.step, "seconds": 0.0, "run": run.spec.digest(), "imported": imported}
    checkpoint.save_folder(run.checkpoint(released.step), {WEIGHTS: _weights(released)}, meta)
    atomic.write_text(out / "spec.json", run.spec.model_dump_json(indent=1))
    for note in released.notes:
        on_note(note)
    return run


def _run_in(out: Path, spec: RunSpec) -> Run:
    """Open the existing run of a folder; only its source file may differ (other step)."""
    if not (out / "spec.json").exists():
        return Run(spec, out)
    there = Run.open(out)
    if there.spec.model_copy(update={"inputs": spec.inputs}) != spec:
        raise UserError(f"{out} holds another run; choose another folder.")
    return there


def _weights(released: ReleasedCheckpoint) -> dict[str, Tensor]:
    networks = {"vae": released.vae, "discriminator": released.discriminator}
    parts = {"sit": released.model, "ema.sit": released.ema, **networks}
    # Cloned, because a safetensors file may not name one tensor twice.
    return {f"{prefix}.{name}": v.clone() for prefix, state in parts.items() for name, v in (state or {}).items()}


def _run_spec(released: ReleasedCheckpoint, content: str) -> RunSpec:
    args, name = released.args, RECIPES[released.kind]
    given = _options(released)
    options = find_recipe(name, given, where=f"{released.path}: arguments").options.model_dump(mode="json")
    networks = {"sit": "learning_rate"}
    if released.kind == "repa_e":
        networks |= {"vae": "vae_learning_rate", "discriminator": "disc_learning_rate"}
    gan = released.discriminator
    encoders = tuple(ENCODERS[e] for e in str(args.get("enc_type")).split(",") if e in ENCODERS)
    return RunSpec(
        suite=SUITE,
        variant=released.kind,
        recipe=name,
        options=options,
        sit=released.sit,
        tokenizer=released.tokenizer or _frozen_tokenizer(released),
        discriminator=_discriminator_spec(gan) if gan else DiscriminatorSpec(),
        encoders=encoders if tuple(e.width for e in encoders) == released.sit.encoder_widths else (),
        perceptual="released" if released.kind == "repa_e" else None,
        train=TrainSpec(
            seed=int(number(args, "seed", 0)),
            batch_size=whole(args, "batch_size") or whole(args, "global_batch_size") or 256,
            optimizers={network: _optimizer(args, rate) for network, rate in networks.items()},
            precision=_PRECISIONS.get(str(args.get("mixed_precision")), "fp32"),
        ),
        inputs={"source": content},
    )


def _options(released: ReleasedCheckpoint) -> dict[str, JsonValue]:
    """The recipe's options that the arguments say; the rest stays at its default."""
    args = released.args
    named: dict[str, JsonValue] = {ours: args[theirs] for theirs, ours in _OPTIONS.items() if theirs in args}
    if args.get("legacy") and isinstance(rate := named.get("label_dropout"), float):
        named["label_dropout"] = 1 - (1 - rate) ** 2  # dropped in the loop, and again in the network
    if not released.sit.null_class:
        named["label_dropout"] = 0.0
    known = recipe_class(RECIPES[released.kind]).Options.model_fields
    path: dict[str, JsonValue] = {"path": path_of(args)}
    return path | {name: value for name, value in named.items() if name in known}


def _optimizer(args: Mapping[str, Any], rate: str) -> OptimizerSpec:
    defaults = OptimizerSpec()
    return OptimizerSpec(
        lr=number(args, rate, defaults.lr),
        betas=(number(args, "adam_beta1", defaults.betas[0]), number(args, "adam_beta2", defaults.betas[1])),
        eps=number(args, "adam_epsilon", defaults.eps),
        weight_decay=number(args, "adam_weight_decay", defaults.weight_decay),
        clip_norm=number(args, "max_grad_norm", defaults.clip_norm or 1.0),
    )


def _discriminator_spec(state: Mapping[str, Tensor]) -> DiscriminatorSpec:
    layers = sum(name.endswith("running_mean") for name in state)
    return DiscriminatorSpec(base_width=state["main.0.weight"].shape[0], layers=layers)


def _frozen_tokenizer(released: ReleasedCheckpoint) -> AutoencoderSpec:
    """Tokenizer spec by argument name, else by number of latent channels."""
    named = str(released.args.get("vae"))
    found = [spec for spec in TOKENIZERS.values() if spec.latent_channels == released.sit.channels]
    if named not in TOKENIZERS and not found:
        raise UserError(
            f"{released.path}: no known tokenizer has {released.sit.channels} latent channels "
            f"({', '.join(TOKENIZERS)} are known); a checkpoint that holds its own VAE can be imported."
        )
    return TOKENIZERS.get(named) or found[0]
