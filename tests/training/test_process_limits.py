"""What the processes of a training load, and how many files they may have open."""

from __future__ import annotations

import subprocess
import sys


def test_readers_driver_and_coordinator_start_without_torch() -> None:
    """Each is a process of its own, and torch with diffusers costs six seconds and 600 MB in each."""
    code = """
import sys
import training.coordinator, training.dataloader, training.run, training.worker_settings, pipelines.train
import pipelines.evaluate
print(*({"torch", "diffusers", "transformers", "peft", "accelerate", "ray"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_reader_keeps_as_many_shards_open_as_its_lanes_have() -> None:
    """A third of what the system allows the process, which it asks for: in a process of its own."""
    code = """
import resource, sys
from training.size_cache import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))
print(allow_files(4096), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    for hard, expected in ((1000, "333 1000"), (16384, "4096 12288")):
        command = [sys.executable, "-c", code, str(hard)]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == expected
