"""Every command of the README and of docs/, in order, as someone would who has a few pictures and small models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trimesh
from ray_head import RayHead, ray_head
from tiny_models import save_blip, save_depth_anything, save_pipeline, save_t5, save_vae

pytestmark = [pytest.mark.slow, pytest.mark.long]
DOCS = Path(__file__).parents[1] / "docs"
HOWTO = (DOCS / "howto.md").read_text()
# The how-to is a journey; the other pages go on from where it ends.
FIRST = ("howto.md", "clusters.md")
PAGES = [DOCS / name for name in FIRST] + sorted(page for page in DOCS.glob("*.md") if page.name not in FIRST)
PAGES.append(DOCS.parent / "README.md")
# A name in capitals stands for whatever a user has there: such a line explains, and is no command to type.
PLACEHOLDER = re.compile(r"\b(CONFIG|DATASET|RUN|SOURCE|NAME)\b")
COMMANDS = [
    command
    for page in PAGES
    for command in re.findall(r"^onediffusion .+$|(?<=`)onediffusion [^`]+(?=`)", page.read_text(), re.MULTILINE)
    if not PLACEHOLDER.search(command)
]
# The demo trains this preset (test_journey.py), and takes its time; the dashboard stays (test_dashboard_browser.py).
ELSEWHERE = ("onediffusion train debug", "onediffusion dashboard")
# The model of the how-to's run on the least that has all its parts: it is there for the command, not for its pictures.
SMALL = {
    "steps": 2,
    "batch": 2,
    "model": "{hidden_size: 24, depth: 1, num_heads: 2, num_kv_heads: 2, multiple_of: 8, caption_channels: 32}",
    "workers": '{count: 1, gpus: 0, fsdp: false, precision: "no"}',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> tuple[Path, dict[str, str]]:
    """A working folder with what the pages speak of, and the environment of someone who works there."""
    home, here = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    for name in ("astronaut.png", "chelsea.png", "coffee.png"):
        (home / "Pictures").mkdir(exist_ok=True)
        shutil.copy(photographs / name, home / "Pictures" / name)
    for name, photograph in (("cat", "chelsea"), ("street", "camera"), ("front", "astronaut")):
        shutil.copy(photographs / f"{photograph}.png", here / f"{name}.png")
    (here / "meshes").mkdir()
    trimesh.creation.box().export(here / "meshes" / "box.glb")
    save_vae(here / "models" / "sd3" / "vae", scaling_factor=1.5)
    save_t5(here / "models" / "t5")
    save_in_hub(home, "depth-anything/Depth-Anything-V2-Large-hf", save_depth_anything)
    save_in_hub(home, "Salesforce/blip-image-captioning-large", save_blip)
    (here / "my_module.py").write_text(
        "from simple_labelers import Brightness\n\n\nclass MyLabeler(Brightness):\n    name = 'mine'\n"
    )
    (here / "lab.yaml").write_text("{kind: label, dataset: s3://lab/pictures, groups: [edges]}")
    (here / "mine.yaml").write_text(re.search(r"```yaml\n(.+?)```", HOWTO, re.DOTALL)[1])
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "HF_HUB_OFFLINE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    environment.pop("HF_HOME", None)
    return here, environment


def save_in_hub(home: Path, name: str, save: Callable[[Path], object]) -> None:
    """A model where the hub's downloads lie."""
    folder = home / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    save(folder / "snapshots" / commit)


def run(place: tuple[Path, dict[str, str]], command: str) -> str:
    here, environment = place
    found = subprocess.run(
        ["bash", "-c", command], cwd=here, env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout


@pytest.fixture
def cluster(place: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[RayHead]:
    """A Ray that this person has running, with the same home and folder: commands need not start one of their own."""
    here, environment = place
    before = dict(environment)
    with ray_head(tmp_path, environment, here) as head:
        yield head
    environment.clear()
    environment.update(before)


def test_every_command_works(place: tuple[Path, dict[str, str]], cluster: RayHead) -> None:
    here, environment = place
    commands = [command for command in dict.fromkeys(COMMANDS) if not command.startswith(ELSEWHERE)]
    assert len(commands) >= 22
    job = ""
    for command in commands:
        command = command.replace("label-1a2b3c4d", job)
        if command.startswith("onediffusion train"):
            command += "".join(f" --set '{key}={value}'" for key, value in SMALL.items())
        if command.startswith("onediffusion sample"):
            if not (here / "runs" / "demo").exists():
                (here / "runs" / "demo").symlink_to(here / "runs" / "mine")
            command += " --steps 2"
        said = run(place, command)
        if command.startswith("onediffusion label"):  # the first two start one, as where there is no other
            environment |= {"RAY_ADDRESS": cluster.gcs, "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)}
        if command.endswith("status data/pictures"):
            assert "segmentation" in said
        if command.endswith("submit label --target local"):
            job = said.strip()
        if command.startswith(("onediffusion evaluate", "onediffusion submit evaluate")):
            said = run(place, f"onediffusion logs -f {said.strip()}") if "submit" in command else said
            assert "image_to_edges_correlation: " in said
        if command.startswith("onediffusion logs"):
            assert "edges: " in said
    assert "succeeded" in run(place, "onediffusion jobs data/pictures")
    for written in (
        "edges.png",
        "mask.png",
        "turned.png",
        "data/pictures/report.html",
        "data/views/dataset.json",
        "runs/mine/samples",
    ):
        assert (here / written).exists(), written
    for group in ("mine", "latents-256-depth", "latents-256-edges", "text"):
        assert (here / "data" / "pictures" / group / "000000.parquet").exists(), group


def test_its_python_works(place: tuple[Path, dict[str, str]]) -> None:
    here, _ = place
    save_pipeline(here / "models" / "onediffusion")
    for name in ("depth", "pose"):
        shutil.copy(here / "edges.png", here / f"{name}.png")
    sampling, reading = re.findall(r"```python\n(.+?)```", HOWTO, re.DOTALL)
    (here / "sampling.py").write_text(sampling)
    (here / "reading.py").write_text(reading)
    run(place, "python sampling.py")
    assert (here / "drawn.png").exists()
    assert len(run(place, "python reading.py").splitlines()) == 3
