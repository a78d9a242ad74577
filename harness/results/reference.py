"""Accepted runs, for regression: the losses, FIDs and speedups that a change of code may not move.

A reference is taken with a reason: ``python -m harness.results.reference RUNS FILE --reason "..."``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.records import file as records_file
from harness.records.schema import ScoreRecord
from harness.results.comparison import load
from harness.results.speedup import value_of
from recipes.core.atomic import write_text
from recipes.core.json_lines import read_rows

#: Relative differences that other machines' arithmetic explains. A change of code moves a trace by more.
TOLERANCES = {"loss": 1e-2, "fid": 5e-2, "speedup": 0.25}
#: Alignment losses are cosines and pass through zero. Another processor trains a slightly other encoder: between two,
#: they differed by 0.0006 at the first step, where they are about 0.002.
SMALLEST_SCALE = 0.2
TRACED = ("denoising", "sit_align", "vae_align", "l1")


def summarize(folder: Path) -> dict[str, Any]:
    """Loss traces and FIDs of a results folder, by variant and seed."""
    comparison = load([folder])
    runs: dict[str, Any] = {}
    for variant in comparison.variants:
        for seed in comparison.seeds(variant):
            curve = comparison.curve(variant, seed)
            runs[f"{variant}/seed{seed}"] = {
                "fid": {str(r.step): r.metrics.fid for r in curve},
                "loss": _traces(next((folder / "runs").glob(f"{variant}-seed{seed}-{curve[0].run[:8]}"))),
            }
    first = comparison.scores[0]
    # Curves of the smoke suite cross at a flat angle: a speedup moves by far more than an FID does.
    speedups = {s.recipe: value_of(s.estimate.point) for s in comparison.speedups or () if s.currency == "iterations"}
    return {"suite": first.suite, "suite_digest": first.suite_digest, "runs": runs, "speedup": speedups}


def _traces(run: Path) -> dict[str, dict[str, float]]:
    rows, _ = read_rows(run / "log.jsonl")
    return {
        name: {str(row["step"]): row[name] for row in rows if name in row}
        for name in TRACED
        if any(name in row for row in rows)
    }


def _leaves(node: Any, path: str = "") -> dict[str, float]:
    if not isinstance(node, dict):
        return {path: float(node)}
    return {k: v for key, child in node.items() for k, v in _leaves(child, f"{path}/{key}".strip("/")).items()}


def differences(accepted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What moved by more than its tolerance, in words; empty if nothing did."""
    if accepted["suite_digest"] != found["suite_digest"]:
        return ["the suite's specification changed: accept a new reference, with the reason"]
    ours, theirs = (_leaves({key: side[key] for key in ("runs", "speedup")}) for side in (found, accepted))
    out = [f"{key}: only on one side" for key in sorted(ours.keys() ^ theirs.keys())]
    for key in sorted(ours.keys() & theirs.keys()):
        kind = next(name for name in ("fid", "speedup", "loss") if f"/{name}/" in f"/{key}/")
        tolerance = TOLERANCES[kind]
        scale = max(abs(theirs[key]), SMALLEST_SCALE)
        if abs(ours[key] - theirs[key]) > tolerance * scale:
            out.append(f"{key}: {ours[key]:.6g}, accepted {theirs[key]:.6g} (tolerance {tolerance:g})")
    return out


def accept(
    runs: Annotated[Path, typer.Argument(help="A results folder.")],
    file: Annotated[Path, typer.Argument(help="The reference to write, baselines/reference/SUITE.json.")],
    reason: Annotated[str, typer.Option("--reason", help="Why the accepted numbers change.")],
) -> None:
    """Accept a results folder as the reference of its suite."""
    made = next(r for r in records_file.read(runs / records_file.FILE) if isinstance(r, ScoreRecord)).provenance
    body = {"reason": reason, "provenance": made.model_dump(mode="json"), **summarize(runs)}
    write_text(file, json.dumps(body, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    typer.run(accept)
