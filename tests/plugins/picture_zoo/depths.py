"""Pictures of more and of fewer than eight bits, with and without transparency."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

from picture_zoo.case import Case
from picture_zoo.files import deep_heic, encode, heic, jxl, scene
from picture_zoo.parts import chunk, looks, png, tiff


def cases() -> Iterator[Case]:
    """16-bit PNG and TIFF, signed, floats, 32 bits, 12 bits; dark ones stay dark; transparency of every kind."""
    base = scene()
    rgb = np.asarray(base)
    gray = np.asarray(base.convert("L"))
    yield from _sixteen(rgb, gray)
    yield from _floats(rgb, gray)
    yield from _planes(rgb)
    yield from _integers(rgb, gray)
    yield from _transparency(base, rgb, gray)
    yield from _few(base)


def _sixteen(rgb: np.ndarray, gray: np.ndarray) -> Iterator[Case]:
    deep, deep_gray = rgb.astype(np.uint16) * 257, gray.astype(np.uint16) * 257
    full = np.full_like(deep_gray, 65535)
    yield Case("gray.png", png(deep_gray, 0), gray, apart=0)
    yield Case("rgb.png", png(deep, 2), rgb, apart=0)
    yield Case("gray-alpha.png", png(np.stack([deep_gray, full], -1), 4), gray, apart=0)
    yield Case("rgba.png", png(np.dstack([deep, full]), 6), rgb, apart=0)
    yield Case("rgba-clear.png", png(np.dstack([deep, full * 0]), 6), np.full_like(rgb, 255), apart=0)
    for order in "<>":
        name = {"<": "little", ">": "big"}[order]
        yield Case(f"gray-{name}.tif", tiff(deep_gray, 1, 1, order=order), gray, apart=0)
        yield Case(f"rgb-{name}.tif", tiff(deep, 1, 2, order=order), rgb, apart=0)
        yield Case(f"rgba-{name}.tif", tiff(np.dstack([deep, full]), 1, 2, order=order), rgb, apart=0)
        yield Case(f"white-is-zero-{name}.tif", tiff(65535 - deep_gray, 1, 0, order=order), gray, apart=0)
    image = Image.fromarray(deep_gray)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Case(f"{compression}.tif", encode(image, "TIFF", compression=compression), gray, apart=0)
    # A picture of few levels is dark, and not to be stretched.
    dark = (deep_gray // 300).astype(np.uint16)
    yield Case("dark.png", png(dark, 0), np.rint(dark / 257).astype(np.uint8), apart=0.1)
    yield Case("dark.tif", tiff(dark, 1, 1), np.rint(dark / 257).astype(np.uint8), apart=0.1)
    yield Case(
        "half-levels.png", png((deep + 128).clip(max=65535), 2), np.rint((deep + 128).clip(max=65535) / 257), apart=0
    )
    twelve = (deep_gray >> 4).astype(np.uint16)
    yield Case("highest-stated.tif", tiff(twelve, 1, 1, {280: (0,), 281: (4095,)}), gray, apart=0.6)
    yield Case("sixteen.pgm", b"P5 96 64 65535\n" + deep_gray.astype(">u2").tobytes(), gray, apart=0.6)
    yield Case("dark.pgm", b"P5 96 64 65535\n" + dark.astype(">u2").tobytes(), np.rint(dark / 257), apart=0.6)
    yield Case("ten.pgm", b"P5 96 64 1023\n" + (deep_gray >> 6).astype(">u2").tobytes(), gray, apart=0.6)
    yield Case("sixteen.ppm", b"P6 96 64 65535\n" + deep.astype(">u2").tobytes(), rgb, apart=0.6)
    yield Case("sixteen.jp2", encode(image, "JPEG2000"), gray, apart=1)
    # This encoder writes that levels of 16 bits are linear.
    yield Case("sixteen.jxl", jxl(image, lossless=True), looks(gray, gamma=1.0), apart=1)


def _planes(rgb: np.ndarray) -> Iterator[Case]:
    """TIFF whose colors lie one after another, as scanners and scientists write it."""
    shares = rgb / 255
    kinds = {"16": rgb.astype(np.uint16) * 257, "float32": shares.astype(np.float32), "half": shares.astype(np.float16)}
    arrangements = {
        "": {},
        "-tiled": {"tile": (32, 32)},
        "-big": {"byteorder": ">"},
        "-packed": {"compression": "zlib"},
    }
    for kind, levels in kinds.items():
        for name, options in arrangements.items():
            yield Case(f"planes-{kind}{name}.tif", _planar(levels, **options), rgb, apart=0.1)
    five = np.dstack([kinds["16"], kinds["16"][..., :2]])
    yield Case("planes-of-five.tif", _planar(five, extrasamples=[0, 0]), rgb, apart=0)


def _planar(levels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    planes = np.moveaxis(levels, -1, 0)
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate", **options)
    return buffer.getvalue()


def _floats(rgb: np.ndarray, gray: np.ndarray) -> Iterator[Case]:
    for name, kind in (("float32", np.float32), ("float64", np.float64), ("float16", np.float16)):
        yield Case(f"{name}-gray.tif", tiff((gray / 255).astype(kind), 3, 1), gray, apart=0.1)
        yield Case(f"{name}-rgb.tif", tiff((rgb / 255).astype(kind), 3, 2), rgb, apart=0.1)
    share = (gray / 255).astype(np.float32)
    yield Case("float-dark.tif", tiff(share / 10, 3, 1), np.rint(gray / 10), apart=0.3)
    yield Case("float-bright.tif", tiff(share * 4, 3, 1), np.minimum(gray * 4.0, 255), apart=0.3)
    yield Case("float-to-255.tif", tiff(gray.astype(np.float32), 3, 1), gray, apart=0.1)
    yield Case("float-to-65535.tif", tiff(gray.astype(np.float32) * 257, 3, 1), gray, apart=0.1)
    yield Case("float-huge.tif", tiff(gray.astype(np.float32) * 1e9, 3, 1), reason="float levels up to")
    odd = share.copy()
    odd[:2], odd[2:4], odd[4:6] = np.nan, -1, np.inf
    look = gray.copy()
    look[:4], look[4:6] = 0, 255
    yield Case("float-odd.tif", tiff(np.where(np.isinf(odd), 3, odd).astype(np.float32), 3, 1), look, apart=0.1)
    yield Case("float-infinite.tif", tiff(odd, 3, 1), reason="float levels up to")
    yield Case("float-negative.tif", tiff(-share, 3, 1), np.zeros_like(gray), apart=0)
    pfm = b"Pf\n96 64\n-1.0\n" + share[::-1].astype("<f4").tobytes()
    yield Case("float.pfm", pfm, gray, apart=0.1)


def _integers(rgb: np.ndarray, gray: np.ndarray) -> Iterator[Case]:
    yield Case("signed16.tif", tiff(gray.astype(np.int16) * 128, 2, 1), gray, apart=1)
    yield Case("signed16-rgb.tif", tiff(rgb.astype(np.int16) * 128, 2, 2), rgb, apart=1)
    yield Case("signed16-negative.tif", tiff(gray.astype(np.int16) * -1, 2, 1), np.zeros_like(gray), apart=0)
    yield Case("signed16-dark.tif", tiff(gray.astype(np.int16), 2, 1), np.rint(gray / 128), apart=0.3)
    yield Case("signed8.tif", tiff((gray >> 1).astype(np.int8), 2, 1), gray, apart=1.2)
    yield Case("unsigned32.tif", tiff(gray.astype(np.uint32) * 16843009, 1, 1), gray, apart=0.1)
    yield Case("signed32-of-bytes.tif", tiff(gray.astype(np.int32), 2, 1), gray, apart=0.1)
    yield Case("signed32-of-16-bits.tif", tiff(gray.astype(np.int32) * 257, 2, 1), gray, apart=0.1)
    yield Case("whole-numbers.tif", encode(Image.fromarray(gray.astype(np.int32)), "TIFF"), gray, apart=0.1)
    for bits in (10, 12):
        yield Case(f"{bits}-bits.heic", deep_heic(rgb, bits), rgb, apart=1.5)
        yield Case(f"{bits}-bits-dark.heic", deep_heic(rgb // 16, bits), rgb // 16, apart=1.5)


def _transparency(base: Image.Image, rgb: np.ndarray, gray: np.ndarray) -> Iterator[Case]:
    alpha = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    share = alpha[..., None] / 255
    look = np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)
    clear = base.convert("RGBA")
    clear.putalpha(Image.fromarray(alpha))
    yield Case("alpha.png", encode(clear), look, apart=0.6, kept=False)
    yield Case("alpha.webp", encode(clear, "WEBP", lossless=True), look, apart=0.6, kept=False)
    yield Case("alpha.tif", encode(clear, "TIFF"), look, apart=0.6)
    yield Case("alpha.avif", encode(clear, "AVIF", quality=98), look)
    yield Case("alpha.heic", heic(clear, quality=100), look, apart=4)
    yield Case("alpha.jxl", jxl(clear, lossless=True), look, apart=1.5)
    yield Case("alpha.jp2", encode(clear, "JPEG2000"), look, apart=0.6)
    yield Case("alpha.tga", encode(clear, "TGA"), look, apart=0.6)
    multiplied = np.dstack([np.rint(rgb * share), alpha]).astype(np.uint8)
    yield Case("premultiplied.tif", tiff(multiplied, 1, 2, {338: (1,)}), look, apart=1)
    deep = np.dstack([np.rint(rgb * share * 257), alpha * 257.0]).astype(np.uint16)
    yield Case("premultiplied-deep.tif", tiff(deep, 1, 2, {338: (1,)}), look, apart=1)
    yield Case("opaque-alpha.png", encode(base.convert("RGBA")), rgb, apart=0, kept=True)
    yield Case("opaque-gray-alpha.png", encode(base.convert("LA")), gray, apart=0, kept=True)
    few = base.quantize(16)
    hole = np.asarray(few.convert("RGB")).copy()
    hole[np.asarray(few) == 3] = 255
    yield Case("palette-hole.png", encode(few, transparency=3), hole, apart=0)
    yield Case("palette-hole.gif", encode(few, "GIF", transparency=3), hole, apart=0)
    shares = bytes(range(0, 256, 17))
    level = np.frombuffer(shares, np.uint8)[np.asarray(few)][..., None] / 255
    faint = np.rint(np.asarray(few.convert("RGB")) * level + 255 * (1 - level)).astype(np.uint8)
    yield Case("palette-alpha.png", encode(few, transparency=shares), faint, apart=0.6)
    one = base.copy()
    one.paste((1, 2, 3), (0, 0, 48, 32))
    gone = np.asarray(one).copy()
    gone[:32, :48] = 255
    yield Case("one-color-clear.png", encode(one, transparency=(1, 2, 3)), gone, apart=0)
    sixteen = gray.astype(np.uint16) * 257
    sixteen[:32, :48] = 77
    gone = gray.copy()
    gone[:32, :48] = 255
    yield Case("one-level-clear-deep.png", png(sixteen, 0, chunk(b"tRNS", b"\0\x4d")), gone, apart=0)
    yield Case(
        "one-color-clear-deep.png",
        png(np.asarray(one).astype(np.uint16) * 257, 2, chunk(b"tRNS", b"\1\1\2\2\3\3")),
        np.where((np.asarray(one) == (1, 2, 3)).all(-1)[..., None], 255, np.asarray(one)),
        apart=0.6,
    )


def _few(base: Image.Image) -> Iterator[Case]:
    dots = base.convert("1")
    look = np.asarray(dots.convert("L"))
    yield Case("one-bit.png", encode(dots), look, apart=0, kept=True)
    yield Case("one-bit.tif", encode(dots, "TIFF"), look, apart=0)
    yield Case("group4.tif", encode(dots, "TIFF", compression="group4"), look, apart=0)
    yield Case("one-bit.bmp", encode(dots, "BMP"), look, apart=0)
    yield Case("bitmap.pbm", encode(dots, "PPM"), look, apart=0)
    few = base.quantize(4)
    yield Case("two-bits.png", encode(few, bits=2), few.convert("RGB"), apart=0, kept=True)
    yield Case("palette.png", encode(base.quantize(256)), base.quantize(256).convert("RGB"), apart=0, kept=True)
    yield Case("palette.bmp", encode(base.quantize(256), "BMP"), base.quantize(256).convert("RGB"), apart=0)
    yield Case("palette.tif", encode(base.quantize(256), "TIFF"), base.quantize(256).convert("RGB"), apart=0)
    yield Case("white-is-zero.tif", tiff(255 - np.asarray(base.convert("L")), 1, 0), base.convert("L"), apart=0)
