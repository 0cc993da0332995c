"""The Ray that jobs run on, as they meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ANSWERS = """
import os, signal, time
from cluster.session import ray_session

told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
with ray_session(memory=100 << 20):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    time.sleep(0.5)
print(*told)
"""


def test_a_job_answers_signals_while_it_uses_ray(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ANSWERS], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["SIGTERM", "SIGUSR1"], done.stderr
