"""Commands that read results: speedup, compare, claims, baselines, report, runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import MAX_SEED, ListedByDefault, refuse_idle, refuse_unwritable, shared
from harness.cli.printing import print_table, print_tables, say
from recipes.core.errors import UserError, nearest, visible

if TYPE_CHECKING:
    from harness.results.curves import Selection

commands = typer.Typer()
FORMATS = "html,md,tex,csv,svg,png,pdf"
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUNS", help="Results folders.")]


@dataclass(frozen=True)
class Part:
    """Which part of the curves is compared."""

    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipes", help="Only these and the baseline, with spaces or commas between. Default: all."),
    ] = None
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seeds", min=0, max=MAX_SEED, help="Only these training seeds, with spaces or commas between."),
    ] = None
    until: Annotated[int | None, typer.Option("--until", min=1, help="Only checkpoints up to this step.")] = None

    def selection(self) -> Selection:
        """The same for `harness.results.curves`."""
        from harness.results.curves import Selection

        return Selection(tuple(self.recipes or ()), tuple(self.seeds or ()), self.until)


@commands.command()
@shared(Part)
def speedup(
    part: Part,
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUNS", help="Results folders.")] = None,
    curves: Annotated[
        Path | None,
        typer.Option("--curves", help="Instead: a CSV with recipe, step, fid; seed, generation_seed, images, ..."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The recipe that the others are compared with.")
    ] = "vanilla",
    target: Annotated[
        float | None, typer.Option("--target", help="The FID to reach. Default: the baseline's at its last checkpoint.")
    ] = None,
    cv: Annotated[
        float | None,
        typer.Option("--cv", help="With --curves of a single seed: how far seeds spread there, as 0.013 for 1.3 %."),
    ] = None,
    ep_fid: Annotated[
        float | None, typer.Option("--ep-fid", min=0.0, help="Also epochs to this unguided FID (EP_FID@k).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How much sooner each recipe reaches the baseline's last FID, in every currency, and how sure that is.

    Example: `repa-bench speedup runs/digits`, or `repa-bench speedup --curves curves.csv --baseline SiT --json`
    """
    from harness.results.confidence import SeedNoise
    from harness.results.curve_csv import read_csv
    from reports.summary import summarize_curves, summarize_runs

    if (curves is None) == (not runs):
        raise UserError("name what to compare: results folders, or --curves FILE.csv.")
    _refuse_not_positive({"--target": target, "--cv": cv})
    if curves is not None:
        noise = None if cv is None else SeedNoise(cv, 0, 1.0, "--cv")
        wanted = part.selection()
        found = summarize_curves(read_csv(curves), baseline, wanted, target=target, ep_fid=ep_fid, noise=noise)
    else:
        refuse_idle({"--cv": cv is not None}, "--curves")
        found = summarize_runs(runs or [], baseline, part.selection(), target=target, ep_fid=ep_fid)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print_tables(found.text_tables())


def _refuse_not_positive(given: Mapping[str, float | None]) -> None:
    """See that options that are given are positive numbers.

    Raises:
        UserError: one is not.
    """
    for flag, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag} {value:g}: a positive number is meant.")


@commands.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Two results folders paired by recipe and training seed: did a change move FID?

    Example: `repa-bench compare runs/before runs/after`
    """
    from harness.results.paired_folders import compare_folders
    from reports.tables import pairs_table

    found = compare_folders(first, second)
    if as_json:
        print(json.dumps({"pairs": [pair.as_dict() for pair in found]}, indent=1))
    else:
        print_tables([pairs_table(found, str(first), str(second))])


@commands.command()
@shared(Part)
def claims(
    part: Part,
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUNS", help="Results folders.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if an accepted verdict has changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What published points, and runs of yours, say of each claim of the paper; never in stronger words than that.

    Example: `repa-bench claims runs/digits`, or `repa-bench claims --check`
    """
    from baselines.claims import ledger
    from baselines.published import PublishedError
    from harness.results.claims import judge
    from harness.results.comparison import load
    from reports.tables import claims_table

    if not runs:
        given = {"--recipes": part.recipes, "--seeds": part.seeds, "--until": part.until}
        refuse_idle({flag: value is not None for flag, value in given.items()}, "results folders")
    try:
        found = judge(ledger(), [load([folder], part.selection()) for folder in runs or ()])
    except PublishedError as error:
        raise UserError(str(error)) from None
    changed = [f"{j.claim.id}, {j.evidence}: {j.verdict}, accepted was {j.accepted}" for j in found if j.changed]
    if as_json:
        print(json.dumps({"judgements": [j.as_dict() for j in found], "changed": changed}, indent=1))
    else:
        print_tables([claims_table(found)])
        for line in changed:
            say(f"changed: {line}", style="red")
    if check and changed:
        raise typer.Exit(1)


@commands.command()
def baselines(
    method: Annotated[str | None, typer.Option("--method", help="Part of the method's name.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Part of the model's name.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Part of the table's name.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="printed, digitised, reproduced (by others) or requoted.")
    ] = None,
    guided: Annotated[
        bool | None, typer.Option("--guided/--unguided", help="With or without classifier-free guidance.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Anywhere in the row.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what others published, each row with its source; reruns of one baseline show how far it spreads.

    Example: `repa-bench baselines --model SiT-B/2 --method REPA --kind reproduced`
    """
    from typing import get_args

    from baselines.published import Kind, load_all, select
    from reports.published import published_table

    kinds = get_args(Kind)
    chosen: Any = kind
    if kind is not None and kind not in kinds:
        raise UserError(f"--kind: there is no kind '{kind}'.{nearest(kind, kinds)}")
    found = list(select(load_all(), method=method, model=model, group=group, kind=chosen, guided=guided, text=text))
    if as_json:
        print(json.dumps({"rows": [row.model_dump(mode="json") for row in found]}, indent=1))
    elif not found:
        say("no published row matches; `repa-bench baselines` lists all")
    else:
        print_table("Published numbers", *published_table(found))


@commands.command()
@shared(Part)
def report(
    part: Part,
    runs: RunsArgument,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The recipe that the others are compared with.")
    ] = "vanilla",
    curves: Annotated[
        Path | None,
        typer.Option(
            "--curves", help="Besides: a CSV of curves that are not ours (see `speedup`); they get no verdict."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: report/ in the first folder.")] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Which of html, md, tex, csv, and svg, png, pdf for the figures, with commas or spaces between.",
        ),
    ] = FORMATS,
    check: Annotated[
        Path | None, typer.Option("--check", help="Write nothing: exit 1 if this report is not what the records give.")
    ] = None,
) -> None:
    """Write index.html, report.md, tables.tex, results.csv and figures/ from the records of some results folders.

    Example: `repa-bench report runs/digits --format html,tex`
    """
    from harness.results.curve_csv import foreign
    from reports import build

    others = () if curves is None else foreign(curves)
    whole = build.Wanted(runs, part.selection(), baseline, others)
    if check is not None:
        refuse_idle({"--out": out is not None, "--format": formats != FORMATS}, "a report that is written")
        for line in (found := build.check(whole, check)):
            print(visible(f"{check}: {line}"))
        raise typer.Exit(1 if found else 0)
    wanted = _formats(formats, build.FORMATS)
    place = out or runs[0] / "report"
    if out is not None or runs[0].is_dir():  # what is no folder is refused by its own name
        refuse_unwritable("--out", place)
    say(build.build(whole, place, wanted))


def _formats(text: str, known: Sequence[str]) -> list[str]:
    """The formats of a report that were asked for.

    Raises:
        UserError: there is none of that name, or none is named.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"--format: there is no format '{name}'.{nearest(name, known)}")
    if not wanted:
        raise UserError(f"--format names none; there are {', '.join(known)}.")
    return wanted


runs_app = typer.Typer(cls=ListedByDefault, help="What a results folder holds; take one run away.")

commands.add_typer(runs_app, name="runs")


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A results folder.")] = Path("runs/digits"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a results folder holds: each run with its training seed, its steps, what is scored, and its size.

    Example: `repa-bench runs runs/digits`
    """
    from harness.results.run_folders import entries
    from reports.tables import run_folders_table

    found = entries(folder)
    if as_json:
        print(json.dumps({"runs": [asdict(entry) for entry in found]}, indent=1))
    else:
        print_tables([run_folders_table(found, str(folder))])


@runs_app.command("remove")
def remove_run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A results folder.")],
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names that `repa-bench runs FOLDER` shows.")],
) -> None:
    """Take runs out of a results folder, with their records and samples, into its trash folder. Nothing is deleted.

    Example: `repa-bench runs remove runs/digits repa_e-seed3-1a2b3c4d`
    """
    from harness.results.run_folders import remove

    for name in names:
        say(f"{name} is now in {remove(folder, name)}")


@commands.command()
def league(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("runs/league"),
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", help="Results folders with reruns that results are held against; several."),
    ] = None,
    recipe_file: Annotated[
        list[Path] | None,
        typer.Option("--recipe-file", help="Files of entries that are not of this tree, for their lines; several."),
    ] = None,
) -> None:
    """Write the league of some results folders: a row for each recipe, by the rules of docs/league.md.

    Example: `repa-bench league runs/digits --out runs/league`
    """
    from harness.results.comparison import load
    from recipes.recipe_files import use_files
    from reports.league import build_league

    use_files(recipe_file or ())
    refuse_unwritable("--out", out)
    comparison = load(runs)
    if comparison.speedups is None:
        raise UserError("a league needs the baseline 'vanilla' and another recipe; name folders that hold them.")
    say(f"league: {build_league(comparison, out, load(reference) if reference else None)}")
