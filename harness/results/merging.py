"""Records of one folder or several as one set: what is there twice counts once, what contradicts is refused or said."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from harness.records import file
from harness.records.schema import AlignmentRecord, AnyRecord, FloorRecord, ScoreRecord, StageRecord, TokenizerRecord
from harness.results.run_folders import instead, name_of
from harness.sampling.protocol import difference
from recipes.core.errors import UserError

#: Relative tolerance for repeated measurements of the same weights.
SAME = 1e-6
#: Larger relative differences are contradictions.
NEAR = 1e-2
Measurement = TypeVar("Measurement", TokenizerRecord, FloorRecord, AlignmentRecord)


def read(folders: Sequence[Path]) -> list[tuple[Path, AnyRecord]]:
    """The records of some results folders, made here or elsewhere, each with its folder.

    Raises:
        UserError: a folder without scores.
    """
    found = []
    for folder in folders:
        records = list(file.read(folder / file.FILE))
        if not any(isinstance(r, ScoreRecord) and not r.search for r in records):
            raise UserError(f"{folder} holds no scores ({file.FILE}); {instead(folder)}.")
        found += [(folder, r) for r in records]
    return found


def refuse_mixtures(scores: Sequence[ScoreRecord]) -> None:
    """Refuse records of different suites or protocols.

    Raises:
        UserError: they are of two suites, or of two protocols under one name.
    """
    seen: dict[str, ScoreRecord] = {}
    for r in scores:
        first = seen.setdefault(r.protocol.name, r)
        if (first.suite_digest, first.protocol_digest) != (r.suite_digest, r.protocol_digest):
            told = difference(first.protocol, r.protocol)
            spelled = f" ({told})" if told else ""
            raise UserError(
                f"the folders' numbers under {r.protocol.label} are not comparable{spelled}: their suite or protocol "
                "digests "
                f"differ ({first.suite_digest[:8]}/{first.protocol_digest[:8]} and "
                f"{r.suite_digest[:8]}/{r.protocol_digest[:8]}); report them one by one."
            )
    suites = {(r.suite, r.suite_digest[:8]): None for r in scores}
    if len(suites) > 1:
        told = " and ".join(f"{name} ({digest})" for name, digest in suites)
        raise UserError(f"the records are of several suites, {told}: their numbers do not compare; report each alone.")


def latest_sources(records: Sequence[AnyRecord], *, scored: bool = True) -> dict[str, str]:
    """By variant, the version of its recipe's file that ran last, by the clock: records may be of several folders.

    Args:
        records: in any order.
        scored: only versions that have scores count.
    """
    known = {(r.variant, r.source) for r in records if isinstance(r, ScoreRecord) and not r.search}
    last: dict[tuple[str, str], str] = {}
    for r in records:
        if isinstance(r, ScoreRecord | StageRecord) and r.source is not None and r.variant is not None:
            key = r.variant, r.source
            if not scored or key in known:
                last[key] = max(last.get(key, ""), r.provenance.created)
    return {variant: source for (variant, source), _ in sorted(last.items(), key=lambda item: (item[1], item[0]))}


def of_latest_sources(
    found: Sequence[tuple[Path, AnyRecord]],
) -> tuple[list[tuple[Path, AnyRecord]], list[str]]:
    """Drop records of older recipe-file versions; returns (records, notes)."""
    records = [r for _, r in found]
    latest, newest = latest_sources(records), latest_sources(records, scored=False)
    old = {r.run: r for r in records if isinstance(r, ScoreRecord) and r.source not in (None, latest.get(r.variant))}
    told = [
        f"{variant}: there are runs of several versions of its file; shown is the one that ran last (SHA-256 "
        f"{latest[variant][:8]}), and {count} run(s) of others are left out"
        for variant, count in Counter(r.variant for r in old.values()).items()
    ]
    told += [
        f"{variant}: the version of its file that ran last (SHA-256 {source[:8]}) has no scores; shown is one before "
        f"it (SHA-256 {latest[variant][:8]})"
        for variant, source in newest.items()
        if latest.get(variant, source) != source
    ]
    return [(folder, r) for folder, r in found if getattr(r, "run", None) not in old], told


def refuse_two_specifications(scores: Sequence[tuple[Path, ScoreRecord]]) -> None:
    """One training seed of one recipe is one specification: of two, with another tokenizer say, no mean means anything.

    Raises:
        UserError: there are two; both runs are named.
    """
    seen: dict[tuple[str, int], tuple[Path, ScoreRecord]] = {}
    for folder, r in scores:
        first = seen.setdefault((r.variant, r.seed), (folder, r))
        if first[1].run != r.run:
            raise UserError(
                f"{r.variant}, seed {r.seed}, was trained by two specifications, as when its tokenizer was made again: "
                f"{name_of(first[1])} in {first[0]} and {name_of(r)} in {folder}. They are no two values of one seed; "
                f"`repa-bench runs remove {shlex.quote(str(folder))} {shlex.quote(str(name_of(r)))}` takes the second "
                "away, or give folders one by one."
            )


def trainings(scores: Sequence[tuple[Path, ScoreRecord]]) -> dict[tuple[str, str], str]:
    """Detect specifications trained more than once (different weights at the same step in different folders): (run,
    weights hash) -> training id.

    Raises:
        UserError: one folder holds two trainings of a run.
    """
    weights: dict[tuple[str, int], dict[str, Path]] = {}
    for folder, r in scores:
        weights.setdefault((r.run, r.step), {}).setdefault(r.weights_hash, folder)
    several: set[str] = set()
    for (run, step), found in weights.items():
        if len(set(found.values())) < len(found):
            raise UserError(
                f"{next(iter(found.values()))} holds run {run[:8]} with two weights at step {step}: it is two folders' "
                "records in one file; report the folders themselves."
            )
        several |= {run} if len(found) > 1 else set()
    return {
        (run, content): f"{run} in {folder}"
        for (run, _), found in weights.items()
        if run in several
        for content, folder in found.items()
    }


def _differs(first: Mapping[str, float], second: Mapping[str, float], most: float) -> str | None:
    """Name of the first value that differs by more than `most` (relative), or None."""
    both = [name for name in first if name in second]
    return next((n for n in both if not math.isclose(first[n], second[n], rel_tol=most, abs_tol=most)), None)


def _numbers(record: object) -> dict[str, float]:
    found = {name: value for name, value in record if isinstance(value, int | float)}  # type: ignore[attr-defined]
    if isinstance(record, AlignmentRecord):
        found |= {f"CKNNA after block {k}": value for k, value in enumerate(record.cknna, 1)}
    return found


def unique_scores(placed: Sequence[tuple[Path, ScoreRecord]]) -> tuple[tuple[ScoreRecord, ...], list[str]]:
    """Deduplicate scores (what was measured first counts, however folders are ordered); returns (scores, notes).

    Raises:
        UserError: two folders contradict each other.
    """
    kept: dict[tuple[object, ...], tuple[Path, ScoreRecord]] = {}
    odd: dict[tuple[Path, Path, str], ScoreRecord] = {}
    for folder, r in placed:
        key = (r.key(), r.weights_hash)
        pair = sorted((kept.setdefault(key, (folder, r)), (folder, r)), key=lambda one: one[1].provenance.created)
        (first_folder, first), (other_folder, other) = pair
        kept[key] = pair[0]
        ours, theirs = _numbers(first.metrics), _numbers(other.metrics)
        if (far := _differs(ours, theirs, NEAR)) is not None:
            raise UserError(
                f"{first_folder} and {other_folder} contradict each other: {r.variant}, seed {r.seed}, step {r.step}, "
                f"{r.protocol.label}, the same weights, have {far} {ours[far]:g} and {theirs[far]:g}. Take the wrong "
                "one's run away (`repa-bench runs remove`), or report the folders one by one."
            )
        if _differs(ours, theirs, SAME) is not None:
            odd.setdefault((first_folder, other_folder, "scores"), r)
        if not math.isclose(first.device_seconds, other.device_seconds, rel_tol=SAME):
            odd.setdefault((first_folder, other_folder, "seconds"), r)
    notes = [
        f"{what} of the same weights differ between {first} and {other} (as of {r.variant}, seed {r.seed}, step "
        f"{r.step}): those of {first}, measured first, count"
        for (first, other, what), r in odd.items()
    ]
    return tuple(r for _, r in kept.values()), notes


def unique(placed: Sequence[tuple[Path, Measurement]]) -> tuple[tuple[Measurement, ...], list[str]]:
    """Deduplicate other records; if they differ, keep both and add a note."""
    kept: dict[tuple[object, ...], list[tuple[Path, Measurement]]] = {}
    notes = []
    for folder, r in placed:
        others = kept.setdefault(r.key(), [])
        differing = [_differs(_numbers(other), _numbers(r), SAME) for _, other in others]
        if None in differing:
            continue
        for (place, other), name in zip(others[:1], differing, strict=False):
            assert name is not None
            what = " ".join(filter(None, (r.kind, getattr(r, "name", None), name_of(r))))
            notes.append(
                f"{what} has {name} {_numbers(other)[name]:g} in {place} and {_numbers(r)[name]:g} in {folder}: both "
                "stand here"
            )
        others.append((folder, r))
    return tuple(r for others in kept.values() for _, r in others), notes


def unique_stages(placed: Sequence[tuple[Path, AnyRecord]]) -> tuple[StageRecord, ...]:
    """Stages of all sessions: what a copy of a folder holds too counts once."""
    return tuple({r.key(): r for _, r in placed if isinstance(r, StageRecord)}.values())


def pictures(placed: Sequence[tuple[Path, AnyRecord]]) -> dict[str, Path]:
    """Folder of each picture: the first that names it."""
    roots: dict[str, Path] = {}
    for folder, r in placed:
        if isinstance(r, TokenizerRecord):
            roots.setdefault(r.components or r.grid, folder)
        if isinstance(r, TokenizerRecord) or (isinstance(r, ScoreRecord) and not r.search):
            roots.setdefault(r.grid, folder)
    return roots
