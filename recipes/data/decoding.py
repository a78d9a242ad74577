"""One picture's bytes as RGB pixels: one rule for what is scored and what is prepared.

Sixteen bits become eight by their high byte, transparent pixels are shown on white, of several frames the first is
taken, and EXIF orientation is not applied (as in ADM). Formats without an agreed value range (float, 32-bit integer)
are refused. Only whitelisted formats are passed to Pillow (e.g. never PostScript).
"""

from __future__ import annotations

import io
import struct
import tokenize
import zlib
from typing import Any

import numpy as np
import PIL.ImageFile
from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: The suffixes of their files, and of those that are pictures and that we do not read.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".svg", ".psd", ".exr", ".hdr", ".ico", ".apng",
          ".jfif", ".jpe", ".pnm", ".dib", ".jpc", ".j2k", ".qoi", ".raw", ".dng")  # fmt: skip
#: What Pillow and NumPy raise for bytes that are not a whole image.
UNDECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, OverflowError, struct.error,
    zlib.error, PIL.Image.DecompressionBombError,
)  # fmt: skip
#: Maximum number of pixels (Pillow's decompression-bomb limit).
MOST_PIXELS = 2**28 // 3
#: Lossy formats, and lossy TIFF compressions.
LOSSY, _LOSSY_PACKING = ("JPEG", "MPO", "WEBP", "GIF"), ("jpeg", "tiff_jpeg", "webp")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _WHITE_IS_ZERO = 0x0112, 258, 262, 339, 0
#: What is done to odd pictures, after "N of M images ".
ODD = {
    "16-bit": "have 16 bits a channel: the high byte is taken",
    "transparent": "have transparent pixels: they are shown on white",
    "frames": "have several frames or pages: the first is taken",
    "turned": "ask to be turned (EXIF orientation): they are not, as in ADM",
}


def opened(raw: bytes) -> PIL.ImageFile.ImageFile:
    """A picture whose header was read.

    Raises:
        ValueError, OSError, ...: see `UNDECODABLE`; it is no picture of a format that is meant, or too large.
    """
    try:
        image = PIL.Image.open(io.BytesIO(raw), formats=FORMATS)
    except PIL.UnidentifiedImageError:  # whose text holds an address
        raise ValueError(f"no whole picture that is {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS:,} that are read")
    return image


def oddities(image: PIL.ImageFile.ImageFile) -> tuple[str, ...]:
    """Kinds of `ODD` that apply to an opened image. Its pixels are read only where it has an alpha channel."""
    found = {
        "16-bit": image.mode == "I" or any(";16" in str(tile) or ";12" in str(tile) for tile in image.tile),
        "frames": image.format != "MPO" and _frames(image) > 1,  # a camera's JPEG, with previews after it
        "turned": _orientation(image) > 1,
    }
    rgba = _rgba(image)
    found["transparent"] = rgba is not None and rgba.getchannel("A").getextrema() != (255, 255)
    return tuple(kind for kind in ODD if found[kind])


def is_lossy(image: PIL.ImageFile.ImageFile) -> bool:
    """Whether an image was stored lossily."""
    return image.format in LOSSY or image.info.get("compression") in _LOSSY_PACKING


def _frames(image: PIL.ImageFile.ImageFile) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
    except Exception:  # of what comes after the first: it is not looked at
        return 2
    return count


def _orientation(image: PIL.ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata say nothing
        return 1


def _rgba(image: PIL.ImageFile.ImageFile) -> PIL.Image.Image | None:
    """The picture as RGBA if it says what is transparent, in whatever way."""
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return None
    if image.mode.startswith("I"):  # a grey that is to be seen through
        shown = PIL.Image.fromarray(_high_byte(image)).convert("RGBA")
        solid = np.asarray(image) != image.info["transparency"]
        shown.putalpha(PIL.Image.fromarray(solid.astype(np.uint8) * np.uint8(255)))
        return shown
    if image.mode == "L" and isinstance(image.info.get("transparency"), int):  # a key of the file's own 2 or 4 bits
        scale = next((scale for bits, scale in ((";2", 85), (";4", 17)) if any(bits in str(t) for t in image.tile)), 1)
        shown = image.convert("RGBA")
        solid = np.asarray(image) != image.info["transparency"] * scale
        shown.putalpha(PIL.Image.fromarray(solid.astype(np.uint8) * np.uint8(255)))
        return shown
    return image.convert("RGBA")


def _high_byte(image: PIL.ImageFile.ImageFile) -> NDArray[np.uint8]:
    """A grey picture with 16 bits as uint8, (H, W)."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and image.format == "TIFF":
        raise ValueError("pixels of signed or 32-bit whole numbers have no agreed range: write it with 8 bits")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ValueError("16-bit pixels whose 0 is white: write it with 8 bits")
    bits = 12 if any(";12" in str(tile) for tile in image.tile) else 16
    return (np.asarray(image) >> (bits - 8)).astype(np.uint8)


def _refuse_deep(image: PIL.ImageFile.ImageFile, tags: Any) -> None:
    """Refuse >8-bit images that Pillow would misread as 8-bit.

    Raises:
        ValueError: it is such a picture.
    """
    tiles = [str(tile) for tile in image.tile]
    shallow = image.mode[0] not in "IF" and not any(";16" in tile or ";12" in tile for tile in tiles)
    if shallow and max(np.atleast_1d(tags.get(_BITS, 8))) > 8:
        raise ValueError("TIFF of more than 8 bits in planes of channels: write it with 8 bits")
    if image.format == "PPM" and shallow and any(_maximum(tile.args) > 255 for tile in image.tile):
        raise ValueError("PPM of more than 8 bits: write it as PNG, or with 8 bits")
    if "transparency" in image.info and image.mode == "RGB" and not shallow:
        raise ValueError("16-bit colours of which one is transparent: write it with 8 bits or an alpha channel")


def _maximum(arguments: Any) -> int:
    """Maximum value of a PPM."""
    return arguments[-1] if isinstance(arguments, tuple) and isinstance(arguments[-1], int) else 0


def as_rgb(image: PIL.ImageFile.ImageFile) -> PIL.Image.Image:
    """An opened picture in RGB, 8 bits.

    Raises:
        ValueError, OSError, ...: see `UNDECODABLE`; float pixels, or bytes that are not whole.
    """
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: write it with 8 bits")
    tags: Any = getattr(image, "tag_v2", {})
    if 2 in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        raise ValueError("signed pixels have no agreed range: write it with 8 bits, unsigned")
    _refuse_deep(image, tags)
    if (rgba := _rgba(image)) is not None:
        page = PIL.Image.new("RGBA", rgba.size, "white")
        page.alpha_composite(rgba)
        return page.convert("RGB")
    return PIL.Image.fromarray(_high_byte(image)).convert("RGB") if image.mode[0] == "I" else image.convert("RGB")


def load_array(raw: bytes) -> NDArray[Any]:
    """The array in the bytes of one .npy file.

    Raises:
        ValueError: it is no whole .npy file, or holds a pickle, which is never loaded.
    """
    file = io.BytesIO(raw)
    shape, fortran, dtype = array_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they hold a pickle")
    held, wanted = len(raw) - file.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
    if held != wanted:  # before the space for it is taken
        raise ValueError(f"{held:,} bytes where {dtype} of shape {shape} has {wanted:,}")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and dtype, from the head of a .npy file.

    Raises:
        ValueError: it is none.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
        if min(shape, default=0) < 0:
            raise ValueError(f"shape {shape} has a negative side")
        return shape, fortran, dtype
    except (tokenize.TokenError, SyntaxError) as error:  # of NumPy's second try, for files of Python 2
        raise ValueError(f"cannot parse its header: {error}") from None


def decode(raw: bytes, name: str) -> NDArray[np.uint8]:
    """One picture, or (3 or 1, H, W) uint8 .npy file, as uint8 (H, W, 3).

    Raises:
        ValueError, OSError, ...: see `UNDECODABLE`. Pickled arrays are never loaded.
    """
    if name.lower().endswith(".npy"):
        array = load_array(raw)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3):
            raise ValueError(f"{array.dtype} of shape {array.shape} is not a uint8 (3, H, W) image")
        return np.broadcast_to(array, (3, *array.shape[1:])).transpose(1, 2, 0)
    with opened(raw) as image:
        return np.asarray(as_rgb(image))
