"""What commands print on a terminal: their own lines, and none of Ray's."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BARS = re.compile(r"^(ingest|label|train|edges|latents)\b.*\d+/\d+|^.*━.*$")

FAILS = """
import sys
from cluster.session import ray_session
from model.inputs import InputError
from pipelines import cli
from pipelines.cli.app import app

def fail(batch):
    raise InputError("weights.bin: no such weights; give another name")

class FailsAtStart:
    def __init__(self):
        fail(None)

    def __call__(self, batch):
        return batch

@app.command()
def fails(where: str):
    with ray_session(memory=100 << 20):
        import ray
        if where == "task":
            ray.get(ray.remote(fail).options(num_cpus=0).remote(None))
        elif where == "actor":
            ray.get(ray.remote(FailsAtStart).options(num_cpus=0).remote().__ray_ready__.remote())
        elif where == "batch":
            ray.data.range(2, override_num_blocks=1).map_batches(fail).materialize()
        else:
            pool = ray.data.ActorPoolStrategy(size=1)
            ray.data.range(2, override_num_blocks=1).map_batches(FailsAtStart, compute=pool).materialize()

cli.main()
"""


def on_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """The exit code of a command and the lines that it prints on a terminal, without its progress bars."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    printed = b""
    try:
        while data := os.read(ours, 65536):
            printed += data
    except OSError:  # the terminal is closed when the last process that has it ends
        pass
    os.close(ours)
    code = process.wait(timeout=240)
    lines = [ESCAPES.sub("", line).strip() for line in re.split(r"[\r\n]+", printed.decode(errors="replace"))]
    return code, [line for line in lines if line and not BARS.match(line)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of someone who has no Ray yet."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "XDG_DATA_HOME": str(tmp_path / "data"), "COLUMNS": "200"}


def test_commands_print_only_their_own_lines(pictures: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    dataset = str(tmp_path / "dataset")
    onediffusion = [sys.executable, "-m", "pipelines"]
    code, lines = on_terminal([*onediffusion, "ingest", str(pictures), dataset], environment)
    assert (code, lines) == (0, [f"6 pictures added, 3 files rejected; 6 pictures in {dataset}"])
    code, lines = on_terminal([*onediffusion, "label", dataset, "edges"], environment)
    assert code == 0 and len(lines) == 3, lines
    assert re.fullmatch(r"edges: 1 shards labeled, 0 fresh, [0-9.]+ rows/s a process", lines[0])
    assert re.fullmatch(r"6 rows in [0-9.]+ s: [0-9.]+ a second, first label after [0-9.]+ s", lines[1])
    assert re.fullmatch(r".+ took \d+% of the time: .+", lines[2])


@pytest.mark.parametrize("where", ["task", "actor", "batch", "pool"])
def test_user_error_inside_ray_is_one_line(where: str, shared_ray: None, tmp_path: Path) -> None:
    code, lines = on_terminal([sys.executable, "-c", FAILS, "fails", where], dict(os.environ))
    assert (code, lines) == (2, ["onediffusion: weights.bin: no such weights; give another name"])
