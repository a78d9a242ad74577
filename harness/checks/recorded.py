"""Folders of recorded computations of released code, and what is compared with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.sampling.solvers import Solver
from recipes.core.errors import UserError
from recipes.core.interpolant import PathName
from recipes.core.jsons import load_json
from recipes.models.autoencoder import Autoencoder
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator
from recipes.models.sit import SiT, SiTSpec
from recipes.released.autoencoder import autoencoder_from_compvis, autoencoder_spec

OUTPUT_BOUND = 1e-5
STEP_BOUND = 1e-3
RECORDED_DTYPE = torch.float32
PATHS: tuple[PathName, ...] = ("linear", "cosine")
SOLVERS: dict[str, Solver] = {
    "ode_euler": "ode_euler",
    "ode_heun": "ode_heun",
    "sde_em": "sde_euler_maruyama",
}


@dataclass(frozen=True)
class Replayed:
    """One recorded quantity against ours."""

    quantity: str
    error: float
    """||ours - theirs|| / ||theirs||."""
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound; NaN is not."""
        return self.error <= self.bound


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs|| in float64; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double(), theirs.double()
    scale = float(torch.linalg.vector_norm(theirs))
    return float(torch.linalg.vector_norm(ours - theirs)) / (scale or 1.0)


class Folder:
    """A folder of the golden form, with every size read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta: dict[str, Any] = load_json((path / "meta.json").read_bytes())
            self.dims: dict[str, Any] = self.meta.get("dims", {})
            if not (self.dims or "method" in self.meta):
                raise ValueError("it has no 'dims'")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a replay folder: meta.json cannot be read ({error}).") from None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One file, floating-point tensors as float64."""
        path = self.path / f"{name}.safetensors"
        try:
            loaded = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}). A replay folder of this method holds it.") from None
        return {k: v.double() if v.is_floating_point() else v for k, v in loaded.items()}

    def sit(self, state: Mapping[str, Tensor]) -> SiT:
        """A float64 SiT with the given weights."""
        widths = [
            state[f"projectors.{k}.4.weight"].shape[0]
            for k in range(sum(bool(re.fullmatch(r"projectors\.\d+\.4\.weight", name)) for name in state))
        ]
        d = self.dims
        spec = SiTSpec(
            latent_size=self.meta["latent_size"],
            channels=d["zc"],
            num_classes=d["classes"],
            patch_size=d["patch"],
            hidden=d["hidden"],
            depth=d["depth"],
            heads=d["heads"],
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / d["hidden"],
            encoder_depth=d["enc_depth"],
            encoder_widths=tuple(widths),
            projector_width=d["proj"],
        )
        sit = SiT(spec).double()
        sit.load_state_dict(dict(state))
        return sit

    def vae(self, state: Mapping[str, Tensor]) -> Autoencoder:
        """A float64 autoencoder from CompVis weights."""
        spec = autoencoder_spec(state)
        vae = Autoencoder(spec).double()
        vae.kl.load_state_dict(autoencoder_from_compvis(state, len(spec.multipliers)))
        return vae

    def discriminator(self, state: Mapping[str, Tensor]) -> PatchDiscriminator:
        """A float64 discriminator; its depth shows in its keys."""
        layers = sum(name.endswith("running_mean") for name in state)
        discriminator = PatchDiscriminator(DiscriminatorSpec(base_width=self.dims["ndf"], layers=layers)).double()
        discriminator.load_state_dict(dict(state))
        return discriminator


@dataclass(frozen=True)
class RecordedDraws:
    """The random numbers of a recorded step, under the purposes that recipes ask for."""

    recorded: Mapping[str, Tensor]
    turned: bool = False
    """Whether the recorded time is 1 at the data."""

    def uniform(self, purpose: str) -> Tensor:
        """See `recipes.core.draws.Draws`."""
        if purpose == "label_dropout":
            # Recorded as a decision: 1 = dropped. Any threshold in (0, 1) reads 0.0 and 1.0 the same way.
            return 1.0 - self.recorded["drop"].double()
        if purpose == "time" and "t_normal" in self.recorded:
            u: Tensor = torch.special.ndtr(self.recorded["t_normal"])
            return u
        drawn = self.recorded[{"time": "t", "teacher time": "teacher_u"}[purpose]]
        return 1 - drawn if self.turned and purpose == "time" else drawn

    def integers(self, purpose: str, below: int) -> Tensor:
        """See `recipes.core.draws.Draws`."""
        return self.recorded[{"negative": "negative_draw"}[purpose]]

    def normal_like(self, purpose: str, like: Tensor) -> Tensor:
        """See `recipes.core.draws.Draws`."""
        return self.recorded[{"posterior": "eps", "noise": "noise", "class noise": "cls_noise"}[purpose]].to(like.dtype)

    def take(self, rows: Tensor) -> RecordedDraws:
        """See `recipes.core.draws.Draws`."""
        return RecordedDraws({name: value[rows] for name, value in self.recorded.items()}, self.turned)


def count_steps(tensors: Mapping[str, Tensor]) -> int:
    """How many training steps a file holds."""
    return 1 + max(int(found[1]) for name in tensors if (found := re.match(r"step(\d+)\.", name)))
