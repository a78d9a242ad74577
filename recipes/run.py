"""One training run: a specification and data in, checkpoints out. The same call resumes it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from recipes.core import checkpoint
from recipes.core.data import Batch, TrainingData, batches, order
from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws, seed_of
from recipes.core.errors import DamagedError, Diverged, Stopped, UserError
from recipes.core.jsons import load_json
from recipes.core.loop import Trainer, subset
from recipes.core.rows import append_row, left_out, read_rows, row_text
from recipes.core.spec import Execution, Spec, TrainSpec
from recipes.core.watchdog import EXPLODED, Finding
from recipes.models import discriminator as gan
from recipes.models import sit as transformer
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.encoder import Encoder, EncoderSpec
from recipes.models.perceptual import InputRange, Perceptual
from recipes.networks import Networks
from recipes.registry import recipe, recipe_options

WEIGHTS, OPTIMIZER = "weights", "optimizer"


class RunSpec(Spec):
    """Everything that decides a run's weights at every step. The budget is not in it: more steps extend it."""

    suite: str
    arm: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,79}$")]
    """Its name in tables and of its folder: a recipe, or a recipe with changed options."""
    recipe: str
    options: dict[str, JsonValue]
    sit: transformer.SiTSpec
    tokenizer: AutoencoderSpec
    discriminator: gan.DiscriminatorSpec = gan.DiscriminatorSpec()
    encoders: tuple[EncoderSpec, ...] = ()
    """Frozen encoders that look at every batch; none where their tokens are stored with the data."""
    perceptual: InputRange | None = None
    """Which input range LPIPS is given; none without LPIPS."""
    train: TrainSpec
    inputs: dict[str, str]
    """Content hash of every asset that the run trains on."""

    @property
    def name(self) -> str:
        """A folder name that tells a person what it is and cannot clash."""
        return f"{self.arm}-seed{self.train.seed}-{self.digest()[:8]}"


@dataclass(frozen=True)
class TrainingInputs:
    """What a run is given besides its specification."""

    data: TrainingData
    """The whole training set."""
    tokenizer: Autoencoder | None
    """None: joint training starts from a tokenizer with random weights."""
    latent_mean: Tensor
    """(C,), of the tokenizer's latents over the training set."""
    latent_std: Tensor
    encoders: tuple[nn.Module, ...] = ()
    """uint8 images (N, 3, H, W) to tokens (N, T, width): one for each of the specification's."""
    perceptual: nn.Module | None = None
    discriminator: gan.PatchDiscriminator | None = None
    """Trained already; None: random weights."""


def build_networks(
    spec: RunSpec,
    tokenizer: Autoencoder | None = None,
    *,
    discriminator: gan.PatchDiscriminator | None = None,
    perceptual: nn.Module | None = None,
) -> Networks:
    """Freshly initialised networks; those that are given are copied in."""
    kind = recipe(spec.recipe)
    options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")
    sit = transformer.SiT(spec.sit)
    transformer.initialize(sit, spec.train.seed)
    if not kind.trains_tokenizer:
        return Networks(sit=sit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(spec.train.seed, "init", "tokenizer"))
        vae = Autoencoder(spec.tokenizer)
    if tokenizer is not None:
        vae.load_state_dict(tokenizer.state_dict())
    adversary = None
    if getattr(options, "gan", 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(spec.train.seed, "init", "discriminator"))
            adversary = gan.PatchDiscriminator(spec.discriminator)
            gan.initialize(adversary)
        if discriminator is not None:
            adversary.load_state_dict(discriminator.state_dict())
    return Networks(sit=sit, vae=vae, discriminator=adversary, perceptual=perceptual)


def build_trainer(
    spec: RunSpec, inputs: TrainingInputs, *, execution: Execution | None = None, world: World | None = None
) -> Trainer:
    """A trainer at step 0, its networks on the device and compiled if that is asked for."""
    execution, world = execution or Execution(device="cpu"), world or World()
    networks = build_networks(spec, inputs.tokenizer, discriminator=inputs.discriminator, perceptual=inputs.perceptual)
    networks.sit.set_latent_statistics(inputs.latent_mean, inputs.latent_std)
    networks.sit.checkpointing = execution.checkpointing
    encoders = [encoder.to(world.device) for encoder in inputs.encoders]
    _arrange(networks, world.device)
    options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")

    def complete(batch: Batch) -> Batch:
        if batch.features or not encoders:
            return batch
        return replace(batch, features=tuple(encoder(batch.images) for encoder in encoders))

    trainer = Trainer(
        recipe(spec.recipe)(networks, options),
        spec.train,
        world=world,
        part=layout(spec, execution, world).part,
        complete=complete,
    )
    if execution.compile:
        _compile(networks, encoders)
    return trainer


def _arrange(networks: Networks, device: torch.device) -> None:
    networks.sit.to(device)
    for network in (networks.vae, networks.discriminator, networks.perceptual):
        if network is not None:
            network.to(device)
            if device.type == "cuda":  # what its convolutions want
                network.to(memory_format=torch.channels_last)


def _compile(networks: Networks, encoders: Sequence[nn.Module]) -> None:
    """Compile the hot regions in place; state-dict names stay. The blocks share one compiled graph."""
    for block in networks.sit.blocks:
        block.compile()
    networks.sit.final_layer.compile()
    whole: list[nn.Module | None] = [networks.discriminator, networks.perceptual, *encoders]
    if isinstance(networks.vae, Autoencoder):
        whole += [networks.vae.kl.encoder, networks.vae.kl.decoder]
    for network in whole:
        if network is not None:
            network.compile()


@dataclass(frozen=True)
class Layout:
    """How a global batch is spread."""

    batch_size: int
    processes: int
    part: int
    device: str

    @property
    def accumulation(self) -> int:
        """Parts that a process runs one after the other."""
        return self.batch_size // (self.processes * self.part)

    def __str__(self) -> str:
        """As in ``256 = 8 GPUs x 32 x 1``."""
        unit = "GPU" if self.device == "cuda" else "process"
        units = unit if self.processes == 1 else {"GPU": "GPUs", "process": "processes"}[unit]
        return f"{self.batch_size} = {self.processes} {units} x {self.part} x {self.accumulation}"


def layout(spec: RunSpec, execution: Execution, world: World) -> Layout:
    """Spread the global batch over processes and parts.

    Raises:
        UserError: it does not divide, or accumulation would change what a batch norm sees without saying so.
    """
    total = spec.train.batch_size
    if total % world.size:
        raise UserError(
            f"the global batch of {total} does not divide by {world.size} processes; start a number that divides it."
        )
    local = total // world.size
    most = min(local, execution.part or local)
    part = next(n for n in range(most, 0, -1) if local % n == 0)
    found = Layout(total, world.size, part, world.device.type)
    pooled = part * world.size
    if getattr(recipe_options(spec.recipe, spec.options, where=spec.arm), "gan", 0) and pooled != (
        spec.train.norm_batch or total
    ):
        raise UserError(
            f"with --part {part} the discriminator's batch norm would pool {pooled} images and not "
            f"{spec.train.norm_batch or total}, which is another training; use more GPUs or --checkpointing, or accept "
            f"it with --set norm_batch={pooled} (results go to a folder of their own)."
        )
    return found


def flops_per_step(spec: RunSpec, image_size: int) -> int:
    """Floating-point operations of one training step, forward and backward, a multiply-add counted as two.

    Counted by PyTorch's `FlopCounterMode` (matrix products, convolutions, attention) on meta tensors, so any size
    costs nothing. Frozen encoders and LPIPS are in it; optimizers and elementwise work are not.
    """
    # Two images stand for all: every counted operation is proportional to the batch.
    train = spec.train.model_copy(update={"batch_size": 2, "seed": 0})
    two = spec.model_copy(update={"train": train, "inputs": {}})
    return _flops_of(two.model_dump_json(), image_size) * spec.train.batch_size // 2


@lru_cache
def _flops_of(spec_json: str, image_size: int) -> int:
    """See `flops_per_step`; of a whole batch, counted once for all seeds."""
    spec = RunSpec.model_validate_json(spec_json)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks = build_networks(spec, perceptual=Perceptual(input_range=spec.perceptual) if spec.perceptual else None)
        options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")
        batch = meta_batch(spec, image_size)
        draws = KeyedDraws(0, 0, torch.arange(spec.train.batch_size))
        for update in recipe(spec.recipe)(networks, options).updates(batch, draws):
            update.loss.backward()
    return int(counter.get_total_flops())


def meta_batch(spec: RunSpec, image_size: int) -> Batch:
    """A batch of the specification's shapes on the default device, seen by its frozen encoders."""
    n, side, channels = spec.train.batch_size, spec.sit.latent_size, spec.sit.channels
    images = torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8)
    with torch.no_grad():
        seen = tuple(Encoder(encoder)(images) for encoder in spec.encoders)
    stored = tuple(torch.zeros(n, spec.sit.tokens, width) for width in spec.sit.encoder_widths)
    return Batch(
        images=images,
        labels=torch.zeros(n, dtype=torch.int64),
        features=seen or stored,
        mean=torch.zeros(n, channels, side, side),
        std=torch.zeros(n, channels, side, side),
    )


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    spec: RunSpec
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run that was started or imported.

        Raises:
            UserError: the folder holds no readable specification.
        """
        try:
            data = load_json((folder / "spec.json").read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is not a run: its spec.json cannot be read ({error}).") from None
        return cls(RunSpec.parse(data, where=str(folder / "spec.json")), folder)

    @property
    def log_path(self) -> Path:
        """One JSON object for each logged step."""
        return self.folder / "log.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / "checkpoints" / f"{step:07d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order."""
        found = [p.name for p in (self.folder / "checkpoints").glob("*") if p.is_dir()]
        return sorted(int(name) for name in found if re.fullmatch("[0-9]+", name))

    def resumable(self, up_to: int | None = None) -> int | None:
        """The last step that holds optimizer state, of those up to one."""
        kept = [s for s in self.steps() if self._has_state(s)]
        return max((s for s in kept if up_to is None or s <= up_to), default=None)

    def _has_state(self, step: int) -> bool:
        if not (self.checkpoint(step) / f"{OPTIMIZER}.safetensors").exists():
            return False
        try:
            return checkpoint.hash_of_part(self.checkpoint(step), OPTIMIZER) is not None
        except DamagedError:  # `mend` looks closer
            return True

    def clock(self, step: int) -> dict[str, Any]:
        """``step``, ``seconds`` and ``device_seconds`` of training at a checkpoint.

        Raises:
            DamagedError: the checkpoint is another step's or another run's.
        """
        meta, folder = checkpoint.read_manifest(self.checkpoint(step)), self.checkpoint(step)
        if meta.get("step") != step:
            raise DamagedError(f"{folder} holds the checkpoint of step {meta.get('step')}. Remove it and run again.")
        if meta.get("run", self.spec.digest()) != self.spec.digest():
            raise DamagedError(f"{folder} holds a checkpoint of another run. Remove it and run again.")
        return meta

    def weights(self, step: int) -> dict[str, Tensor]:
        """``NETWORK.KEY`` and ``ema.NETWORK.KEY`` at a checkpoint.

        Raises:
            DamagedError: see `clock` and `checkpoint.load_part`.
        """
        self.clock(step)
        return checkpoint.load_part(self.checkpoint(step), WEIGHTS)

    def weights_hash(self, step: int) -> str:
        """SHA-256 of the weights of a checkpoint."""
        return str(checkpoint.hash_of_part(self.checkpoint(step), WEIGHTS))

    def mend(self, needed: Sequence[int]) -> list[str]:
        """Set damaged checkpoints aside, so that they are made again: of the `needed` ones every one, and of those to
        resume from the newest ones, up to the first good one.

        Returns:
            A sentence for each.
        """
        found = [told for step in sorted(set(needed) & set(self.steps())) if (told := self._sound(step))]
        if set(needed) <= set(self.steps()):
            return found
        for step in sorted(self.steps(), reverse=True):
            if self._has_state(step):
                told = self._sound(step) or self._sound_state(step)
                if told is None:
                    break
                found.append(told)
        return found

    def _sound(self, step: int) -> str | None:
        """Set a checkpoint aside if its weights are damaged, and say so."""
        try:
            self.clock(step)
            checkpoint.verify_part(self.checkpoint(step), WEIGHTS)
        except DamagedError as error:
            aside = self._aside(step)
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoint(step).rename(aside)
            return self.remark(f"checkpoint {step} was set aside as {aside.name}: {_briefly(error)}")
        return None

    def _sound_state(self, step: int) -> str | None:
        """Remove a checkpoint's optimizer state if it is damaged, and say so."""
        try:
            checkpoint.verify_part(self.checkpoint(step), OPTIMIZER)
        except DamagedError as error:
            checkpoint.drop_part(self.checkpoint(step), OPTIMIZER)
            return self.remark(f"the optimizer state of checkpoint {step} was removed: {_briefly(error)}")
        return None

    def _aside(self, step: int) -> Path:
        return self.checkpoint(step).with_suffix(".damaged")

    @property
    def remarks_path(self) -> Path:
        """One JSON object for each thing that happened to the run and that who reads its numbers should know."""
        return self.folder / "remarks.jsonl"

    def remark(self, text: str) -> str:
        """Keep a sentence for whoever reads the run's numbers; returns it."""
        append_row(self.remarks_path, {"text": text, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        return text

    def remarks(self) -> list[str]:
        """The sentences, in order; a line cut short is passed over."""
        rows, damaged = read_rows(self.remarks_path, text=str)
        return [row["text"] for row in rows] + left_out(self.remarks_path, damaged)

    def save(self, trainer: Trainer, milestones: Sequence[int], keep: int) -> None:
        """Write a checkpoint, then let go of what older ones hold too much of.

        Milestones stay; of the others, and of all optimizer states, the last `keep`.
        """
        parts = {WEIGHTS: trainer.weights(), OPTIMIZER: trainer.optimizer_state()}
        meta = {
            "step": trainer.step,
            "position": trainer.position,
            "seconds": trainer.clock.seconds,
            "device_seconds": trainer.clock.device_seconds,
            "milestone": trainer.step in milestones,
            "left_out": {name: int(count) for name, count in sorted(trainer.skipped.items()) if count},
            "run": self.spec.digest(),
        }
        checkpoint.save_folder(self.checkpoint(trainer.step), parts, meta)
        self.prune(keep)

    def prune(self, keep: int) -> None:
        """Let go of what older checkpoints hold too much of; a process may have been killed before it did."""
        for step in self.steps()[:-keep]:
            try:
                milestone = self.clock(step).get("milestone", True)
            except DamagedError:  # no reason to stop; who needs it will see
                continue
            if milestone:
                checkpoint.drop_part(self.checkpoint(step), OPTIMIZER)
            else:
                checkpoint.remove_folder(self.checkpoint(step))

    def resume(self, trainer: Trainer, missing: Sequence[int]) -> None:
        """Bring a trainer to the last checkpoint before the first that is missing, if there is one.

        Raises:
            UserError: the run went past the first without keeping it.
        """
        step, last = self.resumable(missing[0]), self.resumable()
        if last is not None and last > missing[0] and not self._aside(missing[0]).exists():
            raise UserError(
                f"{self.folder} is at step {last} and kept no checkpoint of step {missing[0]}; "
                "keep --score-every as it was, or choose another --out."
            )
        if step is None:
            return
        clock = self.clock(step)
        state = checkpoint.load_part(self.checkpoint(step), OPTIMIZER)
        trainer.restore(self.weights(step), state, int(clock["position"]))
        trainer.clock.start(float(clock["seconds"]), float(clock["device_seconds"]))

    def log(self, step: int) -> tuple[list[dict[str, Any]], int]:
        """What was logged up to a step, and how many lines are damaged."""
        rows, damaged = read_rows(self.log_path, step=int, seconds=int | float)
        return [row for row in rows if row["step"] <= step], damaged

    def trim_log(self, step: int) -> None:
        """Forget what was logged after the checkpoint that we continue from, and say what was damaged."""
        rows, damaged = self.log(step)
        for told in left_out(self.log_path, damaged):
            self.remark(told)
        checkpoint.write_text(self.log_path, "".join(map(row_text, rows)))

    def write_incident(self, what: str, network: str, trainer: Trainer, finding: Finding, images: int) -> Path:
        """Keep what is needed to do a step again that went wrong: draws are functions of seed, position and image."""
        seed, batch = self.spec.train.seed, self.spec.train.batch_size
        position = finding.position if finding.position is not None else trainer.position - 1
        drawn = order(seed, torch.arange(position * batch, (position + 1) * batch), images)
        content = {
            "what": what,
            "network": network,
            "position": position,
            "step": trainer.step,
            "seed": seed,
            "images": drawn.tolist(),
            "logs": {k: v if v - v == 0 else str(v) for k, v in finding.logs.items()},
            "skipped": finding.skipped,
            "last_checkpoint": self.resumable() or 0,
        }
        path = self.folder / "incidents" / f"{position:07d}.json"
        checkpoint.write_text(path, json.dumps(content, indent=1) + "\n")
        return path


def _briefly(error: DamagedError) -> str:
    return str(error).split(" Remove")[0].rstrip(".")


@dataclass
class Training:
    """What `train_run` may be told besides what to train."""

    execution: Execution = field(default_factory=lambda: Execution(device="cpu"))
    world: World = field(default_factory=World)
    log_every: int = 25
    on_step: Callable[[int], None] = lambda step: None
    """Told the number of steps done."""
    stop: Callable[[], int] = lambda: 0
    """Asked after every step; if it says a signal's number, the run is saved and `Stopped` raised."""


def train_run(run: Run, inputs: TrainingInputs, milestones: Sequence[int], training: Training | None = None) -> None:
    """Train until the last milestone, keeping a checkpoint at each; does nothing where they exist.

    Args:
        run: specification and folder; a folder with checkpoints is continued.
        inputs: data and frozen networks.
        milestones: effective optimizer steps to keep.
        training: device, processes, logging.

    Raises:
        UserError: the run went past a milestone without keeping it, or its batch cannot be spread.
        DamagedError: a checkpoint is not what was written; `Run.mend` sets it aside.
        Diverged: the watchdog stopped it; see `recipes.core.watchdog`.
        Stopped: somebody asked for it; everything is saved.
    """
    training = training or Training()
    missing = sorted(set(milestones) - set(run.steps()))
    if not missing:
        return
    execution, world = training.execution, training.world
    trainer = build_trainer(run.spec, inputs, execution=execution, world=world)
    run.resume(trainer, missing)
    if world.main:
        checkpoint.write_text(run.folder / "spec.json", run.spec.model_dump_json(indent=1))
        run.trim_log(trainer.step)
    stream = batches(
        inputs.data,
        seed=run.spec.train.seed,
        batch_size=run.spec.train.batch_size,
        start=trainer.position,
        # Updates may be left out, and then it takes more batches than steps.
        stop=sys.maxsize,
        rows=world.rows(run.spec.train.batch_size),
        ahead=execution.ahead if world.device.type == "cuda" else 0,
        pin=world.device.type == "cuda",
    )
    variance = float(inputs.latent_std.square().mean())
    _Session(run, trainer, training, milestones, missing, len(inputs.data), variance).follow(stream)


@dataclass
class _Session:
    """What happens between the steps of one call of `train_run`."""

    run: Run
    trainer: Trainer
    training: Training
    milestones: Sequence[int]
    missing: Sequence[int]
    images: int
    """Of the training set."""
    variance: float
    """Of the latents when the run began."""

    def follow(self, stream: Any) -> None:
        trainer, world = self.trainer, self.training.world
        for step, logs in trainer.train(stream):
            number = self.training.stop()
            stop = world.any(bool(number))
            if stop or self._is_due(step):
                with trainer.clock.stopped():
                    finding = trainer.settle()
                    read = self._read(logs)
                    self._judge(read, finding)
                    if trainer.step == step or stop:
                        self._keep(trainer.step, read, stop, finding)
            self.training.on_step(trainer.step)
            if stop:
                told = f"stopped by a signal; {self.run.folder} is saved at step {trainer.step}."
                raise Stopped(told, number)
            if trainer.step == self.missing[-1]:
                stream.close()
                return

    def _is_due(self, step: int) -> bool:
        every = self.training.execution.save_every
        return (
            step % self.training.log_every == 0
            or step == 1
            or step in self.missing
            or bool(every and step % every == 0)
        )

    def _read(self, logs: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(logs)
        values = self.training.world.mean(torch.stack([logs[name].float() for name in names])).tolist()
        return dict(zip(names, values, strict=True))

    def _keep(self, step: int, read: Mapping[str, float], stop: bool, finding: Finding) -> None:
        if self.training.world.main:
            row: dict[str, float | None] = {name: round(v, 7) if v - v == 0 else None for name, v in read.items()}
            row |= {f"skipped_{name}": count for name, count in finding.skipped.items() if count}
            seconds = round(self.trainer.clock.seconds, 4)
            append_row(self.run.log_path, {"step": step, "seconds": seconds, **row})
        every = self.training.execution.save_every
        if stop or step in self.missing or (every and step % every == 0):
            if self.training.world.main:
                self.run.save(self.trainer, self.milestones, self.training.execution.keep)
            self.training.world.barrier()

    def _judge(self, logs: Mapping[str, float], finding: Finding) -> None:
        """Stop a training that is no longer sound; nothing is saved from then on."""
        on_nan, scaled = self.training.execution.on_nan, self.run.spec.train.precision == "fp16"
        fault = finding.fault(on_nan, scaled=scaled)
        limit = EXPLODED * max(1.0, self.variance)
        odd = [n for n, v in logs.items() if v - v != 0]
        if fault is None and odd and finding.position is None and not scaled:
            fault = odd[0], "the loss was not finite"
        if fault is None and logs.get("latent_variance", 0.0) > limit:
            fault = "vae", f"the latents exploded: their variance is over {limit:g}"
        if fault is None:
            return
        network, what = fault
        if self.training.world.main:
            path = self.run.write_incident(what, network, self.trainer, finding, self.images)
            told = f"{self.run.spec.name}: {network}: {what} (batch {json.loads(path.read_text())['position']}"
            last = self.run.resumable()
            kept = "no checkpoint was due before" if last is None else f"the checkpoint of step {last} is good"
            told += f"). What happened is in {path}; {kept}"
            mend = "" if on_nan == "skip" or "in succession" in what or "explod" in what else ", or --on-nan skip"
            raise Diverged(f"{told}. Run again to repeat it, or lower the learning rate{mend}.")
        raise Diverged(what)


def import_notes(run: Run, step: int) -> list[str]:
    """What whoever reads the numbers of an imported checkpoint should know; nothing of one that was trained here."""
    return [str(note) for note in run.clock(step).get("imported", {}).get("notes", ())]


def load_for_sampling(
    run: Run, step: int, tokenizer: Autoencoder | None, *, average: bool, device: torch.device | None = None
) -> tuple[transformer.SiT, Autoencoder]:
    """The SiT (its EMA or its raw weights) and the tokenizer that belongs to it, in eval mode.

    Raises:
        UserError: the checkpoint holds no such weights, or no tokenizer, and none is given.
    """
    weights = run.weights(step)
    state = subset(weights, "ema.sit" if average else "sit")
    if not state:
        told = (
            "raw weights alone, and their average (EMA) is asked for: name a protocol of raw weights, as --protocol "
            "repa-e-v3+raw, or, if the file's weights are the average, import it again with --weights ema."
            if average
            else "the average (EMA) alone, and raw weights are asked for; name a protocol without +raw."
        )
        raise UserError(f"{run.folder} was imported from a file with {told}")
    sit = transformer.SiT(run.spec.sit)
    sit.load_state_dict(state)
    tuned = subset(weights, "vae")
    if tuned:
        tokenizer = Autoencoder(run.spec.tokenizer)
        tokenizer.load_state_dict(tuned)
    if tokenizer is None:
        raise UserError(f"{run.folder} holds no tokenizer of its own; name the one that it was trained on.")
    for network in (sit, tokenizer):
        network.to(device or torch.device("cpu")).eval().requires_grad_(False)
    return sit, tokenizer
