"""The command line: the composition root. It may import everything; nothing imports it."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from typing import Annotated

import typer

from harness.cli import (
    commands_assets,
    commands_cache,
    commands_checks,
    commands_results,
    commands_run,
    commands_score,
    commands_watch,
)
from harness.cli.errors import DIVERGED, INTERRUPTED, PARSER_ERROR, of_a_recipe, of_the_machine
from harness.cli.lists import expand_lists
from harness.cli.options import HELP
from harness.runtime.signals import TERMINATED, requeued
from recipes.core.errors import Diverged, Stopped, UserError

# Heavy imports (torch, diffusers, matplotlib) stay inside the commands, so that --help and a mistyped option answer
# at once.

app = typer.Typer(
    name="repa-bench",
    help="Reproduce and compare training of latent diffusion transformers: vanilla SiT, REPA, REPA-E.",
    no_args_is_help=True,
    context_settings={"help_option_names": HELP},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
THEMES = (commands_run, commands_watch, commands_score, commands_results, commands_assets, commands_checks)
for theme in THEMES:
    app.add_typer(theme.commands)
app.add_typer(commands_cache.commands, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"repa-bench {version('repa-bench')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Global options."""


def _quiet_libraries() -> None:
    """Silence start-up warnings of libraries and keep them from downloading."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that DDP looked for absent gradients and all were there
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers"):
        warnings.filterwarnings("ignore", module=f"{library}.*")


def main() -> None:
    """Entry point of ``repa-bench``."""
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    command = typer.main.get_command(app)
    try:
        with requeued():
            code = command.main(expand_lists(sys.argv[1:], command), prog_name="repa-bench", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except PARSER_ERROR as error:
        error.show()
        sys.exit(2)
    except Stopped as stopped:
        print(f"{stopped} The same command continues.", file=sys.stderr)
        sys.exit(INTERRUPTED if stopped.number == signal.SIGINT else TERMINATED)
    except Diverged as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (Exception, SystemExit) as error:
        machine = of_the_machine(error) if isinstance(error, Exception) else None
        if (sentence := machine or of_a_recipe(error)) is None:
            raise
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code, in some versions
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)
