"""Feature networks by name; DINOv2 against torch-fidelity's and against its own resampling rule written as loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests_support import Toy, pictures

from harness.assets import catalogue, networks
from harness.assets.cache import Store
from harness.assets.networks import load_network, network_name
from harness.features import dinov2
from harness.features.base import CLEAN, DINOV2, FEATURES, FeatureNetworks, outputs_of
from harness.features.inception import Inception
from harness.suites.imagenet256 import imagenet_smoke
from recipes.core.errors import UserError
from recipes.core.precision import matrix_products
from recipes.models.encoder import DINOV2 as SIZES
from recipes.models.encoder import Encoder

CPU = torch.device("cpu")
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """dinov2-vit-b and -l made small, their files in the released form: a position embedding of 37 x 37."""
    paths = {}
    for name in ("dinov2-vit-b", "dinov2-vit-l"):
        monkeypatch.setitem(SIZES, name, SIZES[name].model_copy(update={"width": 32, "kwargs": TINY}))
        torch.manual_seed(0)
        state = Encoder(SIZES[name]).network.state_dict()
        state["pos_embed"] = torch.randn(1, 1 + 37 * 37, 32) / 10
        for key in [key for key in state if key.endswith("gamma")]:  # so that the class token sees the image
            state[key] = torch.ones_like(state[key])
        paths[name] = tmp_path / f"{name}.pth"
        torch.save(state, paths[name])
    return paths


def test_names_and_aliases():
    assert network_name("inception-v3-compat") == "inception"
    assert network_name("dinov2-vit-l-14") == "dinov2-vit-l"
    assert set(networks.NETWORKS) <= set(catalogue.CATALOGUE)
    with pytest.raises(UserError, match=r"no feature network 'dinov2-vit-x'\. Did you mean 'dinov2-vit-"):
        network_name("dinov2-vit-x")


@pytest.mark.parametrize("name", [n for n in networks.NETWORKS if n != "inception"])
def test_sizes_of_dinov2(name):
    with torch.device("meta"):
        network = Encoder(SIZES[name]).network
    assert network.num_features == {"s": 384, "b": 768, "l": 1024, "g": 1536}[name[-1]]


def test_the_position_embedding_is_resampled_as_released():
    """Cubic convolution (a = -0.75) at (i + 0.5) 37 / 16.1 - 0.5, clamped at the border."""
    position = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    found = dinov2.resample_position(position, 16)
    grid = position[0, 1:].reshape(37, 37, 3).double().numpy()

    def cubic(d: float) -> float:
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    weights = np.zeros((16, 37))
    for i in range(16):
        x = (i + 0.5) * 37 / 16.1 - 0.5
        for k in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            weights[i, min(max(k, 0), 36)] += cubic(x - k)
    expected = np.einsum("ia,jb,abc->ijc", weights, weights, grid).reshape(256, 3)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=1e-5)
    assert torch.equal(found[:, :1], position[:, :1])
    assert torch.equal(dinov2.resample_position(found, 16), found)


def test_dinov2_is_torch_fidelitys_behind_another_resize(tiny, monkeypatch):
    """On images of 224 pixels both resizes do nothing; torch-fidelity's network, from the hub, is replaced by ours."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    ours = load_network("dinov2-vit-b-14", Store(tiny["dinov2-vit-b"].parent), CPU, tiny["dinov2-vit-b"])
    position = torch.load(tiny["dinov2-vit-b"], weights_only=True)["pos_embed"]
    assert torch.equal(ours.encoder.network.pos_embed, dinov2.resample_position(position, 16))

    class Hub(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ours.encoder.network.forward_features(x)[:, 0]

    monkeypatch.setattr(torch.hub, "load", lambda *_: Hub())
    monkeypatch.setenv("XFORMERS_DISABLED", "1")
    theirs = FeatureExtractorDinoV2("dinov2-vit-b-14", ["dinov2"])
    images = torch.from_numpy(pictures(0, 3, 224)).permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(ours(images)[FEATURES], theirs(images)[0], rtol=1e-4, atol=1e-5)
    noise = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    small = torch.from_numpy(noise)
    assert ours(small)[FEATURES].shape == (3, 32)
    assert not torch.allclose(ours(small)[FEATURES], theirs(small)[0], atol=1e-3)


def test_networks_come_from_the_catalogue_or_a_file(tiny, tmp_path):
    store = Store(tmp_path / "cache")
    with pytest.raises(UserError, match="asset 'dinov2-vit-l' is missing"):
        load_network("dinov2-vit-l", store, CPU)
    catalogue.register(store, "dinov2-vit-l", tiny["dinov2-vit-l"], published=False)
    found = load_network("dinov2-vit-l", store, CPU)
    assert found.content == catalogue.require(store, "dinov2-vit-l").content
    assert "dinov2-vit-l/14 class token" in found.convention
    with pytest.raises(UserError, match=r"--weights .*: there is no such file"):
        load_network("dinov2-vit-l", store, CPU, tmp_path / "nowhere")
    others = networks.extra_networks(["features", DINOV2], Toy(), store, CPU)
    assert set(others) == {DINOV2}
    images = torch.from_numpy(pictures(0, 5)).permute(0, 3, 1, 2).contiguous()
    seen = outputs_of(images.split(2), FeatureNetworks(Toy(), others))
    assert seen[DINOV2].shape == (5, 32)
    torch.testing.assert_close(seen["logits"], Toy()(images)["logits"])
    with pytest.raises(UserError, match="clean_fid is of Inception"):
        networks.extra_networks([CLEAN], Toy(), store, CPU)


def test_fd_dinov2_by_the_command(tiny, tmp_path, monkeypatch, capsys):
    """In the command's own process, since the network is made small here."""
    from harness.cli.app import main

    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(seed, 12))
    arguments = ["--samples", f"{tmp_path}/a.npz", "--reference", f"{tmp_path}/b.npz", "--cache", f"{tmp_path}/cache"]
    command = ["repa-bench", "score", *arguments, "--features", "dinov2-vit-l-14", "--json", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*command, "--weights", str(tiny["dinov2-vit-l"])])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fd"] > 0
    assert {"fd", "precision", "recall"} <= set(told)
    assert told["protocol"] == "files-dinov2-vit-l@2"


def test_the_smoke_suites_network_is_the_same_interface():
    assert imagenet_smoke().features in networks.NETWORKS


@pytest.mark.parametrize("name", ["dinov2", "inception"])
def test_no_feature_network_computes_in_tf32(name, tiny):
    """Whatever a protocol samples in: NVIDIA's TF32 has ten bits, and moves FID."""
    seen = []

    def spy(images):
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return torch.zeros(1, 1, 1), torch.zeros(1, 1)

    if name == "dinov2":
        network = load_network("dinov2-vit-b", Store(tiny["dinov2-vit-b"].parent), CPU, tiny["dinov2-vit-b"])
        network.encoder.network.forward_features = lambda images: spy(images)[0]
    else:
        network = Inception.__new__(Inception)
        network.network, network.device, network._spatial = spy, CPU, torch.zeros(1, 1)
    with matrix_products("tf32"):
        network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        assert torch.get_float32_matmul_precision() == "high"
    assert seen == [(False, "highest")]
