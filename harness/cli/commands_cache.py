"""Commands about the cache: what lies in it, whether it is whole, and what can go."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import CacheOption, ListedByDefault
from harness.cli.printing import print_table, say
from harness.pipeline.opening import store_of
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.cache_contents import Item

commands = typer.Typer(cls=ListedByDefault, help="What the cache holds, whether it is whole, and what can go.")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@commands.command("list")
def list_cache(cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """What the cache holds: each thing with its size, what it is, when it was last used, and by which suites.

    Example: `repa-bench cache list`
    """
    from harness.pipeline.cache_contents import items

    store = store_of(cache)
    found = items(store)
    if as_json:
        print(json.dumps({"cache": str(store.root), "items": [_as_dict(item) for item in found]}, indent=1))
        return
    if not found:
        say(f"{store.root} holds nothing.")
        return
    rows = [(i.name, i.what, f"{i.size / 2**20:,.1f}", _date(i)[:10], _owner(i)) for i in found]
    total = sum(i.size for i in found if i.kind != "registered") / 2**20
    spare = sum(i.size for i in found if i.spare) / 2**20
    print_table(
        f"Cache {store.root}",
        ("name", "what it is", "MiB", "last used", "used by"),
        rows,
        f"{total:,.1f} MiB, of which {spare:,.1f} are spare: no suite of this version uses them as it comes (without "
        "--set), and they can be had again. `repa-bench cache remove --spare` takes those away, `... remove NAME` one.",
        justify="left",
    )


@commands.command("remove")
def remove_cached(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names that `repa-bench cache` shows, or beginnings.")
    ] = None,
    spare: Annotated[
        bool, typer.Option("--spare", help="What no suite of this version uses as it comes; it can be had again.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete things from the cache, after asking. Never what you registered with `fetch --from`: that is yours.

    Example: `repa-bench cache remove --spare`, or `repa-bench cache remove digits-tokenizer --yes`
    """
    from harness.pipeline.cache_contents import choose, items, refuse_not_ours, remove

    if bool(names) == spare:
        raise UserError("name what is to go: either names that `repa-bench cache` shows, or --spare.")
    store = store_of(cache)
    found = items(store)
    chosen = [item for item in found if item.spare] if spare else choose(found, names or ())
    refuse_not_ours(chosen)
    size = f"{sum(item.size for item in chosen) / 2**20:,.1f} MiB"
    if chosen and not yes:
        if as_json or not sys.stdin.isatty():
            raise UserError(f"{len(chosen)} things ({size}) would be deleted for good; say --yes if they are to be.")
        for item in chosen:
            say(f"  {item.name} ({item.what})")
        if not typer.confirm(f"Delete {size} for good?"):
            raise typer.Exit(1)
    for item in chosen:
        remove(store, item)
    if as_json:
        print(json.dumps({"removed": [_as_dict(item) for item in chosen]}, indent=1))
    else:
        for item in chosen:
            say(f"removed {item.name}")
        say(f"{size} freed" if chosen else "nothing is spare")


@commands.command("verify")
def verify_cached(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names that `repa-bench cache` shows. Default: all.")
    ] = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of what the cache holds, and of what you registered, and compare the hashes; exit 1 if one is
    damaged.

    Example: `repa-bench cache verify`
    """
    from harness.pipeline.cache_contents import choose, damage, items

    found = items(store_of(cache))
    chosen = choose(found, names) if names else found
    told = {item.name: damage(item) for item in chosen}
    damaged = {name: sentence for name, sentence in told.items() if sentence is not None}
    if as_json:
        print(json.dumps({"verified": list(told), "damaged": damaged}, indent=1))
    else:
        for name, sentence in damaged.items():
            say(f"{name}: {sentence}", style="red")
        say(f"{len(told) - len(damaged)} of {len(told)} things are as they were written")
    if damaged:
        raise typer.Exit(1)


def _date(item: Item) -> str:
    """UTC, ISO 8601; of nothing, a dash."""
    return datetime.fromtimestamp(item.used, UTC).isoformat(timespec="seconds") if item.used else "–"


def _owner(item: Item) -> str:
    if item.kind == "registered":
        return "yours"
    return ", ".join(item.suites) or ("spare" if item.spare else "–")


def _as_dict(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "what": item.what,
        "path": str(item.path),
        "bytes": item.size,
        "last_used": None if not item.used else _date(item),
        "suites": list(item.suites),
        "spare": item.spare,
        "registered": None if item.asset is None else str(item.asset.path),
    }
