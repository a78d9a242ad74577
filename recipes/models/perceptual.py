"""LPIPS (arXiv 1801.03924, version 0.1) on VGG16: the perceptual term of the tokenizer's loss."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from recipes.core.precision import at_least_float32, full_precision
from recipes.core.state_dicts import network_in
from recipes.core.weights import content_of, load_exactly, load_state

#: ``unit``: images in [-1, 1], as LPIPS documents. ``released``: REPA-E's wrapper takes its [-1, 1] images for [0, 1]
#: and rescales them once more, so that LPIPS sees [-3, 1].
InputRange = Literal["released", "unit"]
#: Where the VGG16 weights are published (torchvision, ``IMAGENET1K_V1``).
VGG_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
_TINY = 1e-10


class Perceptual(nn.Module):
    """A frozen distance of two image batches, whose gradient reaches the images."""

    content: str | None = None
    """SHA-256 of the VGG16 file; none while its weights are random."""

    def __init__(self, *, input_range: InputRange = "released") -> None:
        """LPIPS's own linear heads on a VGG16 with random weights; `load_perceptual` gives it the trained ones."""
        super().__init__()
        self.input_range = input_range
        self.lpips = _build(torch.get_default_device())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the heads' dropout is not part of the distance."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images in [-1, 1], (N, 3, H, W) twice -> (N,), float32 or better; VGG16 alone follows autocast."""
        features = zip(self._features(a), self._features(b), strict=True)
        heads = zip(self.lpips.lins, features, strict=True)
        distances = [_head_distance(head, x, y) for head, (x, y) in heads]
        return torch.stack(distances).sum(0)

    def _features(self, images: Tensor) -> Any:
        return self.lpips.net(self._scaled(images))

    @full_precision
    def _scaled(self, images: Tensor) -> Tensor:
        images = at_least_float32(images)
        scaled: Tensor = self.lpips.scaling_layer(2 * images - 1 if self.input_range == "released" else images)
        return scaled


@full_precision
def _head_distance(head: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Weighted squared difference of unit feature vectors, averaged over positions: (N, C, h, w) twice -> (N,)."""
    out: Tensor = head((_unit(at_least_float32(a)) - _unit(at_least_float32(b))).square())
    return out.mean(dim=(1, 2, 3))


def _unit(features: Tensor) -> Tensor:
    # The package's own square root has a NaN gradient where all features of a position are zero; this norm's is zero.
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + _TINY)


def _build(device: torch.device) -> Any:
    """The package's LPIPS with its heads, VGG16 random. Built on the meta device first: VGG16's unused classifier
    has 120 million weights.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
        import lpips

        with torch.device("meta"):
            net = lpips.LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
    for part in (net.net, net.lins):
        part.to_empty(device=device)
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    net.scaling_layer.to(device)
    if device.type != "meta":
        bundled = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        heads = {re.sub(r"^lin(\d)\.", r"\1.", name): value for name, value in load_state(bundled).items()}
        load_exactly(net.lins, heads, where=f"{bundled}: LPIPS's heads")
    return net


def load_perceptual(weights: Path, *, input_range: InputRange = "released") -> Perceptual:
    """LPIPS with trained VGG16 weights.

    Args:
        weights: torchvision's ``vgg16-397923af.pth`` (`VGG_SOURCE`), or safetensors with its ``features.N`` names,
            in a wrapper too.
        input_range: what LPIPS sees of an image in [-1, 1].

    Raises:
        UserError: the file is missing, cannot be read safely, or does not hold VGG16.
    """
    where, anchor = f"{weights}: VGG16", "features.0.weight"
    state = network_in(load_state(weights), anchor, where=where, refusal=f"{where} lacks '{anchor}'")
    perceptual = Perceptual(input_range=input_range)
    # The package cuts ``features`` into slices in which each layer keeps its number.
    layers = {name: layer for piece in perceptual.lpips.net.children() for name, layer in piece.named_children()}
    used = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    load_exactly(nn.ModuleDict({"features": nn.ModuleDict(layers)}), used, where=where)
    perceptual.content = content_of(weights)
    return perceptual
