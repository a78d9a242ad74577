"""The claims ledger: what papers claim, the rule that decides each claim, and the verdicts that were accepted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baselines.published import LOADER, Kind, PublishedError

FILE = Path(__file__).parent / "claims.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Strict):
    """Where a claim stands."""

    arxiv: str
    version: str
    place: str


class Needs(_Strict):
    """What a run has to bring before it can decide a claim; with less the claim stays open."""

    suite: str
    protocol: str
    """Under which it has to be scored."""
    steps: int
    """Of the baseline of a speedup, and of every recipe otherwise."""
    seeds: int = Field(default=2, ge=2)
    """Of training, for each recipe."""


class SpeedupRule(_Strict):
    """The recipe reaches the baseline's last FID so many times sooner."""

    kind: Literal["speedup"]
    recipe: str
    baseline: str
    currency: str
    at_least: float


class ValueRule(_Strict):
    """A metric is at most so much, up to the spread of two single training seeds."""

    kind: Literal["value"]
    recipe: str
    metric: str
    at_most: float


class OrderRule(_Strict):
    """At equal steps, each recipe's FID is below the next one's."""

    kind: Literal["order"]
    recipes: tuple[str, ...] = Field(min_length=2)


class CollapseRule(_Strict):
    """The tokenizer's latents lose variance or rank, and FID is worse than the baseline's."""

    kind: Literal["collapse"]
    recipes: tuple[str, ...]
    """Names of the variant, by suite."""
    baseline: str


class KeptRule(_Strict):
    """A tokenizer's metric after joint training is at most so much above the one before."""

    kind: Literal["kept"]
    recipe: str
    metric: str
    tolerance: float


Rule = SpeedupRule | ValueRule | OrderRule | CollapseRule | KeptRule


class Evidence(_Strict):
    """Published rows that bear on a claim."""

    name: str
    method: str | None = None
    evidence: Kind | None = None
    group: str | None = None
    """With `method` and `evidence`: the rows of a curve."""
    baseline: str | None = None
    """The row with the target and, if it has iterations, the budget."""
    budget: float | None = None
    """Iterations, where the row says epochs."""
    row: str | None = None
    """A rerun."""
    same_checkpoint: bool = False
    """Whether only the sampling was run again: that moves FID less than training again."""
    rows: tuple[str, ...] = ()
    """From best to worst, or after and before."""
    metric: str = "gfid"


class Claim(_Strict):
    """One claim."""

    id: str
    text: str
    source: Place
    needs: Needs
    rule: Rule = Field(discriminator="kind")
    published: tuple[Evidence, ...]
    accepted: Mapping[str, str]
    """Verdict by the name of the evidence."""


class _Ledger(_Strict):
    claims: tuple[Claim, ...]


def load_claims(path: Path) -> tuple[Claim, ...]:
    """Read a ledger.

    Raises:
        PublishedError: it is none; the claim and the key are named.
    """
    try:
        ledger = _Ledger.model_validate(LOADER(path.read_text()).get_single_data())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishedError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise PublishedError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    ids = [claim.id for claim in ledger.claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise PublishedError(f"{path}: claim {twice[0]} stands twice.")
    return ledger.claims


@lru_cache(maxsize=1)
def ledger() -> tuple[Claim, ...]:
    """The claims that come with the project."""
    return load_claims(FILE)
