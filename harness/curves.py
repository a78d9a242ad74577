"""Curves of FID against budget, from our records or from a table of anybody's, and what they say of speedups."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.speedup import Estimate, Panel, Point, average, crossing, estimate
from recipes.core.errors import UserError, nearest

#: Columns of a table that count a budget, and the currency that each is.
BUDGETS = {"step": "iterations", "images": "images", "flops": "flops", "device_seconds": "device_seconds"}
#: Columns with what training the tokenizer beforehand cost, in the same currencies.
PRETRAINING = {f"tokenizer_{name}": name for name in BUDGETS if name != "step"}
CURRENCIES = tuple(BUDGETS.values())
#: What a currency is called where people read it.
TITLES = {
    "iterations": "iterations",
    "images": "images",
    "flops": "FLOPs",
    "device_seconds": "device-seconds",
}
#: Images of ImageNet-1K's train set: an epoch.
EPOCH = 1_281_167
REQUIRED = ("recipe", "seed", "generation_seed", "step", "fid")


def title(currency: str) -> str:
    """Of a currency, with or without tokenizer pre-training."""
    plain = currency.removesuffix(WITH_TOKENIZER)
    return TITLES[plain] + (", tokenizer counted" if plain != currency else "")


WITH_TOKENIZER = "+tokenizer"


@dataclass(frozen=True)
class Observation:
    """FID of one sample set of one checkpoint."""

    recipe: str
    seed: int
    """Of training."""
    generation_seed: int
    step: int
    fid: float
    budgets: dict[str, float] = field(default_factory=dict)
    """By currency."""


@dataclass(frozen=True)
class RecipeSpeedup:
    """One recipe against the baseline in one currency."""

    recipe: str
    currency: str
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a number where there is one, a bound where there is only that."""
        e, p = self.estimate, self.estimate.point
        return {
            "target_fid": p.target,
            "first_checkpoint": p.low,
            "bracket": None if p.low is None else [p.low, p.high],
            "linear": p.linear,
            "loglog": p.loglog,
            "interval": list(e.interval),
            "censored": p.censored,
            "bound": p.bound_text,
            "sustained": p.sustained,
            "verdict": e.verdict,
            "seeds": e.seeds,
            "evidence": e.evidence,
            "by_seed": {str(seed): asdict(s) for seed, s in e.by_seed.items()},
        }


def read_csv(path: Path) -> list[Observation]:
    """A table with the columns recipe, seed, generation_seed, step, fid, and optionally images, flops,
    device_seconds, tokenizer_images, tokenizer_flops, tokenizer_device_seconds.

    Raises:
        UserError: a column is missing or unknown, or a cell is no number; the line is named.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header)
            found = [_observation(path, reader.line_num, row, header) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--curves {path} cannot be read as CSV ({error}).") from None
    if not found:
        raise UserError(f"--curves {path} has no row below its header.")
    _refuse_twice(path, found)
    return found


def _check_header(path: Path, header: Sequence[str]) -> None:
    known = (*REQUIRED, *(b for b in BUDGETS if b != "step"), *PRETRAINING)
    for name in REQUIRED:
        if name not in header:
            raise UserError(f"--curves {path}: there is no column '{name}'; the columns are {', '.join(known)}.")
    for name in header:
        if name not in known:
            raise UserError(f"--curves {path}: unknown column '{name}'.{nearest(name, known)}")


def _observation(path: Path, line: int, row: dict[str, str], header: Sequence[str]) -> Observation:
    def number(name: str, *, whole: bool = False, positive: bool = True) -> float:
        text = (row.get(name) or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (positive and value <= 0) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a positive number"
            raise UserError(f"--curves {path}, line {line}: {name} is '{text}', not {kind}.")
        return value

    budgets = {BUDGETS[name]: number(name) for name in BUDGETS if name in header}
    for column, name in PRETRAINING.items():
        if column in header:
            if name not in header:
                raise UserError(f"--curves {path}: {column} needs the column {name} beside it.")
            budgets[BUDGETS[name] + WITH_TOKENIZER] = budgets[BUDGETS[name]] + number(column, positive=False)
    recipe = (row.get("recipe") or "").strip()
    if not recipe:
        raise UserError(f"--curves {path}, line {line}: recipe is empty.")
    return Observation(
        recipe,
        int(number("seed", whole=True, positive=False)),
        int(number("generation_seed", whole=True, positive=False)),
        int(number("step", whole=True)),
        number("fid"),
        budgets,
    )


def _refuse_twice(path: Path, found: Sequence[Observation]) -> None:
    seen = set()
    for o in found:
        key = (o.recipe, o.seed, o.generation_seed, o.step)
        if key in seen:
            raise UserError(
                f"--curves {path}: recipe {o.recipe}, seed {o.seed}, generation seed {o.generation_seed}, "
                f"step {o.step} stands twice."
            )
        seen.add(key)


def currencies(observations: Iterable[Observation]) -> list[str]:
    """Those that every observation has, in order."""
    have = [set(o.budgets) for o in observations]
    shared = set.intersection(*have) if have else set()
    return [c + end for end in ("", WITH_TOKENIZER) for c in CURRENCIES if c + end in shared]


def panel(observations: Iterable[Observation], recipe: str, currency: str) -> Panel:
    """The curves of a recipe: one for each training seed, over the generation seeds that all its steps have."""
    by: dict[int, dict[int, list[Observation]]] = {}
    for o in observations:
        if o.recipe == recipe:
            by.setdefault(o.seed, {}).setdefault(o.step, []).append(o)
    return {seed: _one_curve(steps, currency) for seed, steps in sorted(by.items())}


def _one_curve(steps: dict[int, list[Observation]], currency: str) -> list[Point]:
    everywhere = set.intersection(*({o.generation_seed for o in group} for group in steps.values()))
    points = []
    for step, group in sorted(steps.items()):
        used = [o for o in group if not everywhere or o.generation_seed in everywhere]
        fid = math.exp(sum(math.log(o.fid) for o in used) / len(used))
        points.append(Point(step, sum(o.budgets[currency] for o in used) / len(used), fid))
    return points


def compare(observations: Sequence[Observation], baseline: str) -> list[RecipeSpeedup]:
    """Every other recipe against the baseline, in every currency.

    Raises:
        UserError: there is no such recipe, or training seeds of one that have no step in common.
    """
    recipes = list(dict.fromkeys(o.recipe for o in observations))
    if baseline not in recipes:
        raise UserError(f"--baseline: there is no recipe '{baseline}'.{nearest(baseline, recipes)}")
    out = []
    for recipe in recipes:
        if recipe == baseline:
            continue
        for currency in currencies(observations):
            try:
                found = estimate(panel(observations, baseline, currency), panel(observations, recipe, currency))
            except ValueError as error:
                raise UserError(f"{recipe} and {baseline} cannot be compared: {error}.") from None
            out.append(RecipeSpeedup(recipe, currency, found))
    return out


def epochs_to(observations: Sequence[Observation], target: float) -> dict[str, dict[str, float | None]]:
    """EP_FID@k (arXiv 2605.18324) of every recipe: epochs of 1,281,167 images until its average curve reaches an FID.

    The FIDs have to be unguided; that is for the caller to know.

    Returns:
        by recipe, ``first_checkpoint`` and ``loglog`` in epochs; none where it is not reached.

    Raises:
        UserError: the number of images is not known.
    """
    if "images" not in currencies(observations):
        raise UserError("--ep-fid counts epochs: the curves need a column 'images'.")
    out: dict[str, dict[str, float | None]] = {}
    for recipe in dict.fromkeys(o.recipe for o in observations):
        found = crossing(average(list(panel(observations, recipe, "images").values())), target)
        out[recipe] = {
            "first_checkpoint": None if found is None else found.at / EPOCH,
            "loglog": None if found is None or found.loglog is None else found.loglog / EPOCH,
        }
    return out


def as_dict(observations: Sequence[Observation], baseline: str, ep_fid: float | None = None) -> dict[str, Any]:
    """Everything, for JSON: by recipe and currency."""
    speedups: dict[str, dict[str, Any]] = {}
    for s in compare(observations, baseline):
        speedups.setdefault(s.recipe, {})[s.currency] = s.as_dict()
    out: dict[str, Any] = {"baseline": baseline, "speedups": speedups}
    if ep_fid is not None:
        out["ep_fid"] = {"target_fid": ep_fid, "epochs": epochs_to(observations, ep_fid)}
    return out
