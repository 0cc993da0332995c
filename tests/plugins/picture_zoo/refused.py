"""What is not read, by the name people know it by."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from picture_zoo.case import Case
from picture_zoo.files import encode, scene
from picture_zoo.parts import box, png_header, tiff

_NAMES = {
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>', "SVG"),
    "svg-after-head": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="9"></svg>', "SVG"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "html-plain": (b"\n <html><head><title>Not found</title>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "json": (b'{"message": "rate limited"}', "JSON"),
    "text": (b"hello", "text"),
    "text-16": ("hello you".encode("utf-16"), "text"),
    "noise": (bytes(range(256)) * 20, "not a picture"),
    "zeros": (bytes(5000), "zeros only"),
    "empty": (b"", "empty file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n", "PostScript"),
    "eps-binary": (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
    "psb": (b"8BPS\0\x02" + bytes(60), "PSB"),
    "xcf": (b"gimp xcf v011\0" + bytes(60), "GIMP"),
    "exr": (b"v/1\x01\x02\0\0\0" + bytes(60), "OpenEXR"),
    "hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 64 +X 96\n" + bytes(60), "Radiance"),
    "jxr": (b"II\xbc\x01\x08\0\0\0" + bytes(60), "JPEG XR"),
    "djvu": (b"AT&TFORM\0\0\0\x40DJVU" + bytes(60), "DjVu"),
    "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(60), "WMF"),
    "pam": (b"P7\nWIDTH 96\nHEIGHT 64\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(99), "PAM"),
    "mng": (b"\x8aMNG\r\n\x1a\n" + bytes(60), "MNG"),
    "ktx": (b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(60), "KTX"),
    "fits": (b"SIMPLE  =                    T" + b" " * 3000, "FITS"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(60), "NumPy"),
    "dicom": (bytes(128) + b"DICM" + bytes(60), "DICOM"),
    "cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(60), "camera raw (CR2)"),
    "cr3": (box(b"ftyp", b"crx \0\0\0\1crx isom") + box(b"moov", bytes(400)), "camera raw (CR3)"),
    "orf": (b"IIRO\x08\0\0\0" + bytes(60), "camera raw (ORF)"),
    "rw2": (b"IIU\0\x18\0\0\0" + bytes(60), "camera raw (RW2)"),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "camera raw (RAF)"),
    "x3f": (b"FOVb" + bytes(60), "camera raw (X3F)"),
    "mp4": (box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41") + box(b"moov", bytes(90)), "video (MP4)"),
    "mov": (box(b"ftyp", b"qt  \0\0\2\0qt  ") + box(b"moov", bytes(90)), "video (MOV)"),
    "avi": (b"RIFF\x40\0\0\0AVI LIST" + bytes(60), "video (AVI)"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(60), "video"),
    "mpeg": (b"\0\0\x01\xba" + bytes(60), "video (MPEG)"),
    "wav": (b"RIFF\x40\0\0\0WAVEfmt " + bytes(60), "sound (WAV)"),
    "mp3": (b"ID3\x04" + bytes(60), "sound (MP3)"),
    "zip": (b"PK\x03\x04\x14\0" + bytes(60), "ZIP"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), "gzip"),
    "zstd": (b"(\xb5/\xfd" + bytes(60), "zstd"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(300), "tar"),
    "7z": (b"7z\xbc\xaf'\x1c" + bytes(60), "7-Zip"),
    "parquet": (b"PAR1" + bytes(60), "Parquet"),
    "thumbs": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Thumbs.db"),
    "appledouble": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(60), "AppleDouble"),
    "elf": (b"\x7fELF\x02\x01" + bytes(60), "program"),
    "sqlite": (b"SQLite format 3\0" + bytes(60), "SQLite"),
}


def cases() -> Iterator[Case]:
    """Other files, raw pictures of cameras, formats of pictures in name only, and sizes that are refused."""
    for name, (raw, reason) in _NAMES.items():
        yield Case(name, raw, reason=reason)
    sensor = tiff(np.zeros((64, 96), np.uint16), 1, 32803)
    yield Case("sensor.tif", sensor, reason="camera raw")
    dng = tiff(np.zeros((64, 96, 3), np.uint8), 1, 2, {50706: (1, 4)})
    yield Case("dng", dng, reason="camera raw (DNG)")
    heic = box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(200)) + box(b"mdat", bytes(4000))
    yield Case("empty.heic", heic, reason="HEIC")
    empty = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"jxlc", bytes(4000))
    yield Case("empty.jxl", empty, reason="JXL")
    yield Case("empty.avif", box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", bytes(200)), reason="AVIF")
    yield Case("lab-16.tif", tiff(np.zeros((64, 96, 3), np.uint16), 1, 8), reason="16-bit integers with photometric")
    yield from _sizes()


def _sizes() -> Iterator[Case]:
    bomb, small = "decompression bomb", "too small"
    yield Case("bomb.png", png_header(60_000, 60_000), reason=bomb)
    yield Case("bomb-of-a-line.png", png_header(2**31 - 1, 1), reason=bomb)
    yield Case("no-height.png", png_header(96, 0), reason="broken")
    gif = encode(scene().quantize(4), "GIF")
    yield Case("bomb.gif", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:], reason=bomb)
    image = encode(scene(), "BMP")
    yield Case("bomb.bmp", image[:18] + struct.pack("<ii", 100_000, 100_000) + image[26:], reason=bomb)
    jpeg = encode(scene(), "JPEG")
    place = jpeg.index(b"\xff\xc0") + 5
    yield Case("bomb.jpg", jpeg[:place] + struct.pack(">HH", 65_000, 65_000) + jpeg[place + 4 :], reason=bomb)
    yield Case("no-width.jpg", jpeg[:place] + struct.pack(">HH", 64, 0) + jpeg[place + 4 :], reason="broken")
    yield Case("bomb.tif", tiff(np.zeros((64, 96, 3), np.uint8), 1, 2, {256: (100_000,), 257: (100_000,)}), reason=bomb)
    deep = tiff(np.zeros((64, 96, 3), np.uint16), 1, 2, {256: (100_000,), 257: (100_000,)})
    yield Case("bomb-deep.tif", deep, reason=bomb)
    yield Case("bomb.ppm", b"P6 90000 90000 255\n" + bytes(999), reason=bomb)
    yield Case("bomb.qoi", b"qoif" + struct.pack(">IIBB", 90_000, 90_000, 3, 0) + bytes(99), reason=bomb)
    # A size of 30 bits each: not small, both sides of the longest form.
    bits = 0 | 3 << 1 | (90_000 - 1) << 3 | 0 << 33 | 3 << 36 | (90_000 - 1) << 38
    yield Case("bomb.jxl", b"\xff\x0a" + bits.to_bytes(9, "little") + bytes(60), reason=bomb)
    psd = b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 20_000, 20_000, 8, 3) + bytes(100)
    yield Case("bomb.psd", psd, reason=bomb)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"):
        yield Case(f"narrow.{kind.lower()}", encode(Image.new("RGB", (400, 20)), kind), reason=small)
        yield Case(f"large.{kind.lower()}", encode(Image.new("L", (1200, 1200)), kind), reason=bomb)
    whole = encode(scene(), "JPEG")
    frame = whole.index(b"\xff\xc0")
    for name, marker, bits, reason in (
        ("twelve", 0xC1, 12, "JPEG of 12 bits is not read"),
        ("lossless", 0xC3, 16, "lossless JPEG of 16 bits is not read"),
        ("ls", 0xF7, 8, "JPEG-LS of 8 bits is not read"),
    ):
        coded = whole[: frame + 1] + bytes([marker]) + whole[frame + 2 : frame + 4] + bytes([bits])
        yield Case(f"{name}.jpg", coded + whole[frame + 5 :], reason=reason)
    yield Case("least.png", encode(Image.new("RGB", (32, 32))), Image.new("RGB", (32, 32)), kept=True)
