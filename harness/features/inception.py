"""Inception-2015, the feature network of the ADM suite, through torch-fidelity; weights from a local file."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.features.base import FEATURES, LOGITS, SPATIAL, Outputs
from recipes.core.errors import UserError
from recipes.core.precision import matrix_products
from recipes.core.state_dicts import network_in, notes_of
from recipes.core.weights import check_finite, content_of, load_state

#: sFID looks at the first channels of ``mixed_6/conv``, which is the first branch of torch-fidelity's ``Mixed_6d``.
SPATIAL_CHANNELS = 7
#: Threads that resize images for clean-fid's protocol; Pillow releases the interpreter while it does.
THREADS = 8


class Inception:
    """torch-fidelity's ``inception-v3-compat`` with one more output.

    Outputs, float32: ``pool_3`` (N, 2048); ``pool_3`` times the classifier's weights without its bias, as ADM's IS has
    it (N, 1008); the first 7 channels of ``mixed_6/conv`` after its ReLU, flattened in the order (h, w, c) (N, 2023).
    """

    convention = (
        "Inception-2015 pool_3, TensorFlow 1 bilinear resize to 299; mixed_6/conv, 7 channels, (h, w, c); "
        "softmax of pool_3 x W without bias"
    )

    def __init__(
        self, state: dict[str, Tensor], device: torch.device, content: str = "", notes: tuple[str, ...] = ()
    ) -> None:
        """Build the network; `content` is the SHA-256 of the file that the state is from, `notes` what is odd of it.

        Raises:
            RuntimeError, TypeError, ...: the state dict does not fit the network.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The constructor unpickles a file without restriction, so it is given our own bytes of tensors read safely.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        buffer.seek(0)
        self.network: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
        ).to(device)
        self.device, self.content, self.notes = device, content, notes
        self._spatial: Tensor | None = None
        self.network.Mixed_6d.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        # The block's output begins with its first branch, which is the layer that is wanted.
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @matrix_products("fp32")
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W), resized to 299 by TensorFlow 1's bilinear rule inside."""
        features, logits = self.network(images.to(self.device, non_blocking=True))
        assert self._spatial is not None
        return {FEATURES: features.float(), LOGITS: logits.float(), SPATIAL: self._spatial.float()}

    @matrix_products("fp32")
    @torch.no_grad()
    def pool(self, pixels: Tensor) -> Tensor:
        """``pool_3`` (N, 2048) of images that are 299 pixels wide already, float32 in [0, 255]."""
        x = (pixels.to(self.device) - 128) / 128
        for name, module in self.network.named_children():  # they stand in the order in which they run
            if name == "fc":
                break
            x = module(x)
        return x.flatten(1)


class CleanInception:
    """The same network behind clean-fid's own resizing (arXiv 2104.11222): Pillow's bicubic filter, not rounded."""

    convention = "Inception-2015 pool_3, clean-fid's resize to 299 (Pillow bicubic, antialiased, float)"

    def __init__(self, inception: Inception) -> None:
        from cleanfid.resize import build_resizer

        self.inception = inception
        self._resize = build_resizer("clean")
        self._pool = ThreadPoolExecutor(THREADS, "resize")

    @property
    def content(self) -> str:
        """SHA-256 of the weights."""
        return self.inception.content

    @property
    def notes(self) -> tuple[str, ...]:
        """See `FeatureNetwork`."""
        return self.inception.notes

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W)."""
        resized = list(self._pool.map(self._resize, images.permute(0, 2, 3, 1).cpu().numpy()))
        return {FEATURES: self.inception.pool(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))}


def load(weights: Path, device: torch.device) -> Inception:
    """The network with the weights of a file.

    Raises:
        UserError: the file cannot be read safely, or is not this network.
    """
    anchor, refusal = "Conv2d_1a_3x3.conv.weight", f"{weights} does not hold Inception-2015 in torch-fidelity's format"
    state = network_in(load_state(weights), anchor, where=str(weights), refusal=f"{refusal}: '{anchor}' is not there")
    check_finite(state, where=str(weights))
    try:
        return Inception(state, device, content_of(weights), notes_of(state, weights))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{refusal} ({str(error).splitlines()[0]}); repa-bench fetch inception names the right file."
        ) from None


def write_inception(folder: Path) -> Path:
    """Random Inception-2015 weights, ``inception.pth``, under torch-fidelity's names."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """Skips loading: the constructor requires a weights file, we want the random initialisation."""

        def load_state_dict(self, state_dict: object, *_: object, **__: object) -> None:
            """Do nothing: keep the random weights."""

    empty = folder / "empty.pt"
    torch.save({}, empty)
    network = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
    empty.unlink()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # PyTorch's default would let the signal die, and denormal numbers are slow
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"
