"""Files that others made: tokenizers, encoders, metric networks, references, released checkpoints.

Each has a name. ``repa-bench fetch NAME`` downloads it once; ``repa-bench fetch NAME --from PATH`` takes what already
lies on this machine, without copying it. Nothing else in this project goes to the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from harness.assets.cache import Store
from recipes.core import content
from recipes.core.atomic import sha256_of, write_text
from recipes.core.errors import UserError, nearest
from recipes.core.spec import Spec, digest_of
from recipes.data.files import read_json
from recipes.models.encoder import DINOV2, ENCODERS, EncoderSpec

CARD = "asset.json"
Kind = Literal["data", "tokenizer", "encoder", "perceptual", "features", "reference", "checkpoint"]


class AssetSource(Spec):
    """Where an asset is published."""

    kind: Kind
    about: str
    licence: str
    hub: str | None = None
    """Hugging Face repository; all its weight files are taken."""
    file: str | None = None
    """The one file of the repository that is wanted."""
    url: str | None = None
    """HTTPS address of a single file. Hexadecimal digits at the end of its name are the start of its SHA-256."""


_MIT = "MIT"


def _tokenizer(hub: str, about: str) -> AssetSource:
    return AssetSource(kind="tokenizer", about=about, licence=_MIT, hub=hub)


def _checkpoint(hub: str, about: str) -> AssetSource:
    return AssetSource(kind="checkpoint", about=about, licence=_MIT, hub=hub)


def _encoder(spec: EncoderSpec) -> AssetSource:
    hub = re.search(r"huggingface\.co/(\S+)", spec.source)
    about = f"frozen encoder {spec.architecture}"
    if hub:
        return AssetSource(kind="encoder", about=about, licence=spec.license, hub=hub[1], file="model.safetensors")
    if not spec.source.startswith("https://"):
        return AssetSource(
            kind="encoder", about=f"{about}: {spec.source}, then fetch --from PATH", licence=spec.license
        )
    return AssetSource(kind="encoder", about=about, licence=spec.license, url=spec.source.split()[0])


CATALOGUE: dict[str, AssetSource] = {
    "images": AssetSource(
        kind="data",
        about="ImageNet-1K train, 256x256: repa-bench prepare --suite imagenet256 --data PATH",
        licence="ImageNet terms: research, no redistribution",
    ),
    "sd-vae": _tokenizer("REPA-E/sdvae", "SD-VAE f8d4, latent statistics and discriminator, as REPA-E starts from"),
    "in-vae": _tokenizer("REPA-E/invae", "IN-VAE f16d32, latent statistics and discriminator"),
    "va-vae": _tokenizer("REPA-E/vavae", "VA-VAE f16d32, latent statistics and discriminator"),
    "e2e-sdvae": _tokenizer("REPA-E/e2e-sdvae", "SD-VAE tuned by REPA-E"),
    "e2e-invae": _tokenizer("REPA-E/e2e-invae", "IN-VAE tuned by REPA-E"),
    "e2e-vavae": _tokenizer("REPA-E/e2e-vavae", "VA-VAE tuned by REPA-E"),
    "tuned-vae": AssetSource(
        kind="tokenizer",
        about="your own: repa-bench export-vae RUN --out DIR, then fetch tuned-vae --from DIR/NAME.pt",
        licence="yours",
    ),
    "tuned-vae-f16d32": AssetSource(kind="tokenizer", about="the same, of a run on in-vae or va-vae", licence="yours"),
    "sit-repae-sdvae": _checkpoint("REPA-E/sit-repae-sdvae", "SiT-XL/2 and VAE, REPA-E, 400K"),
    "sit-repae-invae": _checkpoint("REPA-E/sit-repae-invae", "SiT-XL/1 and VAE, REPA-E, 400K"),
    "sit-repae-vavae": _checkpoint("REPA-E/sit-repae-vavae", "SiT-XL/1 and VAE, REPA-E, 400K"),
    "sit-ldm-e2e-vavae": _checkpoint("REPA-E/sit-ldm-e2e-vavae", "SiT-XL/1, REPA on E2E-VAVAE, 4M"),
    "vgg16": AssetSource(
        kind="perceptual",
        about="VGG16 trunk of LPIPS (the linear heads come with the lpips package)",
        licence="BSD-3-Clause (torchvision)",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "inception": AssetSource(
        kind="features",
        about="Inception-2015, the network of the ADM suite (torch-fidelity's inception-v3-compat)",
        licence="Apache-2.0",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "adm-reference": AssetSource(
        kind="reference",
        about="ADM's ImageNet 256x256 statistics and 10,000 images",
        licence="ImageNet terms: research, no redistribution",
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
    ),
    "jit-reference": AssetSource(
        kind="reference",
        about="JiT's ImageNet 256x256 statistics (jit_in256_stats.npz of its repository), mu and sigma alone: another "
        "reference than ADM's, with which its numbers do not compare",
        licence="ImageNet terms: research, no redistribution",
    ),
    "adm-samples": AssetSource(
        kind="reference",
        about="50,000 samples of ADM-G + ADM-U, whose numbers ADM's README prints: repa-bench doctor --metrics --known",
        licence="MIT (guided-diffusion)",
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "admnet_guided_upsampled_imagenet256.npz",
    ),
    **{name: _encoder(spec) for name, spec in (DINOV2 | ENCODERS).items()},
}


@dataclass(frozen=True)
class External:
    """An asset that lies on this machine."""

    name: str
    path: Path
    """A file, or a folder of files."""
    content: str
    """SHA-256 of the file; for a folder, of its files' names and hashes."""
    size: int
    """Bytes."""


def source(name: str) -> AssetSource:
    """What the catalogue says of a name.

    Raises:
        UserError: no such name.
    """
    if name not in CATALOGUE:
        raise UserError(f"there is no asset '{name}'.{nearest(name, CATALOGUE)}")
    return CATALOGUE[name]


def _files(path: Path) -> list[Path]:
    """The files that belong to an asset; for a `.pt` tokenizer also the statistics and discriminator beside it."""
    if path.is_file() and path.suffix == ".pt":
        beside = [path.with_name(f"{path.stem}{end}.pt") for end in ("-latents-stats", "-discriminator-ckpt")]
        return [path, *(p for p in beside if p.exists())]
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name != CARD)


def content_of(path: Path, hash_of: Callable[[Path], str] = content.content_of) -> str:
    """The hash that identifies a file, or a folder's files; by default what was not touched is not read again."""
    files = _files(path)
    hashes = {str(f.relative_to(path)) if path.is_dir() else f.name: hash_of(f) for f in files}
    return next(iter(hashes.values())) if len(files) == 1 else digest_of(hashes)


class Card(Spec):
    """``asset.json``: where an asset lies, and what it was when it was registered."""

    path: str
    sha256: str
    size: int
    source: dict[str, JsonValue]


def _card(store: Store, name: str) -> Path:
    return store.root / "external" / name / CARD


def refuse_unpublished(name: str, path: Path, found: str) -> None:
    """Compare a file's hash with the one that its published address promises, if it does.

    Raises:
        UserError: the hashes differ.
    """
    promised = re.search(r"-([0-9a-f]{8,})\.\w+$", source(name).url or "")
    if promised and path.is_file() and not found.startswith(promised[1]):
        raise UserError(
            f"{path} is not the published {name}: its SHA-256 begins with {found[:8]}, not {promised[1]}. "
            "Fetch it again."
        )


def register(store: Store, name: str, path: Path, *, content: str | None = None, published: bool = True) -> External:
    """Remember where an asset lies, with its hash.

    Args:
        store: the cache.
        name: in the catalogue.
        path: a file or folder; it is not copied.
        content: its hash, where the owner of the format has one (image sets); measured otherwise.
        published: whether it is to be the published file, whose address may promise a hash.

    Raises:
        UserError: no such name, file or folder, or the file's name promises another hash.
    """
    known = source(name)
    path = path.expanduser().absolute()
    if not path.exists():
        raise UserError(f"--from {path}: there is no such file or folder.")
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"--from {path}: the folder is empty.")
    size = 0  # of what is large, and hashed by its own manifest
    if content is None:
        content, size = content_of(path), sum(f.stat().st_size for f in _files(path))
    if published:
        refuse_unpublished(name, path, content)
    card = Card(path=str(path), sha256=content, size=size, source=known.model_dump(mode="json"))
    write_text(_card(store, name), card.model_dump_json(indent=1))
    return External(name, path, content, size)


def find(store: Store, name: str) -> External | None:
    """The registered asset, or None.

    Its files are hashed again if anybody has touched them since they were (see `recipes.core.content`): what is used is
    what was registered, whatever its size and time say. Image sets are not checked here; `open_images` checks them.

    Raises:
        UserError: it moved, it has changed since it was registered, or its card is damaged.
    """
    kind, place = source(name).kind, _card(store, name)
    if not place.exists():
        return None
    card = Card.parse(read_json(place), where=str(place))
    path = Path(card.path)
    if not path.exists():
        raise UserError(f"asset {name} was at {path} and is gone; repa-bench fetch {name} --from PATH names its place.")
    if kind != "data" and (found := content_of(path)) != card.sha256:
        raise UserError(
            f"asset {name} at {path} has changed since it was registered: its SHA-256 began with {card.sha256[:8]} and "
            f"begins with {found[:8]}; if that is meant, register it again: repa-bench fetch {name} --from {path}."
        )
    return External(name, path, card.sha256, card.size)


def require(store: Store, name: str) -> External:
    """The asset of that name.

    Raises:
        UserError: it is not there, with the command that remedies it.
    """
    found = find(store, name)
    if found is not None:
        return found
    known = source(name)
    if known.hub or known.url:
        remedy = f"repa-bench fetch {name}, or, with the file on this machine, repa-bench fetch {name} --from PATH"
    else:
        remedy = known.about
    raise UserError(f"asset '{name}' is missing ({known.about}). Remedy: {remedy}.")


def verify(found: External) -> bool:
    """Whether the asset still has its hash. Reads every byte."""
    return content_of(found.path, sha256_of) == found.content


def inventory(store: Store) -> Iterator[tuple[str, AssetSource, External | str | None]]:
    """Every asset of the catalogue with what is on this machine: the asset, what is wrong with it, or nothing."""
    for name, known in CATALOGUE.items():
        try:
            yield name, known, find(store, name)
        except UserError as error:
            yield name, known, str(error)
