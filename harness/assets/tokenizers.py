"""Open tokenizers by asset name or by path."""

from __future__ import annotations

from pathlib import Path

from harness.assets import catalogue
from harness.assets.cache import Store
from recipes.core.errors import UserError, nearest
from recipes.models.autoencoder import Autoencoder
from recipes.released.autoencoder import diffusers_folder, load_autoencoder

#: How files of weights end.
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


def tokenizer_files(path: Path) -> tuple[Path, Path | None]:
    """The weights of a tokenizer asset and, if it has one, its discriminator.

    Args:
        path: a released ``NAME.pt`` or a folder that holds it, with or without ``NAME-latents-stats.pt`` and
            ``NAME-discriminator-ckpt.pt``; or a diffusers folder, a pipeline's with its ``vae`` too.

    Raises:
        UserError: the folder holds no weights, or several.
    """
    if path.is_file():
        beside = path.with_name(f"{path.stem}-discriminator-ckpt.pt")
        return path, beside if beside.exists() else None
    if (folder := diffusers_folder(path)) is not None:
        return folder, None
    files = [p for p in sorted(path.iterdir()) if p.suffix in _SUFFIXES and not p.name.startswith(".")]
    found = [p for p in files if not p.stem.endswith(("-latents-stats", "-discriminator-ckpt"))]
    if len(found) != 1:
        ends = ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
        raise UserError(f"{path} holds {len(found)} tokenizers ({ends}), not one; name the file itself.")
    return tokenizer_files(found[0])


def open_tokenizer(store: Store, name: str) -> tuple[Autoencoder, str]:
    """A tokenizer and its hash.

    Args:
        store: the cache.
        name: an asset of the catalogue, or a file or folder.

    Raises:
        UserError: there is no such asset or file, it is not on this machine, or it is no tokenizer.
    """
    known = [n for n, source in catalogue.CATALOGUE.items() if source.kind == "tokenizer"]
    if name in known:
        found = catalogue.require(store, name)
        path, content = found.path, found.content
    elif Path(name).exists():
        path = diffusers_folder(Path(name)) or Path(name)
        content = catalogue.content_of(path)
    else:
        raise UserError(f"--tokenizer {name}: there is no such asset, file or folder.{nearest(name, known)}")
    return load_autoencoder(tokenizer_files(path)[0])[0].eval().requires_grad_(False), content
