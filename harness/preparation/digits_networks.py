"""The small networks of the digits suite, each trained on the spot from its own seed.

- `TokenEncoder` plays DINOv2: a frozen encoder whose patch tokens the recipes align with.
- `FeatureClassifier` plays Inception: another architecture from another seed, so that the metric is not the alignment
  target. It is trained under blur and noise; without them it would measure only the tokenizer's blur.
- The tokenizer is a `recipes.models.autoencoder.Autoencoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.features.base import FEATURES, LOGITS, SPATIAL, Outputs
from harness.preparation.digits_data import POSE_WIDTH, Digits
from harness.suites.digits_specs import NUM_CLASSES, FeatureSpec, NetworkTraining, TokenEncoderSpec, TokenizerSpec
from recipes.core.draws import KeyedDraws, seed_of
from recipes.core.losses import kl_loss
from recipes.models.autoencoder import Autoencoder, to_signed
from recipes.models.sit import MLP, Attention

M = TypeVar("M", bound=nn.Module)
#: Called with the number of steps done.
OnStep = Callable[[int], None]


def fit(
    network: nn.Module, spec: NetworkTraining, size: int, loss: Callable[[Tensor, int], Tensor], on_step: OnStep
) -> None:
    """Minimise `loss(indices, step)` over random batches of a data set of `size` items; leave it in eval mode."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=spec.lr, total_steps=spec.steps)
    generator = torch.Generator().manual_seed(seed_of(spec.seed, "batches"))
    network.train()
    for step in range(spec.steps):
        optimizer.zero_grad(set_to_none=True)
        indices = torch.randint(size, (spec.batch_size,), generator=generator)
        loss(indices, step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1)
    network.eval().requires_grad_(False)


def seeded(seed: int, build: Callable[[], M]) -> M:
    """Build a network under its own seed, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "init"))
        return build()


class TokenEncoder(nn.Module):
    """Images to patch tokens: a convolutional stem and a few transformer blocks."""

    def __init__(self, spec: TokenEncoderSpec, side: int) -> None:
        super().__init__()
        self.spec = spec
        width, self.patch = spec.width, side // spec.grid
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 3, 3, padding=1),
            nn.BatchNorm2d(width // 3),
            nn.ReLU(),
            nn.Conv2d(width // 3, 2 * width // 3, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width // 3),
            nn.ReLU(),
            nn.Conv2d(2 * width // 3, width, 3, stride=self.patch // 2, padding=1),
        )
        self.position = nn.Parameter(torch.randn(1, spec.grid**2, width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * spec.depth)])
        self.attentions = nn.ModuleList([Attention(width, spec.heads) for _ in range(spec.depth)])
        self.mlps = nn.ModuleList([MLP(width, 2 * width) for _ in range(spec.depth)])
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, NUM_CLASSES)
        self.paint = nn.Linear(width, 3 * self.patch**2)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] -> tokens (N, grid * grid, width); `masked` (N, tokens) hides patches."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        if masked is not None:
            x = torch.where(masked[..., None], self.mask_token, x)
        x = x + self.position
        out: Tensor = self.norm(self._through(x)[0])
        return out

    def logits(self, images: Tensor) -> list[Tensor]:
        """Attention logits of every layer, (N, heads, tokens, tokens)."""
        x = self.stem(images).flatten(2).transpose(1, 2) + self.position
        return [logits for logits in self._through(x, with_logits=True)[1] if logits is not None]

    def _through(self, x: Tensor, *, with_logits: bool = False) -> tuple[Tensor, list[Tensor | None]]:
        seen = []
        for k, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            mixed, logits = attention(self.norms[2 * k](x), with_logits=with_logits)
            seen.append(logits)
            x = x + mixed
            x = x + mlp(self.norms[2 * k + 1](x))
        return x, seen

    def loss(self, images: Tensor, labels: Tensor, masked: Tensor) -> Tensor:
        """Classification loss on the mean token plus masked-patch reconstruction loss."""
        tokens = self(images, masked)
        patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        error: Tensor = (self.paint(tokens) - patches).square().mean(-1)
        hidden = masked.to(error.dtype)
        painting = (error * hidden).sum() / hidden.sum()
        return F.cross_entropy(self.classify(tokens.mean(1)), labels) + painting


#: Trunk depth (third ReLU) and number of channels used for sFID.
SPATIAL_DEPTH, SPATIAL_CHANNELS = 9, 7


class FeatureClassifier(nn.Module):
    """A plain convolutional classifier; its penultimate layer is the feature space of FID."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        w = spec.width
        layers: list[nn.Module] = []
        for inputs, outputs, stride in (
            (3, w, 1),
            (w, w, 2),
            (w, 2 * w, 1),
            (2 * w, 2 * w, 2),
            (2 * w, 2 * w, 2),
        ):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * w, spec.features), nn.ReLU())
        self.classify = nn.Linear(spec.features, NUM_CLASSES)
        self.pose = nn.Linear(spec.features, POSE_WIDTH)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [-1, 1] -> features (N, D), class logits (N, 10), and 7 channels of an 8 x 8 layer in (h, w, c)."""
        middle = self.trunk[:SPATIAL_DEPTH](images)
        features = self.trunk[SPATIAL_DEPTH:](middle)
        spatial = middle[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return features, self.classify(features), spatial

    def loss(self, images: Tensor, labels: Tensor, poses: Tensor) -> Tensor:
        """Classification loss plus pose/colour regression loss."""
        features, logits, _ = self(images)
        classes = F.cross_entropy(logits, labels, label_smoothing=0.05)
        return classes + F.mse_loss(self.pose(features), poses)


class DigitsFeatures:
    """The trained classifier as a `harness.features.base.FeatureNetwork`."""

    convention = "digits-features: penultimate layer; 7 channels of its 8 x 8 layer, (h, w, c); logits"
    notes = ()

    def __init__(self, network: FeatureClassifier, content: str = "") -> None:
        self.network, self.content = network, content

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, 16, 16)."""
        features, logits, spatial = self.network(to_signed(images, self.network.pose.weight))
        return {FEATURES: features, LOGITS: logits, SPATIAL: spatial}


def corrupt(images: Tensor, draws: KeyedDraws) -> Tensor:
    """Random corruption: one third each untouched / blurred / down- and upsampled, blended by a random strength, plus
    noise.
    """
    choice = draws.uniform("corruption").to(images.dtype)[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    small = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = torch.where(choice < 1 / 3, images, torch.where(choice < 2 / 3, blurred, small))
    mixed = torch.lerp(images, soft, draws.uniform("strength").to(images.dtype)[:, None, None, None])
    level = 0.3 * draws.uniform("noise level").to(images.dtype)[:, None, None, None]
    return mixed + level * draws.normal_like("pixel noise", images)


def train_encoder(spec: TokenEncoderSpec, digits: Digits, on_step: OnStep) -> TokenEncoder:
    """Train the encoder in DINOv2's role."""
    network = seeded(spec.training.seed, lambda: TokenEncoder(spec, digits.images.shape[-1]))

    def loss(indices: Tensor, step: int) -> Tensor:
        draws = KeyedDraws(spec.training.seed, step, torch.arange(len(indices)))
        scores = draws.normal_like("mask", torch.empty(len(indices), spec.grid**2))
        masked = scores.argsort(dim=1) < int(spec.mask_fraction * spec.grid**2)
        images = to_signed(digits.images[indices], network.position)
        return network.loss(images, digits.labels[indices], masked)

    fit(network, spec.training, len(digits.labels), loss, on_step)
    return network


def train_features(spec: FeatureSpec, digits: Digits, on_step: OnStep) -> FeatureClassifier:
    """Train the feature network in Inception's role, under corruption."""
    network = seeded(spec.training.seed, lambda: FeatureClassifier(spec))

    def loss(indices: Tensor, step: int) -> Tensor:
        draws = KeyedDraws(spec.training.seed, step, torch.arange(len(indices)))
        images = corrupt(to_signed(digits.images[indices], network.pose.weight), draws)
        return network.loss(images, digits.labels[indices], digits.poses[indices])

    fit(network, spec.training, len(digits.labels), loss, on_step)
    return network


def train_tokenizer(spec: TokenizerSpec, digits: Digits, on_step: OnStep) -> Autoencoder:
    """Train the KL autoencoder."""
    network = seeded(spec.training.seed, lambda: Autoencoder(spec.autoencoder))
    like = next(network.parameters())

    def loss(indices: Tensor, step: int) -> Tensor:
        draws = KeyedDraws(spec.training.seed, step, torch.arange(len(indices)))
        images = to_signed(digits.images[indices], like)
        posterior = network.encode(images)
        reconstruction = network.decode(posterior.sample(draws.normal_like("posterior", posterior.mean)))
        l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
        return spec.l1 * l1 + spec.l2 * l2 + spec.kl * kl_loss(posterior.mean, posterior.std).mean()

    fit(network, spec.training, len(digits.labels), loss, on_step)
    return network
