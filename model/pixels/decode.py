"""Decoders of every format that is read: bytes → an 8-bit picture with what is known of its colors and its turn."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from model.pixels import profiles, tags
from model.pixels.boxes import jxl_size, main_color, without_exif
from model.pixels.deep import FLOAT, SIGNED, UNSIGNED, WHITE_IS_ZERO, Depth, read_levels, to_16_bits
from model.pixels.outcome import Rejected, check_size
from model.pixels.png import PngFacts, pixels_only, read_png
from model.pixels.recoding import JpegCoding, coding_of
from model.pixels.spaces import ColorSpace, adobe_rgb, coded_space, stated_space, to_srgb

# Formats that need another program (EPS, WMF), another library, or that are no pictures to see.
_NOT_OPENED = {
    "EPS",
    "WMF",
    "EMF",
    "MPEG",
    "BUFR",
    "GRIB",
    "HDF5",
    "FITS",
    "IPTC",
    "XVTHUMB",
    "MCIDAS",
    "SPIDER",
    "IMT",
}
_MANY_FRAMES = {"GIF", "WEBP", "AVIF", "PNG", "FLI"}

# Tags of a TIFF that say how its pixels are stored.
_PIXEL_TAGS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332}
    | {338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 34675}
)
_GRAY_OR_COLORS = (0, 1, 2)  # photometric interpretation
_REDUCED = 1
_PREMULTIPLIED = 1
_PLANAR = 2  # the colors of a picture lie one after another


@dataclass(frozen=True)
class Decoded:
    """A decoded picture.

    image: a Pillow image of 8 bits; profile: its ICC profile, space: its color space where there is no profile, both
    None for sRGB; turn: 1…8, the EXIF orientation still to be applied; is_lossy: the format is one of photographs that
    loses a little, so that a JPEG of high quality may replace it; coding: that of a JPEG.
    """

    image: Any
    profile: bytes | None = None
    space: ColorSpace | None = None
    turn: int = 1
    is_lossy: bool = False
    coding: JpegCoding | None = None


@cache
def prepare_pillow() -> None:
    """Load Pillow's formats once, without warnings: we have a limit of pixels of our own."""
    import warnings

    from PIL import Image

    with _lock:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of metadata
        Image.init()


_lock = threading.Lock()


def decode(raw: bytes, form: str, max_pixels: int, min_side: int) -> Decoded:
    """Decode a whole file. Raises Rejected for what its header says, and anything else for what is broken.

    form: the name that `signatures.format_name` gives it.
    """
    decoder: Callable[[bytes, int, int], Decoded] = {
        "TIFF": _decode_tiff,
        "PNG": _decode_png,
        "HEIC": _decode_heic,
        "AVIF": _decode_avif,
        "JXL": _decode_jxl,
    }.get(form, _decode_other)
    return decoder(raw, max_pixels, min_side)


def open_checked(raw: bytes, max_pixels: int, min_side: int, formats: tuple[str, ...] | None = None) -> Any:
    """A Pillow image of which the header is read, and its size found right. formats: those of Pillow to try."""
    from PIL import Image

    prepare_pillow()
    if formats is None:
        formats = tuple(sorted(set(Image.ID) - _NOT_OPENED, key=Image.ID.index))
    try:
        image = Image.open(io.BytesIO(raw), formats=formats)
    except Image.DecompressionBombError:
        raise Rejected(f"decompression bomb: more than {max_pixels:,} pixels") from None
    check_size(*image.size, max_pixels, min_side)
    return image


def _decode_other(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    image = open_checked(raw, max_pixels, min_side)
    if image.format in _MANY_FRAMES and getattr(image, "is_animated", False):
        image.seek(0)
    image.load()
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    profile = image.info.get("icc_profile")
    form = "JPEG" if image.format == "MPO" else image.format
    space = adobe_rgb() if form == "JPEG" and not profile and tags.is_adobe_rgb(exif) else None
    is_lossy = form in ("JPEG", "WEBP") and b"VP8L" not in raw[:64]
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return deep_picture(*own_levels(image), profile, space, 1)
    coding = coding_of(image) if form == "JPEG" else None
    return Decoded(image, profile, space, tags.orientation(exif, xmp), is_lossy, coding)


def own_levels(image: Any) -> tuple[Any, Depth]:
    """Levels of a Pillow image of many bits; those of Netpbm Pillow has scaled to 16 bits."""
    levels = np.asarray(image)
    if image.mode == "F":
        return levels, Depth(32, FLOAT)
    if image.format == "PPM" or image.mode.startswith("I;16"):
        return levels.astype(np.uint16), Depth(16)
    return levels, Depth(32, SIGNED)


def _decode_png(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    facts = read_png(raw)
    data, image = open_png(facts.data, max_pixels, min_side)
    image.load()  # of 16 bits too: OpenCV does not tell a cut file
    space = png_space(facts)
    turn = png_turn(facts, image)
    if facts.bits == 16 and "transparency" not in image.info and (levels := read_levels(pixels_only(data))) is not None:
        return deep_picture(levels, Depth(16), facts.profile, space, turn)
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        clear = levels == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
        return deep_picture(levels.astype(np.uint16), Depth(16), facts.profile, space, turn, clear)
    return Decoded(image, facts.profile, space, turn)


def open_png(data: bytes, max_pixels: int, min_side: int) -> tuple[bytes, Any]:
    """The bytes of a PNG and its Pillow image, of which the header is read: of the pixels alone where need be."""
    try:
        return data, open_checked(data, max_pixels, min_side, ("PNG",))
    except Rejected:
        raise
    except Exception:
        bare = pixels_only(data)
        return bare, open_checked(bare, max_pixels, min_side, ("PNG",))


def png_space(facts: PngFacts) -> ColorSpace | None:
    """The color space of a PNG that has no profile; None for sRGB."""
    if facts.cicp:
        return coded_space(*facts.cicp)
    return stated_space(facts.gamma, facts.chromaticities)


def png_turn(facts: PngFacts, image: Any) -> int:
    """The orientation of a PNG that is loaded: of its EXIF block, or of the text in which older programs write one."""
    exif, text = facts.exif, image.info.get("Raw profile type exif")
    if not exif and isinstance(text, str):
        with suppress(ValueError):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return tags.orientation(exif, image.info.get("xmp"))


def _decode_tiff(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    folders = list(tags.read_folders(raw))
    if not folders:
        raise ValueError("it has no picture")
    number = next((n for n, one in enumerate(folders) if not _first(one, 254, 0) & _REDUCED), 0)
    page = folders[number]
    check_size(_first(page, 256, 0), _first(page, 257, 0), max_pixels, min_side)
    bits, form = max(page.get(258, (1,))), _first(page, 339, 1)
    profile = bytes(page[34675]) if 34675 in page and isinstance(page[34675][0], int) else None
    turn = _first(page, tags.ORIENTATION, 1)
    turn = turn if 1 <= turn <= 8 else 1
    photometric = _first(page, 262, 1)
    wanted = _PIXEL_TAGS
    is_half = form == FLOAT and bits == 16
    if is_half:  # read as integers, and taken for what they are afterwards
        wanted = wanted - {339}
    if any(start + size > len(raw) for start, size in _pieces(page)):
        raise EOFError
    data = tags.with_tags(raw, number, wanted)
    if (bits > 8 or form in (SIGNED, FLOAT)) and photometric in _GRAY_OR_COLORS:
        levels = _planar_levels(raw, page, wanted) if page.get(284) == (_PLANAR,) else read_levels(data)
        if levels is None:
            raise Rejected(f"TIFF of {_depth_name(bits, form)} in this compression or arrangement is not read")
        levels = levels.view(np.float16).astype(np.float32) if is_half else levels
        if levels.ndim == 3 and levels.shape[2] == 4 and _first(page, 338, 0) == _PREMULTIPLIED:
            levels = _unmultiplied(levels)
        return deep_picture(levels, _tiff_depth(page), profile, None, turn)
    if bits > 8 and photometric != 5:
        raise Rejected(f"TIFF of {_depth_name(bits, form)} with photometric interpretation {photometric} is not read")
    if raw.startswith(b"MM\0+"):  # which Pillow does not know
        raise Rejected("BigTIFF in big-endian order is not read: convert it to PNG, JPEG or TIFF")
    image = open_checked(data, max_pixels, min_side, ("TIFF",))
    image.load()
    if image.mode == "LAB" and not profile:
        profile = profiles.lab_profile()
    return Decoded(image, profile, None, turn)


def _planar_levels(raw: bytes, page: tags.Tags, wanted: frozenset[int]) -> Any:
    """Levels of a page whose colors lie one after another, of which OpenCV reads the first one as all of them."""
    planes = [read_levels(one) for one in tags.planes(raw, page, wanted)]
    colors = [color for color in planes if color is not None and color.ndim == 2]
    if not colors or len(colors) < len(planes):
        return None
    if len(colors) == 2 or _first(page, 262, 1) != 2:
        return colors[0]
    return np.stack(colors if len(colors) in (3, 4) else colors[:3], -1)


def _tiff_depth(page: tags.Tags) -> Depth:
    form = _first(page, 339, 1)
    lowest, highest = (page.get(tag, (None,))[0] for tag in ((280, 281) if form == UNSIGNED else (340, 341)))
    is_inverted = _first(page, 262, 1) == WHITE_IS_ZERO
    return Depth(max(page.get(258, (1,))), form, _number(lowest), _number(highest), is_inverted)


def tiff_levels(levels: Any, page: Mapping[int, Any]) -> tuple[Any, Depth]:
    """Gray levels as Pillow gives them of a TIFF of more than 8 bits, as its tags mean them, and their depth."""
    depth = _tiff_depth({tag: value if isinstance(value, tuple) else (value,) for tag, value in page.items()})
    if depth.form == SIGNED and depth.bits == 16:
        return levels.astype(np.int16), depth
    if depth.form == UNSIGNED and depth.bits == 32:
        return levels.view(np.uint32), depth
    return levels, depth


def _pieces(page: tags.Tags) -> Iterator[tuple[int, int]]:
    """(start, size) of each strip or tile, in bytes."""
    for starts, sizes in ((273, 279), (324, 325)):
        yield from zip(page.get(starts, ()), page.get(sizes, ()), strict=False)


def _first(page: tags.Tags, tag: int, default: int) -> int:
    value = page.get(tag, (default,))[0]
    return value if isinstance(value, int) else default


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _depth_name(bits: int, form: int) -> str:
    return f"{bits}-bit {({SIGNED: 'signed integers', FLOAT: 'floats'}).get(form, 'integers')}"


def _unmultiplied(levels: Any) -> Any:
    alpha = levels[..., 3:].astype(np.float64)
    most = np.iinfo(levels.dtype).max if levels.dtype.kind in "ui" else 1.0
    colors = np.where(alpha > 0, levels[..., :3] * (most / np.maximum(alpha, 1e-9)), most)
    return np.concatenate([np.clip(colors, 0, most).astype(levels.dtype), levels[..., 3:]], -1)


def _decode_heic(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    try:
        import pillow_heif
    except ImportError:
        raise Rejected("HEIC is not read here: pip install pillow-heif") from None
    options = pillow_heif.options
    options.DECODE_THREADS, options.THUMBNAILS, options.DEPTH_IMAGES, options.AUX_IMAGES = 1, False, False, False
    picture = pillow_heif.open_heif(raw, convert_hdr_to_8bit=False, hdr_to_16bit=True)  # its main picture
    width, height = picture.size
    check_size(width, height, max_pixels, min_side)
    profile = picture.info.get("icc_profile")
    coded = picture.info.get("nclx_profile") or {}
    codes = coded.get("color_primaries", 2), coded.get("transfer_characteristics", 2)
    space = None if profile else coded_space(*map(int, codes))
    mode = picture.mode.split(";")[0]
    # Turned by its decoder, as the format wants it; what EXIF says of that is history.
    if picture.mode.endswith(";16"):
        bits = int(picture.info.get("bit_depth", 16))
        top = ((1 << bits) - 1) << (16 - bits)
        return deep_picture(
            np.asarray(picture), Depth(16, highest=float(top), lowest=0.0), profile, space, 1, is_lossy=True
        )
    image = picture.to_pillow()
    return Decoded(image.convert("RGBA") if mode.endswith("a") else image, profile, space, is_lossy=True)


def _decode_avif(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # Pillow gives as orientation how the format turns the picture; what EXIF says of that does not count.
    image = open_checked(without_exif(raw), max_pixels, min_side, ("AVIF",))
    image.load()
    profile, codes = image.info.get("icc_profile"), main_color(raw)
    space = coded_space(*codes) if codes and not profile else None
    return Decoded(image, profile, space, tags.orientation(image.info.get("exif"), None), is_lossy=True)


def _decode_jxl(raw: bytes, max_pixels: int, min_side: int) -> Decoded:
    try:
        from pillow_jxl import Decoder
    except ImportError:
        raise Rejected("JPEG XL is not read here: pip install pillow-jxl-plugin") from None
    from PIL import Image

    size = jxl_size(raw)
    if size:
        check_size(*size, max_pixels, min_side)
    is_jpeg, facts, data, profile, _ = Decoder(num_threads=1)(raw)
    if is_jpeg:
        return _decode_other(data, max_pixels, min_side)
    size = facts.width, facts.height
    check_size(*size, max_pixels, min_side)
    # Turned by its decoder, as the format wants it.
    if facts.mode in ("L", "LA", "RGB", "RGBA"):
        return Decoded(Image.frombytes(facts.mode, size, data), profile or None, is_lossy=True)
    kinds = {"I;16": np.uint16, "F": np.float32, "F;16": np.float16}
    depth = facts.mode.partition(";")[2]
    kind = kinds.get(facts.mode) or {"16": np.uint16}.get(depth)
    if kind is None:
        raise Rejected(f"JPEG XL of {facts.mode} is not read")
    levels = np.frombuffer(data, kind).reshape(facts.height, facts.width, -1)
    levels = levels[..., 0] if levels.shape[2] == 1 else levels
    form = FLOAT if levels.dtype.kind == "f" else UNSIGNED
    return deep_picture(levels, Depth(16 if form == UNSIGNED else 32, form), profile or None, None, 1, is_lossy=True)


def deep_picture(
    levels: Any,
    depth: Depth,
    profile: bytes | None,
    space: ColorSpace | None,
    turn: int,
    clear: Any = None,
    is_lossy: bool = False,
) -> Decoded:
    """A picture of many bits in 8: in sRGB, where its profile is one of primaries and curves.

    levels: (H, W) gray, or (H, W, 2…4) with alpha last in 2 and 4; clear: (H, W), which pixels are transparent.
    """
    from PIL import Image

    alpha = None
    if levels.ndim == 3 and levels.shape[2] in (2, 4):
        alpha = Image.fromarray(to_srgb(to_16_bits(levels[..., -1], Depth(depth.bits, depth.form)), None, 65535))
        levels = levels[..., :-1] if levels.shape[2] == 4 else levels[..., 0]
    deep = to_16_bits(levels, depth)
    left = profile
    if profile:
        if profiles.is_srgb(profile):
            left = None
        elif matrix := profiles.matrix_space(profile):
            space, left = matrix, None
    image = Image.fromarray(to_srgb(deep, space, 65535))
    if clear is not None:
        alpha = Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    if alpha is not None:
        image.putalpha(alpha)
    return Decoded(image, left, None, turn, is_lossy)
