"""Networks and trainer of a run, and how its batch is spread over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from recipes.base import Needs, Networks, declared
from recipes.core.batch import Batch
from recipes.core.distributed import World
from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.loop import Trainer
from recipes.core.spec import Execution
from recipes.models import discriminator as gan
from recipes.models import sit as transformer
from recipes.models.autoencoder import Autoencoder
from recipes.models.encoder import Encoder
from recipes.training.spec import RunSpec, TrainingInputs


def build_networks(
    spec: RunSpec,
    tokenizer: Autoencoder | None = None,
    *,
    discriminator: gan.PatchDiscriminator | None = None,
    perceptual: nn.Module | None = None,
) -> Networks:
    """Initialise networks; copy in the given pretrained ones."""
    needs = spec.method.needs
    sit = transformer.SiT(spec.sit)
    transformer.initialize(sit, spec.train.seed)
    if not needs.tokenizer:
        return Networks(sit=sit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(spec.train.seed, "init", "tokenizer"))
        vae = Autoencoder(spec.tokenizer)
    if tokenizer is not None:
        vae.load_state_dict(tokenizer.state_dict())
    adversary = None
    if needs.discriminator:
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
    networks.sit.bn.start_from(inputs.latent_mean, inputs.latent_std)
    networks.sit.checkpointing = execution.checkpointing
    encoders = [encoder.to(world.device) for encoder in inputs.encoders]
    _arrange(networks, world.device)

    def given(batch: Batch, number: int) -> Batch:
        needs = spec.method.needs_at(number)
        return declared(complete(batch, needs, encoders), needs)

    trainer = Trainer(
        spec.method.on(networks),
        spec.train,
        world=world,
        micro_batch=layout(spec, execution, world).micro_batch,
        complete=given,
    )
    if execution.compile:
        _compile(networks, encoders, spec.method.needs)
    return trainer


def complete(batch: Batch, needs: Needs, encoders: Sequence[Encoder]) -> Batch:
    """A batch with what frozen encoders say of its images, as far as it is needed and not stored with them.

    Raises:
        UserError: an encoder has no class token, or no such layer.
    """
    if batch.features or not encoders or not needs.encoder:
        return batch
    assert batch.images is not None
    seen = [e.look(batch.images, attention=() if k else needs.attention) for k, e in enumerate(encoders)]
    class_tokens = tuple(one.class_token for one in seen if one.class_token is not None)
    if needs.class_token and len(class_tokens) < len(seen):
        raise UserError(f"encoder {encoders[0].spec.name} has no class token, which the recipe needs; name another.")
    return replace(
        batch, features=tuple(one.patches for one in seen), class_tokens=class_tokens, attention=seen[0].attention
    )


def _arrange(networks: Networks, device: torch.device) -> None:
    networks.sit.to(device)
    for network in (networks.vae, networks.discriminator, networks.perceptual):
        if network is not None:
            network.to(device)
            if device.type == "cuda":  # what its convolutions want
                network.to(memory_format=torch.channels_last)


def _compile(networks: Networks, encoders: Sequence[Encoder], needs: Needs) -> None:
    """Compile the hot regions in place; state-dict names stay. The blocks share one compiled graph."""
    for block in networks.sit.blocks:
        block.compile()
    networks.sit.final_layer.compile()
    whole: list[nn.Module | None] = [networks.discriminator, networks.perceptual]
    for encoder in encoders:  # hooks look into the blocks whose attention is wanted
        whole += [block for k, block in enumerate(encoder.network.blocks, start=1) if k not in needs.attention]
    if isinstance(networks.vae, Autoencoder):
        whole += [networks.vae.kl.encoder, networks.vae.kl.decoder]
    for network in whole:
        if network is not None:
            network.compile()


@dataclass(frozen=True)
class Layout:
    """Distribution of the global batch over processes and micro-batches."""

    batch_size: int
    processes: int
    micro_batch: int
    device: str

    @property
    def accumulation(self) -> int:
        """Micro-batches that a process runs one after the other."""
        return self.batch_size // (self.processes * self.micro_batch)

    def __str__(self) -> str:
        """As in ``256 = 8 GPUs x 32 x 1``."""
        unit = "GPU" if self.device == "cuda" else "process"
        units = unit if self.processes == 1 else {"GPU": "GPUs", "process": "processes"}[unit]
        return f"{self.batch_size} = {self.processes} {units} x {self.micro_batch} x {self.accumulation}"


def layout(spec: RunSpec, execution: Execution, world: World) -> Layout:
    """Spread the global batch over processes and micro-batches.

    Raises:
        UserError: it does not divide, or accumulation would change what a batch norm sees without saying so.
    """
    total = spec.train.batch_size
    if total % world.size:
        raise UserError(
            f"the global batch of {total} does not divide by {world.size} processes; start a number that divides it."
        )
    local = total // world.size
    most = min(local, execution.micro_batch or local)
    across = spec.method.needs.across or total
    if across == total > 1:
        across = local  # every process has its rows in one piece, and they are gathered
    micro_batch = next((n for n in range(most, 0, -1) if local % n == 0 and n % across == 0), 0)
    if not micro_batch:
        raise UserError(
            f"variant {spec.variant} has a loss across {spec.method.needs.across or total} images, and {most} at once "
            f"on each of {world.size} process(es) hold no whole group of them; leave --micro-batch out, start fewer "
            f"processes, or set its option 'group' to a divisor of {most} (which is another training)."
        )
    found = Layout(total, world.size, micro_batch, world.device.type)
    pooled = micro_batch * world.size
    if spec.method.needs.discriminator and pooled != (spec.train.norm_batch or total):
        raise UserError(
            f"with --micro-batch {micro_batch} the discriminator's batch norm would pool {pooled} images and not "
            f"{spec.train.norm_batch or total}, which is another training; use more GPUs or --checkpointing, or accept "
            f"it with --set norm_batch={pooled} (results go to a folder of their own)."
        )
    return found
