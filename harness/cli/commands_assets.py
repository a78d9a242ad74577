"""Commands for files that others made: fetch, import, export-vae."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import CacheOption, ImportedWeights, refuse_unwritable
from harness.cli.printing import say
from harness.pipeline.opening import store_of
from recipes.core.errors import UserError

commands = typer.Typer()


@commands.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(help="A fetched asset, a folder of REPA-E (args.json, checkpoints), or a .pt of REPA or SiT."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the run's folder goes.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Which checkpoint of a folder. Default: the last.")
    ] = None,
    encoder_depth: Annotated[
        int | None, typer.Option("--encoder-depth", min=1, help="The aligned block, where the file does not say it.")
    ] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="For sizes that are none of the papers'.")] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Without the null class, where the file does not say it.")
    ] = None,
    weights: Annotated[
        ImportedWeights | None, typer.Option("--weights", help="What the weights are, where the file names no average.")
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Turn a released checkpoint into a run's folder, which sample and export-vae take. Never runs code from it.

    Example: `repa-bench import sit-repae-sdvae --out runs/imported/sit-repae-sdvae`
    """
    from harness.assets import catalogue
    from recipes.training.import_run import import_checkpoint

    refuse_unwritable("--out", out)
    if not path.exists() and str(path) in catalogue.CATALOGUE:
        path = catalogue.require(store_of(cache), str(path)).path
    run = import_checkpoint(
        path,
        out,
        step=step,
        encoder_depth=encoder_depth,
        heads=heads,
        classes=classes,
        weights=weights.value if weights else None,
        on_note=lambda note: say(note, style="yellow"),
    )
    say(f"{run.folder}: {run.spec.recipe}, step {run.steps()[-1]:,}")


@commands.command("export-vae")
def export_vae(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run of REPA-E, trained here or imported.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for NAME-hf/ (diffusers) and NAME.pt (released form).")],
    name: Annotated[str, typer.Option("--name", help="Of the files.")] = "tuned-vae",
    step: Annotated[int | None, typer.Option("--step", min=0, help="Which checkpoint. Default: the last.")] = None,
) -> None:
    """Write the tuned tokenizer of a run with the statistics of its latents, for diffusers and for the released code.

    Example: `repa-bench export-vae runs/imagenet256/runs/repa_e-seed0-1a2b3c4d --out exported`
    """
    from recipes.training.export_vae import export_autoencoder

    refuse_unwritable("--out", out)
    if Path(name).name != name:
        raise UserError(f"--name {name}: a file's name is meant, without folders.")
    written = export_autoencoder(run_folder, out, name, step)
    say(f"{written}, and {out / f'{name}-hf'} for diffusers")
    say(f"next: repa-bench fetch tuned-vae --from {written}")


@commands.command()
def fetch(
    name: Annotated[str, typer.Argument(help="An asset; `repa-bench doctor` names them.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="A file or folder on this machine (not copied), or another hub repository."),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="For which suite; imagenet-smoke keeps its own files.")
    ] = "imagenet256",
    cache: CacheOption = None,
) -> None:
    """Download an asset, or name its place on this machine. The only command that goes to the network.

    Example: `repa-bench fetch inception`
    """
    from harness.assets import catalogue
    from harness.assets.fetch import fetch as download
    from harness.assets.fetch import is_hub_id
    from harness.preparation.base import assets_of
    from harness.suites import suite as find_suite

    store = assets_of(find_suite(suite), store_of(cache))
    if source is None or is_hub_id(source):
        found = download(store, name, hub=source)
    else:
        found = catalogue.register(store, name, Path(source))
    licence = catalogue.source(name).licence
    say(
        f"{name}: {found.path} ({found.size / 2**20:,.1f} MiB, SHA-256 {found.content[:16]}..., licence: {licence})",
    )
