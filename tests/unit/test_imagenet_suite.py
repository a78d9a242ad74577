"""The paper's configurations, and the files they want."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness.assets import catalogue
from harness.assets import fetch as fetching
from harness.assets.cache import Store
from harness.assets.tokenizers import tokenizer_files
from harness.preparation.base import assets_of
from harness.suites import suite
from harness.suites.imagenet256 import imagenet256, imagenet_smoke
from recipes.core.errors import UserError
from recipes.training.build import build_networks

PAPER = imagenet256()


@pytest.mark.parametrize("name", sorted(PAPER.variants))
def test_every_variant_is_a_run(name):
    """Its networks build at their real size, tokens meet the encoder's, and every trained network has an optimizer."""
    spec = PAPER.run_spec(name, 0, {})
    assert spec.sit.tokens == 256
    assert all(encoder.tokens == 256 for encoder in spec.encoders)
    assert tuple(encoder.width for encoder in spec.encoders) == spec.sit.encoder_widths
    assert spec.sit.encoder_depth < spec.sit.depth
    with torch.device("meta"):
        networks = build_networks(spec, perceptual=torch.nn.Identity())
    trained = spec.method.on(networks)
    assert set(trained.networks) == set(spec.train.optimizers)
    assert set(PAPER.needs(name)) <= set(catalogue.CATALOGUE)


def test_variant_are_different_runs():
    digests = {PAPER.run_spec(name, 0, {}).digest() for name in PAPER.variants}
    assert len(digests) == len(PAPER.variants)  # each has its own name
    one, two = ({"sd-vae": h, "images": "i"} for h in ("a", "b"))
    assert PAPER.run_spec("repa", 0, one).digest() != PAPER.run_spec("repa", 0, two).digest()


@pytest.mark.parametrize(
    ("variant", "option", "value"),
    [
        ("repa_e_no_stop_gradient", "vae_diffusion", 1.0),
        ("repa_e_no_batch_norm", "batch_norm", False),
        ("repa_e_no_gan", "gan", 0.0),
    ],
)
def test_an_ablation_changes_one_thing(variant, option, value):
    changed, base = PAPER.variants[variant].options, PAPER.variants["repa_e"].options
    assert {k: v for k, v in changed.items() if v != base[k]} == {option: value}


def test_released_settings():
    """The released commands' defaults."""
    spec = PAPER.run_spec("repa_e", 0, {})
    assert (spec.sit.hidden, spec.sit.depth, spec.sit.heads, spec.sit.patch_size) == (1152, 28, 16, 2)
    assert spec.sit.encoder_depth == 8
    assert spec.train.batch_size == 256
    assert spec.train.ema.decay == 0.9999
    for optimizer in spec.train.optimizers.values():
        assert (optimizer.lr, optimizer.betas, optimizer.eps) == (1e-4, (0.9, 0.999), 1e-8)
        assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_steps) == (0.0, 1.0, 0)
    options = spec.options
    assert (options["alignment"], options["vae_alignment"], options["label_dropout"]) == (0.5, 1.5, 0.1)
    assert (options["l1"], options["perceptual"], options["kl"], options["gan"]) == (1.0, 1.0, 1e-6, 0.1)
    assert spec.perceptual == "released"
    assert suite("imagenet256").run_spec("repa_e", 0, {}) == spec


def test_without_batch_norm_the_statistics_stay():
    from builders import make_batch, make_networks

    from recipes.core.draws import KeyedDraws
    from recipes.core.step import Step
    from recipes.repa_e import RepaE

    networks = make_networks()
    start = networks.sit.bn.running_var.clone()
    step = Step(0, make_batch(), KeyedDraws(0, 0, torch.arange(6)))
    for update in RepaE(networks, RepaE.Options(batch_norm=False)).updates(step):
        update.loss.backward()
    assert torch.equal(networks.sit.bn.running_var, start)


def test_stand_ins_lie_apart(tmp_path):
    store = Store(tmp_path)
    assert assets_of(imagenet_smoke(), store).root == tmp_path / "imagenet-smoke"
    assert assets_of(PAPER, store) is store


def test_an_unknown_name_in_an_variant_is_a_sentence():
    with pytest.raises(UserError, match=r"variant repa: there is no tokenizer 'sdvae'\. Did you mean 'sd-vae'\?"):
        suite("imagenet256", {"variants.repa.tokenizer": "sdvae"}).run_spec("repa", 0, {})
    with pytest.raises(UserError, match="there is no size 'XXL'"):
        suite("imagenet256", {"variants.repa.size": "XXL"}).run_spec("repa", 0, {})


def test_addresses_are_https_and_licences_are_told():
    for name, source in catalogue.CATALOGUE.items():
        assert source.licence, name
        assert source.url is None or source.url.startswith("https://")
        assert source.hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", source.hub)


def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(known: catalogue.Source, folder: Path) -> None:
        (folder / "half.pth").write_bytes(b"half")
        raise OSError("no route to host")

    monkeypatch.setattr(fetching, "_download", fail)
    with pytest.raises(UserError, match=r"vgg16 could not be downloaded .* no route to host.*--from PATH"):
        fetching.fetch(Store(tmp_path), "vgg16")
    assert not list(tmp_path.rglob("*.pth"))
    assert catalogue.find(Store(tmp_path), "vgg16") is None


def test_another_repository_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def write(known: catalogue.Source, folder: Path) -> None:
        asked.append(known.hub)
        (folder / "config.json").write_text("{}")
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(fetching, "_download", write)
    found = fetching.fetch(Store(tmp_path), "tuned-vae", hub="REPA-E/e2e-vavae-hf")
    assert asked == ["REPA-E/e2e-vavae-hf"]
    assert tokenizer_files(found.path) == (found.path, None)
    assert fetching.is_hub_id("REPA-E/e2e-vavae-hf")
    assert not fetching.is_hub_id(str(tmp_path))
    assert not fetching.is_hub_id("vae.pt")


def test_a_download_of_the_wrong_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_download", lambda known, folder: (folder / "vgg16.pth").write_bytes(b"other"))
    with pytest.raises(UserError, match="is not the published vgg16: its SHA-256 begins with"):
        fetching.fetch(Store(tmp_path), "vgg16")
    assert catalogue.find(Store(tmp_path), "vgg16") is None


def test_a_download_is_registered(tmp_path, monkeypatch):
    def write(known: catalogue.Source, folder: Path) -> None:
        for name in ("sdvae-f8d4.pt", "sdvae-f8d4-latents-stats.pt", "sdvae-f8d4-discriminator-ckpt.pt"):
            (folder / name).write_bytes(name.encode())

    monkeypatch.setattr(fetching, "_download", write)
    found = fetching.fetch(Store(tmp_path), "sd-vae")
    assert catalogue.require(Store(tmp_path), "sd-vae") == found
    weights, discriminator = tokenizer_files(found.path)
    assert weights.name == "sdvae-f8d4.pt"
    assert discriminator is not None
    assert catalogue.verify(found)
    weights.write_bytes(b"sdvae-f8d4.pT")
    assert not catalogue.verify(found)
    (found.path / "other.pt").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 tokenizers"):
        tokenizer_files(found.path)
