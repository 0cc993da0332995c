"""Running a labeler: what has to be right before its first row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FRAGILE = """
from pathlib import Path
import time

cache = Path(__file__).with_name("cache")
if cache.exists() and not cache.read_text():
    raise EOFError("read half-written")
cache.write_text("")
time.sleep(1)
cache.write_text("whole")
"""
IMPORT = """
from simple_labelers import Brightness
from labeling.run import import_packages

Brightness.packages = ("fragile",)
import_packages(Brightness("brightness", Brightness.Parameters()))
"""


def test_packages_are_imported_by_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root, os.environ["PYTHONPATH"]])}
    started = [subprocess.Popen([sys.executable, "-c", IMPORT], env=environment) for _ in range(3)]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
