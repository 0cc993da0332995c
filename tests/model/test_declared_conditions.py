"""Conditions that a package declares, in processes that have the package on their path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.declared_conditions import Condition
from model.inputs import InputError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "palette_condition" / "palette_condition.py"

USES = """
import numpy as np
from skimage import data
from labeling.registry import default_groups, load_labeler
from model.conditions import CONDITION_READS, condition_picture, directions_of
from model.prompts import build_prompt, find_task
from training.plan.streams import Stream
picture = data.coffee()
labeler = load_labeler("palette", {"squares": 6})
label = {f"palette.{key}": value for key, value in labeler.label_row({"id": "a", "images.image": picture}).items()}
drawn = condition_picture("palette", label, 600, 400)
assert drawn.shape == (400, 600, 3) and len(np.unique(drawn.reshape(-1, 3), axis=0)) == 24
assert abs(drawn.mean() - picture.mean()) < 1
assert build_prompt("palette", "a cup") == "[[palette2image]] a cup" and find_task("palette").is_paired
text = load_labeler("text", {"tasks": ["text2image", "palette"]})
assert text.parameters.tasks == ("text2image", "palette")
assert load_labeler("latents-64-palette", {}).reads == ("palette.levels", "palette.across", "images.width",
                                                        "images.height")
assert "latents-256-palette" in default_groups("latents", ["palette"])
assert Stream("a", "palette", 1.0, 64).groups == ("latents-64", "text", "latents-64-palette")
assert directions_of("palette") == directions_of("edges") == ("to_image", "from_image")
"""

SAMPLES = """
import sys
from pipelines.cli import main
sys.argv = ["onediffusion", "sample", "x", "edges"]
main()
"""


def install(folder: Path, source: str, target: str = "palette_condition:CONDITION") -> Path:
    """A folder that holds a package as pip installs it, with entry points for its labeler and its condition."""
    folder.mkdir()
    (folder / "palette_condition.py").write_text(source)
    about = folder / "palette_condition-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: palette-condition\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(
        "[onediffusion.labelers]\npalette = palette_condition:PaletteLabeler\n"
        f"[onediffusion.conditions]\npalette = {target}\n"
    )
    return folder


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )


def test_declared_condition_is_drawn_prompted_and_trained_like_any_other(tmp_path: Path) -> None:
    folder = install(tmp_path / "packages", EXAMPLE.read_text())
    done = run(folder, USES)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    assert "unknown labeler 'palette'" in run(tmp_path, USES).stderr


@pytest.mark.parametrize(
    ("change", "target", "line"),
    [
        (("[[palette2image]]", "[[depth2image]]"), "palette_condition:CONDITION", "has this name or token already"),
        (('group="palette"', 'group="edges"'), "palette_condition:CONDITION", "has this name or token already"),
        (("import cv2", "import no_such_module"), "palette_condition:CONDITION", "cannot be imported: No module"),
        (("", ""), "palette_condition:draw", "is no model.declared_conditions.Condition"),
    ],
)
def test_declaration_that_cannot_be_used_is_told_in_one_line(
    change: tuple[str, str], target: str, line: str, tmp_path: Path
) -> None:
    folder = install(tmp_path / "packages", EXAMPLE.read_text().replace(*change), target)
    done = run(
        folder,
        "import sys\nfrom pipelines.cli import main\nsys.argv = ['onediffusion', 'sample', 'x', 'edges']\nmain()",
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert line in done.stderr


def test_wrong_declarations_are_refused() -> None:
    good = {"group": "palette", "reads": ("palette.levels",), "draw": print, "token": "[[palette2image]]"}
    for change, line in (
        ({"group": "Palette"}, "small letters"),
        ({"token": "palette"}, r"write it as \[\[palette2image\]\]"),
        ({"reads": ()}, "name GROUP.COLUMN"),
        ({"content": "names"}, "not among what it reads"),
        ({"directions": ("sideways",)}, "directions are of to_image, from_image"),
    ):
        with pytest.raises(InputError, match=line):
            Condition(**{**good, **change})
