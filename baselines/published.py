"""What others published: typed rows, each with its source. A row without one is refused.

Units: every FID, IS and distance as printed; precision, recall, SSIM in [0, 1]; PSNR in dB; linear probing in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

#: libyaml's safe loader where PyYAML has it, which is ten times as fast.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FOLDER = Path(__file__).parent / "published"
#: Metrics that a row may have, and what they are.
METRICS = {
    "gfid": "FID of 50,000 samples",
    "sfid": "spatial FID",
    "is": "Inception score",
    "precision": "improved precision, k = 3",
    "recall": "improved recall, k = 3",
    "rfid": "FID of reconstructions",
    "psnr": "of reconstructions, dB",
    "ssim": "of reconstructions",
    "lpips": "of reconstructions",
    "spatial_variance": "of latents",
    "total_variation": "of latents",
    "lin_acc": "linear probing, %",
    "fid_10k": "FID of 10,000 samples",
    "ep_fid_at_2": "epochs to unguided FID 2",
}
#: ``printed`` by its authors; ``digitised`` from a figure; ``reproduced`` by somebody else; ``requoted``: a number of
#: others, printed again without a run.
Kind = Literal["printed", "digitised", "reproduced", "requoted"]


class PublishedError(ValueError):
    """A file of published rows cannot be used; one sentence names the file, the row and the key."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Strict):
    """Where a number stands."""

    title: str = Field(min_length=1)
    arxiv: str = Field(min_length=1)
    version: str = Field(min_length=1)
    table: str = Field(min_length=1)
    """Table, figure or section."""
    read_at: str = Field(min_length=1)
    """The copy that was read."""

    @property
    def short(self) -> str:
        """arXiv number and table."""
        return f"arXiv {self.arxiv}, {self.table}" if self.arxiv[:1].isdigit() else f"{self.title}, {self.table}"


class Guidance(_Strict):
    """Classifier-free guidance as far as it is stated."""

    kind: str
    scale: float | None = None
    interval: tuple[float | None, float | None] | None = None
    """In time; None where an end is not stated."""
    note: str | None = None

    @field_validator("interval", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Row(_Strict):
    """One published number, or the numbers of one run."""

    file: str
    number: int
    """From 1 in its file."""
    kind: Kind
    group: str
    """The table or study it belongs to."""
    method: str
    model: str | None
    tokenizer: str | None
    encoder: str | None = None
    iterations: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    cfg: Guidance | None
    """None: no guidance."""
    sampler: str | None = None
    """As stated; None where it is not."""
    metrics: dict[str, float | str | None]
    source: Source
    note: str | None = None
    published: float | str | dict[str, float | None] | None = None
    """Of a rerun: what its original prints."""
    alignment_depth: int | None = None
    proj_coeff: float | None = None
    objective: str | None = None
    params_m: int | None = None
    block: str | None = None
    seed: int | None = None
    resolution: int | None = None
    dataset: str | None = None
    beta: float | None = None

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: dict[str, float | str | None]) -> dict[str, float | str | None]:
        if unknown := sorted(set(value) - set(METRICS)):
            raise ValueError(f"unknown metrics {unknown}")
        if not value:
            raise ValueError("a row needs a number")
        return value

    @property
    def ref(self) -> str:
        """What cells cite: FILE:NUMBER."""
        return f"{self.file}:{self.number}"

    @property
    def gfid(self) -> float | None:
        """FID of 50,000 samples."""
        return self.value("gfid")

    def value(self, metric: str) -> float | None:
        """A metric, if the row has it as a number."""
        found = self.metrics.get(metric)
        return float(found) if isinstance(found, int | float) else None


def load_file(path: Path) -> tuple[Row, ...]:
    """The rows of one file.

    Raises:
        PublishedError: not such a file, or a row that lacks something (its source, say) or says something unknown.
    """
    try:
        content = LOADER(path.read_text()).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishedError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise PublishedError(f"{path} has no list 'rows'.")
    return tuple(_row(path, number, raw) for number, raw in enumerate(rows, start=1))


def _row(path: Path, number: int, raw: object) -> Row:
    if not isinstance(raw, dict):
        raise PublishedError(f"{path}, row {number} is no mapping.")
    if {"file", "number"} & set(raw):
        raise PublishedError(f"{path}, row {number}: 'file' and 'number' are not written, they follow from the place.")
    try:
        return Row.model_validate({"file": path.stem, "number": number, **raw})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise PublishedError(f"{path}, row {number}: {key or 'row'}: {first['msg']}.") from None


@lru_cache(maxsize=1)
def load_all() -> tuple[Row, ...]:
    """Every row that comes with the project."""
    return tuple(row for path in sorted(FOLDER.glob("*.yaml")) for row in load_file(path))


def select(
    rows: Iterable[Row],
    *,
    method: str | None = None,
    model: str | None = None,
    group: str | None = None,
    kind: Kind | None = None,
    guided: bool | None = None,
    text: str | None = None,
) -> Iterator[Row]:
    """Those rows that match all that is given; names match as parts of words, without regard to case."""
    wanted = {"method": method, "model": model, "group": group}
    for row in rows:
        if kind is not None and row.kind != kind:
            continue
        if guided is not None and (row.cfg is not None) != guided:
            continue
        if any(value and value.lower() not in (getattr(row, key) or "").lower() for key, value in wanted.items()):
            continue
        if text and text.lower() not in row.model_dump_json().lower():
            continue
        yield row


def curve(method: str, kind: Kind, *, group: str) -> list[tuple[float, float]]:
    """(iterations, FID) of a method's unguided rows of one group, by iterations."""
    found = [
        (float(row.iterations), row.gfid)
        for row in select(load_all(), group=group, kind=kind, guided=False)
        if row.method == method and row.iterations is not None and row.gfid is not None
    ]
    return sorted(found)
