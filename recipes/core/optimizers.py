"""Optimizers by kind: AdamW, and Muon for the matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from recipes.core.precision import at_least_float32
from recipes.core.spec import OptimizerSpec

#: Five quintics a X + b X X' X + c (X X')^2 X, one for each iteration (Polar Express, arXiv 2505.16932).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
#: Each quintic p becomes p(x / 1.05), which keeps the singular values below 1.
COEFFICIENTS = tuple((a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in POLAR_EXPRESS)


def orthogonalized(update: Tensor, coefficients: Sequence[Sequence[float]] = COEFFICIENTS, eps: float = 1e-7) -> Tensor:
    """The nearest matrix with equal singular values, about: (m, n) to (m, n), as RAEv2 has it (arXiv 2605.18324).

    Equals RAEv2's Gram form in exact arithmetic; computed in float32, unlike RAEv2.
    """
    x = update.mT if update.shape[0] > update.shape[1] else update
    x = x / (torch.linalg.matrix_norm(x) + eps)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if update.shape[0] > update.shape[1] else x
    return out


class Muon(Optimizer):
    """Muon with Nesterov's momentum (Jordan et al., 2024), its step scaled to AdamW's (arXiv 2502.16982)."""

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        coefficients: Sequence[Sequence[float]] = COEFFICIENTS,
        eps: float = 1e-7,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._nesterov, self._coefficients, self._eps = nesterov, coefficients, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient, mu = at_least_float32(p.grad), group["momentum"]
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(gradient))
                buffer.mul_(mu).add_(gradient)
                update = gradient + mu * buffer if self._nesterov else buffer
                direction = orthogonalized(update, self._coefficients, self._eps)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(direction.to(p.dtype), alpha=group["lr"] * 0.2 * max(p.shape) ** 0.5)


class Together:
    """Several optimizers as one; parameters are numbered through them."""

    def __init__(self, matrices: Optimizer, others: AdamW) -> None:
        self._matrices, self._others = matrices, others
        self.found_inf: Tensor | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all of them."""
        return [*self._others.param_groups, *self._matrices.param_groups]

    def step(self) -> None:
        """Step all, unless `found_inf` is true on the device: then matrices and their momentum stay as they were."""
        self._others.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._others.step()
        moved = [p for group in self._matrices.param_groups for p in group["params"] if p.grad is not None]
        kept = [self._matrices.state[p].get("momentum_buffer") for p in moved]
        before = [(p.detach().clone(), None if m is None else m.clone()) for p, m in zip(moved, kept, strict=True)]
        self._matrices.step()
        if self.found_inf is None:
            return
        bad = self.found_inf.bool()
        with torch.no_grad():
            for p, (weight, momentum) in zip(moved, before, strict=True):
                p.copy_(torch.where(bad, weight, p))
                buffer = self._matrices.state[p]["momentum_buffer"]
                buffer.copy_(torch.where(bad, torch.zeros_like(buffer) if momentum is None else momentum, buffer))

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer`."""
        self._others.zero_grad(set_to_none=set_to_none)
        self._matrices.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer`."""
        first, second = self._others.state_dict(), self._matrices.state_dict()
        shift = sum(len(group["params"]) for group in first["param_groups"])
        state = first["state"] | {shift + index: moments for index, moments in second["state"].items()}
        return {"state": state, "param_groups": [first["param_groups"], second["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`."""
        first, second = state["param_groups"]
        shift = sum(len(group["params"]) for group in first)
        others = {index: moments for index, moments in state["state"].items() if index < shift}
        matrices = {index - shift: moments for index, moments in state["state"].items() if index >= shift}
        self._others.load_state_dict({"state": others, "param_groups": first})
        self._matrices.load_state_dict({"state": matrices, "param_groups": second})


def make_optimizer(network: nn.Module, spec: OptimizerSpec) -> AdamW | Together:
    """Build the optimizer for the trainable parameters.

    Muon takes those of exactly two dimensions: the label table and the last layer too, as in RAEv2.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if spec.kind == "adamw":
        return _adamw(parameters, spec)
    matrices = [p for p in parameters if p.ndim == 2]
    muon: Optimizer = Muon(matrices, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    if spec.kind == "muon_torch":
        muon = torch.optim.Muon(
            matrices,
            lr=spec.lr,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    return Together(muon, _adamw([p for p in parameters if p.ndim != 2], spec))


def _adamw(parameters: Sequence[nn.Parameter], spec: OptimizerSpec) -> AdamW:
    return AdamW(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)
