"""Inception-2015, the feature network of the ADM suite, through torch-fidelity; weights from a local file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.features import Extractor
from recipes.core.errors import UserError
from recipes.core.pickles import load_state


def build(state: dict[str, Tensor]) -> Any:
    """torch-fidelity's ``inception-v3-compat`` with the given weights.

    Its constructor unpickles a file, so it is given our own bytes of tensors that were read safely.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
    )


def extractor(weights: Path, device: torch.device) -> Extractor:
    """uint8 images (N, 3, H, W) to features (N, 2048) and logits without bias (N, 1008), float32, on the CPU.

    Raises:
        UserError: the file cannot be read safely, or is not this network.
    """
    state = load_state(weights)
    try:
        network = build(state)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{weights} does not hold Inception-2015 in torch-fidelity's format ({str(error).splitlines()[0]}); "
            "repa-bench fetch inception names the right file."
        ) from None
    network.to(device)

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(images.to(device))
        return features.float().cpu(), logits.float().cpu()

    return extract
