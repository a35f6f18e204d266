"""Image bytes to RGB pixels, or one typed reason why not.

What people expect of a viewer, so that the same picture embeds the same however it was saved:
EXIF orientation is applied, transparency is laid on white, CMYK and palettes become RGB, 16-bit
values are scaled to 8 bits, of an animation the first frame counts. Colour profiles are ignored,
as open_clip does. Nothing is repaired: a truncated file is an error, not half a picture.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, install_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats decoded inside the process; EPS, which would start Ghostscript, is not among them.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib")
    + (".tif", ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm")
    + (".heic", ".heif", ".hif")  # read where pillow-heif is installed
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 128_000_000
MAX_BYTES = 256 << 20
"""Bytes of one encoded image at most."""

MAX_DECODED_BYTES = 1 << 30
"""Bytes that decoding one image may take at most, with its copies."""

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of TIFF
# Bytes a pixel while an image is decoded and converted, by Pillow's mode.
_PIXEL_BYTES = {"1": 6, "L": 6, "P": 8, "RGB": 8, "YCbCr": 8, "CMYK": 8}
_MOST_PIXEL_BYTES = 24  # transparency is composed, 16 bits and floats are scaled in float64


class DecodeError(InvalidInputError):
    """An image cannot be decoded.

    Attributes
    ----------
    reason : str
        One of ``empty``, ``unreadable_file``, ``unsupported_type``, ``too_large``,
        ``truncated``, ``corrupt``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode_image(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode one image to RGB.

    Parameters
    ----------
    source : bytes, str or Path
        The encoded image, or the path of its file.
    max_pixels : int
        Images whose header declares more pixels are refused before they are decoded.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, 8 bits a channel, upright.

    Raises
    ------
    DecodeError
        The image cannot be decoded; the error carries a reason code.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    if not content:
        raise DecodeError("empty", "0 bytes")
    if len(content) > MAX_BYTES:
        raise DecodeError("too_large", f"{len(content)} bytes, more than the {MAX_BYTES} allowed")
    from PIL import Image, UnidentifiedImageError

    Image.init()  # registers every format; does nothing the second time
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        _require_heif(content)
    known = [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files it can read all the same
        try:
            with Image.open(io.BytesIO(content), formats=known) as image:
                if image.width * image.height > max_pixels:
                    raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
                _require_room(image)
                _halve_colour_key(image)
                image.load()
                return to_rgb(image)
        except DecodeError:
            raise
        except UnidentifiedImageError as error:
            raise _unidentified(content) from error
        except Image.DecompressionBombError as error:
            raise _too_large(str(error), max_pixels) from error
        except Exception as error:  # codecs raise a dozen types on damaged input
            raise _damaged(error, len(content)) from error


def _require_heif(content: bytes) -> None:
    """Let Pillow read what phones write, by a package that few need."""
    from PIL import Image

    try:
        import pillow_heif
    except ImportError as error:
        if content[8:12] in (b"mif1", b"msf1") and "AVIF" in Image.OPEN:
            return  # a container that may hold either
        raise DecodeError(
            "unsupported_type",
            f"{len(content)} bytes of HEIC, which pillow-heif reads; run: "
            f"{install_line('heic')}, and encode into a new store",
        ) from error
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()


def to_rgb(image: Image) -> Image:
    """An opened Pillow image of any mode as an upright 8-bit RGB image, see the module's notes."""
    from PIL import Image

    key = _colour_key(image)
    tags = getattr(image, "tag_v2", {})
    image = _upright(image)
    if image.mode == "RGB" and key is None:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = _eight_bits(image, unsigned=bool(tags) and tags.get(_SAMPLE_FORMAT, 1) in (1, (1,)))
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero; of 8 bits Pillow turns it itself
            grey = 255 - grey
        if key is not None:
            grey[np.asarray(image) == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "RGB":
        pixels = np.array(image)
        pixels[(pixels == key).all(axis=2)] = 255
        return Image.fromarray(pixels)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _read(path: Path) -> bytes:
    try:
        # A pipe would never end, and a device such as /dev/zero would fill the memory.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DecodeError("unreadable_file", f"{path} is not a regular file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DecodeError("too_large", f"{size} bytes, more than the {MAX_BYTES} allowed")
        return path.read_bytes()
    except DecodeError:
        raise
    except (OSError, ValueError) as error:
        raise DecodeError("unreadable_file", f"{path}: {error}") from error


def _require_room(image: Image) -> None:
    """Refuse an image whose pixels and their copies would take too much memory."""
    each = _PIXEL_BYTES.get(image.mode, _MOST_PIXEL_BYTES)
    if image.has_transparency_data:
        each = _MOST_PIXEL_BYTES
    size = image.width * image.height * each
    if size > MAX_DECODED_BYTES:
        raise DecodeError(
            "too_large",
            f"{image.width} x {image.height} pixels of mode {image.mode} take {size} bytes to "
            f"decode, more than the {MAX_DECODED_BYTES} allowed",
        )


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  damaged EXIF says nothing about the pixels
        return image.copy()


def _colour_key(image: Image) -> int | tuple[int, int, int] | None:
    """The one colour of an RGB image, or of one with more than 8 bits of grey, that is clear."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        return key
    return key if image.mode.startswith("I") and isinstance(key, int) else None


def _halve_colour_key(image: Image) -> None:
    """Of colours of 16 bits Pillow keeps the upper half, but not of the one that is clear."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _eight_bits(image: Image, unsigned: bool = False) -> npt.NDArray[np.uint8]:
    """Grey values of more than 8 bits as uint8.

    16-bit values by 255/65535. Of 32-bit integers and floats the range is not declared: values
    within [0, 65535] and [0, 1] are taken as such, others are stretched from minimum to maximum.
    """
    if unsigned and image.mode == "I":  # Pillow reads 32 bits as signed
        values = np.asarray(image).astype(np.int32).view(np.uint32).astype(np.float64)
    else:
        values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DecodeError("corrupt", "pixel values are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    top = 1.0 if image.mode == "F" else 65535.0
    if image.mode.startswith("I;16") or (low >= 0 and high <= top):
        low, high = 0.0, top
    if low == high:  # one value everywhere, of an unknown range: black, as the least of others
        return np.zeros(values.shape, np.uint8)
    return np.rint((values - low) * (255.0 / (high - low))).astype(np.uint8)


def _too_large(what: str, max_pixels: int) -> DecodeError:
    return DecodeError("too_large", f"{what}, more than the {max_pixels} allowed")


def _unidentified(content: bytes) -> DecodeError:
    start = content[:12].hex(" ")
    return DecodeError(
        "unsupported_type",
        f"{len(content)} bytes starting with {start} are none of {', '.join(FORMATS)}",
    )


def _damaged(error: Exception, size: int) -> DecodeError:
    text = f"{type(error).__name__}: {error}"[:300]
    reason = "truncated" if "truncat" in text.lower() else "corrupt"
    return DecodeError(reason, f"{size} bytes, {text}")
