"""`onediffusion sample`: files as their names say, and what is wrong said before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import save_run
from typer.testing import CliRunner

from model.inputs import InputError
from pipelines.cli.app import app
from pipelines.sample import sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("sample"))


@pytest.mark.parametrize(
    ("name", "file", "form"),
    [
        ("cat.png", "cat.png", "PNG"),
        ("cat.jpg", "cat.jpg", "JPEG"),
        ("cat.JPEG", "cat.JPEG", "JPEG"),
        ("cat.webp", "cat.webp", "WEBP"),
        ("cat", "cat.png", "PNG"),
    ],
)
def test_picture_is_written_as_its_name_says(run: Path, tmp_path: Path, name: str, file: str, form: str) -> None:
    command = ["sample", str(run), "text2image", "--prompt", "a cat", "--steps", "1", "--out", str(tmp_path / name)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / file) as image:
        assert (image.format, image.size) == (form, (64, 64))
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_poses_alone_are_written_as_json(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "one.png")
    images = [str(tmp_path / "one.png")] * 2
    sample(str(run), "views", str(tmp_path / "poses.json"), images, steps=1)
    assert len(json.loads((tmp_path / "poses.json").read_text())["R"]) == 2
    with pytest.raises(InputError, match=r"poses.json: end it in .png"):
        sample(str(run), "views", str(tmp_path / "poses.json"), images[:1], cameras=["0,10,1.5", "30,10,1.5"], steps=1)


@pytest.mark.parametrize(("size", "shape"), [("96x32", (96, 32)), ("32X48", (32, 48)), ("32", (32, 32))])
def test_views_have_the_size_that_is_asked_for(run: Path, tmp_path: Path, size: str, shape: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "one.png")
    cameras = [part for angle in (0, 30) for part in ("--camera", f"{angle},10,1.5")]
    command = ["sample", str(run), "views", "--image", str(tmp_path / "one.png"), *cameras, "--steps", "1"]
    result = CliRunner().invoke(app, [*command, "--size", size, "--out", str(tmp_path / "turned.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "turned.png") as image:
        assert image.size == shape


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0", "size 0"),
        ("96x0", "each side has at least 16"),
        ("100x96", "take 96 × 96"),
        ("96x", "give the side of a square"),
        ("1x2x3", "give the side of a square"),
        ("-64", "give the side of a square"),
        ("99999x99999", "must divide by 16|more than"),
    ],
)
def test_wrong_size_is_one_line(tmp_path: Path, size: str, message: str) -> None:
    from pipelines.cli.training import sample as command

    with pytest.raises(InputError, match=message):
        command("no/run", "text2image", out=str(tmp_path / "cat.png"), size=size)


def test_item_of_a_subject_is_named(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "one.png")
    files = sample(str(run), "subject", str(tmp_path / "cup.png"), [str(tmp_path / "one.png")], names=["cup"], steps=1)
    assert len(files) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "cat.txt"}, r"--out cat.txt: end it in .png, .jpg, .jpeg, .webp"),
        ({"size": 100}, "size 100 does not divide by 16; take 96"),
        ({"out": ""}, "--out : name a file"),
        ({"out": "."}, r"--out \.: name a file"),
        ({"out": "folder/"}, "--out folder/: name a file"),
    ],
)
def test_wrong_option_is_told_before_the_model_is_looked_for(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample("no/run", "text2image", **{"out": "cat.png", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "views", "cameras": ["nan,10,1.5"]}, "azimuth nan: give finite numbers"),
        ({"task": "views", "cameras": ["0,90,1.5"]}, "elevation 90: give degrees between -90 and 90"),
        ({"task": "views", "cameras": ["0,10,0"]}, "distance 0: a camera is away"),
        ({"task": "text2image", "guidance": float("inf")}, "guidance_scale inf"),
        ({"task": "text2image", "names": ["cat"]}, "text2image names no classes"),
        ({"task": "depth", "images": ["."]}, r"\.: a folder, not a picture"),
        ({"task": "depth", "images": ["none.png"]}, r"none\.png: no such file"),
    ],
)
def test_unusable_inputs_of_sample_are_one_line(run: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(str(run), **{"out": "never-written.png", "steps": 1, **settings})  # type: ignore[arg-type]
    assert not Path("never-written.png").exists()


@pytest.mark.parametrize("form", ["turned.jpg", "clear.png", "deep.png", "palette.gif"])
def test_command_line_and_python_see_the_same_picture(tmp_path: Path, form: str) -> None:
    """The picture in a file, as `--image` reads it, is the one that the pipeline makes of Pillow's image of it."""
    from model.pictures import as_picture
    from pipelines.sample import _load_image

    colors = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    image, options = Image.fromarray(colors), {}
    if form == "turned.jpg":
        exif = Image.Exif()
        exif[274] = 6
        options = {"exif": exif, "quality": 90}
    if form == "clear.png":
        image.putalpha(Image.fromarray(colors[..., 0]))
    if form == "deep.png":
        image = Image.fromarray(colors[..., 0].astype(np.uint16) * 200)
    if form == "palette.gif":
        image = image.quantize(64)
    image.save(tmp_path / form, **options)
    file = _load_image(str(tmp_path / form))
    np.testing.assert_array_equal(file, as_picture(Image.open(tmp_path / form)))
    assert file.shape == ((56, 40, 3) if form == "turned.jpg" else (40, 56, 3))
