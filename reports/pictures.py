"""Pictures that records name, for a page: taken from the records' own folder, as PNG, whole, or left out and said."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from harness.results.comparison import Comparison
from recipes.core.errors import UserError

GRID_SIDE_IMAGES = 10
#: What Pillow raises for bytes that are no whole picture.
BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, SystemError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass
class Pictures:
    """The pictures that a comparison's records name."""

    comparison: Comparison
    notes: list[str] = field(default_factory=list)
    """Notes on omitted pictures."""

    def url(self, grid: str, rows: int | None = None) -> str | None:
        """A stored grid, its first rows, as a data URL; nothing if the file is gone, or cannot be shown.

        Raises:
            UserError: a record names a picture that is not below its own folder.
        """
        if Path(grid).is_absolute() or ".." in Path(grid).parts:
            raise UserError(f"a record names a picture outside its folder ({grid!r}); remove the record.")
        root = self.comparison.roots[grid]
        path = root / grid
        if not path.is_symlink() and not path.exists():
            return None
        try:
            # A link may lead anywhere, and the page be published; a pipe would never end.
            if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
                told = "it is no file below the records' folder"
            else:
                return _encoded(path.read_bytes(), rows)
        except BROKEN:
            told = "it is no whole PNG"
        if (note := f"{grid} was left out: {told}") not in self.notes:
            self.notes.append(note)
        return None


def _encoded(raw: bytes, rows: int | None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
            image.verify()  # every chunk's CRC, at which decoding alone does not look
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
            tile = image.width // GRID_SIDE_IMAGES
            cropped = image.crop((0, 0, image.width, min(image.height, tile * rows))) if rows else image
            buffer = io.BytesIO()
            cropped.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
