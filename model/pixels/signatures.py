"""What a file is, by its first bytes: pictures that are read, and what is not, by the name people know it by."""

from __future__ import annotations

from model.pixels import jpeg, tags
from model.pixels.boxes import boxes

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
_AVIF_BRANDS = {b"avif", b"avis"}
_CFA = 32803  # photometric interpretation of a sensor's own pixels
_RAW_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "CANON": "CR2", "SAMSUNG": "SRW", "KODAK": "DCR"}

# Read as pictures. Others that Pillow opens are tried, too.
_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"8BPS\0\x01", "PSD"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"), (b"qoif", "QOI"), (b"DDS ", "DDS"), (b"\0\0\x01\0", "ICO"), (b"icns", "ICNS"),
)  # fmt: skip
_OTHERS = (
    (b"%PDF", "PDF, a document"), (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"8BPS\0\x02", "Photoshop's large format (PSB)"), (b"gimp xcf", "GIMP's format (XCF)"),
    (b"IIRO", "camera raw (ORF)"), (b"IIRS", "camera raw (ORF)"), (b"MMOR", "camera raw (ORF)"),
    (b"IIU\0", "camera raw (RW2)"), (b"FUJIFILMCCD-RAW", "camera raw (RAF)"), (b"FOVb", "camera raw (X3F)"),
    (b"\0MRM", "camera raw (MRW)"), (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"), (b"#?RGBE", "Radiance HDR"),
    (b"II\xbc\x01", "JPEG XR"), (b"AT&TFORM", "DjVu"), (b"BPG\xfb", "BPG"), (b"FLIF", "FLIF"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"), (b"\x01\0\0\0", "a Windows metafile (EMF)"),
    (b"P7\n", "PAM"), (b"\xabKTX ", "a texture (KTX)"), (b"\x8aMNG", "MNG"), (b"\x8bJNG", "JNG"),
    (b"SIMPLE  =", "FITS"), (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"CDF\x01", "NetCDF"), (b"\x93NUMPY", "a NumPy array"),
    (b"\x1aE\xdf\xa3", "video (Matroska or WebM)"), (b"FLV\x01", "video (FLV)"), (b"\0\0\x01\xba", "video (MPEG)"),
    (b"\0\0\x01\xb3", "video (MPEG)"), (b"OggS", "sound or video (Ogg)"), (b"ID3", "sound (MP3)"),
    (b"fLaC", "sound (FLAC)"),
    (b"0&\xb2u\x8ef\xcf\x11", "video or sound (Windows Media)"), (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"), (b"\x1f\x8b", "compressed (gzip)"), (b"BZh", "compressed (bzip2)"),
    (b"\xfd7zXZ\0", "compressed (xz)"), (b"(\xb5/\xfd", "compressed (zstd)"), (b"\x04\"M\x18", "compressed (lz4)"),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"), (b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"SQLite format 3", "a SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an Office document or Thumbs.db"),
    (b"\0\x05\x16\x07", "macOS's notes on a file (AppleDouble)"),
    (b"\0\x05\x16\0", "macOS's notes on a file (AppleSingle)"), (b"\x7fELF", "a program"), (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file that it stands for"),
)  # fmt: skip


def format_name(raw: bytes) -> str:
    """ "JPEG", "PNG", "HEIC" and so on, "" where the first bytes say nothing."""
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return "WEBP"
    if raw[4:8] == b"ftyp":
        brands = _brands(raw)
        if brands & _AVIF_BRANDS:
            return "AVIF"
        return "HEIC" if brands & _HEIC_BRANDS else ""
    return next((name for start, name in _PICTURES if raw.startswith(start)), "")


def not_read(raw: bytes) -> str | None:
    """What a file is that is not read though its bytes say what it is; None for the others."""
    if raw[4:8] == b"ftyp" and not format_name(raw):
        return _box_file(raw)
    if raw[:4] in (b"II*\0", b"MM\0*"):
        return _camera_raw(raw)
    if raw[:3] == b"\xff\xd8\xff":
        return jpeg.unread_coding(raw)
    if raw[:4] == b"RIFF":
        return {b"AVI ": "video (AVI)", b"WAVE": "sound (WAV)", b"CDR ": "CorelDRAW"}.get(raw[8:11] + raw[11:12])
    return next((name for start, name in _OTHERS if raw.startswith(start)), None)


def describe_unknown(raw: bytes) -> str:
    """The reason for bytes that no decoder knows, named for what they look like."""
    if not raw.strip(b"\0"):
        return "not a picture: zeros only, as after an interrupted copy"
    if raw[257:262] == b"ustar":
        return "not a picture: a tar archive"
    if raw[128:132] == b"DICM":
        return "DICOM is not read: convert it to PNG or TIFF"
    text = _text(raw[:4096])
    if text is None:
        return "not a picture"
    start = text.lstrip().lower()
    if "<svg" in start:
        return "SVG, a drawing, is not read: render it to PNG"
    if start.startswith("<!doctype html") or "<html" in start:
        return "not a picture: a web page (HTML)"
    if start.startswith("<"):
        return "not a picture: XML"
    if start[:1] in "{[" and start:
        return "not a picture: JSON"
    return "not a picture: text"


def _brands(raw: bytes) -> set[bytes]:
    size = min(max(int.from_bytes(raw[:4], "big"), 12), 256)
    return {raw[8:12], *(raw[at : at + 4] for at in range(16, size - 3, 4))}


def _box_file(raw: bytes) -> str:
    brand = raw[8:12]
    if brand.startswith(b"crx"):
        return "camera raw (CR3)"
    if brand.startswith(b"M4A"):
        return "sound (M4A)"
    return "video (MOV)" if brand == b"qt  " else "video (MP4)" if _has_movie(raw) else "a file of MP4's family"


def _has_movie(raw: bytes) -> bool:
    brands = _brands(raw)
    known = {b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"3gp4", b"3gp5", b"dash"}
    return bool(brands & known) or any(kind in (b"moov", b"moof") for kind, _, _ in boxes(raw))


def _camera_raw(raw: bytes) -> str | None:
    if raw[8:10] == b"CR":
        return "camera raw (CR2)"
    first = next(tags.read_folders(raw), {})
    if 50706 in first:
        return "camera raw (DNG)"
    if first.get(262) == (_CFA,) or any(folder.get(262) == (_CFA,) for folder in tags.sub_folders(raw, first)):
        maker = bytes(first.get(271, ())).decode("latin-1").upper()
        return f"camera raw ({next((form for name, form in _RAW_MAKERS.items() if name in maker), 'of a sensor')})"
    return None


def _text(start: bytes) -> str | None:
    """The bytes as text, None where they are none."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return start.decode("utf-16", "replace")
    if b"\0" in start:
        return None
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start)
    return None if controls > len(start) // 100 else start.decode("utf-8", "replace")
