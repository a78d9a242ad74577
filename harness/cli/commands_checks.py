"""Commands that check this installation: doctor, replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import CacheOption, refuse_idle
from harness.cli.printing import print_table, say
from harness.pipeline.opening import store_of

if TYPE_CHECKING:
    from harness.assets.cache import Store
    from harness.checks.recorded import Replayed


commands = typer.Typer()


@commands.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="A folder of the golden form, such as tests/golden.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute recorded outputs and training steps of the released code; exit 1 if one is over its bound.

    Example: `repa-bench replay tests/golden`
    """
    from harness.checks.replay import replay as compare

    results: list[Replayed] = []
    for result in compare(folder):
        results.append(result)
        if not as_json:
            verdict = "ok  " if result.passed else "FAIL"
            print(f"{verdict} {result.error:9.2e} <= {result.bound:.0e}  {result.quantity}")
    failed = [r.quantity for r in results if not r.passed]
    if as_json:
        rows = [{"quantity": r.quantity, "error": r.error, "bound": r.bound, "passed": r.passed} for r in results]
        print(json.dumps({"passed": not failed, "quantities": rows}, indent=1))
    else:
        print(f"{len(results) - len(failed)} of {len(results)} quantities within their bounds")
    if failed:
        raise typer.Exit(1)


@commands.command("check-recipe")
def check_recipe(
    file: Annotated[Path, typer.Argument(help="A Python file with recipes; each class is tried.")],
) -> None:
    """Try whether recipes of yours keep the rules that comparisons rely on; exit 1 if one does not.

    Example: `repa-bench check-recipe mine.py`
    """
    from harness.checks.conformance import conform
    from harness.suites import SUITES, suite
    from recipes.recipe_files import outside_recipes, use_files
    from recipes.registry import find_recipe

    use_files([file])
    for name in SUITES:  # which refuse the names of their own variants
        suite(name)
    failed = 0
    for recipe in outside_recipes().values():
        if recipe.path != file.absolute():
            continue
        lines = len([line for line in file.read_text().splitlines() if line.strip()])
        say(f"{recipe.name}: {recipe.about} ({lines} lines, SHA-256 {recipe.source[:12]})")
        for check in conform(find_recipe(recipe.name, {}, where=recipe.name)):
            failed += bool(check.fault)
            verdict = "FAIL" if check.fault else "--  " if check.skipped else "ok  "
            text = ": ".join(filter(None, (check.rule, check.fault or check.skipped)))
            say(f"  {verdict} {text}", style="red" if check.fault else None)
    if failed:
        raise typer.Exit(1)


CROSSCHECKED = 48


@commands.command()
def doctor(
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again and compare the hashes.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Instead: score a mini set by us, torch-fidelity and clean-fid.")
    ] = False,
    images: Annotated[int, typer.Option("--images", min=20, help="With --metrics: of each set.")] = CROSSCHECKED,
    known: Annotated[
        bool, typer.Option("--known", help="The same, and ADM's own samples, whose numbers its README prints.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option("--device", help="With --metrics: cpu, cuda or auto.")] = "auto",
    cache: CacheOption = None,
) -> None:
    """Show versions, hardware and every asset, and the remedy for each fault; exit 1 if there is one.

    Example: `repa-bench doctor --verify`, or `repa-bench doctor --metrics`
    """
    from harness.checks.doctor import examine
    from harness.cli.plan_printing import health_lines

    store = store_of(cache)
    if metrics or known:
        refuse_idle({"--verify": verify}, "the examination of assets, without --metrics and --known")
        _crosscheck(store, images, device, known=known, as_json=as_json)
        return
    refuse_idle({"--device": device != "auto", "--images": images != CROSSCHECKED}, "--metrics")
    health = examine(store, verify=verify)
    if as_json:
        print(json.dumps(health.as_dict(), indent=1))
    else:
        for line, style in health_lines(health):
            say(line, style=style)
    if health.faults:
        raise typer.Exit(1)


def _crosscheck(store: Store, images: int, device: str, *, known: bool, as_json: bool) -> None:
    from harness.checks.crosscheck import crosscheck, known_answer
    from harness.runtime.progress import Reporter
    from recipes.core.distributed import choose_device

    reporter = Reporter()
    checks, network = crosscheck(store, choose_device(device), images, reporter)
    if known:
        checks += known_answer(store, choose_device(device), reporter)
    if as_json:
        print(json.dumps({"network": network, "images": images, "checks": [c.as_dict() for c in checks]}, indent=1))
    else:
        columns = ("metric", "ours", "theirs", "whose", "difference", "at most", "")
        rows = [
            (c.metric, f"{c.ours:.8g}", f"{c.theirs:.8g}", c.whose, f"{c.difference:.1e}", f"{c.bound:.0e}",
             "ok" if c.passed else "FAIL")
            for c in checks
        ]  # fmt: skip
        print_table(f"{images} + {images} generated images; {network}", columns, rows)
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
