"""Options shared by several commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer.core

from harness.runtime.refusals import refuse_idle as refuse_idle
from harness.runtime.refusals import refuse_unwritable as refuse_unwritable
from recipes.core.errors import UserError
from recipes.core.jsons import TooDeepError, load_json

MAX_SEED = 2**63 - 1
#: Help flags.
HELP = ["-h", "--help"]


class ListedByDefault(typer.core.TyperGroup):
    """A group in which `runs FOLDER` is `runs list FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `click.Group.parse_args`."""
        if not args or (args[0] not in self.commands and args[0] not in HELP):
            args = ["list", *args]
        return super().parse_args(ctx, args)


class OnNaN(StrEnum):
    """See `recipes.core.watchdog`."""

    stop = "stop"
    skip = "skip"


CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Where assets are kept. Default: $REPA_BENCH_CACHE or ~/.cache/repa-bench."),
]


class ImportedWeights(StrEnum):
    """Kind of weights in a file that does not say (EMA or raw)."""

    ema = "ema"
    raw = "raw"


@dataclass(frozen=True)
class Place:
    """Which suite, changed how, with its files where."""

    suite: Annotated[str, typer.Option("--suite", help="Which suite; `repa-bench list` names them.")] = "digits"
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change the suite, e.g. sit.depth=6; several with spaces between."
        ),
    ] = None
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=V1,V2",
            help="Sweep: a variant for each value, in the same results folder, e.g. sit_optimizer.lr=1e-4,2e-4 or "
            "options.alignment=0.25,0.5; several give every combination.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option("--out", help="Results folder. Default: runs/SUITE.")] = None
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Where assets are kept. Default: $REPA_BENCH_CACHE or ~/.cache/repa-bench."),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="ImageNet suites: a folder with a folder of images for each class, a Hugging Face data set, or data "
            "prepared for REPA, REPA-E or EDM2. Remembered.",
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: a GPU if the suite wants one.")] = "auto"
    recipe_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--recipe-file", help="A Python file with recipes of yours, which become variants; several with spaces."
        ),
    ] = None


@dataclass(frozen=True)
class Chosen(Place):
    """Which of its variants and seeds."""

    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipes", help="Which variants, with spaces or commas between. Default: the suite's."),
    ] = None
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seeds", min=0, max=MAX_SEED, help="Training seeds, with spaces or commas between. Default: the suite's."
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Train to so many effective steps. Default: the suite's.")
    ] = None
    score_every: Annotated[
        int | None, typer.Option("--score-every", min=1, help="Steps between scored checkpoints. Default: the suite's.")
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Of each process, to read images; to prepare them, so many processes of 2 GB. Default: the cores of "
            "this machine divided among its processes, at most 8.",
        ),
    ] = None


@dataclass(frozen=True)
class Laid(Chosen):
    """How training is laid out on the machine. None of these changes what is trained."""

    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", min=1, help="Images a process runs at once; the rest is accumulated. Default: all."
        ),
    ] = None
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile. Default: on GPUs.")] = (
        None
    )
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: less memory, about a third slower.")
    ] = False
    save_every: Annotated[
        int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints that serve only to resume.")
    ] = None
    save_minutes: Annotated[
        float,
        typer.Option("--save-minutes", min=0, help="Minutes between such checkpoints, beside those; 0: none by time."),
    ] = 15.0
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many of those are kept.")] = 2
    on_nan: Annotated[
        OnNaN, typer.Option("--on-nan", help="An update that is not finite never happens: stop there, or skip it.")
    ] = OnNaN.stop


@dataclass(frozen=True)
class Several(Laid):
    """How many of its runs are worked on at a time."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Small suites on the CPU: runs at a time, each with one thread. Default: one a core, as far as the "
            "suite goes.",
        ),
    ] = None
    wandb: Annotated[
        str | None,
        typer.Option(
            "--wandb",
            metavar="PROJECT",
            help="Send losses, metrics and samples to Weights & Biases too (pip install repa-bench[wandb]); files for "
            "TensorBoard lie beside each log in any case.",
        ),
    ] = None


@dataclass(frozen=True)
class Scored(Several):
    """What is scored: files, a run's folder, a tokenizer, or the checkpoints of the suite."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Results folder; default: runs/SUITE. With --reference: a JSON file for the result."
        ),
    ] = None
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Images to measure: an .npz with arr_0, a folder, a prepared set.")
    ] = None
    reference: Annotated[
        Path | None, typer.Option("--reference", help="What with: ADM's .npz, a folder, a prepared set.")
    ] = None
    features: Annotated[
        str, typer.Option("--features", help="The feature network: inception, dinov2-vit-s, -b, -l or -g.")
    ] = "inception"
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Its file. Default: what `repa-bench fetch` brought.")
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            help="With commas or spaces between. Default: fid,sfid,is,precision,recall. Also f_score, density, "
            "coverage, kid, fd_dinov2, clean_fid; image by image psnr, ssim, lpips.",
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    run_folder: Annotated[Path | None, typer.Option("--run", help="Instead: a run's folder, imported ones too.")] = None
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="An asset or a file: with --reference alone, measure what it reconstructs; with --run, the run's.",
        ),
    ] = None
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="With --run: which checkpoint. Default: the last.")
    ] = None
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="With --run: which, see `repa-bench list`. Default: the suite's.")
    ] = None
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Keep what is drawn now, as .npz files in ADM's form.")
    ] = False
    adm_evaluator: Annotated[
        Path | None,
        typer.Option("--adm-evaluator", help="guided-diffusion's evaluator.py: run it too, and show the differences."),
    ] = None
    adm_python: Annotated[
        Path | None, typer.Option("--adm-python", help="The Python that has its TensorFlow. Default: this one.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Sampled(Place):
    """What is drawn from which checkpoint."""

    images: Annotated[Path, typer.Option("--images", help="Where the PNG grid goes; an .npz lies beside it.")]
    recipe: Annotated[str | None, typer.Option("--recipe", help="Which variant of the suite.")] = None
    run_folder: Annotated[Path | None, typer.Option("--run", help="Instead: a run's folder; imported ones too.")] = None
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --run: the tokenizer's asset, if the run holds none.")
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Training seed. Default: the suite's first.")
    ] = None
    step: Annotated[int | None, typer.Option("--step", min=0, help="Which checkpoint. Default: the last.")] = None
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples.")] = 100
    generation_seed: Annotated[
        int, typer.Option("--generation-seed", min=0, max=MAX_SEED, help="Seed of labels and noise.")
    ] = 0
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Which, see `repa-bench list`. Default: the suite's for curves.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Swept(Chosen):
    """Which guidance settings are tried, on how many samples and which seeds."""

    scales: Annotated[
        list[float] | None, typer.Option("--scales", help="Guidance scales to try, with spaces or commas between.")
    ] = None
    intervals: Annotated[
        list[str] | None, typer.Option("--intervals", help="LOW:HIGH in time; t = 1 is noise. Default: 0:1.")
    ] = None
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, help="Samples of each setting tried. Default: a fifth of the protocol's."),
    ] = None
    search_seeds: Annotated[
        list[int] | None,
        typer.Option("--search-seeds", min=0, max=MAX_SEED, help="Generation seeds to choose by. Default: 1000."),
    ] = None
    generation_seeds: Annotated[
        list[int] | None,
        typer.Option("--generation-seeds", min=0, max=MAX_SEED, help="Generation seeds of the result. Default: 0."),
    ] = None
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Which, see `repa-bench list`. Default: the suite's last.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Planned(Several):
    """What a plan assumes, and what it prints."""

    devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs that training is spread over.")] = 1
    tflops: Annotated[
        list[str] | None,
        typer.Option(
            "--tflops",
            metavar="[FORMAT=]RATE",
            help="Sustained TFLOP/s of one in training's number format, or by format: bf16=400 tf32=180 fp32=40. "
            "Default: 200; on a CPU, measured.",
        ),
    ] = None
    prepare_rate: Annotated[
        float | None,
        typer.Option("--prepare-rate", min=0.001, help="Images a second that are prepared. Default: 83 a process."),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option(
            "--probe", min=0.0, help="Measure each variant here for so many seconds instead. Default on a CPU: 2."
        ),
    ] = None
    detect: Annotated[
        float | None, typer.Option("--detect", help="A speedup, as 1.2: how many seeds show it, and what they cost.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False


_PLACE = {f.name for f in fields(Place)}
_FILES = {"cache", "device", "out", "features", "weights", "metrics", "as_json", "reference"}
#: The modes of `score`: the flag that selects each, and the options that it uses.
WAYS_TO_SCORE: Mapping[str, set[str]] = {
    "--samples": {*_FILES, "samples", "adm_evaluator", "adm_python"},
    "--tokenizer with --reference": {*_FILES, "tokenizer"},
    "--run": {*_PLACE, "run_folder", "tokenizer", "step", "protocol", "metrics", "keep_samples", "as_json"},
    "a suite": {*(f.name for f in fields(Several)), "keep_samples"},
}


def refuse_idle_to_score(choices: Scored) -> None:
    """`refuse_idle`, of what `score` was not asked for.

    Raises:
        UserError: see `refuse_idle`.
    """
    if choices.run_folder is not None:
        way = "--run"
    elif choices.samples is not None:
        way = "--samples"
    else:
        way = "a suite" if choices.reference is None else "--tokenizer with --reference"
    hints = get_type_hints(Scored, include_extras=True)
    for field in fields(choices):
        if field.name not in WAYS_TO_SCORE[way] and getattr(choices, field.name) != field.default:
            elsewhere = [name for name, names in WAYS_TO_SCORE.items() if field.name in names]
            refuse_idle({str(flag_of(hints[field.name])): True}, " or ".join(elsewhere))


def flag_of(annotation: Any) -> str | None:
    """The parameter's `--flag`, or None."""
    option = annotation.__metadata__[0]
    return next((f for f in (option.default, *(option.param_decls or ())) if str(f).startswith("--")), None)


def shared(kind: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command, whose first parameter takes a `kind`, all of its options."""
    hints = get_type_hints(kind, include_extras=True)

    def parameter(name: str, default: Any) -> inspect.Parameter:
        value = inspect.Parameter.empty if default is MISSING else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[name])

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        required_first = sorted(fields(kind), key=lambda f: f.default is not MISSING)
        common = [parameter(f.name, f.default) for f in required_first]

        def wrapped(**given: Any) -> Any:
            options = kind(**{p.name: given.pop(p.name) for p in common})
            return command(options, **given)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *common]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def axes(pairs: Iterable[str]) -> dict[str, list[Any]]:
    """``a.b=1,2`` to a dictionary of lists; a value that is not JSON is a string.

    Raises:
        UserError: no equals sign, no value, or a key or value twice.
    """
    out: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            values = load_json(f"[{text}]")
        except ValueError:
            values = [next(iter(overrides([f"x={one}"]).values())) for one in text.split(",")]
        if not equals or not key or not values or key in out or len({*map(str, values)}) < len(values):
            raise UserError(f"--grid {pair}: write it as KEY=VALUE,VALUE, each key and value once.")
        out[key] = values
    return out


def overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``a.b=value`` to a dictionary; a value that is not JSON is a string.

    Raises:
        UserError: no equals sign.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair}: write it as KEY=VALUE, for example --set sit.depth=6.")
        try:
            out[key] = load_json(text)
        except TooDeepError as error:
            raise UserError(f"--set {key}: {error}. Write what is meant.") from None
        except ValueError:
            out[key] = text
    return out
