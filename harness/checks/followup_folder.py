"""A folder of a follow-up method's recorded computations: its settings, and its tensors under our names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.checks.recorded import Folder
from recipes.core.batch import Batch
from recipes.core.errors import UserError
from recipes.models.latent_norm import EPS
from recipes.models.sit import SiT, SiTOutput, SiTSpec
from recipes.released.followups import our_state

PATH_NAMES = {"linear": "linear", "Linear": "linear", "cosine": "cosine", "GVP": "cosine", "gvp": "cosine"}
#: Settings that are constants here; a folder with other values is refused.
FIXED = {"zscore_eps": 1e-6, "smooth_l1_beta": 0.05}


class TurnedSiT(SiT):
    """A network of SiT's own code: its t is 1 at the data, and its velocity points there."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **asked: Any) -> SiTOutput:
        """See `SiT.forward`, in our time and direction."""
        out = super().forward(x, 1 - t, y, **asked)
        return replace(out, velocity=None if out.velocity is None else -out.velocity)


class Method:
    """One follow-up's folder, with every size and setting read from it."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.dims, self.settings = folder, folder.dims, folder.meta["settings"]
        self.turned = "t=1isdata" in folder.meta.get("time_direction", "").lower().replace(" ", "")
        self.halved = bool(folder.meta.get("learn_sigma"))
        for name, ours in FIXED.items():
            if self.settings.get(name, ours) != ours:
                raise UserError(f"{folder.path}: {name} is {self.settings[name]}; here it is always {ours}.")

    @property
    def path(self) -> Any:
        """The path that the settings name, in our word."""
        return PATH_NAMES[self.settings.get("path", "linear")]

    def ours(self, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under our names; if the final layer also predicts a variance, that half is dropped."""
        state = our_state(released)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            if self.halved and name in state:
                state[name] = self._halves(state[name])[:, 0].flatten(0, 1)
        return state

    def _halves(self, final: Tensor) -> Tensor:
        halves: Tensor = final.unflatten(0, (self.dims["patch"] ** 2, 2, self.dims["zc"]))
        return halves

    def variance_of(self, released: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The variance half of the final layer, which `ours` drops."""
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            if self.halved and name in released:
                yield name, self._halves(released[name])[:, 1]

    def sit(self, released: Mapping[str, Tensor]) -> SiT:
        """A float64 network with the given weights, standardising latents as the folder says."""
        state, d = self.ours(released), self.dims
        weights = [state[f"projectors.{k}.{part}"] for k in range(9) for part in ("4.weight", "weight")
                   if f"projectors.{k}.{part}" in state]  # fmt: skip
        convolution = bool(weights) and weights[0].ndim == 4
        token = state.get("class_embedder.weight")
        spec = SiTSpec(
            latent_size=self.folder.meta["latent_size"],
            channels=d["zc"],
            num_classes=d["classes"],
            patch_size=d["patch"],
            hidden=d["hidden"],
            depth=d["depth"],
            heads=d["heads"],
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / d["hidden"],
            encoder_depth=d.get("enc_depth", 1),
            encoder_widths=tuple(w.shape[0] for w in weights),
            projector_width=d.get("proj", 1),
            projector="convolution" if convolution else "mlp",
            projector_kernel=weights[0].shape[-1] if convolution else 1,
            class_width=None if token is None else token.shape[1],
            student_head="student_head.0.weight" in state,
        )
        sit = (TurnedSiT if self.turned else SiT)(spec).double()
        sit.load_state_dict({name: value for name, value in sit.state_dict().items() if name.startswith("bn.")} | state)
        latents = self.folder.meta["latents"]
        sit.bn.running_mean.copy_(torch.tensor(latents["bias"]))
        # Ours has an eps under the root.
        sit.bn.running_var.copy_(torch.tensor(latents["scale"], dtype=torch.float64) ** -2 - EPS)
        return sit

    def batch(self, step: Mapping[str, Tensor]) -> Batch:
        """What the recorded step looked at."""
        layers = sorted((k for k in step if k.startswith("attn.")), key=lambda k: int(k[5:]))
        return Batch(
            labels=step["y"],
            mean=step["mean"],
            std=step["std"],
            features=(step["zs"],) if "zs" in step else (),
            class_tokens=(step["cls"],) if "cls" in step else (),
            attention=tuple(step[k] for k in layers),
        )
