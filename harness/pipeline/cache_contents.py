"""List, verify and remove cache entries. Files registered by the user are never touched."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.assets import catalogue
from harness.assets.cache import PART, Store
from harness.assets.catalogue import CARD, External
from harness.preparation.base import assets_of
from harness.preparation.digits import ASSET_VERSION
from harness.preparation.digits_networks import DigitsFeatures
from harness.suites import SUITES, AnySuite
from harness.suites.digits import DigitsSuite, attention_asset
from recipes.core import checkpoint
from recipes.core.checkpoint import MANIFEST
from recipes.core.errors import DamagedError, UserError, nearest
from recipes.data.images import StoredImages
from recipes.data.latents import LatentStore

#: ``made`` by a suite, ``measured`` by `score`, ``fetched`` from the network, ``registered`` by the user (`fetch
#: --from`), ``unfinished``, or ``other``: nothing that this version makes.
Kind = Literal["made", "measured", "fetched", "registered", "unfinished", "other"]
WHAT = {
    "digits-data": "training images",
    "digits-reference": "reference images",
    "digits-features": "feature network",
    "digits-reference-features": "what the feature network says of the reference",
    "digits-encoder": "encoder",
    "digits-tokens": "the encoder's tokens of the training images",
    "digits-tokenizer": "tokenizer",
    "digits-latents": "posteriors of the training images",
    "latent-statistics": "statistics of a tokenizer's latents",
    "features-images": "what the feature network says of training images",
    "features-reference": "what the feature network says of the reference",
}
#: Files that listing reads itself; their atime does not count as use.
OURS = (MANIFEST, CARD)
#: Unfinished files older than this count as abandoned.
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Item:
    """One thing in the cache."""

    name: str
    """Path below the cache's root."""
    kind: Kind
    what: str
    path: Path
    """Where it lies in the cache."""
    size: int
    """Bytes; for a registered asset, of the files it points to."""
    used: float
    """When it was last read or written, in seconds since 1970, as far as the file system keeps that."""
    suites: tuple[str, ...] = ()
    """Suites that use it with default settings."""
    spare: bool = False
    """Whether it is unused by every suite and can be rebuilt or downloaded."""
    asset: External | None = None
    """Its entry in the catalogue, if it has one."""


def items(store: Store) -> list[Item]:
    """Everything in the cache but locks, by name."""
    roots: dict[Path, list[str]] = {store.root: []}
    for name, make in SUITES.items():
        roots.setdefault(assets_of(make(), store).root, []).append(name)
    found = [item for root, suites in roots.items() for item in _below(store.root, root, suites) if root.is_dir()]
    return sorted((item for item in found if item.path not in roots), key=lambda item: item.name)


def made_by(suite: DigitsSuite, store: Store) -> list[Path]:
    """Cached asset folders of a digits suite, found by recomputing their digests from manifests."""
    data = suite.data.model_dump(mode="json")
    whole = suite.data.train + suite.data.reference
    attention = {suite.method(variant).needs.attention for variant in suite.variants} - {()}
    wanted: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("data", data | {"start": 0, "stop": suite.data.train}, ()),
        ("reference", data | {"start": suite.data.train, "stop": whole}, ()),
        ("features", suite.features.model_dump(mode="json"), ("data", "reference")),
        ("reference-features", {"network": DigitsFeatures.convention}, ("reference", "features")),
        ("encoder", suite.encoder.model_dump(mode="json"), ("data", "reference")),
        ("tokens", {}, ("data", "encoder")),
        ("class-tokens", {}, ("data", "encoder")),
        *((attention_asset(layers), {"layers": list(layers)}, ("data", "encoder")) for layers in attention),
        ("tokenizer", suite.tokenizer.model_dump(mode="json"), ("data",)),
        ("latents", {}, ("data", "tokenizer")),
    ]
    found, hashes = [], dict[str, str | None]()
    for name, spec, sources in wanted:
        from_what = {source: hashes[source] for source in sources if hashes.get(source)}
        folder = store.folder_of(f"digits-{name}", {"version": ASSET_VERSION, **spec}, from_what)  # type: ignore[arg-type]
        with suppress(DamagedError):  # not there, or not whole
            hashes[name] = checkpoint.hash_of_part(folder, PART)
        if folder.exists():
            found.append(folder)
    return found


def _below(top: Path, root: Path, suites: Collection[str]) -> Iterator[Item]:
    """What lies in the cache of these suites."""
    assets = {asset.name: asset for card in sorted(root.glob(f"external/*/{CARD}")) if (asset := _read(card))}
    users = _users(Store(root), suites, assets)
    for path in sorted([*root.glob("*"), *root.glob("latents/*"), *root.glob("external/*"), *root.glob("stand-ins/*"),
                        *root.glob("external/*/files.partial")]):  # fmt: skip
        if path.name.endswith(".lock") or path in (root / "latents", root / "external", root / "stand-ins"):
            continue
        asset = next((a for a in assets.values() if a.path.is_relative_to(path)), None)
        if path.parent == root / "external" and asset is None:
            asset = assets.get(path.name)
            if asset is None or asset.path.is_relative_to(top):  # listed where it lies
                continue
        kind, what = _known(path, root, asset)
        place = path if asset is None or kind != "registered" else asset.path
        used = max((_last(file) for file in _files(place) if file.name not in OURS), default=0.0)
        spare = kind == "measured" or (kind in ("made", "fetched") and _unused(path, root, asset, users))
        if path.name.endswith((".tmp", ".partial")):
            spare = time.time() - used > ABANDONED_SECONDS
        size = sum(file.stat().st_size for file in _files(place))
        yield Item(str(path.relative_to(top)), kind, what, path, size, used, users.get(path, ()), spare, asset)


def _read(card: Path) -> External | None:
    """The registered asset from its card, or None if the card is damaged."""
    try:
        known = json.loads(card.read_text())
        return External(card.parent.name, Path(known["path"]), known["sha256"], known["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _known(path: Path, root: Path, asset: External | None) -> tuple[Kind, str]:
    """Kind of a thing, and what it is in words."""
    if path.name.endswith((".tmp", ".partial")):
        return "unfinished", "half written"
    if path.parent == root / "external" and asset is not None:
        about = (
            catalogue.CATALOGUE[asset.name].about if asset.name in catalogue.CATALOGUE else "unknown to this version"
        )
        return ("fetched" if asset.path.is_relative_to(path) else "registered"), about
    if path.parent == root / "stand-ins":
        return "made", f"random weights in the place of {path.name}"
    kind, _, digest = path.name.rpartition("-")
    if path.parent == root / "latents":
        return ("made" if (path / MANIFEST).exists() else "unfinished"), f"posteriors of {kind}"
    if kind.startswith("images-"):
        return ("made" if (path / MANIFEST).exists() else "unfinished"), f"images of {kind[7:]} pixels"
    if kind == "measured":
        return "measured", "what a network says of images that were scored"
    if re.fullmatch("[0-9a-f]{16}", digest) and (path / MANIFEST).exists():
        return "made", WHAT.get(kind, kind)
    if path == root / "content":
        return "made", "hashes of files, remembered while nobody touches these"
    return "other", "nothing that this version makes"


def _users(store: Store, names: Collection[str], assets: Mapping[str, External]) -> dict[Path, tuple[str, ...]]:
    """Suites by the path of what they use as they come."""
    found: dict[Path, list[str]] = {}
    for name in names:
        suite = SUITES[name]()
        paths = made_by(suite, store) if isinstance(suite, DigitsSuite) else _of_imagenet(suite, store, assets)
        for path in dict.fromkeys(paths):
            found.setdefault(path, []).append(name)
    return {path: tuple(suites) for path, suites in found.items()}


def _of_imagenet(suite: AnySuite, store: Store, assets: Mapping[str, External]) -> Iterator[Path]:
    """Assets that a variant or the judge reads, and latents of the present images."""
    wanted = {*(name for variant in suite.variants for name in suite.needs(variant)), *suite.scored_by()}
    for name in wanted & assets.keys():
        path = assets[name].path
        yield store.root / "external" / name
        yield from (p for p in [path, *path.parents] if p.parent in (store.root, store.root / "stand-ins"))
    sources = {asset.content for asset in assets.values()}
    for manifest in store.root.glob(f"latents/*/{MANIFEST}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            plan = json.loads(manifest.read_text())["plan"]
            if {plan["tokenizer"], plan["images"]} <= sources:
                yield manifest.parent


def _unused(path: Path, root: Path, asset: External | None, users: Mapping[Path, object]) -> bool:
    """Whether no suite uses it. (For files made from user images this is only known for latents.)"""
    if asset is not None and path.parent == root / "external":
        return asset.name not in catalogue.CATALOGUE
    told = path.name.startswith(("digits-", "images-")) or path.parent == root / "latents"
    return told and path not in users


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else path.rglob("*")
    return [file for file in found if file.is_file() and not file.is_symlink()]


def _last(file: Path) -> float:
    facts = file.stat()
    return max(facts.st_atime, facts.st_mtime)


def choose(found: Iterable[Item], names: Iterable[str]) -> list[Item]:
    """Items by name or unique prefix.

    Raises:
        UserError: there is no such thing, or there are several.
    """
    known, out = {item.name: item for item in found}, dict[str, Item]()
    for name in names:
        meant = [name] if name in known else [other for other in known if name and other.startswith(name)]
        if len(meant) > 1:
            raise UserError(f"the cache holds several '{name}...': {', '.join(meant)}; name one.")
        if not meant:
            raise UserError(f"the cache holds no '{name}'.{nearest(name, known)}")
        out[meant[0]] = known[meant[0]]
    return list(out.values())


def refuse_not_ours(chosen: Iterable[Item]) -> None:
    """Refuse items that we did not create.

    Raises:
        UserError: a thing that a user registered or linked, or that this version did not make.
    """
    for item in chosen:
        if item.kind == "registered" and item.asset is not None:
            raise UserError(f"{item.name} is yours: its files lie at {item.asset.path}, and nothing of it is removed.")
        if item.kind == "other" or item.path.is_symlink():
            raise UserError(f"{item.path} is nothing that this version made; remove it yourself if it is to go.")


def remove(store: Store, item: Item) -> None:
    """Delete a thing for good, and forget the assets whose files lay in it.

    Raises:
        UserError: see `refuse_not_ours`.
    """
    refuse_not_ours([item])
    for card in [*store.root.glob(f"external/*/{CARD}"), *store.root.glob(f"*/external/*/{CARD}")]:
        asset = _read(card)
        if asset is not None and asset.path.is_relative_to(item.path) and not card.is_relative_to(item.path):
            card.unlink()
    if item.path.is_dir():
        checkpoint.remove_folder(item.path)
    else:
        item.path.unlink()


def damage(item: Item) -> str | None:
    """What is wrong with a thing, after reading every byte of it; nothing if all is as it was written.

    Access and modification times are restored.
    """
    times = {path: path.stat() for path in _files(item.path)}
    try:
        _check(item)
    except UserError as error:
        return str(error)
    finally:
        for path, before in times.items():
            with suppress(OSError):  # somebody else's cache
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return None


def _check(item: Item) -> None:
    """Compare hashes.

    Raises:
        UserError: one is not what was written.
    """
    if item.kind in ("unfinished", "other"):
        return
    if item.name.split("/")[-1].startswith("images-"):
        StoredImages(item.path).verify()
    elif item.path.parent.name == "latents":
        LatentStore.open(item.path).verify()
    elif item.asset is not None:
        if not item.asset.path.exists():
            raise UserError(
                f"{item.asset.path} is gone; repa-bench fetch {item.asset.name} --from PATH names its place."
            )
        if item.asset.size and not catalogue.verify(item.asset):
            raise UserError(
                f"{item.asset.path} is damaged: its SHA-256 has changed; repa-bench fetch {item.asset.name}."
            )
    else:
        for manifest in sorted(item.path.rglob(MANIFEST)):
            checkpoint.read_manifest(manifest.parent)
            for name in json.loads(manifest.read_text())["files"]:
                checkpoint.verify_part(manifest.parent, Path(name).stem)
