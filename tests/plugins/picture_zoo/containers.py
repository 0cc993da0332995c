"""Good pictures in odd company: long texts, further frames, previews, films behind them, pages, harmless faults."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tifffile

from picture_zoo.case import Case
from picture_zoo.files import encode, heic, jxl, scene
from picture_zoo.parts import box, chunk, tiff, with_chunks

_LONG = b'{"node":"' + b"sampler " * 200_000 + b'"}'  # 1.6 MB of text, a few kB compressed


def cases() -> Iterator[Case]:
    """PNG, JPEG, the frames of films and the pages of documents."""
    yield from _texts()
    yield from _jpegs()
    yield from _frames()
    yield from _others()


def _texts() -> Iterator[Case]:
    base, look = encode(scene()), scene()
    packed = zlib.compress(_LONG)
    texts = {
        "zTXt": chunk(b"zTXt", b"workflow\0\0" + packed),
        "iTXt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + packed),
        "tEXt": chunk(b"tEXt", b"prompt\0" + _LONG),
        "text-without-end": chunk(b"tEXt", b"no zero here"),
        "text-of-noise": chunk(b"zTXt", b"k\0\0" + b"\xa5" * 200),
        "text-of-another-method": chunk(b"zTXt", b"k\0\7" + packed[:100]),
        "text-cut": chunk(b"iTXt", b"prompt\0\1\0"),
        "many-texts": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 900_000)) * 80,
    }
    for name, text in texts.items():
        yield Case(f"{name}.png", with_chunks(base, text), look, apart=0)
        yield Case(f"{name}-after-pixels.png", base[:-12] + text + base[-12:], look, apart=0)
    short = with_chunks(base, chunk(b"tEXt", b"Title\0a scene"))
    yield Case("short-text.png", short, look, apart=0, kept=True)
    bomb = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(40_000_000), 1))
    yield Case("profile-bomb.png", with_chunks(base, bomb), look, apart=0)
    yield Case("profile-of-noise.png", with_chunks(base, chunk(b"iCCP", b"p\0\0" + b"\xa5" * 99)), look, apart=0)
    yield Case("unknown-chunk.png", with_chunks(base, chunk(b"prVt", b"\0" * 500)), look, apart=0, kept=True)
    yield Case("bytes-after-end.png", base + b"<!-- appended -->" * 100, look, apart=0, kept=True)
    pieces = b"".join(chunk(b"IDAT", part) for part in _idat(base, 40))
    split = base[: base.index(b"IDAT") - 4] + pieces + base[-12:]
    yield Case("pixels-in-many-chunks.png", split, look, apart=0, kept=True)


def _idat(png: bytes, size: int) -> list[bytes]:
    start = png.index(b"IDAT")
    length = struct.unpack(">I", png[start - 4 : start])[0]
    data = png[start + 4 : start + 4 + length]
    return [data[at : at + size] for at in range(0, length, size)]


def _jpegs() -> Iterator[Case]:
    look, second = scene(), scene(seed=7)
    base = encode(look, "JPEG", quality=95)
    yield Case(
        "two-pictures.jpg", encode(look, "MPO", quality=95, save_all=True, append_images=[second]), look, kept=True
    )
    yield Case("picture-behind.jpg", base + encode(second, "JPEG"), look, kept=True)
    film = box(b"ftyp", b"mp42\0\0\0\0mp42") + box(b"mdat", bytes(200_000))
    yield Case("film-behind.jpg", base + film, look, kept=True)
    gain = b'<x:xmpmeta><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    ultra = encode(look, "MPO", quality=95, save_all=True, append_images=[second.convert("L")], xmp=gain)
    yield Case("gain-map.jpg", ultra, look, kept=True)

    def with_segments(*segments: tuple[int, bytes]) -> bytes:
        written = (bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data for marker, data in segments)
        return base[:2] + b"".join(written) + base[2:]

    mpf = b"MPF\0II*\0\x08\0\0\0"
    segments = {
        "mpf-cut": [(0xE2, mpf)],
        "mpf-of-noise": [(0xE2, b"MPF\0" + b"\xa5" * 60)],
        "mpf-of-nothing": [(0xE2, mpf + struct.pack("<H", 1) + struct.pack("<HHII", 0xB001, 4, 1, 9) + bytes(4))],
        "photoshop-of-noise": [(0xED, b"Photoshop 3.0\x00" + b"8BIM\x03\xed\xff" + b"\xa5" * 30)],
        "photoshop-cut": [(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0")],
        "flashpix": [(0xE2, b"FPXR\0" + bytes(40))],
        "jfif-short": [(0xE0, b"JFIF\0\1")],
        "adobe-short": [(0xEE, b"Adobe")],
        "comment-of-noise": [(0xFE, b"\xff\xfe\xa5" * 100)],
        "large-exif": [(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0" + bytes(60_000))] * 40,
        "profile-of-other-parts": [(0xE2, b"ICC_PROFILE\0\3\2" + bytes(200))],
        "empty-segments": [(0xE1, b""), (0xE2, b""), (0xED, b""), (0xFE, b"")],
        "quality-marker": [(0xEC, b"Ducky\0\1\0\4\0\0\0\x3c\0\0")],
    }
    for name, added in segments.items():
        yield Case(f"{name}.jpg", with_segments(*added), look)
    for name, options in {
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 2},
        "subsampled": {"subsampling": 2},
        "optimized": {"optimize": True},
    }.items():
        yield Case(f"{name}.jpg", encode(look, "JPEG", quality=95, **options), look, apart=4, kept=True)
    gray = look.convert("L")
    yield Case("gray.jpg", encode(gray, "JPEG", quality=95), gray, kept=True)
    yield Case("fill-bytes.jpg", base[:2] + b"\xff" * 20 + base[2:], look)
    yield Case("bytes-before-end.jpg", base[:-2] + bytes(100) + base[-2:], look)


def _frames() -> Iterator[Case]:
    look, second = scene(), scene(seed=7)
    several = {"save_all": True, "append_images": [second, scene(seed=9)]}
    yield Case("moving.png", encode(look, **several), look, apart=0, kept=False)
    hidden = encode(look, default_image=True, **several)
    yield Case("moving-with-a-still.png", hidden, look, apart=0, kept=False)
    few = look.quantize(200)
    yield Case("moving.gif", encode(few, "GIF", **several), few.convert("RGB"), apart=2)
    yield Case("moving.webp", encode(look, "WEBP", lossless=True, **several), look, apart=1, kept=False)
    yield Case("moving.avif", encode(look, "AVIF", quality=98, subsampling="4:4:4", **several), look)
    yield Case("pages.tif", encode(look, "TIFF", **several), look, apart=0)
    small = look.resize((48, 32))
    reduced = _chained(tiff(np.asarray(small), 1, 2, {254: (1,)}), tiff(np.asarray(look), 1, 2))
    yield Case("preview-first.tif", reduced, look, apart=0)
    buffer = io.BytesIO()
    import pillow_heif

    heif = pillow_heif.from_pillow(second)
    heif.add_from_pillow(look)
    heif.save(buffer, quality=95, primary_index=1)
    yield Case("second-is-main.heic", buffer.getvalue(), look, apart=4)
    yield Case(
        "icons.ico",
        encode(look.resize((128, 128)), "ICO", sizes=[(32, 32), (64, 64), (128, 128)]),
        look.resize((128, 128)),
        apart=1,
    )


def _chained(first: bytes, second: bytes) -> bytes:
    """Two TIFF files of one folder as one file of two: little-endian."""
    start = len(first) + len(first) % 2
    moved = bytearray(second)
    (entries,) = struct.unpack_from("<H", moved, 8)
    for at in range(10, 10 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from("<HHI", moved, at)
        if tag == 273 or count * (2 if kind == 3 else 4) > 4:
            moved[at + 8 : at + 12] = struct.pack("<I", struct.unpack_from("<I", moved, at + 8)[0] + start)
    both = bytearray(first.ljust(start, b"\0") + moved)
    (entries,) = struct.unpack_from("<H", both, 8)
    both[10 + 12 * entries : 14 + 12 * entries] = struct.pack("<I", start + 8)
    return bytes(both)


def _others() -> Iterator[Case]:
    look = scene()
    few = look.quantize(256).convert("RGB")
    for name, kind, options in (
        ("tga", "TGA", {}), ("tga-rle", "TGA", {"compression": "tga_rle"}), ("bmp", "BMP", {}), ("pcx", "PCX", {}),
        ("sgi", "SGI", {}), ("ppm", "PPM", {}), ("qoi", "QOI", {}), ("dds", "DDS", {}), ("im", "IM", {}),
        ("jp2", "JPEG2000", {}), ("tif", "TIFF", {}), ("tif-lzw", "TIFF", {"compression": "tiff_lzw"}),
    ):  # fmt: skip
        yield Case(f"plain.{name}", encode(look, kind, **options), look, apart=0, kept=False)
    yield Case("plain.gif", encode(look.quantize(256), "GIF"), few, apart=0)
    yield Case("plain.blp", encode(look.quantize(256), "BLP"), few, apart=0)
    yield Case("jpeg-inside.tif", encode(look, "TIFF", compression="jpeg", quality=95), look)
    yield Case("big.tif", encode(look, "TIFF", big_tiff=True), look, apart=0)
    big_endian = io.BytesIO()
    tifffile.imwrite(big_endian, np.asarray(look), bigtiff=True, byteorder=">", photometric="rgb")
    yield Case("big-big-endian.tif", big_endian.getvalue(), reason="BigTIFF in big-endian order is not read")
    yield Case("plain.webp", encode(look, "WEBP", quality=95), look, kept=True)
    yield Case("plain.heic", heic(look), look, apart=5)
    yield Case("plain-lossy.jxl", jxl(look, quality=95), look)
    yield Case("plain.avif", encode(look, "AVIF", quality=90), look, apart=4)
