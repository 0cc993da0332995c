"""Labelers in a process of their own: what crashes, hangs or takes too much memory costs one row, and no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bad_labelers import Bad, BadBatches, BadDevice, BadOnMany, Leaking, rows
from label_work import AheadWork, LabelWork, OtherWork

from labeling.failures import DeviceError, Failure, ProcessError, WorkError
from labeling.labeler import Labeler
from labeling.supervision.supervisor import Supervisor, memory_share
from model.inputs import InputError


def labeler(what: str, row: str = "r5", kind: type[Labeler] = Bad, **more: Any) -> Labeler:
    return kind(kind.name, kind.Parameters(what=what, row=row, **more))


def label(bad: Labeler, count: int = 8, timeout: float = 60.0, **options: Any) -> list[Any]:
    """What a supervised process makes of rows: a value, or the reason of a failure, for each."""
    with Supervisor(LabelWork(bad, timeout), **options) as supervisor:
        return [plain(result) for result in supervisor.run(rows(count))]


def plain(result: Any) -> Any:
    return result.reason if isinstance(result, Failure) else result["value"]


def expected(reason: str, count: int = 8, row: int = 5) -> list[Any]:
    return [reason if n == row else float(n) for n in range(count)]


REASONS = {
    "abort": "the process died: SIGABRT",
    "segfault": "the process died: SIGSEGV",
    "exit": "the process died: exit code 3",
    "interrupt": "KeyboardInterrupt",
    "system-exit": "SystemExit: I am done",
    "hang": "no answer within 2 s",
    "hang-outside-python": "no answer within 2 s",
    "memory": "MemoryError",
}


def test_rows_with_which_a_process_ends_are_in_error_and_no_others(capfd: pytest.CaptureFixture[str]) -> None:
    ids = [row["id"] for row in rows(18)]
    bad = BadOnMany("many", BadOnMany.Parameters(rows=dict(zip(ids[1::2], [*REASONS, "print"], strict=True))))
    results = label(bad, count=18, timeout=2.0, memory_gb=1.0)
    assert dict(zip(REASONS, results[1::2], strict=False)) == REASONS
    assert results[::2] == [float(n) for n in range(0, 18, 2)]
    assert results[17] == 17  # of a row for which much is printed
    printed = capfd.readouterr()
    assert len(printed.out) > 5_000_000
    assert "Current thread" not in printed.err  # as the dump of a crash says


def test_rows_beside_it_are_labeled_as_if_it_were_not_there() -> None:
    """The values of this labeler tell how many rows were in their batch: 4, but 3 in that of the bad row."""
    assert label(labeler("abort", kind=BadBatches)) == [4, 5, 6, 7, 7, "the process died: SIGABRT", 9, 10]


def test_process_that_dies_by_chance_changes_no_label(tmp_path: Path) -> None:
    undisturbed = label(labeler("right", kind=BadBatches))
    assert label(labeler("once", kind=BadBatches, file=str(tmp_path / "calls"))) == undisturbed


def test_rows_that_end_a_process_only_together_are_labeled_one_by_one() -> None:
    assert label(labeler("together", "", kind=BadBatches), count=4) == [1, 2, 3, 4]


def test_every_row_may_be_bad() -> None:
    assert label(labeler("abort", ""), count=2) == ["the process died: SIGABRT"] * 2


def test_row_that_takes_memory_which_no_limit_counts_is_in_error() -> None:
    bad = labeler("shared-memory", "r1")
    assert label(bad, count=3, memory_gb=0.5) == [0, "more than 0.5 GB of memory", 2]


def test_memory_that_earlier_rows_hold_is_not_held_against_a_row() -> None:
    assert label(labeler("", kind=Leaking), memory_gb=0.5) == [float(n) for n in range(8)]


def test_device_that_fails_for_one_row_only_is_that_row_s_error(tmp_path: Path) -> None:
    reason = "CUDA error: device-side assert triggered Compile with `TORCH_USE_CUDA_DSA`"
    assert label(labeler("assert", kind=BadDevice), on_gpu=True) == expected(reason)


def test_device_that_fails_once_leaves_no_trace(tmp_path: Path) -> None:
    once = labeler("once", kind=BadDevice, file=str(tmp_path / "calls"))
    assert label(once, on_gpu=True) == [float(n) for n in range(8)]


def test_device_that_fails_for_all_rows_is_the_job_s_affair() -> None:
    with pytest.raises(DeviceError, match="device-side assert"):
        label(labeler("assert", "", kind=BadDevice), on_gpu=True)
    with pytest.raises(DeviceError, match="No CUDA GPUs are available"):
        label(labeler("load", kind=BadDevice), on_gpu=True)


def test_row_without_others_is_judged_by_an_earlier_task() -> None:
    with Supervisor(LabelWork(labeler("too-large", kind=BadDevice)), on_gpu=True) as supervisor:
        assert [plain(result) for result in supervisor.run(rows(4))] == [0, 1, 2, 3]
        assert supervisor.run([]) == []
        assert plain(supervisor.run(rows(6)[5:])[0]) == "CUDA error: out of memory"
        assert [plain(result) for result in supervisor.run(rows(4))] == [0, 1, 2, 3]
    fresh = Supervisor(LabelWork(labeler("too-large", kind=BadDevice)), on_gpu=True)
    with fresh, pytest.raises(DeviceError, match="out of memory"):  # nothing shows that the device works
        fresh.run(rows(6)[5:])


def test_error_of_load_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"^bad.what: no such weights; take others$"):
        label(labeler("load-input"))
    with pytest.raises(
        WorkError, match=r"^RuntimeError: the weights are not there \(bad_labelers.py, line \d+\)$"
    ) as raised:
        label(labeler("load"))
    assert "bad_labelers.py" in raised.value.traceback
    with pytest.raises(
        ProcessError, match=r"^depth: while labelers were loaded, the process died: SIGABRT \(3 times\)$"
    ):
        label(labeler("load-crash"), name="depth")
    assert "Fatal Python error: Aborted" in caplog.text


def test_death_while_no_row_is_labeled_is_no_row_s() -> None:
    with Supervisor(OtherWork()) as supervisor:
        with pytest.raises(ProcessError, match="while no row was labeled, the process died: exit code 7"):
            supervisor.run(("exit", 7))
        assert supervisor.run(("echo", 1)) == 1


def test_errors_of_the_work_come_with_their_traceback_and_leave_it_running() -> None:
    with Supervisor(OtherWork()) as supervisor:
        process = supervisor.run(("state", None))[0]
        with pytest.raises(WorkError, match="KeyError: 'no such'") as raised:
            supervisor.run(("fail", "no such"))
        assert "in fail" in raised.value.traceback
        with pytest.raises(WorkError, match="pickle"):
            supervisor.run(("unpicklable", None))
        assert supervisor.run(("state", None)) == (process, 2, os.getpriority(os.PRIO_PROCESS, 0))
        with pytest.raises(Exception, match="pickle"):
            supervisor.run(("echo", lambda: None))
        assert supervisor.run(("echo", 1)) == 1


def test_large_results_come_whole() -> None:
    with Supervisor(OtherWork()) as supervisor:
        assert supervisor.run(("array", 100_000_000))["zeros"].nbytes == 100_000_000
        sent = {"pixels": np.random.default_rng(0).integers(0, 255, (1000, 3000), np.uint8), "text": b"x" * 3_000_000}
        back = supervisor.run(("echo", sent))
        assert back["text"] == sent["text"] and np.array_equal(back["pixels"], sent["pixels"])


def test_child_gets_what_comes_next_beside_its_work() -> None:
    large = np.arange(1 << 21)  # more than fits between two processes
    with Supervisor(AheadWork()) as supervisor, ThreadPoolExecutor(1) as pool:
        supervisor.start()
        running = pool.submit(supervisor.run, ("wait", "", True))
        supervisor.ahead({"a": large})
        assert running.result(120)
        taken = supervisor.run(("take", "a", "whole"), short=("take", "a", None))
        np.testing.assert_array_equal(taken, large)
        supervisor.ahead({"b": 1})
        with pytest.raises(ProcessError, match="exit code 3"):
            supervisor.run(("exit", "", True))
        assert supervisor.run(("take", "b", "whole"), short=("take", "b", None)) == "whole"


def test_restarts_leave_no_files_and_no_processes_behind(tmp_path: Path) -> None:
    label(labeler("right"), count=1)  # what is opened once
    files, children = set(os.listdir("/proc/self/fd")), psutil.Process().children(recursive=True)
    label(labeler("processes", "", file=str(tmp_path / "pids")), count=1)
    assert set(os.listdir("/proc/self/fd")) == files
    assert psutil.Process().children(recursive=True) == children
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4 and not any(map(psutil.pid_exists, pids))


PARENT = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # one that is started in the background ignores it
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from label_work import OtherWork
from labeling.supervision.supervisor import Supervisor

supervisor = Supervisor(OtherWork())
print(*supervisor.run(("start_processes", None)), flush=True)
supervisor.run(("sleep", 1000))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_child_and_its_processes_end_with_the_parent(number: signal.Signals | None) -> None:
    """None: the parent ends as Ray's workers do, which first kill their children."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[2])]),
    }
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(map(psutil.pid_exists, pids))
    if number is None:
        for child in psutil.Process(parent.pid).children():
            child.kill()
    parent.send_signal(number or signal.SIGKILL)
    parent.wait(120)
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, pids))


def test_memory_is_shared_among_the_processes_of_a_machine() -> None:
    assert memory_share(2) == max(memory_share(1) / 2, 4)
    assert memory_share(1000) <= memory_share(1) < psutil.virtual_memory().total / 1e9
