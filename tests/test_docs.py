"""Files, modules, links, commands and names that the README, docs/ and examples/ mention exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from labeling.labeler import Labeler
from labeling.run import label_rows

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
FOLDERS = ("model", "labeling", "training", "cluster", "pipelines", "tests", "docs", "examples")
CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"\b(?:model|labeling|training|cluster|pipelines)(?:\.[A-Za-z_]\w*)+")
FILES_OF_A_RUN = {"training.safetensors"}  # begins like a module
SHELL = re.compile(r"^(?: {4})?((?:onediffusion|make|pip|python3?|bash|docker|git|kubectl|sbatch) .+)$", re.MULTILINE)
# Commands in code blocks that are neither `onediffusion …` in docs/ (tests/test_readme.py) nor `make …`, by the test in
# tests/test_examples.py that runs them.
COMMANDS_OF_EXAMPLES = {
    "test_packaged_labeler_is_found_by_its_name": (
        "pip install examples/brightness_labeler",
        "onediffusion label data/pictures brightness",
        "onediffusion label data/pictures brightness --set brightness.center=0.5",
    ),
    "test_label_of_a_package_becomes_a_task_that_can_be_trained_and_sampled": (
        "pip install examples/palette_condition",
        "onediffusion label runs/own/dataset palette latents-96 latents-96-palette text "
        '--set "text.tasks=[text2image, palette]"',
        "onediffusion train examples/own_pictures/tiny.yaml --run runs/palette "
        '--set "mixture.pictures.tasks={palette: 1}"',
        "onediffusion sample runs/palette palette --image cat.png --out squares.png",
        'onediffusion sample runs/palette palette --condition squares.png --prompt "a cat" --out cat-again.png',
    ),
    "test_own_pictures_become_a_run_that_can_be_sampled": ("bash examples/own_pictures/run.sh ~/Pictures runs/own",),
}

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@named
def test_paths_that_pages_name_exist(page: Path) -> None:
    for code in CODE.findall(page.read_text()):
        if code.split("/")[0] in FOLDERS and "/" in code and " " not in code:
            assert (ROOT / code).exists(), f"{page.name}: {code}"


@named
def test_modules_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    for name in {*DOTTED.findall("\n".join(CODE.findall(text) + re.findall(r"^::: (.+)$", text, re.MULTILINE)))}:
        if name in FILES_OF_A_RUN:
            continue
        parts = name.split(".")
        depth = max(n for n in range(1, len(parts) + 1) if module_file(parts[:n]) or n == 1)
        source = module_file(parts[:depth])
        assert source, f"{page.name}: {name}"
        if depth < len(parts):
            assert re.search(rf"\b{parts[depth]}\b", source.read_text()), f"{page.name}: {name}"


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def test_every_command_in_a_code_block_is_run() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    tests = (ROOT / "tests" / "test_examples.py").read_text()
    run_by_examples = {
        command for test, commands in COMMANDS_OF_EXAMPLES.items() if f"def {test}(" in tests for command in commands
    }
    for page in PAGES:
        run_by_readme = page == ROOT / "README.md" or page.parent == ROOT / "docs"
        text = page.read_text()
        blocks = re.findall(r"```\w*\n(.+?)```", text, re.DOTALL) + re.findall(r"(?:^ {4}.+\n)+", text, re.MULTILINE)
        for command in SHELL.findall("\n".join(blocks)):
            program, argument = command.split()[:2]
            if program == "make":
                assert argument in targets, f"{page.name}: {command}"
            elif not (program == "onediffusion" and run_by_readme):
                assert command in run_by_examples, f"{page.name}: {command}"


@named
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@named
def test_imports_of_examples_in_pages_work(page: Path) -> None:
    if page.name == "howto.md":
        return  # its code is run by test_readme.py
    for block in re.findall(r"```python\n(.+?)```", page.read_text(), re.DOTALL):
        for line in re.findall(r"^(?:from|import) .+$", block, re.MULTILINE):
            exec(line, {})


def test_readme_is_short_and_its_tree_matches_the_checkout() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    tree = re.search(r"## The tree\n\n```\n(.+?)```", text, re.DOTALL)[1]  # type: ignore[index]
    top, shown = "", set()
    for line in tree.splitlines():
        name = line.split("/")[0]
        top = top if name.startswith(" ") else name
        shown.add(top if top == name else f"{top}/{name.strip()}")
    assert all((ROOT / name).is_dir() for name in shown), shown
    code = [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()]
    packages = {f"{top}/{path.parent.name}" for top in code for path in (ROOT / top).glob("*/__init__.py")}
    assert {*FOLDERS, *packages} <= shown


def test_every_page_is_in_the_navigation() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    pages = set(re.findall(r"\w+\.md", str(yaml.safe_load(settings)["nav"])))
    assert pages == {page.name for page in ROOT.glob("docs/*.md")}


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize(("name", "column"), [("BrightnessLabeler", "brightness"), ("ScoreLabeler", "score")])
def test_labelers_of_the_page_label(name: str, column: str) -> None:
    names: dict[str, type[Labeler]] = {}
    for code in re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "labeler.md").read_text(), re.DOTALL):
        if code.startswith("import"):  # others are parts of a file
            exec(code, names)
    labeler = names[name](column, Labeler.Parameters())
    labeler.load_processor()
    labeler.load()
    rows = label_rows(labeler, [{"id": "a", "images.image": np.full((4, 4, 3), 7, np.uint8)}])
    assert rows[0]["error"] is None
    assert isinstance(rows[0][column], float)
    assert column == "score" or rows[0][column] == 7.0


def test_every_package_publishes_its_types() -> None:
    for folder in ("model", "labeling", "training", "cluster", "pipelines"):
        assert (ROOT / folder / "py.typed").exists()
