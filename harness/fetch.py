"""The one place that goes to the network: HTTPS only, checked by hash, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from harness.assets import Store
from harness.catalogue import External, Source, register, source
from recipes.core.errors import UserError

WEIGHT_FILES = ["*.pt", "*.pth", "*.safetensors", "*.json", "*.bin"]


def is_hub_id(text: str) -> bool:
    """Whether it looks like ``owner/name`` and is no path on this machine."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", text)) and not Path(text).exists()


def fetch(store: Store, name: str, *, hub: str | None = None) -> External:
    """Download an asset into the cache and register it.

    Args:
        store: the cache.
        name: in the catalogue.
        hub: another Hugging Face repository than the catalogue's, such as a tokenizer in diffusers' format.

    Raises:
        UserError: it is not published, or the download failed.
    """
    known = source(name)
    if hub is not None:
        known = known.model_copy(update={"hub": hub, "file": None, "url": None})
    if not (known.hub or known.url):
        raise UserError(f"'{name}' is not published for download: {known.about}.")
    folder = store.root / "external" / name / "files"
    partial = folder.with_name("files.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _download(known, partial)
    except Exception as error:  # every library below has its own family of network errors
        shutil.rmtree(partial, ignore_errors=True)
        where = known.url or f"https://huggingface.co/{known.hub}"
        raise UserError(
            f"{name} could not be downloaded from {where} ({type(error).__name__}: {error}). Without a network, bring "
            f"the files over and run: repa-bench fetch {name} --from PATH."
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    files = [p for p in folder.rglob("*") if p.is_file()]
    return register(store, name, files[0] if len(files) == 1 else folder, published=hub is None)


def _download(known: Source, folder: Path) -> None:
    if known.url:
        from torch.hub import download_url_to_file

        if not known.url.startswith("https://"):
            raise ValueError(f"{known.url} is not HTTPS")
        download_url_to_file(known.url, str(folder / known.url.rsplit("/", 1)[1]), progress=True)
        return
    from huggingface_hub import hf_hub_download, snapshot_download

    assert known.hub is not None
    os.environ["HF_HUB_OFFLINE"] = "0"
    if known.file:
        hf_hub_download(known.hub, known.file, local_dir=folder)
    else:
        snapshot_download(known.hub, allow_patterns=WEIGHT_FILES, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
