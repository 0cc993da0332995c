"""Workers of Ray start by a script of ours, which does what Ray's own does, sooner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import ray_worker

WORKER = ["default_worker.py", "--node-ip-address=127.0.0.1"]


def arguments(context: dict[str, object], language: str = "PYTHON") -> list[str]:
    return [*WORKER, f"--language={language}", f"--serialized-runtime-env-context={json.dumps(context)}"]


def test_variables_of_a_runtime_environment_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "/data")
    monkeypatch.setenv("INSIDE", "")
    context = {"env_vars": {"INSIDE": "${FOLDER}/pictures${NO_SUCH_VARIABLE}"}, "py_executable": sys.executable}
    assert ray_worker.worker_command(arguments(context)) == WORKER
    assert os.environ["INSIDE"] == "/data/pictures"


@pytest.mark.parametrize(
    ("context", "language"),
    [
        ({"py_executable": "/elsewhere/bin/python"}, "PYTHON"),
        ({"command_prefix": ["nice"]}, "PYTHON"),
        ({"override_worker_entrypoint": "/in/the/container.py"}, "PYTHON"),
        ({"something_new": 1}, "PYTHON"),
        ({}, "JAVA"),
    ],
)
def test_other_workers_are_left_to_ray(context: dict[str, object], language: str) -> None:
    script, *rest = ray_worker.worker_command(arguments(context, language))
    assert Path(script).name == "setup_worker.py" and Path(script).exists()
    assert rest == arguments(context, language)


def test_script_imports_nothing_of_ray(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys; print(sys.argv[1:])")
    command = [sys.executable, "-X", "importtime", ray_worker.__file__, str(worker), "--node=1", "--language=PYTHON"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "['--node=1']\n"
    assert " ray" not in result.stderr
