"""Replay of follow-up methods: each folder holds steps, forward passes and samples of one method's released code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.checks.followup_folder import PATH_NAMES, Method
from harness.checks.recorded import (
    OUTPUT_BOUND,
    RECORDED_DTYPE,
    SOLVERS,
    STEP_BOUND,
    Folder,
    RecordedDraws,
    Replayed,
    count_steps,
    relative_error,
)
from harness.sampling.solvers import Guidance, Interference, sample_states
from recipes.base import Alignment, Networks, Pass, SiTRecipe
from recipes.contrastive import Contrastive
from recipes.core.errors import UserError
from recipes.core.loop import Trainer, subset
from recipes.core.losses import dispersive_loss, normalized_dispersive_loss
from recipes.core.optimizers import Muon, Together
from recipes.core.spec import EMASpec, OptimizerSpec, TrainSpec
from recipes.core.step import Step
from recipes.dispersive import Dispersive
from recipes.haste import Haste
from recipes.irepa import IRepa
from recipes.layersync import LayerSync
from recipes.models.heads import spatially_normalized
from recipes.models.sit import SiTOutput
from recipes.reg import Reg
from recipes.released.followups import our_name
from recipes.repa import Repa
from recipes.sra import LOSSES, Sra

HALF_PRECISION_BOUND = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a file of steps is trained."""

    kind: type[SiTRecipe]
    options: Any
    coefficients: Mapping[str, float]
    """Loss coefficients, keyed by the released code's log names, for losses that it logs multiplied by them."""


#: Our logs under the released names.
LOGGED = {"class_denoising": "cls_denoising", "attention": "attn_align"}


class Watched:
    """Wraps a recipe and records the inputs and outputs of its forward passes in `seen`."""

    def __init__(self, method: Method, recipe: SiTRecipe) -> None:
        self.method, self.recipe = method, recipe
        self.seen: dict[str, Tensor] = {}
        inner, extra = recipe.forward, recipe.extra_loss

        def forward(point: Any, labels: Tensor, step: Step) -> SiTOutput:
            out = inner(point, labels, step)
            velocity = out.velocity
            assert velocity is not None
            self.seen |= {"velocity": -velocity if method.turned else velocity, "labels": labels, "t": point.t}
            self.seen |= {f"attn.{block - 1}": logits for block, logits in out.logits.items()}
            if out.projected:
                self.seen["projected"] = out.projected[0]
            if out.class_velocity is not None:
                self.seen["cls_velocity"] = out.class_velocity
            return out

        def extra_loss(seen: Pass, step: Step) -> Any:
            if isinstance(recipe.options, Alignment) and step.batch.features:
                self.seen["zs_normalised"] = recipe.options.targets(step.batch)[0]
            if isinstance(recipe, Sra):
                block = recipe.options.student_block
                self.seen["student"] = recipe.sit.student_head(seen.out.taps[block])
                self.seen["teacher"] = recipe.teacher(seen, step)
            return extra(seen, step)

        recipe.forward, recipe.extra_loss = forward, extra_loss  # type: ignore[method-assign]


def replay_steps(method: Method, file: str, made: Recipe, before: Mapping[str, Tensor]) -> Iterator[Replayed]:
    """Train the recorded steps through the one loop; compare outputs, gradients, scalars and changes."""
    g, settings = method.folder.tensors(file), method.settings
    recipe = made.kind(Networks(sit=method.sit(subset(before, "before.sit"))), made.options)
    watched = Watched(method, recipe)
    optimizer = OptimizerSpec(lr=settings["lr"], clip_norm=settings["clip"])
    spec = TrainSpec(
        seed=0,
        batch_size=len(g["step0.y"]),
        optimizers={"sit": optimizer},
        ema=EMASpec(decay=settings["ema_decay"]),
    )
    trainer = Trainer(recipe, spec)
    if average := subset(before, "before.ema"):
        trainer.averages["sit"].load_state_dict(method.sit(average).state_dict())
    for number in range(count_steps(g)):
        recorded = subset(g, f"step{number}")
        batch, draws = method.batch(recorded), RecordedDraws(recorded, method.turned)
        where = f"{file}.step{number}"
        # Once to look, and once to train: gradients of the loss itself, before clipping.
        update = next(recipe.updates(Step(number, batch, draws, trainer.averages)))
        update.loss.backward()
        yield from _outputs(where, subset(recorded, "out"), watched, method)
        still = {name for name, p in recipe.sit.named_parameters() if p.requires_grad and p.grad is None}
        recipe.sit.zero_grad(set_to_none=True)
        logs = {name: float(value) for name, value in trainer.train_step(batch, draws).items()}
        ours = {LOGGED.get(name, name): value for name, value in logs.items()} | {"total": float(update.loss.detach())}
        ours |= {f"{name}_weighted": weight * ours[name] for name, weight in made.coefficients.items() if name in ours}
        if isinstance(recipe, Contrastive):
            ours["loss"] = ours["denoising"] - recipe.options.contrast * ours["contrastive"]
        yield from _scalars(where, method.folder.meta["log"][file][number], ours, still)
    yield from _changes(file, method, g, before, trainer)


def _outputs(where: str, recorded: Mapping[str, Tensor], watched: Watched, method: Method) -> Iterator[Replayed]:
    gradients = subset(recorded, "grad")
    ours = {name: p.grad for name, p in watched.recipe.sit.named_parameters()}
    for name, theirs in method.ours(gradients).items():
        mine = ours[name]
        error = relative_error(mine, theirs) if mine is not None else float("inf")
        yield Replayed(f"{where}.grad.{name}", error, OUTPUT_BOUND)
    for name, variance in method.variance_of(gradients):
        yield Replayed(f"{where}.grad.{name} of the variance", float(variance.abs().max()), 0.0)
    for name, theirs in recorded.items():
        if not name.startswith("grad."):
            error = relative_error(watched.seen[name], theirs) if name in watched.seen else float("inf")
            yield Replayed(f"{where}.out.{name}", error, OUTPUT_BOUND)


def _scalars(where: str, recorded: Mapping[str, Any], ours: Mapping[str, float], still: set[str]) -> Iterator[Replayed]:
    """Compare logged scalars. A loss that has stopped is logged as 0 by the released code and omitted by ours."""
    stopped = recorded.get("aligned") is False
    for name, theirs in recorded.items():
        if name == "parameters_without_gradient":
            yield Replayed(f"{where}.{name}", float({our_name(n) for n in theirs} != still), 0.0)
        elif name == "aligned":
            yield Replayed(f"{where}.{name}", float(theirs != ("sit_align" in ours)), 0.0)
        else:
            mine = ours.get(name, 0.0 if stopped and theirs == 0 else float("nan"))
            yield Replayed(f"{where}.{name}", abs(mine - theirs) / (abs(theirs) or 1.0), OUTPUT_BOUND)


def _changes(
    file: str, method: Method, g: Mapping[str, Tensor], before: Mapping[str, Tensor], trainer: Trainer
) -> Iterator[Replayed]:
    begin = {"sit": subset(before, "before.sit"), "ema": subset(before, "before.ema") or subset(before, "before.sit")}
    for name, network in (("sit", trainer.recipe.networks["sit"]), ("ema", trainer.averages["sit"])):
        after = subset(g, f"after.{name}")
        if not after:
            continue
        theirs, first, mine = method.ours(after), method.ours(begin[name]), network.state_dict()
        change = torch.cat([(theirs[k] - first[k]).flatten() for k in theirs])
        moved = [(mine[k].to(RECORDED_DTYPE).double() - first[k]).flatten() for k in theirs]
        yield Replayed(f"{file}.change.{name}", relative_error(torch.cat(moved), change), STEP_BOUND)
        for (key, variance), (_, was) in zip(method.variance_of(after), method.variance_of(begin[name]), strict=True):
            yield Replayed(f"{file}.change.{name}.{key} of the variance", float((variance - was).abs().max()), 0.0)


@torch.no_grad()
def replay_forward(method: Method, file: str, steps: str) -> Iterator[Replayed]:
    """One pass in evaluation mode; every output of the file that a pass can give."""
    g, d = method.folder.tensors(file), method.dims
    sit = method.sit(subset(method.folder.tensors(steps), "before.sit")).eval()
    sign, t = (-1, 1 - g["t"]) if method.turned else (1, g["t"])
    depths = range(1, d["depth"] + 1)
    asked: dict[str, Any] = {"taps": depths, "logits": depths}
    if "cls" in g:
        asked["class_token"] = g["cls"]
    out = sit(g["x"], t, g["y"], **asked)
    student, teacher = (d.get(f"{who}_depth") for who in ("student", "teacher"))
    ours = {"velocity": sign * out.velocity, "cls_velocity": out.class_velocity, "features": out.features}
    ours |= {f"features.block{k}": tokens for k, tokens in out.taps.items()}
    ours |= {f"attention_logits.{k - 1}": logits for k, logits in out.logits.items()}
    ours |= {"features.student": out.taps.get(student or d.get("enc_depth")), "features.teacher": out.taps.get(teacher)}
    if out.projected:
        ours["projected"] = out.projected[0]
    if sit.spec.student_head:
        ours["head"] = sit.student_head(ours["features.student"])
    if "velocity.cfg" in " ".join(g):
        null = sit(g["x"], t, torch.full_like(g["y"], sit.null_class)).velocity
        for name in (name for name in g if name.startswith("velocity.cfg")):  # SiT's code guides three channels
            scale = float(name.removeprefix("velocity.cfg"))
            ours[name] = sign * Guidance(scale, channels=3).combine(out.velocity, null)
    ours |= _losses(g, out)
    for name in g.keys() - {"x", "t", "y", "cls", "zs", "loss.a", "loss.b"}:
        mine = ours.get(name)
        error = relative_error(mine, g[name]) if mine is not None else float("inf")
        yield Replayed(f"{file}.{name}", error, OUTPUT_BOUND)


def _losses(g: Mapping[str, Tensor], out: SiTOutput) -> dict[str, Tensor]:
    """Losses and normalisations whose inputs are in the file."""
    ours: dict[str, Tensor] = {}
    for name in g:
        if found := re.fullmatch(r"zs_normalised\.alpha([\d.]+)", name):
            ours[name] = spatially_normalized(g["zs"], float(found[1]))
        elif found := re.fullmatch(r"loss\.(pytorch|ddt)(?:_tau([\d.]+))?\.block(\d+)", name):
            loss = dispersive_loss if found[1] == "pytorch" else normalized_dispersive_loss
            ours[name] = loss(out.taps[int(found[3])], float(found[2] or 1))
        elif name == "loss.cos":  # for each image and channel
            ours[name] = 1 - nn.functional.cosine_similarity(g["loss.a"], g["loss.b"], dim=1)
        elif name in ("loss.sml1", "loss.l1", "loss.l2"):
            ours[name] = LOSSES[name[5:].replace("sml1", "smooth_l1")](g["loss.a"], g["loss.b"])
    return ours


_NUMBER = r"(\d+(?:\.\d+)?)"
_SAMPLED = re.compile(
    rf"({'|'.join(SOLVERS)})\.(linear|cosine)\.cfg{_NUMBER}(?:\.cls{_NUMBER})?\.{_NUMBER}-{_NUMBER}"
    rf"(?:\.interference(None|{_NUMBER})\.velocity(None|{_NUMBER}))?(?:\.(latents|cls))?"
)


def replay_samples(method: Method, file: str, steps: str) -> Iterator[Replayed]:
    """Every solver and guidance setting that the file names."""
    g = method.folder.tensors(file)
    sit = method.sit(subset(method.folder.tensors(steps), "before.sit")).eval()
    for key in sorted(key for key in g if key.startswith(tuple(SOLVERS))):
        if (found := _SAMPLED.fullmatch(key)) is None:
            raise UserError(f"{method.folder.path}: {file}.{key} is not SOLVER.PATH.cfgSCALE.LOW-HIGH.")
        solver, path, scale, class_scale, low, high, weight, _, velocity, _, part = found.groups()
        correction = None
        if weight not in (None, "None"):
            correction = Interference(g["interference_vector"], float(weight), float(velocity))
        image, token = sample_states(
            sit,
            g["latents"],
            g["y"],
            solver=SOLVERS[solver],
            steps=method.settings["sampler_steps"],
            guidance=Guidance(
                float(scale), float(low), float(high), class_scale=None if class_scale is None else float(class_scale)
            ),
            path=PATH_NAMES[path],  # type: ignore[arg-type]
            noise=lambda k, _: g["sde_noise"][k],
            class_start=g.get("cls_latents"),
            class_noise=lambda k, _: g["sde_cls_noise"][k],
            interference=correction,
        )
        ours = token if part == "cls" else image
        assert ours is not None
        yield Replayed(f"{file}.{key}", relative_error(ours, g[key]), OUTPUT_BOUND)


#: Builds the Recipe for a steps file from the method and the file name without ``_steps``.
Makes = Callable[[Method, str], Recipe]


def _irepa(method: Method, name: str) -> Recipe:
    s = method.settings
    variant = s["variants"][name]
    options = IRepa.Options(
        path=method.path,
        alignment=s["alignment_coefficient"],
        gamma=s["zscore_alpha"],
        projector="convolution" if variant["projection_layer_type"] == "conv" else "mlp",
        kernel=variant.get("kernel", 1),
    )
    return Recipe(IRepa, options, {"sit_align": s["alignment_coefficient"]})


def _reg(method: Method, name: str) -> Recipe:
    s = method.settings
    weights = {"sit_align": s["alignment_coefficient"], "cls_denoising": s["cls_coefficient"]}
    options = Reg.Options(path=method.path, alignment=weights["sit_align"], class_denoising=weights["cls_denoising"])
    return Recipe(Reg, options, weights)


def _layersync(method: Method, name: str) -> Recipe:
    s, d = method.settings, method.dims
    several = name.startswith("multiple")
    blocks = tuple(map(tuple, s["multi_blocks"])) if several else ((d["enc_depth"], d["teacher_depth"]),)
    options = LayerSync.Options(path=method.path, sync=s["sync_coefficient"], blocks=blocks)
    return Recipe(LayerSync, options, {"sync": s["sync_coefficient"]})


def _sra(method: Method, name: str) -> Recipe:
    s, d = method.settings, method.dims
    weight = s["self_align_coefficient"][name]
    options = Sra.Options(
        path=method.path,
        student_block=d["student_depth"],
        teacher_block=d["teacher_depth"],
        most_less_noise=s["t_max"],
        loss={"cos": "cosine_of_channels", "sml1": "smooth_l1"}.get(name, name),  # type: ignore[arg-type]
        self_alignment=weight,
    )
    return Recipe(Sra, options, {"self_align": weight})


def _haste(method: Method, name: str) -> Recipe:
    s = method.settings
    weights = {"sit_align": s["alignment_coefficient"], "attn_align": s["attention_coefficient"]}
    options = Haste.Options(
        path=method.path,
        alignment=weights["sit_align"],
        attention=weights["attn_align"],
        student_blocks=tuple(k + 1 for k in s["student_blocks_from_0"]),
        encoder_layers=tuple(k + 1 for k in s["teacher_layers_from_0"]),
        stop_at=s["early_stop_step"],
        run_on=True,
    )
    return Recipe(Haste, options, weights)


def _contrastive(method: Method, name: str) -> Recipe:
    s = method.settings
    options = Contrastive.Options(
        path=method.path,
        alignment=s["alignment_coefficient"],
        contrast=s["contrastive_weight"],
        contrast_null=s["contrast_null_labels"][name],
    )
    return Recipe(Contrastive, options, {"sit_align": s["alignment_coefficient"]})


def _dispersive(method: Method, name: str) -> Recipe:
    s = method.settings
    options = Dispersive.Options(
        path=method.path, dispersive=s["dispersive_coefficient"], temperature=s["temperature"], block=s["block"]
    )
    return Recipe(Dispersive, options, {"dispersive": s["dispersive_coefficient"]})


def _paths(method: Method, name: str) -> Recipe:
    sampling, _, path = name.partition("_")
    weight = method.settings["alignment_coefficient"]
    options = Repa.Options(path=PATH_NAMES[path], time_sampling=sampling, alignment=weight)  # type: ignore[arg-type]
    return Recipe(Repa, options, {"sit_align": weight})


def _method(make: Makes, folder: Folder) -> Iterator[Replayed]:
    method = Method(folder)
    names = sorted(p.name.removesuffix(".safetensors") for p in folder.path.glob("*.safetensors"))
    logged = set(folder.meta["log"])
    if lost := logged - set(names):
        raise UserError(f"{folder.path} lacks {sorted(lost)[0]}.safetensors, which meta.json names.")
    first = next(name for name in sorted(logged) if subset(folder.tensors(name), "before.sit"))
    for name in names:
        if name in logged:
            own = folder.tensors(name)
            before = own if subset(own, "before.sit") else folder.tensors(first)
            yield from replay_steps(method, name, make(method, name.removesuffix("_steps")), before)
        elif name.endswith("forward"):
            steps = name.replace("forward", "steps")
            yield from replay_forward(method, name, steps if steps in logged else first)
        elif name.endswith("samplers"):
            yield from replay_samples(method, name, first)
        else:
            raise UserError(f"{folder.path}: {name}.safetensors is neither steps, a forward pass nor samples.")


def _muon(folder: Folder) -> Iterator[Replayed]:
    """Compare our Muon with RAEv2's and with PyTorch's (matrices), AdamW for the rest."""
    for file in sorted(p.stem for p in folder.path.glob("*.safetensors")):
        bound = STEP_BOUND if file.endswith("float64") else HALF_PRECISION_BOUND
        g = folder.tensors(file)
        for whose in ("raev2", "torch"):
            names = sorted(subset(g, f"{whose}.after0"))
            before = {name: g[f"before.{name}"] for name in names}
            weights = {name: nn.Parameter(before[name].clone()) for name in names}
            optimizer = _muon_optimizer(list(weights.values()), folder.meta["settings"], whose)
            for number in range(count_steps(g) if names else 0):
                for name, weight in weights.items():
                    weight.grad = g[f"step{number}.grad.{name}"].clone()
                optimizer.step()
                for name, weight in weights.items():
                    change = g[f"{whose}.after{number}.{name}"] - before[name]
                    error = relative_error(weight.detach() - before[name], change)
                    yield Replayed(f"{file}.{whose}.change{number}.{name}", error, bound)


def _muon_optimizer(weights: list[nn.Parameter], s: Mapping[str, Any], whose: str) -> Together:
    blank = [nn.Parameter(torch.zeros(1, 1))]  # an optimizer wants a parameter
    matrices = [w for w in weights if w.ndim == 2] or blank
    others = [w for w in weights if w.ndim != 2] or blank
    common = {"lr": s["lr"], "momentum": s["momentum"], "weight_decay": s["weight_decay"]}
    nesterov, eps = s.get("nesterov", True), s.get("newton_schulz_eps", 1e-7)
    coefficients = s["newton_schulz_coefficients"]
    muon: Optimizer = Muon(matrices, **common, nesterov=nesterov, coefficients=coefficients, eps=eps)
    if whose == "torch":
        muon = torch.optim.Muon(matrices, **common, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    a = s["adamw"]
    return Together(
        muon, torch.optim.AdamW(others, lr=a["lr"], betas=tuple(a["betas"]), eps=a["eps"], weight_decay=0.0)
    )


#: Replay of each method, by its name in ``meta.json``.
FOLLOWUPS: dict[str, Callable[[Folder], Iterator[Replayed]]] = {
    "iREPA": partial(_method, _irepa),
    "REG": partial(_method, _reg),
    "LayerSync": partial(_method, _layersync),
    "SRA": partial(_method, _sra),
    "HASTE": partial(_method, _haste),
    "Contrastive flow matching": partial(_method, _contrastive),
    "Dispersive loss": partial(_method, _dispersive),
    "REPA: time sampling and path": partial(_method, _paths),
    "Muon as in RAEv2": _muon,
}
