"""prepare, train, score, compare: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

import glob
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import metrics, records
from harness.assets import Store
from harness.doubts import of_numbers
from harness.drawing import GRID_COLUMNS, LABELS, Cell, draw, save_grid, write_npz
from harness.evaluate import METRICS, PAIRWISE, Rules, evaluate
from harness.features import FEATURES, LOGITS, outputs_of
from harness.latents import principal_images, spatial_variance, total_variation
from harness.locks import alone, held
from harness.measured import Measured, Shards
from harness.metrics import Moments
from harness.pace import pace_of
from harness.pairs import decoded, encoded
from harness.pixels import FLAT, HASH, of_a_set, rows_about
from harness.progress import Reporter
from harness.protocol import Protocol
from harness.records import FloorRecord, Metrics, RecordFile, ScoreRecord, StageRecord, TokenizerRecord
from harness.run_folders import set_aside
from harness.signals import deferred
from harness.suites.base import Budget, Judge, Prepared, Suite, Surroundings, draws_of
from harness.tokenizers import open_tokenizer
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import Execution, digest_of
from recipes.models.autoencoder import Autoencoder
from recipes.registry import recipe
from recipes.run import Run, Training, flops_per_step, import_notes, layout, load_for_sampling, train_run

RECONSTRUCTED = 2048
#: Metrics of a record, those that the feature network has.
RECORDED = ("fid", "sfid", "is", "precision", "recall")


@dataclass(frozen=True)
class Session:
    """One output folder, worked on by one command."""

    suite: Suite
    budget: Budget
    folder: Path
    store: Store
    reporter: Reporter
    world: World = field(default_factory=World)
    execution: Execution = field(default_factory=lambda: Execution(device="cpu"))
    data: str | None = None
    """Where the images lie, if the user said so."""
    keep_samples: bool = False
    """Whether scored samples stay, as .npz files in ADM's form."""
    seeds: tuple[int, ...] = ()
    """Training seeds of the grid."""

    @property
    def assets(self) -> Store:
        """The part of the cache that is the suite's."""
        return self.suite.place(self.store)

    @property
    def records(self) -> RecordFile:
        """The results so far."""
        return RecordFile(self.folder)

    def common(self) -> dict[str, Any]:
        """The fields that every record of the suite shares."""
        return {
            "suite": self.suite.name,
            "suite_digest": self.suite.identity(),
            "notice": self.suite.notice,
            "provenance": records.provenance(),
        }

    def refuse_foreign_records(self) -> None:
        """Results of another specification must not land in one file.

        Raises:
            UserError: the folder holds some.
        """
        mine = self.suite.identity()
        for record in self.records.all():
            if record.suite_digest != mine:
                raise UserError(
                    f"{self.folder} holds results of another specification of suite {record.suite} "
                    f"(digest {record.suite_digest[:8]}, not {mine[:8]}); choose another --out."
                )

    def remark(self, text: str, arm: str | None = None, seed: int | None = None) -> None:
        """Say, and keep among the records, that something had to be mended. Of the main process."""
        self.reporter.say(text, "yellow")
        peak = records.peak_memory_bytes()
        self.records.append(
            StageRecord(
                **self.common(),
                stage=records.REMARK,
                arm=arm,
                seed=seed,
                seconds=0.0,
                peak_memory_bytes=peak,
                remarks=[text],
            )
        )

    def mend_records(self) -> None:
        """Put damaged records aside, so that they are measured again, and what other settings had only prepared. Nobody
        reads them before that is done.
        """
        if self.world.main:
            for told in [*self.records.mend(), *set_aside(self.folder, self.suite.identity())]:
                self.remark(told)
        self.world.barrier()

    @contextmanager
    def costed(self, stage: str, arm: str | None = None, seed: int | None = None) -> Iterator[dict[str, float]]:
        """Record what a stage cost; facts put into the yielded dictionary are kept beside it."""
        began, facts = time.perf_counter(), dict[str, float]()
        yield facts
        if not self.world.main:
            return
        self.records.append(
            StageRecord(
                **self.common(),
                stage=stage,
                arm=arm,
                seed=seed,
                seconds=time.perf_counter() - began,
                peak_memory_bytes=records.peak_memory_bytes(),
                facts=facts,
            )
        )


def prepare(session: Session, arms: Sequence[str]) -> Prepared:
    """Find or make every asset that the arms need.

    Raises:
        UserError: the folder holds results of another specification, or an asset is missing.
    """
    session.mend_records()
    session.refuse_foreign_records()
    around = Surroundings(session.store, _TimedReporter(session), session.world, session.execution, session.data)
    with threads_of(session):
        return session.suite.prepare(around, arms)


def examine(session: Session, prepared: Prepared, arms: Sequence[str]) -> None:
    """Measure the tokenizers and the noise floor, and check the gate. Only where there is something to judge by.

    Raises:
        UserError: a tokenizer's own rFID is over the suite's gate.
    """
    if prepared.judge is None or not session.world.main:
        return
    done = session.records.keys()
    names = {name for arm in arms if (name := prepared.tokenizer_of(arm)) is not None}
    with threads_of(session):
        for name in sorted(names):
            if ("tokenizer", name, None, None) not in done:
                session.records.append(_measure_tokenizer(session, prepared, name, prepared.tokenizers[name]))
        _measure_floor(session, prepared, done)
    for before in session.records.all():
        if isinstance(before, TokenizerRecord) and before.run is None and before.rfid > session.suite.max_rfid:
            raise UserError(
                f"the rFID of {before.name} is {before.rfid:.2f}, over the gate of {session.suite.max_rfid:g}: FID "
                "would measure the tokenizer, not the recipes. Train it longer (--set tokenizer.training.steps=...)."
            )


class _TimedReporter(Reporter):
    """Records the cost of every stage that the suite's preparation reports."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.reporter.console, quiet=session.reporter.quiet)
        self._session = session

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Any]:
        """See `Reporter.stage`."""
        with self._session.costed(f"prepare {label}"), super().stage(label, total, start) as on_step:
            yield on_step


def open_run(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """The run of an arm and a seed, started or not."""
    spec = session.suite.run_spec(arm, seed, prepared.hashes)
    return Run(spec, session.folder / "runs" / spec.name)


@contextmanager
def threads_of(session: Session) -> Iterator[None]:
    """Compute on the CPU with the suite's number of threads, from which its numbers' last bits depend, for a while."""
    before, wanted = torch.get_num_threads(), session.suite.threads
    if wanted is not None and session.world.device.type == "cpu" and session.world.size == 1:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """Train a run to the budget, or find that it is."""
    run = open_run(session, prepared, arm, seed)
    milestones = session.budget.milestones()
    with held(run.folder, on=session.world.main), threads_of(session):
        _mend_run(session, prepared, run)
        if not set(milestones) <= set(run.steps()):
            _train(session, prepared, run)
    return run


def _mend_run(session: Session, prepared: Prepared, run: Run) -> None:
    """Set aside damaged checkpoints that training or scoring still needs; all processes then see the same ones."""
    if session.world.main:
        for told in run.mend(needed(session, prepared, run)):
            session.remark(f"{run.spec.name}: {told}", run.spec.arm, run.spec.train.seed)
        run.prune(session.execution.keep)
    session.world.barrier()


def needed(session: Session, prepared: Prepared, run: Run) -> list[int]:
    """Checkpoints that are missing, or that something still has to be measured of."""
    milestones, kept, done = session.budget.milestones(), run.steps(), session.records.keys()
    found = [step for step in milestones if step not in kept]
    if prepared.judge is not None:
        cells = cells_of(session, prepared, run)
        found += [cell.step for cell in cells if score_key(cell, prepared, False) not in done]
        if _tokenizer_key(session, prepared, run) not in (None, *done):
            found.append(milestones[-1])
    return sorted(set(found))


def _tokenizer_key(session: Session, prepared: Prepared, run: Run) -> tuple[object, ...] | None:
    """Of the record of the tokenizer that a run ends with, if it trains one."""
    if not recipe(run.spec.recipe).trains_tokenizer:
        return None
    named = prepared.tokenizer_of(run.spec.arm) or "from scratch"
    return ("tokenizer", named, run.spec.digest(), session.budget.milestones()[-1])


def _train(session: Session, prepared: Prepared, run: Run) -> None:
    arm, seed, milestones = run.spec.arm, run.spec.train.seed, session.budget.milestones()
    label = f"train {_title(session, run)}"
    began = run.resumable() or 0
    spread = layout(run.spec, session.execution, session.world)
    if session.execution.device != "cpu" or session.world.size > 1 or spread.accumulation > 1:
        session.reporter.say(f"  batch {spread}, {run.spec.train.precision}, {session.world.device.type}")
    with (
        deferred() as stop,
        session.costed("train", arm, seed) as facts,
        session.reporter.stage(label, milestones[-1], began) as on_step,
    ):
        training = Training(session.execution, session.world, on_step=on_step, stop=stop)
        train_run(run, prepared.inputs(arm), milestones, training)
        facts["from_step"], facts["to_step"] = began, milestones[-1]
        clock = run.clock(milestones[-1])
        facts["train_seconds"] = clock["seconds"]
    if clock.get("left_out"):
        session.reporter.say(f"{run.spec.name}: {_left_out(clock['left_out'])}", "yellow")


def cells_of(session: Session, prepared: Prepared, run: Run) -> list[Cell]:
    """Every sample set of a run that is scored; see `draws_of`."""
    first = not session.seeds or run.spec.train.seed == session.seeds[0]
    tokenizer = prepared.tokenizer(run.spec.arm)
    draws = draws_of(session.suite, session.budget, first=first)
    return [Cell(run, step, protocol, seed, tokenizer) for step, protocol, seed in draws]


def score(session: Session, prepared: Prepared, run: Run) -> None:
    """Score what is not scored yet."""
    score_cells(session, prepared, cells_of(session, prepared, run), f"score {_title(session, run)}")
    key, last, done = _tokenizer_key(session, prepared, run), session.budget.milestones()[-1], session.records.keys()
    if key is not None and key not in done and session.world.main:
        named = prepared.tokenizer_of(run.spec.arm) or "from scratch"
        _, tokenizer = load_for_sampling(run, last, None, average=True, device=session.world.device)
        with threads_of(session):
            session.records.append(_measure_tokenizer(session, prepared, named, tokenizer, run, last))


def _title(session: Session, run: Run) -> str:
    return f"{session.suite.arms[run.spec.arm].label}, seed {run.spec.train.seed}"


def score_cells(
    session: Session, prepared: Prepared, cells: Sequence[Cell], label: str, *, search: bool = False
) -> None:
    """Draw, judge and record those of one run's cells that have no record yet; `search` marks settings tried out."""
    session.world.barrier()  # nobody writes a record while the others look which are missing
    done = session.records.keys()
    session.world.barrier()
    missing = [cell for cell in cells if score_key(cell, prepared, search) not in done]
    if session.world.main:
        _clear_leftovers(session, [cell for cell in cells if cell not in missing])
    if not missing:
        return
    run, finished = missing[0].run, 0
    flops = flops_per_step(run.spec, session.suite.image_size)
    with (
        held(run.folder, on=session.world.main),
        threads_of(session),
        session.costed("search" if search else "score", run.spec.arm, run.spec.train.seed),
        session.reporter.stage(label, sum(cell.protocol.samples for cell in missing)) as on_step,
    ):
        for cell in missing:
            on_sample = _offset(on_step, finished)
            judged = draw_and_judge(session, prepared, cell, on_sample, keep=session.keep_samples and not search)
            if judged.metrics is not None:
                session.records.append(_score_record(session, prepared, cell, flops, judged, search))
                judged.shards.clear()
            finished += cell.protocol.samples


def _clear_leftovers(session: Session, scored: Sequence[Cell]) -> None:
    """Shards of cells whose record is there: their process was killed before it cleared them."""
    for cell in scored:
        # a protocol's name may hold what is a pattern to glob, such as [0,0.7]
        for folder in (session.folder / "shards").glob(f"{glob.escape(f'{cell.run.folder.name}-{cell.name}')}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _offset(on_step: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda more: on_step(done + more)


def _protocol_assets(prepared: Prepared) -> dict[str, str]:
    return {name: prepared.hashes[name] for name in ("features", "reference")}


def _protocol_digest(protocol: Protocol, prepared: Prepared) -> str:
    return protocol.digest_with(_protocol_assets(prepared))


def score_key(cell: Cell, prepared: Prepared, search: bool) -> tuple[object, ...]:
    """Of the record that a cell gets."""
    digest = _protocol_digest(cell.protocol, prepared)
    return ScoreRecord.key_of(cell.run.spec.digest(), cell.step, digest, cell.generation_seed, search)


def open_trained(session: Session, arm: str, seed: int) -> tuple[Run, Autoencoder | None]:
    """A trained run of the suite, and the tokenizer that it started from.

    Raises:
        UserError: it has no checkpoint.
    """
    prepared = prepare(session, [arm])
    run = open_run(session, prepared, arm, seed)
    if not run.steps():
        raise UserError(f"{run.folder} has no checkpoint; train it: repa-bench train --recipes {arm} --seeds {seed}.")
    return run, prepared.tokenizer(arm)


def open_imported(
    session: Session,
    folder: Path,
    tokenizer: str | None,
    step: int | None,
    protocol: Protocol,
    generation_seed: int = 0,
) -> Cell:
    """A checkpoint of a run's folder, wherever it was made, with a tokenizer of the catalogue if one is named.

    Raises:
        UserError: the folder is not a run, has no such checkpoint, or the tokenizer is not on this machine.
    """
    run = Run.open(folder)
    chosen = checkpoint_of(run, step)
    if tokenizer is None:
        return Cell(run, chosen, protocol, generation_seed)
    network, content = open_tokenizer(session.assets, tokenizer)
    return Cell(run, chosen, protocol, generation_seed, network, content)


def notes_of(cell: Cell) -> list[str]:
    """What whoever reads an imported checkpoint's numbers should know of its file and its tokenizer's."""
    return [*import_notes(cell.run, cell.step), *(cell.tokenizer.notes if cell.tokenizer is not None else ())]


def checkpoint_of(run: Run, step: int | None) -> int:
    """The step that was asked for, or the last.

    Raises:
        UserError: there is no such checkpoint.
    """
    kept = run.steps()
    if not kept:
        raise UserError(f"{run.folder} has no checkpoint.")
    if step is not None and step not in kept:
        raise UserError(f"--step {step}: {run.folder} keeps {', '.join(map(str, kept))}.")
    return step if step is not None else kept[-1]


@dataclass(frozen=True)
class Judged:
    """A sample set that was drawn and measured."""

    metrics: Metrics | None
    """In the main process."""
    count: int
    seconds: float
    """Of drawing."""
    grid: Path
    kept: Path | None
    """The .npz of the samples, if they were to be kept."""
    shards: Shards
    """What the network said, until the result is kept."""
    more: dict[str, float] = field(default_factory=dict)
    """Metrics that were asked for besides."""
    dubious: list[str] = field(default_factory=list)
    """What is odd about the samples."""
    few: list[str] = field(default_factory=list)
    """What their number, which the protocol says, is too small for."""


def draw_and_judge(
    session: Session,
    prepared: Prepared,
    cell: Cell,
    on_sample: Callable[[int], None],
    *,
    more: Sequence[str] = (),
    keep: bool = False,
) -> Judged:
    """Draw a cell's samples in shards, keep a grid of the first, and measure them.

    Who has kept the result clears the shards, so that a process killed in between draws nothing again.
    """
    judge = prepared.require_judge().seeing(
        [METRICS[name].output for name in more], session.assets, session.world.device
    )
    began, world, network = time.perf_counter(), session.world, judge.network
    place = session.folder / "samples" / cell.run.folder.name / cell.name
    key = digest_of([cell.key, network.content, network.convention, keep])[:12]
    shards = Shards(session.folder / "shards" / f"{cell.run.folder.name}-{cell.name}-{key}", cell.protocol.samples)
    grid, kept = Path(f"{place}.png"), Path(f"{place}.npz") if keep else None
    drawn = draw(
        cell, shards, network, world=world, chunk=session.suite.chunk, keep=keep, grid=grid, on_sample=on_sample
    )
    seconds = time.perf_counter() - began
    for told in shards.mended:
        session.remark(told, cell.run.spec.arm, cell.run.spec.train.seed)
    if drawn is None:
        return Judged(None, cell.protocol.samples, seconds, grid, kept, shards)
    found = _metrics(drawn, judge, cell.protocol, session.suite.knows_labels, world.device)
    rules = _rules(cell.protocol)
    extra = evaluate(more, real=judge.reference, fake=drawn, rules=rules, device=world.device)
    if kept is not None:
        write_npz(kept, shards.images(), drawn.rows, torch.as_tensor(drawn.points(LABELS)))
    dubious = of_a_set(about, "samples") if (about := drawn.rows_of(HASH, FLAT)) else []
    few = of_numbers([*_recorded(drawn), *more], judge.reference, drawn, rules)
    return Judged(found, drawn.rows, seconds, grid, kept, shards, extra, dubious, few)


def _score_record(
    session: Session, prepared: Prepared, cell: Cell, flops: int, judged: Judged, search: bool
) -> ScoreRecord:
    """Of a judged cell; `flops` is the cost of one training step."""
    assert judged.metrics is not None
    spec, clock, arm = cell.run.spec, cell.run.clock(cell.step), session.suite.arms[cell.run.spec.arm]
    pace = pace_of(cell.run, cell.step)
    return ScoreRecord(
        **session.common(),
        arm=spec.arm,
        label=arm.label,
        about=arm.about,
        recipe=spec.recipe,
        seed=spec.train.seed,
        run=spec.digest(),
        remarks=[
            *_remarks(cell.run, cell.step),
            *pace.remarks,
            *(f"at step {cell.step} under {cell.protocol.label}, {told}" for told in judged.dubious),
        ],
        weights_hash=cell.run.weights_hash(cell.step),
        step=cell.step,
        images=cell.step * spec.train.batch_size,
        flops=cell.step * flops,
        train_seconds=clock["seconds"],
        device_seconds=clock["device_seconds"],
        step_seconds=pace.step_seconds,
        step_seconds_from=pace.source,
        protocol=cell.protocol,
        protocol_digest=_protocol_digest(cell.protocol, prepared),
        generation_seed=cell.generation_seed,
        search=search,
        metrics=judged.metrics,
        n_fake=judged.count,
        n_real=prepared.require_judge().reference.count or 0,
        nfe=cell.protocol.nfe,
        sample_seconds=judged.seconds,
        assets=_protocol_assets(prepared),
        grid=str(judged.grid.relative_to(session.folder)),
        samples=None if judged.kept is None else str(judged.kept.relative_to(session.folder)),
    )


def _remarks(run: Run, step: int) -> list[str]:
    left_out = run.clock(step).get("left_out")
    return run.remarks() + ([_left_out(left_out)] if left_out else [])


def _left_out(counts: Mapping[str, int]) -> str:
    told = ", ".join(f"{network} {count}" for network, count in counts.items())
    return f"updates that were not finite and left out: {told}"


def score_imported(
    session: Session,
    folder: Path,
    tokenizer: str | None,
    step: int | None,
    protocols: Sequence[Protocol],
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge a run's folder, wherever it was made. Writes no record: what the run cost is not known here.

    Args:
        session: with the suite whose metric and reference judge it.
        folder: the run.
        tokenizer: an asset, where the run holds none.
        step: which checkpoint; the last by default.
        protocols: how.
        more: metrics besides those of a record.

    Raises:
        UserError: the folder is not a run, or something is missing.
    """
    if pairwise := [name for name in more if name in PAIRWISE]:
        raise UserError(
            f"--metrics {pairwise[0]} compares images with their originals, and samples of a run have none."
        )
    cells = [open_imported(session, folder, tokenizer, step, protocol) for protocol in protocols]
    prepared = prepare(session, [])
    judge = prepared.require_judge()
    out: dict[str, Any] = {"run": str(folder), "recipe": cells[0].run.spec.recipe, "step": cells[0].step}
    out["warnings"] = notes_of(cells[0])
    for cell in cells:
        lock = session.folder / "shards" / f".{folder.name}-{cell.name}.lock"
        with (
            alone(lock, on=session.world.main),  # another command may score the same
            threads_of(session),
            session.reporter.stage(f"score {folder.name}", cell.protocol.samples) as on_sample,
        ):
            session.world.barrier()
            judged = draw_and_judge(session, prepared, cell, on_sample, more=more, keep=session.keep_samples)
            if judged.metrics is None:
                continue
            judged.shards.clear()
        out[cell.protocol.label] = {
            **judged.metrics.model_dump(exclude_none=True),
            **judged.more,
            "n_fake": judged.count,
            "n_real": judge.reference.count or 0,
            "protocol_digest": _protocol_digest(cell.protocol, prepared),
            "assets": _protocol_assets(prepared),
            "warnings": judged.dubious + judged.few,
            **({"samples": str(judged.kept)} if judged.kept else {}),
        }
    return out


def _rules(protocol: Protocol) -> Rules:
    return Rules(neighbours=protocol.neighbours, manifold_size=protocol.manifold_size)


def _recorded(fake: Measured) -> list[str]:
    return [name for name in RECORDED if fake.has(METRICS[name].output)]


def _metrics(fake: Measured, judge: Judge, protocol: Protocol, knows_labels: bool, device: torch.device) -> Metrics:
    if fake.rows != protocol.samples:
        raise ValueError(f"{fake.rows} samples were scored, the protocol says {protocol.samples}")
    rules = _rules(protocol)
    found = evaluate(_recorded(fake), real=judge.reference, fake=fake, rules=rules, device=device)
    accuracy = None
    if knows_labels:
        guessed = torch.as_tensor(fake.points(LOGITS)).argmax(1)
        accuracy = (guessed == torch.as_tensor(fake.points(LABELS))).double().mean().item()
    return Metrics(
        fid=found["fid"],
        sfid=found.get("sfid"),
        inception_score=found["is"],
        inception_score_se=found["is_se"],
        precision=found["precision"],
        recall=found["recall"],
        accuracy=accuracy,
    )


def _measure_tokenizer(
    session: Session,
    prepared: Prepared,
    name: str,
    tokenizer: Autoencoder,
    run: Run | None = None,
    step: int | None = None,
) -> TokenizerRecord:
    """Reconstruct reference images from their posterior means; rFID is against the whole reference."""
    judge = prepared.require_judge()
    originals = judge.reference_images[:RECONSTRUCTED]
    tokenizer = tokenizer.to(session.world.device)
    latents, rebuilt = [], []
    for first in range(0, len(originals), session.suite.chunk):
        mean = encoded(tokenizer, originals[first : first + session.suite.chunk], first)
        latents.append(mean.cpu())
        rebuilt.append(decoded(tokenizer, mean, first))
    latent, images = torch.cat(latents), torch.cat(rebuilt)
    for told in of_a_set(rows_about(images), f"reconstructions by {name if run is None else run.spec.name}"):
        session.remark(told, run.spec.arm if run else None, run.spec.train.seed if run else None)
    grid = f"reconstructions/{name if run is None else run.spec.name}-{step or 0:07d}.png"
    save_grid(session.folder / grid, torch.cat((originals[:GRID_COLUMNS], images[:GRID_COLUMNS])), GRID_COLUMNS)
    components = grid.replace(".png", "-latents.png")
    shown = principal_images(latent, session.suite.image_size)[:GRID_COLUMNS]
    save_grid(session.folder / components, shown, GRID_COLUMNS)
    fake = Measured([outputs_of(images.split(session.suite.chunk), judge.network)])
    pairs = list(zip(images.split(session.suite.chunk), originals.split(session.suite.chunk), strict=True))
    distances = [judge.lpips(a, b).cpu() for a, b in pairs] if judge.lpips else None
    return TokenizerRecord(
        **session.common(),
        name=name,
        arm=run.spec.arm if run else None,
        seed=run.spec.train.seed if run else None,
        run=run.spec.digest() if run else None,
        step=step,
        rfid=metrics.frechet_distance(real=judge.reference.moments(FEATURES), fake=fake.moments(FEATURES)),
        psnr=float(torch.cat([metrics.psnr_each(a, b) for a, b in pairs]).mean()),
        ssim=float(torch.cat([metrics.ssim_each(a, b) for a, b in pairs]).double().mean()),
        lpips=None if distances is None else float(torch.cat(distances).double().mean()),
        latent_variance=float(latent.double().var(dim=(0, 2, 3)).mean()),
        effective_rank=metrics.effective_rank(latent),
        spatial_variance=spatial_variance(latent) if latent[0, 0].numel() > 1 else None,
        total_variation=total_variation(latent),
        n=len(originals),
        grid=grid,
        components=components,
    )


def _measure_floor(session: Session, prepared: Prepared, done: set[tuple[object, ...]]) -> None:
    """FID between real images: disjoint halves of the reference's, and as many training images as a protocol draws
    samples, judged as these are.
    """
    judge = prepared.require_judge()
    features = torch.as_tensor(judge.reference.points(FEATURES))
    half, n = len(features) // 2, min(session.suite.curve_protocol.samples, len(judge.training_images))

    def fresh() -> Moments:
        return Moments.of(outputs_of(judge.training_images[:n].split(session.suite.chunk), judge.network)[FEATURES])

    pairs: dict[str, Callable[[], tuple[Moments, Moments]]] = {
        f"{n} training images, as many as samples are drawn": lambda: (judge.reference.moments(FEATURES), fresh()),
        "two disjoint halves of the reference": lambda: (Moments.of(features[:half]), Moments.of(features[half:])),
    }
    for name, make in pairs.items():
        if ("floor", name) in done:
            continue
        real, fake = make()
        fid = metrics.frechet_distance(real=real, fake=fake)
        session.records.append(
            FloorRecord(**session.common(), name=name, fid=fid, n_fake=fake.count, n_real=real.count)
        )


#: (arm, training seed) of each run.
Grid = Sequence[tuple[str, int]]
#: How the runs of a grid are trained, and scored if that is wanted: see `in_turn` and `harness.parallel`.
Work = Callable[[Session, Prepared, Grid, bool], None]


def in_turn(session: Session, prepared: Prepared, grid: Grid, scored: bool) -> None:
    """One run after the other, in this process; under torchrun, all processes share each."""
    for arm, seed in grid:
        run = train(session, prepared, arm, seed)
        if scored:
            score(session, prepared, run)


def grid_of(arms: Sequence[str], seeds: Sequence[int]) -> Grid:
    """Every arm with every seed, seed by seed."""
    return [(arm, seed) for seed in seeds for arm in arms]


def run_suite(session: Session, arms: Sequence[str], seeds: Sequence[int], work: Work = in_turn) -> None:
    """Prepare, then train and score every arm with every seed."""
    prepared = prepare(session, arms)
    prepared.require_judge()
    examine(session, prepared, arms)
    work(session, prepared, grid_of(arms, seeds), True)
