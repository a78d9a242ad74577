"""What a sample set is, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import make_networks
from PIL import Image

from harness.drawing import save_grid
from harness.generate import Sampler
from harness.protocol import Protocol
from recipes.core.errors import UserError

PROTOCOL = Protocol(
    name="test", solver="sde_euler_maruyama", steps=3, samples=12, features="x", reference="x", manifold_size=12
)


def sampler() -> Sampler:
    networks = make_networks()
    assert networks.vae is not None
    return Sampler(networks.sit.eval(), networks.vae.eval(), "linear")


@pytest.mark.parametrize(("field", "value"), [("last_step", 0.2), ("precision", "bf16"), ("to_uint8", "round")])
def test_a_protocols_fields_reach_the_samples(field, value):
    one, two = (
        sampler().draw(p, 0, torch.arange(8))[0] for p in (PROTOCOL, PROTOCOL.model_copy(update={field: value}))
    )
    assert not torch.equal(one, two)


def test_a_diverged_checkpoint_is_a_sentence():
    """As integers, NaN would look like any image."""
    broken = sampler()
    with torch.no_grad():
        broken.sit.final_layer.linear.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"sample 3 under test@1 is not a number: the checkpoint's ema weights have"):
        broken.draw(PROTOCOL, 0, torch.tensor([3, 4]))


def test_a_grid_is_row_by_row(tmp_path):
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2) * 50
    save_grid(tmp_path / "grid.png", images, 2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (4, 4, 3)
    assert (pixels[0, 0, 0], pixels[0, 2, 0], pixels[2, 0, 0], pixels[2, 2, 0]) == (0, 50, 100, 0)
