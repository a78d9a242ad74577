"""The one place that goes to the network: HTTPS only, checked by hash, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rich.progress import wrap_file

from harness.assets.cache import Store
from harness.assets.catalogue import AssetSource, External, refuse_unpublished, register, source
from recipes.core.atomic import sha256_of, temporary
from recipes.core.checkpoint import put
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
    with temporary(folder) as partial:
        partial.mkdir()
        try:
            _download(known, partial)
        except Exception as error:  # every library below has its own family of network errors
            where = known.url or f"https://huggingface.co/{known.hub}"
            raise UserError(
                f"{name} could not be downloaded from {where} ({type(error).__name__}: {error}). Without a network, "
                f"bring the files over and run: repa-bench fetch {name} --from PATH."
            ) from None
        files = [p.relative_to(partial) for p in partial.rglob("*") if p.is_file()]
        if len(files) == 1 and hub is None:  # before what was there goes
            refuse_unpublished(name, partial / files[0], sha256_of(partial / files[0]))
        put(partial, folder)
    return register(store, name, folder / files[0] if len(files) == 1 else folder, published=hub is None)


class _HTTPSOnly(HTTPRedirectHandler):
    """Refuses redirects to a non-HTTPS URL."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `urllib.request.HTTPRedirectHandler`."""
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not HTTPS")


def _download(known: AssetSource, folder: Path) -> None:
    if known.url:
        _download_url(known.url, folder / known.url.rsplit("/", 1)[1])
        return
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    assert known.hub is not None
    _require_https(constants.ENDPOINT)
    os.environ["HF_HUB_OFFLINE"] = "0"
    # No revision is pinned: what came is known by its hash, here and in every record.
    if known.file:
        hf_hub_download(known.hub, known.file, local_dir=folder)  # nosec B615
    else:
        snapshot_download(known.hub, allow_patterns=WEIGHT_FILES, local_dir=folder)  # nosec B615
    _verify_hub(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _download_url(url: str, path: Path) -> None:
    _require_https(url)
    request = Request(url, headers={"User-Agent": "repa-bench"})
    with build_opener(_HTTPSOnly).open(request, timeout=60) as answer:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with path.open("wb") as file, wrap_file(answer, size or 0, description=path.name, transient=True) as told:
            shutil.copyfileobj(told, file, 2**20)
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"{path.stat().st_size:,} bytes of {size:,} came")


def _verify_hub(folder: Path) -> None:
    """Large files have their SHA-256 as the hub's tag, which the library keeps beside what it downloads."""
    kept = folder / ".cache" / "huggingface" / "download"
    for card in kept.rglob("*.metadata"):
        lines = card.read_text().splitlines()
        path = folder / card.relative_to(kept).with_suffix("")
        hashed = len(lines) > 1 and re.fullmatch("[0-9a-f]{64}", lines[1]) and path.is_file()
        if hashed and (found := sha256_of(path)) != lines[1]:
            raise ValueError(f"the SHA-256 of {path.name} is {found[:16]}..., the hub says {lines[1][:16]}...")
