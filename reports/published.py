"""Table of published numbers for the CLI; avoids importing torch and NumPy (start-up time)."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.published import METRICS, Row

#: Column titles that differ from metric keys.
NAMES = {"gfid": "FID", "sfid": "sFID", "is": "IS", "rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}


def published_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], str]:
    """Columns, cells and a note; of the metrics, those that any of the rows has.

    Args:
        rows: at least one.
    """
    metrics = [name for name in METRICS if any(r.metrics.get(name) is not None for r in rows)]
    columns = ["row", "method", "model", "steps", "guidance", *(NAMES.get(m, m) for m in metrics), "kind", "source"]
    cells = [
        [
            r.ref,
            r.method,
            r.model or "–",
            f"{r.iterations:,}" if r.iterations else f"{r.epochs} epochs" if r.epochs else "–",
            "–" if r.cfg is None else f"{r.cfg.scale:g}" if r.cfg.scale is not None else "yes",
            *(_number(r.metrics.get(name)) for name in metrics),
            r.kind,
            r.source.short,
        ]
        for r in rows
    ]
    fids = [fid for r in rows if (fid := r.gfid) is not None]
    note = f"{len(rows)} row{'s' * (len(rows) > 1)}"
    if len(fids) > 1:
        note += f"; FID from {min(fids):g} to {max(fids):g}"
    return columns, cells, f"{note}. Protocols differ from row to row: see --json."


def _number(value: float | str | None) -> str:
    """Format with up to 12 significant digits."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.12g}"
