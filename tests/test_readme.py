"""Every `onediffusion` command of the README and of docs/, in order, run with a few pictures and small models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh
from picture_server import Answer, PictureServer
from ray_head import RayHead, ray_head
from tiny_models import save_blip, save_depth_anything, save_pipeline, save_t5, save_vae
from warm_processes import Warm, warm_processes

pytestmark = [pytest.mark.slow, pytest.mark.long]
DOCS = Path(__file__).parents[1] / "docs"
HOWTO = (DOCS / "howto.md").read_text()
# The how-to is a journey; commands of the other pages need what it makes.
FIRST = ("howto.md", "clusters.md")
PAGES = [DOCS / name for name in FIRST] + sorted(page for page in DOCS.glob("*.md") if page.name not in FIRST)
PAGES.append(DOCS.parent / "README.md")
# A word in capitals stands for something of the user's: such a line explains a form, and cannot be run.
PLACEHOLDER = re.compile(r"\b(CONFIG|DATASET|RUN|SOURCE|NAME)\b")
COMMANDS = [
    command
    for page in PAGES
    for command in re.findall(r"^onediffusion .+$|(?<=`)onediffusion [^`]+(?=`)", page.read_text(), re.MULTILINE)
    if not PLACEHOLDER.search(command)
]
# Run by other tests: the demo trains this preset (tests/test_journey.py), and the dashboard does not end by itself
# (tests/pipelines/dashboard/test_browser.py).
ELSEWHERE = ("onediffusion train debug", "onediffusion dashboard")
# The how-to's run with the smallest model that has all parts: the command is tested, not what it learns.
SMALL = {
    "steps": 2,
    "batch": 2,
    "model": "{hidden_size: 24, depth: 1, num_heads: 2, num_kv_heads: 2, multiple_of: 8, caption_channels: 32}",
    "workers": '{count: 1, gpus: 0, fsdp: false, precision: "no"}',
}


@dataclass
class User:
    """Where the commands are typed: a working folder with the files that the pages name, and environment variables."""

    folder: Path
    environment: dict[str, str]
    warm: Warm

    def run(self, command: str) -> str:
        """What a command prints; it succeeds."""
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout


@pytest.fixture(scope="module")
def web() -> Iterator[PictureServer]:
    """A server of pictures, which stands for those of the web."""
    with PictureServer() as server:
        yield server


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, photographs: Path, web: PictureServer) -> Iterator[User]:
    """Someone with three pictures, a list of addresses, a mesh, small models and the files of the how-to."""
    home, here = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    for name in ("astronaut.png", "chelsea.png", "coffee.png"):
        (home / "Pictures").mkdir(exist_ok=True)
        shutil.copy(photographs / name, home / "Pictures" / name)
        web.answers[f"/{name}"] = Answer((photographs / name).read_bytes())
    table = pa.table({"url": [web.url(path) for path in [*web.answers, "/gone.png"]], "caption": ["a picture"] * 4})
    pq.write_table(table, here / "addresses.parquet")
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
    (here / "my-pictures").mkdir()
    for name, photograph in (("01", "coffee"), ("02", "astronaut")):
        shutil.copy(photographs / f"{photograph}.png", here / "my-pictures" / f"{name}.png")
        (here / "my-pictures" / f"{name}.txt").write_text(f"a sks toy {name}")
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
    with warm_processes(environment) as warm:
        yield User(here, {**environment, "PATH": os.pathsep.join([str(warm.commands), environment["PATH"]])}, warm)


def save_in_hub(home: Path, name: str, save: Callable[[Path], object]) -> None:
    """Save a model where downloads from the hub would lie."""
    folder = home / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    save(folder / "snapshots" / commit)


@pytest.fixture
def cluster(user: User, tmp_path: Path) -> Iterator[RayHead]:
    """A Ray with the user's home and folder, so that not every command starts its own."""
    before = dict(user.environment)
    with ray_head(tmp_path, user.environment, user.folder, worker_start=user.warm.worker_start) as head:
        yield head
    user.environment = before


def is_work_of(job: str, process: psutil.Process) -> bool:
    """Whether it is the process of a local job."""
    with suppress(psutil.Error):
        return "execute" in (line := process.cmdline()) and any(job in word for word in line)
    return False


def resume_when_written(file: Path, processes: list[psutil.Process]) -> None:
    """Let processes go on when the file has other content than now."""
    before = file.read_bytes() if file.exists() else b""
    while not file.exists() or file.read_bytes() == before:
        time.sleep(0.05)
    for process in processes:
        process.resume()


def test_every_command_works(user: User, cluster: RayHead) -> None:
    commands = [command for command in dict.fromkeys(COMMANDS) if not command.startswith(ELSEWHERE)]
    assert len(commands) >= 22
    job, working = "", list[psutil.Process]()
    for command in commands:
        command = command.replace("label-1a2b3c4d", job)
        if command.startswith("onediffusion ingest addresses"):
            command += " --allow-private 127.0.0.1"
        if command.startswith("onediffusion train"):
            command += "".join(f" --set '{key}={value}'" for key, value in SMALL.items())
        if command.startswith("onediffusion sample"):
            demo = user.folder / "runs" / "demo"
            if not demo.exists():
                demo.symlink_to(user.folder / "runs" / "mine")
            command += " --steps 2"
        if command.startswith("onediffusion scale"):
            asked = user.folder / "data" / "pictures" / "jobs" / job / "control.json"
            Thread(target=resume_when_written, args=(asked, working), daemon=True).start()
        output = user.run(command)
        if command == "onediffusion export runs/mine models/mine":  # stands for the published model
            shutil.copytree(user.folder / "models" / "mine", user.folder / "models" / "onediffusion")
        if command.startswith("onediffusion label"):  # ingest and the first label have started a Ray of their own
            user.environment |= {"RAY_ADDRESS": cluster.gcs, "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)}
        if command.endswith("status data/pictures"):
            assert "segmentation" in output
        if command.endswith("submit label --target local"):
            job = output.strip()
            working = [process for process in psutil.process_iter() if is_work_of(job, process)]
            assert working, "it has ended before it could be scaled"
            for process in working:
                process.suspend()  # or it has ended before it is scaled
        if command.startswith(("onediffusion evaluate", "onediffusion submit evaluate")):
            output = user.run(f"onediffusion logs -f {output.strip()}") if "submit" in command else output
            assert "image_to_edges_correlation: " in output
        if command.startswith("onediffusion logs"):
            assert "edges: " in output
    assert "succeeded" in user.run("onediffusion jobs data/pictures")
    for name in (
        "edges.png",
        "mask.png",
        "turned.png",
        "data/pictures/report.html",
        "data/views/dataset.json",
        "runs/mine/samples",
        "toy.png",
        "runs/finetune-lora/pytorch_lora_weights.safetensors",
        "models/toy/pytorch_lora_weights.safetensors",
    ):
        assert (user.folder / name).exists(), name
    for group in ("mine", "latents-256-depth", "latents-256-edges", "text-edges"):
        assert (user.folder / "data" / "pictures" / group / "000000.parquet").exists(), group


def test_python_of_the_howto_works(user: User) -> None:
    shutil.rmtree(user.folder / "models" / "onediffusion", ignore_errors=True)
    save_pipeline(user.folder / "models" / "onediffusion")
    for name in ("depth", "pose"):
        shutil.copy(user.folder / "edges.png", user.folder / f"{name}.png")
    *sampling, reading = re.findall(r"```python\n(.+?)```", HOWTO, re.DOTALL)
    (user.folder / "sampling.py").write_text("\n".join(sampling))
    (user.folder / "reading.py").write_text(reading)
    user.run("python sampling.py")
    assert (user.folder / "drawn.png").exists()
    assert len(user.run("python reading.py").splitlines()) == 3
