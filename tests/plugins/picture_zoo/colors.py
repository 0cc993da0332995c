"""Pictures whose levels do not mean sRGB."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from picture_zoo.case import Case
from picture_zoo.files import encode, heic, jxl, scene
from picture_zoo.parts import ADOBE, BT709, P3, adobe_exif, chunk, icc, looks, png, with_chunks

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cases() -> Iterator[Case]:
    """Profiles by what they say and not by their name, in every format; chunks of PNG; codes of AVIF; CMYK and LAB."""
    base, values = scene(), np.asarray(scene())
    yield from _profiles(base, values)
    yield from _names(base, values)
    yield from _png_chunks(values)
    yield from _without_profile(base, values)


def _profiles(base: Image.Image, values: np.ndarray) -> Iterator[Case]:
    spaces = {"p3": (P3, None), "adobe": (ADOBE, 563 / 256), "linear": (BT709, 1.0), "gamma-1.8": (BT709, 1.8)}
    for name, space in spaces.items():
        profile, look = icc(name, *space), looks(values, *space)
        yield Case(
            f"{name}.jpg", encode(base, "JPEG", quality=98, subsampling=0, icc_profile=profile), look, kept=False
        )
        yield Case(f"{name}.png", encode(base, icc_profile=profile), look, apart=1.5, kept=False)
        yield Case(f"{name}.webp", encode(base, "WEBP", lossless=True, icc_profile=profile), look, apart=1.5)
        yield Case(f"{name}.tif", encode(base, "TIFF", icc_profile=profile), look, apart=1.5)
        yield Case(f"{name}.avif", encode(base, "AVIF", quality=98, subsampling="4:4:4", icc_profile=profile), look)
        yield Case(f"{name}.heic", heic(base, quality=100, chroma=444, icc_profile=profile), look, apart=4)
        few = base.quantize(64)
        few_look = looks(np.asarray(few.convert("RGB")), *space)
        yield Case(f"{name}-palette.png", encode(few, icc_profile=profile), few_look, apart=1.5)
        clear = base.convert("RGBA")
        alpha = np.tile(np.linspace(0, 255, base.width).astype(np.uint8), (base.height, 1))
        clear.putalpha(Image.fromarray(alpha))
        share = alpha[..., None] / 255
        on_white = np.rint(look * share + 255 * (1 - share)).astype(np.uint8)
        yield Case(f"{name}-alpha.png", encode(clear, icc_profile=profile), on_white)
        deep = values.astype(np.uint16) * 257
        packed = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))
        yield Case(f"{name}-deep.png", png(deep, 2, packed), look, apart=1)
    gray = np.asarray(base.convert("L"))
    yield Case("p3-gray.png", encode(base.convert("L"), icc_profile=icc("Display P3")), gray)
    yield Case(
        "linear-gray.png", encode(base.convert("L"), icc_profile=icc("g", gamma=1.0, gray=True)), looks(gray, gamma=1.0)
    )
    yield Case("srgb-gray.png", encode(base.convert("L"), icc_profile=icc("g", gray=True)), gray, kept=True)
    yield Case(
        "gray-1.8.jpg",
        encode(base.convert("L"), "JPEG", quality=98, icc_profile=icc("g", gamma=1.8, gray=True)),
        looks(gray, gamma=1.8),
    )


def _names(base: Image.Image, values: np.ndarray) -> Iterator[Case]:
    linear = icc("sRGB IEC61966-2.1", BT709, 1.0)
    yield Case("linear-called-srgb.png", encode(base, icc_profile=linear), looks(values, BT709, 1.0))
    yield Case(
        "p3-called-srgb.jpg", encode(base, "JPEG", quality=98, subsampling=0, icc_profile=icc("sRGB")), looks(values)
    )
    yield Case("p3-called-c2.png", encode(base, icc_profile=icc("c2")), looks(values), apart=1.5)
    yield Case("srgb-of-another-name.png", encode(base, icc_profile=icc("My screen", BT709)), base, kept=True)
    yield Case("profile-srgb.jpg", encode(base, "JPEG", quality=95, icc_profile=SRGB), base, kept=True)
    yield Case("profile-srgb.webp", encode(base, "WEBP", lossless=True, icc_profile=SRGB), base, kept=True)
    for name, profile in {"noise": b"\xa5" * 500, "cut": icc("P3")[:200], "short": b"x", "zeros": bytes(200)}.items():
        yield Case(f"profile-{name}.jpg", encode(base, "JPEG", quality=95, icc_profile=profile), base)
        yield Case(f"profile-{name}.png", encode(base, icc_profile=profile), base)
    yield Case("gray-profile-on-colors.png", encode(base, icc_profile=icc("g", gamma=1.0, gray=True)), base)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield Case("lab-profile-on-colors.jpg", encode(base, "JPEG", quality=95, icc_profile=lab), base)
    cut_short = icc("P3")
    cut_short = cut_short[:128] + struct.pack(">I", 2**31) + cut_short[132:]
    yield Case("profile-of-billions-of-tags.png", encode(base, icc_profile=cut_short), base)


def _png_chunks(values: np.ndarray) -> Iterator[Case]:
    base = encode(Image.fromarray(values))

    def gamma(value: float) -> bytes:
        return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))

    def chromaticities(primaries) -> bytes:
        numbers = [0.3127, 0.3290, *(value for pair in primaries for value in pair)]
        return chunk(b"cHRM", struct.pack(">8I", *(round(number * 100_000) for number in numbers)))

    srgb_chunk = chunk(b"sRGB", b"\0")
    yield Case("gamma-1.png", with_chunks(base, gamma(1.0)), looks(values, BT709, 1.0), apart=1)
    yield Case("gamma-chunk-1.8.png", with_chunks(base, gamma(1 / 1.8)), looks(values, BT709, 1.8), apart=1)
    yield Case("gamma-2.2.png", with_chunks(base, gamma(0.45455)), values, kept=True)
    yield Case("gamma-0.png", with_chunks(base, gamma(0)), values)
    yield Case("gamma-and-srgb.png", with_chunks(base, gamma(1.0), srgb_chunk), values, kept=True)
    yield Case("srgb-chunk.png", with_chunks(base, srgb_chunk), values, kept=True)
    yield Case("chromaticities-p3.png", with_chunks(base, gamma(0.45455), chromaticities(P3)), looks(values), apart=1)
    yield Case("chromaticities-srgb.png", with_chunks(base, chromaticities(BT709)), values, kept=True)
    yield Case("chromaticities-0.png", with_chunks(base, chunk(b"cHRM", bytes(32))), values)
    same = chunk(b"cHRM", struct.pack(">8I", *(31_270, 32_900) * 4))
    yield Case("chromaticities-of-one-point.png", with_chunks(base, same), values)
    yield Case("cicp-p3.png", with_chunks(base, chunk(b"cICP", b"\x0c\x0d\0\1")), looks(values), apart=1)
    yield Case("cicp-srgb.png", with_chunks(base, chunk(b"cICP", b"\1\x0d\0\1")), values, kept=True)
    yield Case("cicp-linear.png", with_chunks(base, chunk(b"cICP", b"\1\x08\0\1")), looks(values, BT709, 1.0), apart=1)
    # Gray of 203 cd/m² is white, in PQ at 58 % and in HLG at 75 % of the levels.
    for name, code, share in (("pq", 16, 0.5806), ("hlg", 18, 0.75)):
        white = encode(Image.new("RGB", (64, 64), (round(share * 255),) * 3))
        coded = with_chunks(white, chunk(b"cICP", bytes([9, code, 0, 1])))
        yield Case(f"cicp-{name}-white.png", coded, np.full((64, 64, 3), 255, np.uint8), apart=3)
    yield Case(
        "gamma-1-deep.png", png(values.astype(np.uint16) * 257, 2, gamma(1.0)), looks(values, BT709, 1.0), apart=1
    )
    dark = (np.linspace(0, 2000, 64 * 64).reshape(64, 64)).astype(np.uint16)  # of which 8 bits would keep eight levels
    yield Case("gamma-1-dark.png", png(dark, 0, gamma(1.0)), looks(dark, BT709, 1.0, 65535), apart=1)


def _without_profile(base: Image.Image, values: np.ndarray) -> Iterator[Case]:
    yield Case(
        "adobe-by-exif.jpg",
        encode(base, "JPEG", quality=98, subsampling=0, exif=adobe_exif()),
        looks(values, ADOBE, 563 / 256),
    )
    yield Case("cmyk.jpg", encode(base.convert("CMYK"), "JPEG", quality=98, subsampling=0), base)
    yield Case("cmyk.tif", encode(base.convert("CMYK"), "TIFF"), base)
    yield Case("cmyk-with-srgb.jpg", encode(base.convert("CMYK"), "JPEG", quality=98, icc_profile=SRGB), base, apart=4)
    yield Case("ycbcr.tif", encode(base.convert("YCbCr"), "TIFF"), base)
    lab = ImageCms.profileToProfile(
        base, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    yield Case("lab.tif", encode(lab, "TIFF"), base)
    lab_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield Case("lab-profile.tif", encode(lab, "TIFF", icc_profile=lab_profile), base)
    avif = encode(base, "AVIF", quality=98, subsampling="4:4:4")
    yield Case("coded-p3.avif", _coded(avif, 12, 13), looks(values))
    yield Case("coded-srgb.avif", _coded(avif, 1, 13), values)
    yield Case("coded-nothing.avif", _coded(avif, 2, 2), values)
    yield Case("coded-p3.heic", _coded(heic(base, quality=100, chroma=444), 12, 13), looks(values), apart=4)
    yield Case("plain.jxl", jxl(base, lossless=True), values)


def _coded(file: bytes, primaries: int, transfer: int) -> bytes:
    """The file with other codes for its colors."""
    place = file.index(b"colrnclx") + 8
    return file[:place] + struct.pack(">HH", primaries, transfer) + file[place + 4 :]
