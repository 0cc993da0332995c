"""Weights in 8 bits, with torchao, which is not in the environment of the tests: diffusers would always import it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BESIDE = Path(sys.prefix) / "beside"


def test_weights_in_eight_bits_are_exported_and_read() -> None:
    assert (BESIDE / "torchao").is_dir(), "`make test` installs it there"
    files = [str(HERE / "pipelines" / "test_export.py"), str(HERE / "training" / "test_lora.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BESIDE), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-m", "torchao", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "4 passed" in result.stdout, result.stdout + result.stderr
