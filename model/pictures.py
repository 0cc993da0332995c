"""Pictures as arrays: decoding, encoding, aspect buckets and fitting a picture to one. H, W are pixels."""

from __future__ import annotations

import importlib
import io
import math
import struct
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.constants import MAX_PIXELS, SIZE_STEP
from model.inputs import InputError, one_line
from model.pixels.png import SIGNATURE, png_chunk

Picture = NDArray[np.uint8]  # (H, W, 3), RGB

_JPEG = b"\xff\xd8"
_JPEG_COLORS = ("YCbCr", "Gray", "RGB")
_UP = 2  # PNG's filter that gives the difference from the pixel above
_BEYOND, _ROUNDING = 0.1, 1e-4  # how far floats may go beyond their range: by resizing, by rounding
MAX_ASPECT = 4.0  # longer pictures are cropped


def aspect_bucket(width: int, height: int, size: int) -> tuple[int, int]:
    """The (W, H) that a picture is fitted to around size × size pixels.

    Both sides divide by 16, the area is within an eighth of size², and the aspect is the closest to the picture's.
    Raises InputError for a size that does not divide by 16.
    """
    if size < SIZE_STEP or size % SIZE_STEP:
        raise InputError(
            f"size {size} does not divide by {SIZE_STEP}; take {max(SIZE_STEP, round(size / SIZE_STEP) * SIZE_STEP)}"
        )
    assert min(width, height) > 0, (width, height)
    aspect = math.log(width / height)
    # Rounded, so that the last bit of a logarithm never decides between two buckets.
    bucket = min(
        _buckets(size // SIZE_STEP), key=lambda b: (round(abs(math.log(b[0] / b[1]) - aspect), 9), b[0] * b[1], b[0])
    )
    return bucket[0] * SIZE_STEP, bucket[1] * SIZE_STEP


@cache
def _buckets(units: int) -> tuple[tuple[int, int], ...]:
    """Every (across, down) whose product is next to units², and its transpose, without the extremes."""
    area = units * units
    pairs = {(across, down) for across in range(1, area + 1) for down in (area // across, -(-area // across))}
    return tuple(
        sorted(
            pair
            for across, down in pairs
            for pair in ((across, down), (down, across))
            if min(pair) > 0 and max(pair) <= MAX_ASPECT * min(pair) and abs(across * down - area) <= area / 8
        )
    )


def crop_size(columns: int, rows: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) of what `fit_picture` cuts out of the middle, whose first pixel is half of the rest, rounded
    down."""
    crop_width = max(1, min(columns, round(rows * width / height)))
    return crop_width, max(1, min(rows, round(columns * height / width)))


def fitted_matrix(matrix: NDArray[np.float64], columns: int, rows: int, width: int, height: int) -> NDArray[np.float64]:
    """Intrinsics (3, 3) of a picture of columns × rows after `fit_picture` to width × height, in units of any size.

    Both for an image width of 1.
    """
    crop_width, crop_height = crop_size(columns, rows, width, height)
    result = np.array(matrix, np.float64)
    result[:2] *= columns
    result[:2, 2] -= (columns - crop_width) // 2, (rows - crop_height) // 2
    result[0] /= crop_width
    result[1] *= height / (crop_height * width)
    return result


def fit_picture(picture: Picture, width: int, height: int) -> Picture:
    """Center-crop a (H, W, 3) picture to the aspect of width × height, then resize it bilinearly with antialiasing."""
    from PIL import Image

    rows, columns = picture.shape[:2]
    crop_width, crop_height = crop_size(columns, rows, width, height)
    left, top = (columns - crop_width) // 2, (rows - crop_height) // 2
    cropped = picture[top : top + crop_height, left : left + crop_width]
    # Pillow filters over the whole footprint of a pixel when it makes a picture smaller; OpenCV's bilinear does not.
    return np.array(Image.fromarray(cropped).resize((width, height), Image.Resampling.BILINEAR))


def decode_picture(data: bytes) -> Picture:
    """Encoded bytes → (H, W, 3) uint8 RGB. Raises what Pillow raises for bytes that are no picture.

    The bytes are taken as ingest stores them: upright, sRGB.
    """
    from PIL import Image

    picture = _decode_jpeg(data) if data[:2] == _JPEG else None
    if picture is not None:
        return picture
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_jpeg(data: bytes) -> Picture | None:
    """A JPEG, in half of the time that Pillow takes to the same pixels; None for one to leave to Pillow.

    Both decode with libjpeg-turbo. CMYK is left out, which Pillow converts by other arithmetic, and a damaged file, of
    which Pillow shows what can be read.
    """
    import simplejpeg

    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in _JPEG_COLORS:
            return None
        picture: Picture = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    return picture


def read_picture(data: bytes) -> Picture:
    """The picture in a file of any format, as it is to look: upright, opaque over white, in sRGB of 8 bits.

    A process that may die of the file decodes what is rare. Raises InputError with the reason for what is no picture.
    """
    from model.pixels.normalize import normalize
    from model.pixels.outcome import Rejected

    try:
        return decode_picture(normalize(data, MAX_PIXELS, 1, exact=True).encoded)
    except Rejected as error:
        raise InputError(str(error)) from None


def decode_gray(data: bytes) -> NDArray[Any]:
    """Encoded gray bytes → (H, W), uint8 or, for a 16-bit PNG, uint16."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):
            return np.array(image).astype(np.uint16)
        return np.array(image.convert("L"))


def encode_png(array: NDArray[Any]) -> bytes:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8, as PNG. The same array gives the same bytes, on any CPU.

    Every row is stored as its difference from the one above, compressed by run lengths and Huffman codes. That is a
    tenth of the time of trying all filters and searching for repetitions, and for labels about as small. Fast searches
    as those of igzip find other repetitions on other CPUs; run lengths are the same wherever they are counted.
    """
    assert (array.ndim == 2 and array.dtype in (np.uint8, np.uint16)) or (
        array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    ), f"no PNG of shape {array.shape}, {array.dtype}"
    height, width = array.shape[:2]
    assert min(height, width) > 0, "a PNG has pixels"
    bits, color = array.dtype.itemsize * 8, 0 if array.ndim == 2 else 2  # gray or RGB
    big_endian = np.ascontiguousarray(array, ">u2" if bits == 16 else np.uint8)
    rows = big_endian.view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _compress(filtered)), (b"IEND", b""))
    return b"".join([SIGNATURE, *(png_chunk(kind, data) for kind, data in chunks)])


def _compress(data: NDArray[np.uint8]) -> bytes:
    """A zlib stream of bytes, by run lengths alone."""
    zlib = _zlib()
    compressor = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return bytes(compressor.compress(data) + compressor.flush())


@cache
def _zlib() -> Any:
    """zlib-ng, which counts run lengths twice as fast as zlib, to the same bytes."""
    try:
        return importlib.import_module("zlib_ng.zlib_ng")
    except ImportError:
        return importlib.import_module("zlib")


def is_signed(image: Any) -> bool:
    """Whether a picture has floats that can only be of -1…1; then its whole batch is, as in diffusers."""
    try:
        image = np.asarray(image) if _is_of_floats(image) else image
        kind = str(getattr(image, "dtype", ""))
        return "float" in kind and float(image.min()) < -_BEYOND
    except (TypeError, ValueError, RuntimeError):  # without numbers
        return False


def as_picture(image: Any, signed: bool = False) -> Picture:
    """What a program gives as a picture, as `read_picture` gives the same picture in a file.

    A PIL image of any mode, whose metadata count (EXIF's orientation, a color profile, transparency); an array
    (H, W), (H, W, 1), (H, W, 3) or with alpha (H, W, 4); a tensor with its channels first. Their levels are uint8, or
    floats in 0…1, or in -1…1 where any is below -0.1, as diffusers takes them; signed: floats are of -1…1. So are those
    of a PIL image of floats that is of no file; one of integers (I) has levels of 16 bits.
    Raises InputError for anything else, as floats in 0…255 and numbers that are not finite.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return _from_pillow(image, signed)
    levels = _levels(image, signed)
    if levels.shape[2] == 4:
        return _on_white(levels)
    return np.ascontiguousarray(np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels)


def _is_of_floats(image: Any) -> bool:
    """Whether a program made this Pillow image of floats: of a file, its format says what the levels mean."""
    return getattr(image, "mode", None) == "F" and getattr(image, "format", "") is None


def _from_pillow(image: Any, signed: bool) -> Picture:
    from PIL import Image

    from model.pixels.appearance import appearance
    from model.pixels.opened import decoded_of
    from model.pixels.outcome import Rejected, broken

    if not min(image.size):
        raise InputError(f"picture of {image.width} × {image.height}: it has no pixels")
    try:
        if _is_of_floats(image):
            metadata = image.info
            image = Image.fromarray(_from_floats(np.asarray(image)[..., None], signed)[..., 0])
            image.info = metadata
        return np.array(appearance(decoded_of(image)).convert("RGB"))
    except Rejected as error:
        raise InputError(str(error)) from None
    except InputError:
        raise
    except Exception as error:
        # Pillow decodes a file when it is asked for pixels, and raises nearly anything for a damaged one.
        raise InputError(str(broken(image.format or "picture", error))) from None


def _levels(image: Any, signed: bool) -> NDArray[np.uint8]:
    """(H, W, 1, 3 or 4) levels of an array or tensor. Raises InputError, naming what is wrong about it."""
    array, form = image, "array"
    if hasattr(image, "permute") and hasattr(image, "detach"):
        try:
            image = image.detach().cpu()
            array, form = (image.float() if image.is_floating_point() else image).numpy(), "tensor"
        except (TypeError, NotImplementedError, RuntimeError) as error:  # sparse ones, those without data
            raise InputError(f"no picture: a tensor without levels to read ({one_line(error, 80)})") from None
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if not isinstance(array, np.ndarray):
        raise InputError(f"no picture: {type(image).__name__}; give a PIL image, an array or a tensor")
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        shapes = "(H, W), (H, W, 3) or (H, W, 4)" if form == "array" else "(3, H, W), (1, H, W) or (4, H, W)"
        raise InputError(f"no picture: {tuple(image.shape)}; give {form}s {shapes}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"no picture: levels of {array.dtype}; give uint8 in 0…255, or floats in 0…1 or -1…1")
    return _from_floats(array, signed)


def _from_floats(levels: NDArray[Any], signed: bool) -> NDArray[np.uint8]:
    """Levels of floats in 0…1, or in -1…1 where any is below 0. Raises InputError for other numbers."""
    least, most = float(levels.min()), float(levels.max())
    # A resized picture may go a little beyond.
    if not (least >= -1 - _BEYOND and most <= 1 + _BEYOND):  # false for NaN too
        raise InputError(f"picture with floats from {least:g} to {most:g}: give 0…1, -1…1 or uint8")
    if not signed and -_BEYOND <= least < -_ROUNDING:
        raise InputError(
            f"picture with floats from {least:g} to {most:g}: they may be of 0…1 or of -1…1; clip them to one of both"
        )
    signed = signed or least < -_BEYOND
    if signed and levels.shape[2] == 4:
        raise InputError(f"picture with alpha and floats from {least:g} to {most:g}: give 0…1 or uint8")
    unit = (levels + 1) / 2 if signed else levels
    return np.asarray((unit.clip(0, 1) * 255).round(), np.uint8)


def _on_white(levels: NDArray[np.uint8]) -> Picture:
    from PIL import Image

    from model.pixels.appearance import flatten

    return np.array(flatten(Image.fromarray(np.ascontiguousarray(levels))))
