"""What the ImageNet suites find or make before training: images, frozen networks, cached latents, a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from harness.assets import catalogue
from harness.assets.networks import load_network
from harness.assets.tokenizers import tokenizer_files
from harness.features.base import FEATURES, FeatureNetwork, outputs_of
from harness.metrics.adm_reference import read_adm_reference
from harness.metrics.statistics import Measured
from harness.preparation import stand_ins
from harness.preparation.base import Evaluator, PreparationContext, Prepared, Reference, assets_of
from harness.preparation.image_store import prepare_images
from harness.scoring.array_files import NpzImages
from harness.scoring.paired_images import DAMAGED, Distance, on_uint8_images
from harness.suites.imagenet256 import ImagenetSuite
from recipes.core.checkpoint import MANIFEST
from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.finite import finite
from recipes.core.precision import matrix_products
from recipes.core.spec import digest_of
from recipes.data.images import Images, open_images
from recipes.data.latents import LatentStore, disk_estimate, finish_latents, share, write_latents
from recipes.data.loader import StoredData
from recipes.models.autoencoder import Autoencoder, to_signed
from recipes.models.discriminator import PatchDiscriminator
from recipes.models.encoder import load_encoder
from recipes.models.latent_norm import latent_statistics
from recipes.models.perceptual import load_perceptual
from recipes.released.autoencoder import LatentStatistics, load_autoencoder, load_discriminator
from recipes.training.spec import TrainingInputs

#: Images whose latents give the statistics of a tokenizer that comes without them.
STATISTICS_OVER = 4096
#: Latents in a shard.
SHARD = 4096
FLOOR_IMAGES = 10_000
ENCODE_BATCH = 32


#: Images whose two halves have a covariance each.
LEAST = 4


class Preparation:
    """The stages before training, for the variants that are asked for."""

    def __init__(self, suite: ImagenetSuite, context: PreparationContext, variants: Sequence[str]) -> None:
        self.suite, self.context, self.variants = suite, context, list(variants)
        self.store = assets_of(suite, context.store)
        self.world = context.world
        self.hashes: dict[str, str] = {}
        self.facts: dict[str, float] = {}
        self.tokenizers: dict[str, Autoencoder] = {}
        self.statistics: dict[str, LatentStatistics] = {}
        self.discriminators: dict[str, PatchDiscriminator] = {}
        self.latents: dict[str, LatentStore] = {}
        self._images: Images | None = None

    def run(self) -> Prepared:
        """Runs the stages in dependency order; missing assets are reported before any computation."""
        if self.suite.stand_ins and self.world.main:
            stand_ins.make(self.suite, self.store)
        self.world.barrier()
        names = dict.fromkeys(
            name for variant in self.variants for name in self.suite.needs(variant) if name != "images"
        )
        assets = {name: catalogue.require(self.store, name) for name in names}
        self.hashes |= {name: asset.content for name, asset in assets.items()}
        # A checkpoint that is only judged needs no training images.
        if self.variants or self.suite.reference == "images":
            self._images = self._open_images()
        for variant in self.variants:
            self._prepare_tokenizer(variant)
        self.encoders = {
            e: load_encoder(self.suite.encoders[e], _one_file(assets[e].path))
            for e in self.suite.encoders
            if e in assets
        }
        self._say(note for encoder in self.encoders.values() for note in encoder.notes)
        self.perceptual = None
        if "vgg16" in assets:
            self.perceptual = load_perceptual(assets["vgg16"].path, input_range=self.suite.perceptual)
        return Prepared(
            inputs=self._inputs,
            tokenizers=self.tokenizers,
            tokenizer_of=lambda variant: (
                None if self.suite.variant(variant).from_scratch else self.suite.variant(variant).tokenizer
            ),
            judge=self._judge(),
            floor_images=min(FLOOR_IMAGES, len(self._images or ())),
            hashes=self.hashes,
            facts=self.facts,
        )

    def _say(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.context.reporter.note(note, "yellow")

    @property
    def images(self) -> Images:
        """The training set."""
        assert self._images is not None
        return self._images

    def _open_images(self) -> Images:
        data = self.context.data
        if data is not None:
            images = self._images_from(data)
            if self.world.main:
                catalogue.register(self.store, "images", self._where(data), content=images.content)
            self.world.barrier()
        else:
            images = open_images(catalogue.require(self.store, "images").path)
        if images.side != self.suite.side:
            raise UserError(
                f"the images are {images.side} pixels wide, suite {self.suite.name} wants {self.suite.side}."
            )
        if len(images) < LEAST:
            raise UserError(f"{len(images)} images are too few: give at least {LEAST}, whose halves are compared.")
        if images.num_classes > self.suite.num_classes:
            raise UserError(
                f"the images have {images.num_classes} classes, suite {self.suite.name} {self.suite.num_classes}; "
                f"set it: --set num_classes={images.num_classes}."
            )
        self.hashes["images"] = images.content
        self.facts["images"] = len(images)
        return images

    def _where(self, data: str) -> Path:
        """Data in a format that training reads stays where it is; the rest is cropped into the cache."""
        path = Path(data).expanduser()
        try:
            open_images(path)
            return path
        except UserError:
            return self.store.root / f"images-{self.suite.side}-{digest_of(str(path.absolute()))[:12]}"

    def _images_from(self, data: str) -> Images:
        folder = self._where(data)
        if folder != Path(data).expanduser():
            with self._alone(folder), self.context.costed("prepare images"):
                facts = prepare_images(
                    data,
                    folder,
                    side=self.suite.side,
                    processes=self.context.execution.threads,
                    rank=self.world.rank,
                    world=self.world.size,
                    reporter=self.context.reporter,
                )
                self.world.barrier()
            for warning in facts.get("warnings", ()):
                self.context.reporter.note(f"  {warning}", "yellow")
            for rejected in facts.get("rejected", ()):
                self.context.reporter.note(f"  left out: {rejected['name']}: {rejected['reason']}")
        return open_images(folder)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Context: the processes of this command make what lies in a folder, and no other command does."""
        with self.store.alone(folder, on=self.world.main):
            self.world.barrier()
            yield

    def _prepare_tokenizer(self, variant: str) -> None:
        name = self.suite.variant(variant).tokenizer
        if self.suite.variant(variant).from_scratch:
            return
        if name not in self.tokenizers:
            self._load_tokenizer(name)
        if self.suite.caches_latents(variant) and name not in self.latents:
            self.latents[name] = self._cached_latents(name)
            mean, std = self.latents[name].mean, self.latents[name].std
            if mean is not None and std is not None:
                self.statistics.setdefault(name, LatentStatistics(mean, std))
        if name not in self.statistics:
            self.statistics[name] = self._measured_statistics(name)

    def _load_tokenizer(self, name: str) -> None:
        choice = self.suite.tokenizers[name]
        weights, discriminator = tokenizer_files(catalogue.require(self.store, name).path)
        vae, statistics = load_autoencoder(weights, norm_groups=choice.autoencoder.norm_groups)
        if vae.spec != choice.autoencoder:
            raise UserError(
                f"{weights} is another autoencoder ({vae.spec}) than suite {self.suite.name} has as {name}."
            )
        self._say(vae.notes)
        self.tokenizers[name] = vae.to(self.world.device).eval().requires_grad_(False)
        if statistics is not None:
            self.statistics[name] = statistics
        if discriminator is not None:
            self.discriminators[name] = load_discriminator(discriminator)

    @torch.no_grad()
    def _encode(self, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.tokenizers[name]
        with matrix_products("tf32"):
            posterior = vae.encode(to_signed(images, next(vae.parameters())))
        return posterior.mean.cpu(), posterior.std.cpu()

    def _cached_latents(self, name: str) -> LatentStore:
        key = digest_of([self.images.content, self.hashes[name], self.suite.latents])[:12]
        folder = self.store.root / "latents" / f"{name}-{key}"
        with self._alone(folder):
            if not (folder / MANIFEST).exists():
                self.world.barrier()  # all have looked before anybody writes
                self._write_latents(name, folder)
                self.world.barrier()
                if self.world.main:
                    finish_latents(folder)
            self.world.barrier()
        latents = LatentStore.open(folder)
        self.hashes[f"latents of {name}"] = latents.content
        return latents

    def _write_latents(self, name: str, folder: Path) -> None:
        """This process's share of the shards."""
        spec, count, say = self.tokenizers[name].spec, len(self.images), self.context.reporter.note
        side = self.suite.side // spec.factor
        room = disk_estimate(count, spec.latent_channels, side, self.suite.latents)
        say(f"  latents of {name}: {count:,} posteriors, {room / 1e9:,.2f} GB in {folder}")
        mine = share(count, SHARD, self.world.rank, self.world.size)
        with self.context.stage(f"latents of {name}", mine) as on_done:
            write_latents(
                folder,
                self.images,
                lambda batch: self._encode(name, batch),
                tokenizer=self.hashes[name],
                dtype=self.suite.latents,
                shard_size=SHARD,
                batch_size=ENCODE_BATCH,
                threads=self.context.execution.threads,
                rank=self.world.rank,
                world=self.world.size,
                on_done=on_done,
            )

    def _measured_statistics(self, name: str) -> LatentStatistics:
        def make() -> tuple[dict[str, Tensor], dict[str, float]]:
            count = min(STATISTICS_OVER, len(self.images))
            data = StoredData(labels=self.images.labels, images=self.images, threads=self.context.execution.threads)
            parts = []
            with self.context.stage(f"statistics of {name}", count) as on_done:
                for indices in torch.arange(count).split(ENCODE_BATCH):
                    images = data.take(indices).images
                    assert images is not None
                    moments = self._encode(name, images)
                    finite(torch.cat(moments, 1), "the latent of image", int(indices[0]), DAMAGED)
                    parts.append(moments)
                    on_done(int(indices[-1]) + 1)
            mean, std = torch.cat([m for m, _ in parts]).double(), torch.cat([s for _, s in parts]).double()
            latent_mean, latent_std = latent_statistics(mean, std)
            return {"mean": latent_mean, "std": latent_std}, {}

        spec = {"over": STATISTICS_OVER}
        sources = {"images": self.images.content, "tokenizer": self.hashes[name]}
        with self.world.main_first():
            tensors = self.store.get("latent-statistics", spec, sources, make).tensors
        return LatentStatistics(tensors["mean"], tensors["std"])

    def _inputs(self, variant: str) -> TrainingInputs:
        chosen = self.suite.variant(variant)
        name, needs = chosen.tokenizer, self.suite.method(variant).needs
        channels = self.suite.tokenizers[name].autoencoder.latent_channels
        scratch = LatentStatistics(torch.zeros(channels), torch.ones(channels))
        statistics = scratch if chosen.from_scratch else self.statistics[name]
        return TrainingInputs(
            data=StoredData(
                labels=self.images.labels,
                images=self.images if needs.encoder or needs.tokenizer else None,
                latents=None if needs.tokenizer else self.latents[name],
                threads=self.context.execution.threads,
            ),
            tokenizer=None if chosen.from_scratch else self.tokenizers[name],
            latent_mean=statistics.mean,
            latent_std=statistics.std,
            encoders=tuple(self.encoders[e] for e in chosen.encoders) if needs.encoder else (),
            perceptual=self.perceptual if needs.perceptual else None,
            discriminator=None if chosen.from_scratch else self.discriminators.get(name),
        )

    def _judge(self) -> Callable[[], Evaluator] | None:
        """See `Prepared.judge`. What identifies the judge is known without reading it."""
        missing = [n for n in self.suite.scored_by() if catalogue.find(self.store, n) is None]
        if missing:
            return None
        self.hashes["features"] = catalogue.require(self.store, self.suite.features).content
        if self.suite.reference == "images":
            self.hashes["reference"] = digest_of(["drawn", self.images.content])
        else:
            self.hashes["reference"] = catalogue.require(self.store, self.suite.reference).content

        def judge() -> Evaluator:
            network = load_network(self.suite.features, self.store, self.world.device)
            return Evaluator(network, lambda: self._reference(network))

        return judge

    def _reference(self, network: FeatureNetwork) -> Reference:
        some = self._some_images() if self._images is not None else torch.empty(0)
        if self.suite.reference == "images":
            return Reference(self._measured("images", some, network), some, some, self._lpips())
        asset = catalogue.require(self.store, self.suite.reference)
        held = read_adm_reference(asset.path)
        if FEATURES not in held.moments or not held.has_images:
            raise UserError(
                f"{asset.path} is not an ADM reference with mu, sigma and arr_0; fetch {self.suite.reference}."
            )
        shown = NpzImages(asset.path)
        images = shown.read(0, len(shown))
        measured = self._measured("reference", images, network).under(held.moments, digest=asset.content)
        return Reference(measured, images, some, self._lpips())

    def _lpips(self) -> Distance | None:
        """The LPIPS metric with documented [0, 1] inputs (the training loss may use another range); None if VGG16 is
        not registered.
        """
        found = catalogue.find(self.store, "vgg16")
        if found is None:
            return None
        return on_uint8_images(load_perceptual(found.path, input_range="unit").to(self.world.device), self.world.device)

    def _some_images(self) -> Tensor:
        """A random sample of the images (stored class by class): any prefix and either half covers all classes."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed_of("floor images")))
        data = StoredData(labels=self.images.labels, images=self.images, threads=self.context.execution.threads)
        batch = data.take(order[:FLOOR_IMAGES])
        assert batch.images is not None
        return batch.images

    def _measured(self, name: str, images: Tensor, network: FeatureNetwork) -> Measured:
        def make() -> tuple[dict[str, Tensor], dict[str, float]]:
            def chunks() -> Iterator[Tensor]:
                for k, chunk in enumerate(images.split(self.suite.chunk)):
                    yield chunk
                    on_done(k * self.suite.chunk + len(chunk))

            with self.context.stage(f"features of the {name}", len(images)) as on_done:
                return outputs_of(chunks(), network), {}

        sources = {key: self.hashes[key] for key in ("features", "reference")}
        spec = {"count": len(images), "network": network.convention}
        return Measured([self.store.get(f"features-{name}", spec, sources, make).tensors])


def _one_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [p for p in sorted(path.iterdir()) if p.suffix in (".pth", ".pt", ".safetensors", ".tar", ".bin")]
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} weight files, not one; register the file itself with --from.")
    return found[0]
