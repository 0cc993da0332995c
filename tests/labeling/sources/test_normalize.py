"""Normalizing raw files: what an image keeps, what is converted, what is rejected and why."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from labeling.sources.normalize import EncodedImage, Rejected, normalize


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image: EncodedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded)))


@pytest.fixture
def chelsea(photographs: Path) -> Image.Image:
    return Image.open(photographs / "chelsea.png")


def test_bytes_of_a_clean_image_are_kept(photographs: Path) -> None:
    raw = (photographs / "chelsea.png").read_bytes()
    assert normalize(raw, 10**8, 32) == EncodedImage(raw, 451, 300)


def test_exif_orientation_is_applied(chelsea: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to see it upright
    picture = normalize(encoded(chelsea, "JPEG", exif=exif, quality=95), 10**8, 32)
    assert (picture.width, picture.height) == chelsea.size[::-1]
    upright = np.asarray(chelsea.transpose(Image.Transpose.ROTATE_270), np.float64)
    assert np.abs(decoded(picture) - upright).mean() < 4


def test_color_profiles_are_converted_to_srgb(chelsea: Image.Image, photographs: Path) -> None:
    lab = ImageCms.profileToProfile(
        chelsea, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = normalize(encoded(lab, "TIFF", icc_profile=profile), 10**8, 32)
    assert np.abs(decoded(picture).astype(float) - np.asarray(chelsea)).mean() < 3
    adobe = Image.open(photographs / "rocket.jpg")  # Adobe RGB: read as sRGB, its reds would be too dull
    red, dull = decoded(normalize((photographs / "rocket.jpg").read_bytes(), 10**8, 32)), np.asarray(adobe)
    assert np.ptp(red[..., 0].astype(int) - red[..., 2]) > np.ptp(dull[..., 0].astype(int) - dull[..., 2])


def test_transparency_becomes_white_and_16_bits_are_scaled_to_8(chelsea: Image.Image) -> None:
    ghost = chelsea.convert("RGBA")
    ghost.putalpha(0)
    assert (decoded(normalize(encoded(ghost), 10**8, 32)) == 255).all()
    deep = Image.fromarray(np.asarray(chelsea.convert("L")).astype(np.uint16) * 257)
    assert (
        np.abs(decoded(normalize(encoded(deep), 10**8, 32)).astype(int) - np.asarray(chelsea.convert("L"))).max() <= 1
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width × height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (bomb(60_000, 60_000), "decompression bomb"),
        (bomb(12_000, 12_000), "decompression bomb"),
        (encoded(Image.new("RGB", (20, 400))), "too small"),
    ],
)
def test_rejected_bytes_have_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        normalize(raw, 10**8, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_rejected(chelsea: Image.Image, kind: str) -> None:
    raw = encoded(chelsea, kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(Rejected):
            normalize(raw[: int(len(raw) * share)], 10**8, 32)


@pytest.mark.parametrize(("turn", "crop"), [(6, (0, 0, 448, 288)), (3, (0, 0, 448, 288)), (8, (0, 0, 451, 299))])
@pytest.mark.parametrize(("quality", "subsampling"), [(75, 2), (90, 1), (97, 0)])
def test_turned_jpeg_loses_little(
    chelsea: Image.Image, turn: int, crop: tuple[int, int, int, int], quality: int, subsampling: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    raw = encoded(chelsea.crop(crop), "JPEG", exif=exif, quality=quality, subsampling=subsampling)
    move = {6: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_90}[turn]
    upright = np.asarray(Image.open(io.BytesIO(raw)).transpose(move), np.float64)
    image = normalize(raw, 10**8, 32)
    off = decoded(image) - upright
    assert 20 * np.log10(255 / np.sqrt((off**2).mean())) > 44
    if crop[2] % 16 == 0 and subsampling != 1:  # its blocks stay blocks
        assert len(image.encoded) < 1.05 * len(raw)
