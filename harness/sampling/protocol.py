"""Evaluation protocols: everything between a checkpoint and a number, named, versioned and digested.

Two numbers may stand in one column of a table only if their protocol digests are equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.sampling.solvers import LAST_SDE_TIME, Guidance, Solver, number_of_evaluations
from recipes.core.errors import UserError, nearest
from recipes.core.precision import Precision
from recipes.core.spec import Count, Fraction, NotNegative, Spec, digest_of

LabelRule = Literal["balanced", "uniform"]


class Protocol(Spec):
    """How a checkpoint is sampled and scored."""

    ADDED = frozenset({"guidance_class_scale"})

    name: str
    version: Count = 2
    """Raised whenever the meaning of a field or a name changes. Before 2, balanced labels came in the order of the
    classes, and the protocols named after SiT guided and ended as REPA does."""
    solver: Solver
    steps: Annotated[int, Field(ge=1, le=100_000)]
    last_step: Fraction = LAST_SDE_TIME
    """Time at which the SDE's last step begins; the ODE solvers do not look at it."""
    correct_last_step: bool = False
    """Apply Heun's correction also to the last step (SiT); otherwise the last step is Euler's (REPA)."""
    guidance_scale: NotNegative = 1.0
    guidance_low: Fraction = 0.0
    guidance_high: Fraction = 1.0
    guidance_class_scale: NotNegative | None = None
    """Guidance scale of REG's class token: 0 = unguided, None = same as the image."""
    guidance_channels: Count | None = None
    """Guide only the first N latent channels (SiT's release: 3); None: all (REPA, REPA-E)."""
    labels: LabelRule = "balanced"
    """``balanced``: every class as often, to within one, in an order that the generation seed draws; ``uniform``: a
    random draw for each index."""
    samples: Annotated[int, Field(ge=2, le=2**31)]
    weights: Literal["ema", "raw"] = "ema"
    to_uint8: Literal["floor", "round"] = "floor"
    """REPA and REPA-E truncate 255 x, SiT rounds."""
    precision: Precision = "fp32"
    """Number format of the networks that draw; the solver's state is float64."""
    features: str
    reference: str
    neighbours: Annotated[int, Field(ge=1, le=1000)] = 3
    """k of precision and recall."""
    manifold_size: Annotated[int, Field(ge=2, le=2**31)]
    """Number of reference and of generated images used for precision and recall."""

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def guidance(self) -> Guidance:
        """Scale, interval and channels."""
        return Guidance(
            self.guidance_scale,
            self.guidance_low,
            self.guidance_high,
            channels=self.guidance_channels,
            class_scale=self.guidance_class_scale,
        )

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return number_of_evaluations(
            self.solver, self.steps, self.guidance, self.last_step, correct_last_step=self.correct_last_step
        )

    @property
    def as_sit(self) -> dict[str, str]:
        """What it does as SiT's release and not as REPA's, in words, by the field."""
        told = {}
        if self.guidance_channels is not None and self.guidance_scale > 1:
            told["guidance_channels"] = f"on the first {self.guidance_channels} channels alone"
        if self.correct_last_step and self.solver == "ode_heun":
            told["correct_last_step"] = "last step corrected"
        return told

    def left_out(self) -> set[str]:
        """See `Spec.left_out`; the two fields of `as_sit` also where they change nothing."""
        return super().left_out() | ({"guidance_channels", "correct_last_step"} - self.as_sit.keys())

    def guided(self, scale: float, low: float = 0.0, high: float = 1.0) -> Protocol:
        """Copy with other guidance settings and a matching name."""
        changes = {
            "name": self.name + _guided_suffix(scale, low, high),
            "guidance_scale": scale,
            "guidance_low": low,
            "guidance_high": high,
        }
        return Protocol(**(dict(self) | changes))

    @property
    def base_name(self) -> str:
        """Its name without what `guided` added."""
        scale, low, high = self.guidance_scale, self.guidance_low, self.guidance_high
        return self.name.removesuffix(_guided_suffix(scale, low, high))

    @property
    def base_digest(self) -> str:
        """Digest without name and guidance; equal for all settings of a sweep."""
        neutral = {"name": "", "guidance_scale": 1.0, "guidance_low": 0.0, "guidance_high": 1.0}
        return self.model_copy(update=neutral).digest()

    def digest_with(self, assets: dict[str, str]) -> str:
        """Digest of the protocol together with the content hashes of its feature network and reference."""
        return digest_of({"protocol": self.model_dump(mode="json"), "assets": assets})


def _guided_suffix(scale: float, low: float, high: float) -> str:
    return f"+cfg{scale:g}[{low:g},{high:g}]" if scale > 1 else "+nocfg"


def _released(
    name: str, labels: Literal["balanced", "uniform"], guidance: tuple[float, float, float] | None, **changes: Any
) -> Protocol:
    """REPA-E's way: SDE, 250 steps, 50,000 images, EMA, truncation, TF32 as its script sets it."""
    scale, low, high = guidance or (1.0, 0.0, 1.0)
    released = Protocol(
        name=name,
        version=1 if labels == "uniform" else 2,  # uniform labels are what they were
        solver="sde_euler_maruyama",
        steps=250,
        guidance_scale=scale,
        guidance_low=low,
        guidance_high=high,
        labels=labels,
        samples=50_000,
        to_uint8="floor",
        precision="tf32",
        features="inception",
        reference="adm-reference",
        manifold_size=50_000,
    )
    return released.changed(**changes)


def _embedded(name: str, solver: Solver, steps: int) -> Protocol:
    """Of the digits suite: 1,024 samples, judged by the network that it trains for itself."""
    return Protocol(
        name=name,
        solver=solver,
        steps=steps,
        samples=1024,
        features="digits-features",
        reference="digits-reference",
        manifold_size=1024,
    )


def _variant(name: str, base: Protocol, **changes: object) -> Protocol:
    return Protocol(**(dict(base) | changes | {"name": name}))


def _built_in() -> dict[str, Protocol]:
    """Guidance: README of the REPA-E release, before (v1) and after (v3) its change to balanced labels."""
    v1, v3 = _released("repa-e-v1", "uniform", None), _released("repa-e-v3", "balanced", None)
    joint = {"sdvae": (2.2, 0.0, 0.65), "invae": (1.8, 0.0, 0.825), "vavae": (1.9, 0.0, 0.825)}
    # SiT (arXiv 2401.08740) rounds, and guides three channels of four "for exact reproducibility", says its code.
    sit: dict[str, Any] = {"to_uint8": "round", "guidance_channels": 3}
    found = [
        v1,
        v3,
        # The README of April 2025 has the numbers of these, 1.67, 1.61 and 1.73: drawn with uniform labels, and not
        # drawn anew when the labels changed in October.
        *(_released(f"repa-e-v1-cfg-{name}", "uniform", guidance) for name, guidance in joint.items()),
        *(_released(f"repa-e-v3-cfg-{name}", "balanced", guidance) for name, guidance in joint.items()),
        _released("repa-e-v1-cfg-e2e-vavae", "uniform", (2.5, 0.0, 0.75)),
        _released("repa-e-v3-cfg-e2e-vavae", "balanced", (2.4, 0.0, 0.73)),
        _variant("sit-sde250", v1, **sit),
        _variant("sit-sde250-cfg", v1, **sit, version=2, guidance_scale=1.5),  # before 2, all channels were guided
        # SiT's paper uses Heun with 250 NFE; the default of its code is an adaptive solver.
        _variant("sit-heun125", v1, **sit, version=2, solver="ode_heun", steps=125, correct_last_step=True),
        # Headlines of the recipes that followed. REPA's line draws labels at random and truncates.
        _released("reg-sde250-cfg", "uniform", (2.3, 0.0, 0.85), guidance_class_scale=2.3),
        _released("haste-sde250-cfg", "uniform", (1.65, 0.0, 0.72)),
        _released("sra-sde250-cfg", "uniform", (1.8, 0.0, 0.7)),
        # Contrastive flow matching's README draws 50 steps, and guided ones with an interference vector, not in here.
        _released("deltafm-sde50", "uniform", None, steps=50),
        _variant("ode50-10k", v3, solver="ode_euler", steps=50, samples=10_000, manifold_size=10_000),
        _embedded("digits-ode25", "ode_euler", 25),
        _embedded("digits-sde50", "sde_euler_maruyama", 50),
    ]
    return {protocol.name: protocol for protocol in found}


#: Protocols of published numbers, and a cheap one for curves.
PROTOCOLS = _built_in()


def find_protocol(name: str) -> Protocol:
    """A built-in protocol; ``NAME+raw`` is the same of raw weights.

    Raises:
        UserError: no such protocol, with the nearest one.
    """
    if (found := PROTOCOLS.get(name.removesuffix("+raw"))) is None:
        raise UserError(f"--protocol: there is no protocol '{name}'.{nearest(name, PROTOCOLS)}")
    return _variant(name, found, weights="raw") if name.endswith("+raw") else found


def difference(a: Protocol, b: Protocol) -> str:
    """The fields in which two protocols differ, in words: ``labels uniform and balanced, steps 250 and 50``."""
    absent = {"guidance_channels": None, "guidance_class_scale": None, "correct_last_step": False}
    ours, theirs = (absent | p.model_dump(mode="json") for p in (a, b))
    return ", ".join(f"{k} {ours[k]} and {theirs[k]}" for k in ours if k != "name" and ours[k] != theirs[k])
