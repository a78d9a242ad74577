"""Files that others made: tokenizers, encoders, metric networks, references, released checkpoints.

Each has a name. ``repa-bench fetch NAME`` downloads it once; ``repa-bench fetch NAME --from PATH`` takes what already
lies on this machine, without copying it. Nothing else in this project goes to the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.assets import Store
from recipes.core import checkpoint
from recipes.core.errors import UserError, nearest
from recipes.core.spec import Spec, digest_of
from recipes.models.encoder import DINOV2, ENCODERS, EncoderSpec

CARD = "asset.json"
Kind = Literal["data", "tokenizer", "encoder", "perceptual", "features", "reference", "checkpoint"]


class Source(Spec):
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


def _tokenizer(hub: str, about: str) -> Source:
    return Source(kind="tokenizer", about=about, licence=_MIT, hub=hub)


def _checkpoint(hub: str, about: str) -> Source:
    return Source(kind="checkpoint", about=about, licence=_MIT, hub=hub)


def _encoder(spec: EncoderSpec) -> Source:
    hub = re.search(r"huggingface\.co/(\S+)", spec.source)
    about = f"frozen encoder {spec.architecture}"
    if hub:
        return Source(kind="encoder", about=about, licence=spec.license, hub=hub[1], file="model.safetensors")
    if not spec.source.startswith("https://"):
        return Source(kind="encoder", about=f"{about}: {spec.source}, then fetch --from PATH", licence=spec.license)
    return Source(kind="encoder", about=about, licence=spec.license, url=spec.source.split()[0])


CATALOGUE: dict[str, Source] = {
    "images": Source(
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
    "tuned-vae": Source(
        kind="tokenizer",
        about="your own: repa-bench export-vae RUN --out DIR, then fetch tuned-vae --from DIR/NAME.pt",
        licence="yours",
    ),
    "tuned-vae-f16d32": Source(kind="tokenizer", about="the same, of a run on in-vae or va-vae", licence="yours"),
    "sit-repae-sdvae": _checkpoint("REPA-E/sit-repae-sdvae", "SiT-XL/2 and VAE, REPA-E, 400K"),
    "sit-repae-invae": _checkpoint("REPA-E/sit-repae-invae", "SiT-XL/1 and VAE, REPA-E, 400K"),
    "sit-repae-vavae": _checkpoint("REPA-E/sit-repae-vavae", "SiT-XL/1 and VAE, REPA-E, 400K"),
    "sit-ldm-e2e-vavae": _checkpoint("REPA-E/sit-ldm-e2e-vavae", "SiT-XL/1, REPA on E2E-VAVAE, 4M"),
    "vgg16": Source(
        kind="perceptual",
        about="VGG16 trunk of LPIPS (the linear heads come with the lpips package)",
        licence="BSD-3-Clause (torchvision)",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "inception": Source(
        kind="features",
        about="Inception-2015, the network of the ADM suite (torch-fidelity's inception-v3-compat)",
        licence="Apache-2.0",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "adm-reference": Source(
        kind="reference",
        about="ADM's ImageNet 256x256 statistics and 10,000 images",
        licence="ImageNet terms: research, no redistribution",
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz",
    ),
    "adm-samples": Source(
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


def source(name: str) -> Source:
    """What the catalogue says of a name.

    Raises:
        UserError: no such name.
    """
    if name not in CATALOGUE:
        raise UserError(f"there is no asset '{name}'.{nearest(name, CATALOGUE)}")
    return CATALOGUE[name]


def _files(path: Path) -> list[Path]:
    """The files of an asset: a tokenizer's statistics and discriminator lie beside it."""
    if path.is_file() and path.suffix == ".pt":
        beside = [path.with_name(f"{path.stem}{end}.pt") for end in ("-latents-stats", "-discriminator-ckpt")]
        return [path, *(p for p in beside if p.exists())]
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name != CARD)


def _measure(path: Path) -> tuple[str, int]:
    files = _files(path)
    hashes = {str(f.relative_to(path)) if path.is_dir() else f.name: checkpoint.sha256_of(f) for f in files}
    content = next(iter(hashes.values())) if len(files) == 1 else digest_of(hashes)
    return content, sum(f.stat().st_size for f in files)


def content_of(path: Path) -> str:
    """The hash that identifies a file, or a folder's files."""
    return _measure(path)[0]


def _card(store: Store, name: str) -> Path:
    return store.root / "external" / name / CARD


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
    if content is None:
        content, size = _measure(path)
    else:
        size = 0  # large, and hashed by its own manifest
    promised = re.search(r"-([0-9a-f]{8,})\.\w+$", known.url or "")
    if published and promised and path.is_file() and not content.startswith(promised[1]):
        raise UserError(
            f"{path} is not the published {name}: its SHA-256 begins with {content[:8]}, not {promised[1]}. "
            "Fetch it again."
        )
    found = External(name, path, content, size)
    write = {"path": str(path), "sha256": content, "size": size, "source": known.model_dump(mode="json")}
    checkpoint.write_text(_card(store, name), json.dumps(write, indent=1))
    return found


def find(store: Store, name: str) -> External | None:
    """The asset of that name, if it lies on this machine.

    Raises:
        UserError: it moved, or it has changed since it was registered.
    """
    source(name)
    card = _card(store, name)
    if not card.exists():
        return None
    known: dict[str, Any] = json.loads(card.read_text())
    path = Path(known["path"])
    if not path.exists():
        raise UserError(f"asset {name} was at {path} and is gone; repa-bench fetch {name} --from PATH names its place.")
    size = sum(f.stat().st_size for f in _files(path)) if known["source"]["kind"] != "data" else known["size"]
    if size != known["size"]:
        raise UserError(
            f"asset {name} at {path} has {size} bytes and had {known['size']} when it was registered; "
            f"if that is meant, register it again: repa-bench fetch {name} --from {path}."
        )
    return External(name, path, known["sha256"], known["size"])


def require(store: Store, name: str) -> External:
    """The asset of that name.

    Raises:
        UserError: it is not there, with the command that mends it.
    """
    found = find(store, name)
    if found is not None:
        return found
    known = source(name)
    if known.hub or known.url:
        mend = f"repa-bench fetch {name}, or, with the file on this machine, repa-bench fetch {name} --from PATH"
    else:
        mend = known.about
    raise UserError(f"asset '{name}' is missing ({known.about}). Mend: {mend}.")


def verify(found: External) -> bool:
    """Whether the asset still has its hash. Reads every byte."""
    return _measure(found.path)[0] == found.content


def inventory(store: Store) -> Iterator[tuple[str, Source, External | str | None]]:
    """Every asset of the catalogue with what is on this machine: the asset, what is wrong with it, or nothing."""
    for name, known in CATALOGUE.items():
        try:
            yield name, known, find(store, name)
        except UserError as error:
            yield name, known, str(error)
