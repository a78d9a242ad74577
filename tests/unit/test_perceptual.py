"""LPIPS: equal to the package's, in either reading of the images' range."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from safetensors.torch import save_file

from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError
from recipes.models.perceptual import Perceptual, load_perceptual


@functools.cache
def vgg_state() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, with the one classifier key that shows it is passed over."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = vgg16().features.state_dict()
    g = torch.Generator().manual_seed(0)
    state = {}
    for name, value in shapes.items():
        fan = max(1, value[0].numel())
        scale = 0.05 if name.endswith("bias") else (2 / fan) ** 0.5
        state[f"features.{name}"] = torch.randn(value.shape, generator=g) * scale
    return state | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(vgg_state(), path, _use_new_zipfile_serialization=False)  # torchvision's file is of the old form
    return path


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for piece in package.net.children():
        for name, layer in piece.named_children():
            if f"features.{name}.weight" in vgg_state():
                layer.weight.data.copy_(vgg_state()[f"features.{name}.weight"])
                layer.bias.data.copy_(vgg_state()[f"features.{name}.bias"])
    return package


def images(generator, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))


def test_equal_to_the_package(weights, theirs, generator, capsys):
    x, y = images(generator)
    unit = load_perceptual(weights, input_range="unit")
    released = load_perceptual(weights)
    with torch.no_grad():
        assert unit(x, y).shape == (2,)
        torch.testing.assert_close(unit(x, y), theirs(x, y).flatten(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(released(x, y), theirs(2 * x - 1, 2 * y - 1).flatten(), rtol=1e-5, atol=1e-7)
        assert (unit(x, y) - released(x, y)).abs().min() > 1e-3
        assert not unit(x, x).any()
    assert unit.content == sha256_of(weights)
    assert capsys.readouterr().out == ""


def test_the_gradient_reaches_the_images_alone(weights, theirs, generator):
    x, y = images(generator)
    perceptual = load_perceptual(weights, input_range="unit").train()
    assert not any(module.training for module in perceptual.modules())
    assert not any(p.requires_grad for p in perceptual.parameters())
    x.requires_grad_()
    (ours,) = torch.autograd.grad(perceptual(x, y).sum(), x)
    (reference,) = torch.autograd.grad(theirs(x, y).sum(), x)
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-7)


def test_a_dead_position_has_no_nan_gradient():
    perceptual = Perceptual(input_range="unit")
    for module in perceptual.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.zero_()
            if module.bias is not None:
                module.bias.data.fill_(-1.0)
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    perceptual(x, torch.ones(1, 3, 32, 32)).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_autocast_reaches_vgg_alone(weights, generator):
    perceptual = load_perceptual(weights, input_range="unit")
    x, y = images(generator)
    seen = []
    perceptual.lpips.net.slice3.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    perceptual.lpips.lins[2].register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = perceptual(x.bfloat16(), y)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, perceptual(x, y), rtol=0.1, atol=0.02)


def test_names_of_the_features_in_safetensors(tmp_path, weights, generator):
    save_file({k: v for k, v in vgg_state().items() if k.startswith("features")}, tmp_path / "vgg.safetensors")
    x, y = images(generator, 1)
    from_safetensors = load_perceptual(tmp_path / "vgg.safetensors")
    assert torch.equal(from_safetensors(x, y), load_perceptual(weights)(x, y))


def test_other_files_are_refused(tmp_path):
    state = {name: value for name, value in vgg_state().items() if name != "features.28.bias"}
    save_file(state, tmp_path / "vgg.safetensors")
    with pytest.raises(UserError, match=r"vgg\.safetensors: VGG16 lacks 'features\.28\.bias'"):
        load_perceptual(tmp_path / "vgg.safetensors")
    save_file({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="lacks 'features"):
        load_perceptual(tmp_path / "resnet.safetensors")


def test_it_can_be_counted_on_the_meta_device():
    with torch.device("meta"):
        perceptual = Perceptual()
        x = torch.zeros(2, 3, 64, 64, requires_grad=True)
        perceptual(x, torch.zeros(2, 3, 64, 64)).sum().backward()
    assert x.grad.shape == x.shape
    vgg = sum(p.numel() for p in perceptual.lpips.net.parameters())
    assert vgg == 14_714_688  # VGG16's thirteen convolutions
