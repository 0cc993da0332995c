"""Benchmarks start: they are run by hand, and what they import changes meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# One process for all: each script finds what its target in the Makefile lets it find.
START = """
import json, runpy, sys, traceback
paths, failed = list(sys.path), []
for script, folders in json.loads(sys.argv[1]):
    sys.path[:] = [script.rpartition("/")[0], *folders, *paths]
    has_options = "argparse" in open(script).read()
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__" if has_options else "imported")
        assert not has_options, "no help"
    except SystemExit as end:
        assert not end.code, script
    except BaseException:
        failed.append(script)
        traceback.print_exc()
sys.exit(" ".join(failed) or 0)
"""


def test_scripts_of_the_makefile_import_and_know_their_options() -> None:
    recipe = re.compile(r"^\t(?:PYTHONPATH=(\S+) )?.*?(tests/benchmarks/\w+\.py)", re.MULTILINE)
    targets = [(script, paths.split(":")) for paths, script in recipe.findall((ROOT / "Makefile").read_text())]
    assert {script for script, _ in targets} >= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")
    }
    given = [(str(ROOT / script), [str(ROOT / path) for path in paths if path]) for script, paths in targets]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", START, json.dumps(given)], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert not done.returncode, done.stderr
    for script, _ in targets:
        if "argparse" in (ROOT / script).read_text():
            assert f"usage: {Path(script).name}" in done.stdout


@pytest.mark.slow
def test_bench_gpu_tries_itself_on_a_cpu_without_ray(tmp_path: Path) -> None:
    """So is a machine with a GPU that has torch alone. Sections of a few seconds; that of FSDP2 has a run's steps."""
    script = ROOT / "tests" / "benchmarks" / "bench_gpu.py"
    start = "import runpy; sys.modules['ray'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; del sys.argv[0]; sys.path.insert(0, {str(script.parent)!r}); {start}"
    options = ["--small", "--only", "fsdp,checkpoints,text,labeler", "--out", str(tmp_path / "gpu.json")]
    command = [sys.executable, "-c", code, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    assert not done.returncode, done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert len(sections) == 4 and not any("skipped" in figures for figures in sections.values())
