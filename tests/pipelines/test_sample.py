"""`onediffusion sample`: files as their names say, and what is wrong said before a model is loaded."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "cat.txt"}, r"--out cat.txt: end it in .png, .jpg, .jpeg, .webp"),
        ({"size": 100}, "size 100 does not divide by 16; take 96"),
    ],
)
def test_wrong_option_is_told_before_the_model_is_looked_for(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample("no/run", "text2image", **{"out": "cat.png", **settings})  # type: ignore[arg-type]
