"""What number formats, compilation and parts of a batch may not change, on any device: `check_*` for a device's name.

The CPU runs them in the normal suite (tests/unit/test_precision.py), a GPU in tests/gpu/test_cuda_precision.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from builders import MeanSquares
from torch import Tensor

from harness.pipeline.probe import random_batch, random_inputs
from harness.suites.imagenet256 import ImagenetSuite, Size, imagenet_smoke
from recipes.core.batch import Batch
from recipes.core.distributed import World, choose_device
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.core.precision import Precision
from recipes.core.spec import Execution
from recipes.training.build import build_trainer
from recipes.training.spec import RunSpec

IMAGES = 4
#: Loss scales that leave float16 gradients finite, and that no gradient survives.
MODEST, HOPELESS = 2.0**8, 2.0**120

Gradients = dict[str, list[Tensor]]


def tiny_suite() -> ImagenetSuite:
    """The smoke suite on 32-pixel images, with 4 x 4 tokens as there."""
    smoke = imagenet_smoke()
    tokenizers = {name: choice.model_copy(update={"patch_size": 1}) for name, choice in smoke.tokenizers.items()}
    return smoke.model_copy(update={"side": 32, "tokenizers": tokenizers})


def wide_suite() -> ImagenetSuite:
    """The smoke suite with 8 x 8 tokens in a SiT whose activations outweigh everything else."""
    smoke = imagenet_smoke()
    eyes = {n: eye.model_copy(update={"input_size": 112, "grid": 8}) for n, eye in smoke.encoders.items()}
    tokenizers = {name: choice.model_copy(update={"patch_size": 1}) for name, choice in smoke.tokenizers.items()}
    variants = {name: variant.model_copy(update={"encoder_depth": 6}) for name, variant in smoke.variants.items()}
    sizes = {"XL": Size(hidden=512, depth=8, heads=8)}
    return smoke.model_copy(update={"sizes": sizes, "tokenizers": tokenizers, "encoders": eyes, "variants": variants})


def make_spec(
    variant: str,
    precision: Precision,
    *,
    suite: ImagenetSuite | None = None,
    images: int = IMAGES,
    **options: float | str,
) -> RunSpec:
    spec = (suite or tiny_suite()).run_spec(variant, 0, {})
    train = spec.train.model_copy(update={"precision": precision, "batch_size": images})
    return spec.model_copy(update={"train": train, "options": spec.options | options})


def make_trainer(spec: RunSpec, device: str, **execution: Any) -> Trainer:
    """Through the run's own path: placed, arranged, compiled. Always the same weights; LPIPS only on a GPU."""
    perceptual = MeanSquares() if device == "cpu" and spec.perceptual else None
    if perceptual is not None:
        spec = spec.model_copy(update={"perceptual": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = random_inputs(spec)
    if perceptual is not None:
        inputs = replace(inputs, perceptual=perceptual)
    part = execution.get("micro_batch")
    if part is not None:
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"norm_batch": part})})
    chosen = choose_device(device)
    trainer = build_trainer(spec, inputs, execution=Execution(device=device, **execution), world=World(device=chosen))
    _awaken(trainer.recipe.networks["sit"])
    return trainer


@torch.no_grad()
def _awaken(sit: torch.nn.Module) -> None:
    """Replace the zero-initialised outputs, so that the losses depend on every weight."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sit.named_parameters():
        if "adaLN" in name or name.startswith("final_layer"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def make_batch(spec: RunSpec, device: str) -> Batch:
    batch = random_batch(spec, spec.train.batch_size, spec.sit.latent_size * spec.tokenizer.factor)
    return batch.to(choose_device(device))


def draws_of(trainer: Trainer, batch: Batch) -> KeyedDraws:
    return KeyedDraws(0, trainer.position, torch.arange(len(batch), device=trainer.device))


def step(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    return trainer.train_step(batch, draws_of(trainer, batch))


def losses_and_gradients(trainer: Trainer, batch: Batch) -> tuple[dict[str, Tensor], Gradients]:
    """Of one step: what is logged, and the clipped gradients as each optimizer gets them."""
    found: Gradients = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            ps = [p for group in optimizer.param_groups for p in group["params"]]
            found[name] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in ps]

        return hook

    hooks = [optimizer.register_step_pre_hook(keep(name)) for name, optimizer in trainer.optimizers.items()]
    logs = step(trainer, batch)
    for hook in hooks:
        hook.remove()
    return logs, found


def assert_losses_close(got: dict[str, Tensor], wanted: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name].float(), value.float(), rtol=rtol, atol=atol, msg=name)


def assert_gradients_close(got: Gradients, wanted: Gradients, *, rtol: float) -> None:
    """Each tensor in norm; one that is nearly zero (a key's bias) is judged beside its whole network's gradient."""
    assert got.keys() == wanted.keys()
    for name, expected in wanted.items():
        whole = torch.stack([g.norm() for g in expected]).norm()
        assert whole > 0
        for index, (a, b) in enumerate(zip(got[name], expected, strict=True)):
            error = (a - b).norm() / (b.norm() + 0.01 * whole)
            assert error <= rtol, f"{name}.{index}: {error:.2e}"


@contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions that add in one order."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def check_16_bits_are_close_to_float32(variant: str, device: str, precision: Precision) -> None:
    spec = make_spec(variant, precision)
    batch = make_batch(spec, device)
    trainer = make_trainer(spec, device)
    set_scale(trainer, MODEST)
    logs = step(trainer, batch)
    wanted = step(make_trainer(make_spec(variant, "fp32"), device), batch)
    losses = {name: value for name, value in wanted.items() if not name.startswith("grad_norm")}
    assert_losses_close({name: logs[name] for name in losses}, losses, rtol=0.03, atol=0.01)
    norms = {name: value for name, value in wanted.items() if name.startswith("grad_norm")}
    assert_losses_close({name: logs[name] for name in norms}, norms, rtol=0.1, atol=0.01)


def set_scale(trainer: Trainer, scale: float) -> None:
    for scaler in filter(torch.amp.GradScaler.is_enabled, trainer.scalers.values()):
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale})


def parameters_of(trainer: Trainer) -> dict[str, Tensor]:
    """The trained parameters and everything averaged that is a float: what a skipped step must leave alone."""
    trained = {
        f"{name}.{key}": p for name, network in trainer.recipe.networks.items() for key, p in network.named_parameters()
    }
    averaged = {
        f"ema.{name}.{key}": value
        for name, average in trainer.averages.items()
        for key, value in average.state_dict().items()
        if value.is_floating_point()
    }
    return {key: value.detach().clone() for key, value in (trained | averaged).items()}


def check_an_overflow_is_skipped(variant: str, device: str) -> None:
    """A good step, one that overflows, a good one: two effective steps of three batches."""
    # In float32 the discriminator's gradient would survive the scale.
    spec = make_spec(variant, "fp16", **({"loss_precision": "autocast"} if variant == "repa_e" else {}))
    trainer, batch = make_trainer(spec, device), make_batch(spec, device)
    start = parameters_of(trainer)
    set_scale(trainer, MODEST)
    step(trainer, batch)
    first = parameters_of(trainer)
    for name in (*trainer.recipe.networks, "ema"):
        assert any(not torch.equal(v, start[k]) for k, v in first.items() if k.startswith(f"{name}.")), name

    set_scale(trainer, HOPELESS)
    step(trainer, batch)
    for key, value in parameters_of(trainer).items():
        assert torch.equal(value, first[key]), key
    assert {name: int(count) for name, count in trainer.skipped.items()} == dict.fromkeys(trainer.optimizers, 1)
    assert all(scaler.get_scale() == HOPELESS / 2 for scaler in trainer.scalers.values())
    trainer.settle()
    assert (trainer.position, trainer.step) == (2, 1)

    set_scale(trainer, MODEST)
    logs = step(trainer, batch)
    last = parameters_of(trainer)
    assert all(torch.isfinite(value).all() for value in (*logs.values(), *last.values()))
    assert any(not torch.equal(value, first[key]) for key, value in last.items())
    trainer.settle()
    assert (trainer.position, trainer.step) == (3, 2)
    for optimizer in trainer.optimizers.values():
        counts = {int(state["step"]) for state in optimizer.state.values()}
        assert counts == {2}


def check_checkpointing(variant: str, device: str, *, rtol: float) -> None:
    spec = make_spec(variant, "fp32")
    batch = make_batch(spec, device)
    with repeatable():
        wanted = losses_and_gradients(make_trainer(spec, device), batch)
        got = losses_and_gradients(make_trainer(spec, device, checkpointing=True), batch)
    assert_losses_close(got[0], wanted[0], rtol=rtol, atol=rtol)
    assert_gradients_close(got[1], wanted[1], rtol=rtol)


def check_accumulation(variant: str, device: str, *, rtol: float) -> None:
    """Without the discriminator, whose batch norm sees a part (`RunSpec.train.norm_batch` says so)."""
    pairs = {"group": IMAGES // 2}  # the least that these look across
    options = {"repa_e": {"gan": 0.0}, "contrastive": pairs, "dispersive": pairs}
    spec = make_spec(variant, "fp32", **options.get(variant, {}))
    batch = make_batch(spec, device)
    with repeatable():
        wanted = losses_and_gradients(make_trainer(spec, device), batch)
        parted = make_trainer(spec, device, micro_batch=IMAGES // 2)
        got = losses_and_gradients(parted, batch)
    assert parted.micro_batch == IMAGES // 2
    assert_losses_close(got[0], wanted[0], rtol=rtol, atol=rtol)
    assert_gradients_close(got[1], wanted[1], rtol=rtol)


def check_channels_last(variant: str, device: str, *, rtol: float) -> None:
    spec = make_spec(variant, "fp32")
    batch, found = make_batch(spec, device), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        trainer = make_trainer(spec, device)
        for network in (*trainer.recipe.networks.values(), getattr(trainer.recipe, "perceptual", None)):
            if network is not None and network is not trainer.recipe.networks["sit"]:
                network.to(memory_format=memory_format)
        with repeatable():
            found.append(losses_and_gradients(trainer, batch))
    (wanted_logs, wanted), (logs, gradients) = found
    assert_losses_close(logs, wanted_logs, rtol=rtol, atol=rtol)
    assert_gradients_close(gradients, wanted, rtol=rtol)
