"""Files of many formats, made here, and whole ones damaged by seed."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth picture, red left above, green right above, blue below: every turn is seen."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    wave = 18 * np.sin(6 * x + seed) * np.cos(5 * y + seed)
    colors = np.stack([210 * (1 - x) * (1 - y) + 30, 200 * x * (1 - y) + 30, 190 * y + 30], -1)
    return Image.fromarray(np.clip(colors + wave[..., None], 0, 255).astype(np.uint8))


def exif(orientation: int = 6) -> bytes:
    """An EXIF block with an orientation, texts, a rational and an inner folder."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F], block[0x011A], block[0x0131] = "Maker", 72.0, "Program 1.0"
    block.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


def heic(image: Image.Image, **options: Any) -> bytes:
    """A HEIC file; options are those of pillow_heif."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **{"quality": 95, **options})
    return buffer.getvalue()


def deep_heic(levels: NDArray[np.uint8], bits: int) -> bytes:
    """A HEIC file of 10 or 12 bits."""
    import pillow_heif

    height, width = levels.shape[:2]
    image = pillow_heif.from_bytes("RGB;16", (width, height), (levels.astype(np.uint16) * 257).tobytes())
    buffer = io.BytesIO()
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    image.save(buffer, quality=100, chroma=444)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    return buffer.getvalue()


def jxl(image: Image.Image, **options: Any) -> bytes:
    """A JPEG XL file."""
    import pillow_jxl  # noqa: F401  it registers the format

    return encode(image, "JXL", **options)


def whole_files() -> dict[str, bytes]:
    """Some 40 whole files of 20 formats and more, as programs write them, with metadata of all kinds."""
    base = scene(64, 48)
    clear = base.convert("RGBA")
    clear.putalpha(base.convert("L"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gray16 = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    turned = {"exif": exif(), "icc_profile": profile}
    return {
        "jpeg": encode(base, "JPEG", **turned),
        "jpeg-progressive": encode(base, "JPEG", progressive=True, **turned),
        "jpeg-gray": encode(base.convert("L"), "JPEG", comment="a comment"),
        "jpeg-cmyk": encode(base.convert("CMYK"), "JPEG"),
        "mpo": encode(base, "MPO", save_all=True, append_images=[scene(64, 48, 1)], exif=exif()),
        "png": encode(base, **turned),
        "png-alpha": encode(clear),
        "png-palette": encode(base.quantize(32), transparency=3),
        "png-16": encode(gray16),
        "png-1": encode(base.convert("1")),
        "apng": encode(base, save_all=True, append_images=[scene(64, 48, 1)]),
        "webp": encode(base, "WEBP", **turned),
        "webp-lossless": encode(clear, "WEBP", lossless=True),
        "webp-moving": encode(base, "WEBP", save_all=True, append_images=[scene(64, 48, 1)]),
        "avif": encode(base, "AVIF", **turned),
        "avif-alpha": encode(clear, "AVIF", exif=exif()),
        "heic": heic(base, exif=exif(1)),
        "heic-alpha": heic(clear),
        "jxl": jxl(base, exif=exif(1)),
        "gif": encode(base, "GIF"),
        "gif-moving": encode(base, "GIF", save_all=True, append_images=[scene(64, 48, 1)]),
        "bmp": encode(base, "BMP"),
        "bmp-palette": encode(base.quantize(16), "BMP"),
        "dib": encode(base, "DIB"),
        "tiff": encode(base, "TIFF", **turned),
        "tiff-lzw": encode(base, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encode(base, "TIFF", compression="jpeg"),
        "tiff-group4": encode(base.convert("1"), "TIFF", compression="group4"),
        "tiff-16": encode(gray16, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-float": encode(base.convert("F"), "TIFF"),
        "tiff-pages": encode(base, "TIFF", save_all=True, append_images=[scene(64, 48, 1)]),
        "jpeg2000": encode(base, "JPEG2000"),
        "jpeg2000-alpha": encode(clear, "JPEG2000"),
        "ppm": encode(base, "PPM"),
        "pgm": encode(base.convert("L"), "PPM"),
        "pbm": encode(base.convert("1"), "PPM"),
        "tga": encode(clear, "TGA", compression="tga_rle"),
        "pcx": encode(base, "PCX"),
        "sgi": encode(base, "SGI"),
        "ico": encode(base, "ICO", sizes=[(64, 48)]),
        "icns": encode(clear.resize((128, 128)), "ICNS"),
        "dds": encode(clear, "DDS"),
        "dds-bc3": encode(clear, "DDS", pixel_format="BC3"),
        "qoi": encode(base, "QOI"),
        "im": encode(base, "IM"),
        "msp": encode(base.convert("1"), "MSP"),
        "xbm": encode(base.convert("1"), "XBM"),
        "blp": encode(base.quantize(256), "BLP"),
    }


def damaged(files: dict[str, bytes], count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of `count` files: each a whole one with bytes cut, changed, left out or doubled."""
    names = sorted(files)
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        name = names[number % len(names)]
        data = bytearray(files[name])
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            head = rng.random() < 0.7
            place = rng.randrange(min(len(data), 600) if head else len(data)) if data else 0
            kind = rng.randrange(6)
            if kind == 0 and data:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1 and data:
                data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            elif kind == 2:
                data[place : place + 4] = rng.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\1\0\0\0")
                )
            elif kind == 3:
                del data[place : place + rng.choice((1, 2, 4, 64, len(data)))]
            elif kind == 4:
                data[place:place] = bytes(data[place : place + rng.choice((1, 4, 64))])
            else:
                data[place : place + 8] = rng.randbytes(8)
        yield f"{name}-{number}", bytes(data)
