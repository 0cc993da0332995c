"""The demo's own pictures: photographs of installed packages and of this project, each with author and license.

The packages' drawings, micrographs, pages of text and test patterns are left out, and so is `moon.png`, whose
origin scikit-image does not state.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from model.inputs import InputError
from model.pictures import encode_png
from model.pixels.png import SIGNATURE, png_chunk

PHOTOGRAPHS = Path(__file__).parent / "photographs"
COLUMNS = ["file_name", "author", "licence", "text", "right", "disparity", "disparity_scale"]
# A power of two, so that it survives decimal text and float32 exactly; the pair's largest disparity is 59.9 pixels.
DISPARITY_SCALE = 2.0**-10

_PUBLIC = "public domain"
_CC0 = "CC0-1.0"
_MIDDLEBURY = "free to use and publish, with citation (vision.middlebury.edu/stereo/data)"
_SCHARSTEIN = "D. Scharstein, H. Hirschmüller, Y. Kitajima, G. Krathwohl, N. Nešić, X. Wang, P. Westling"

# package, file in it, author, license, one sentence on what is seen. Facts are those of the docstrings in skimage.data
# and, for the portrait of Grace Hopper, of the U.S. Navy.
_PACKAGED = [
    ("skimage", "data/astronaut.png", "NASA", _PUBLIC,
     "The astronaut Eileen Collins in an orange space suit before a flag and a model of the Space Shuttle."),
    ("skimage", "data/brick.png", "CC0Textures", _CC0, "A pavement of long bricks in gray mortar."),
    ("skimage", "data/camera.png", "Lav Varshney", _CC0,
     "A man in a dark coat looks through a camera on a tripod that stands on a lawn."),
    ("skimage", "data/chelsea.png", "Stéfan van der Walt", _CC0, "The face of a tabby cat with green eyes."),
    ("skimage", "data/clock_motion.png", "Stéfan van der Walt", _PUBLIC,
     "A wall clock, blurred by the camera's motion."),
    ("skimage", "data/coffee.png", "Rachel Michetti", _CC0,
     "An espresso in a red cup on a red saucer with a spoon, on a wooden table."),
    ("skimage", "data/coins.png", "Brooklyn Museum", "no known copyright restrictions",
     "Four rows of Greek coins from Pompeii on a dark ground."),
    ("skimage", "data/grass.png", "Linolafett", _CC0, "Grass and small leaves, seen from above."),
    ("skimage", "data/gravel.png", "CC0Textures", _CC0, "Gravel of small angular stones."),
    ("skimage", "data/hubble_deep_field.jpg", "NASA, ESA and the HUDF09 team", _PUBLIC,
     "Thousands of distant galaxies on a black sky."),
    ("skimage", "data/rocket.jpg", "SpaceX", _CC0, "A white rocket on its launch pad at dusk between lattice masts."),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "James S. Davis, U.S. Navy", _PUBLIC,
     "The computer scientist Grace Hopper with glasses, in the uniform and cap of a U.S. Navy officer, before a flag."),
]  # fmt: skip


def gather_pictures(folder: Path) -> None:
    """Fill `folder` with the demo's pictures, their metadata.csv, and a few files that an ingest must reject.

    The same files with the same bytes every time; what is there already with these bytes is not written again.
    Raises InputError where an installed package lacks its pictures.
    """
    files: dict[str, bytes] = {}
    rows: list[Mapping[str, str]] = []
    for package, path, author, license_name, text in _PACKAGED:
        name = Path(path).name
        files[name] = _packaged(package, path)
        rows.append({"file_name": name, "author": author, "licence": license_name, "text": text})
    rows.append(_stereo_pair(files))
    for row in _own_rows():
        assert row["file_name"] not in files, f"two pictures are called {row['file_name']}"
        files[row["file_name"]] = (PHOTOGRAPHS / row["file_name"]).read_bytes()
        rows.append({key: row[key] for key in ("file_name", "author", "licence", "text")})
    files |= _refused(files)
    files["metadata.csv"] = _table(rows)
    for name, data in files.items():
        _write(folder / name, data)


def _packaged(package: str, path: str) -> bytes:
    """A file of an installed package. Raises InputError where it is absent."""
    spec = find_spec(package)  # without an import: that of matplotlib would take a second and write a font cache
    file = Path(spec.origin).parent / path if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(f"{package}/{path}: not in the installed package; reinstall {package} from its wheel")
    return file.read_bytes()


def _stereo_pair(files: dict[str, bytes]) -> Mapping[str, str]:
    """Add the motorcycle's two pictures and its true disparity, in pixels, to `files`; the left picture's row."""
    files["motorcycle_left.png"] = _packaged("skimage", "data/motorcycle_left.png")
    files["stereo/motorcycle_right.png"] = _packaged("skimage", "data/motorcycle_right.png")
    with np.load(io.BytesIO(_packaged("skimage", "data/motorcycle_disp.npz"))) as archive:
        disparity = archive["arr_0"]
    finite = np.where(np.isfinite(disparity), disparity, 0.0)  # it is infinite where the true one is unknown
    assert finite.min() >= 0 and finite.max() / DISPARITY_SCALE < 65535.5
    files["stereo/motorcycle_disparity.png"] = encode_png(np.rint(finite / DISPARITY_SCALE).astype(np.uint16))
    return {
        "file_name": "motorcycle_left.png",
        "author": _SCHARSTEIN,
        "licence": _MIDDLEBURY,
        "text": "A red motorcycle stands in a workshop before shelves full of boxes.",
        "right": "stereo/motorcycle_right.png",
        "disparity": "stereo/motorcycle_disparity.png",
        "disparity_scale": repr(DISPARITY_SCALE),
    }


def _own_rows() -> list[dict[str, str]]:
    """Rows of this project's own photographs, in their table's order."""
    table = PHOTOGRAPHS / "metadata.csv"
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _refused(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files that an ingest rejects, so that the demo shows how.

    The folder's name sorts after the duplicate's original: an ingest keeps the first of equal files.
    """
    rocket = files["rocket.jpg"]
    return {
        "refused/60000x60000.png": _huge_png(60000),
        "refused/coffee_again.png": files["coffee.png"],
        "refused/note.jpg": b"This is a line of text and no picture, whatever its name says.\n",
        "refused/rocket_cut.jpg": rocket[: len(rocket) // 2],
    }


def _huge_png(side: int) -> bytes:
    """A small gray PNG file whose header promises side × side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1024)), b"IEND": b""}
    return SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks.items())


def _table(rows: list[Mapping[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["file_name"]))
    return text.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there already; beside it first, so that an interrupted run leaves no half picture."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
