"""Inception-2015, the feature network of the ADM suite, through torch-fidelity; weights from a local file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.features import Extractor
from recipes.core.errors import UserError
from recipes.core.pickles import load_state

#: sFID looks at the first channels of ``mixed_6/conv``, which is the first branch of torch-fidelity's ``Mixed_6d``.
SPATIAL_CHANNELS = 7


@dataclass(frozen=True)
class Outputs:
    """What one pass gives, float32, on the network's device."""

    features: Tensor
    """``pool_3``: (N, 2048)."""
    logits: Tensor
    """``pool_3`` times the classifier's weights, without its bias, as ADM's IS has it: (N, 1008)."""
    spatial: Tensor
    """The first 7 channels of ``mixed_6/conv`` after its ReLU, flattened in the order (h, w, c): (N, 2023)."""


class Inception:
    """torch-fidelity's ``inception-v3-compat`` with one more output."""

    def __init__(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Build the network.

        Raises:
            RuntimeError, ...: the state is of another network.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The constructor unpickles a file without restriction, so it is given our own bytes of tensors read safely.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        buffer.seek(0)
        self.network: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
        ).to(device)
        self.device = device
        self._spatial: Tensor | None = None
        self.network.Mixed_6d.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        # The block's output begins with its first branch, which is the layer that is wanted.
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W), resized to 299 by TensorFlow 1's bilinear rule inside."""
        features, logits = self.network(images.to(self.device, non_blocking=True))
        assert self._spatial is not None
        return Outputs(features.float(), logits.float(), self._spatial.float())


def load(weights: Path, device: torch.device) -> Inception:
    """The network with the weights of a file.

    Raises:
        UserError: the file cannot be read safely, or is not this network.
    """
    state = load_state(weights)
    try:
        return Inception(state, device)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{weights} does not hold Inception-2015 in torch-fidelity's format ({str(error).splitlines()[0]}); "
            "repa-bench fetch inception names the right file."
        ) from None


def extractor(weights: Path, device: torch.device) -> Extractor:
    """uint8 images (N, 3, H, W) to features (N, 2048) and logits without bias (N, 1008), float32, on the CPU.

    Raises:
        UserError: see `load`.
    """
    network = load(weights, device)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        out = network(images)
        return out.features.cpu(), out.logits.cpu()

    return extract
