"""Running a labeler on the rows of a row group: what is right before its first row, and what its failures cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_labelers import Bad, BadBatches, BadDevice, rows

from labeling.failures import DeviceError, Failure, device_error
from labeling.labeler import Labeler, MissingParameterError, RowError
from labeling.resources import Resources
from labeling.results import group_schema, make_table, split_sets
from labeling.run import LabelerRun, decode_images, label_rows
from model.pictures import encode_png
from simple_labelers import Brightness

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
    assert [process.wait(timeout=240) for process in started] == [0, 0, 0]


def bad(what: str, row: str = "r5", kind: type[Labeler] = Bad, **more: Any) -> Labeler:
    labeler = kind(kind.name, kind.Parameters(what=what, row=row, **more))
    labeler.load()
    return labeler


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("type", "column 'value': Could not convert 'bright' with type str: tried to convert to float32"),
        ("key", "the labeler gave no column 'value', but 'brightness'"),
        ("missing-key", "the labeler gave no column 'value'"),
        ("more-keys", "the labeler gave 'valve', which is no column of its schema (did you mean 'value'?)"),
        ("none", "the labeler gave None instead of the columns of a row"),
        ("raise", "ValueError: not this one, at 0x…"),
        ("memory-error", "MemoryError"),
        ("system-exit", "SystemExit: I am done"),
        ("row-error", "too dark"),
    ],
)
@pytest.mark.parametrize("kind", [Bad, BadBatches])
def test_wrong_result_is_an_error_of_its_row(what: str, reason: str, kind: type[Labeler]) -> None:
    results = LabelerRun(bad(what, kind=kind)).label(rows())
    assert results[5] == Failure(reason, expected=what == "row-error")
    assert [result for result in results if isinstance(result, Failure)] == [results[5]]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("few", "WrongCountError: the labeler gave 0 results for 1 row"),
        ("many", "WrongCountError: the labeler gave 0 results for 1 row"),
        ("no-list", "WrongCountError: the labeler gave None instead of a list of results"),
    ],
)
def test_wrong_number_of_results_is_the_error_of_the_row_for_which_it_is_given(what: str, reason: str) -> None:
    results = LabelerRun(bad(what, kind=BadBatches)).label(rows())
    assert [result for result in results if isinstance(result, Failure)] == [Failure(reason)] == [results[5]]


@pytest.mark.parametrize("what", ["raise", "type", "few"])
def test_rows_beside_a_bad_one_are_labeled_as_if_it_were_not_there(what: str) -> None:
    batch = rows(4)
    alone = LabelerRun(bad("right", kind=BadBatches)).label([row for row in batch if row["id"] != "r1"])
    results = LabelerRun(bad(what, "r1", kind=BadBatches)).label(batch)
    beside = [result for result in results if not isinstance(result, Failure)]
    assert len(beside) == 3
    assert what == "type" or beside == alone  # the value of a wrong type is found after the batch


def test_every_row_in_error_keeps_its_place_and_counts_as_unexpected() -> None:
    labeler = bad("raise", "")
    results = LabelerRun(labeler).label(rows())
    made = make_table(labeler, [row["id"] for row in rows()], results)
    assert made.table["id"].to_pylist() == [f"r{n}" for n in range(8)]
    assert (made.errors, made.unexpected, made.table["value"].null_count) == (8, 8, 8)
    assert set(made.table["error"].to_pylist()) == {"ValueError: not this one, at 0x…"}


def test_errors_that_a_labeler_announces_are_not_unexpected() -> None:
    labeler = bad("row-error")
    made = make_table(labeler, [row["id"] for row in rows()], LabelerRun(labeler).label(rows()))
    assert (made.errors, made.unexpected) == (1, 0)


def test_missing_parameter_keeps_its_text() -> None:
    error = MissingParameterError("no depth model", "depth.model")
    assert Failure.of(error) == Failure("no depth model: set depth.model=NAME", expected=True)


def test_reason_is_one_line_of_bounded_length() -> None:
    assert len(Failure.of(RowError("word\n" * 1000)).reason) <= 500
    assert "\n" not in Failure.of(ValueError("word\n" * 1000)).reason


def test_rows_that_failed_before_are_not_given_to_the_labeler() -> None:
    given = rows()
    given[5]["images.image"] = None
    results = LabelerRun(bad("right")).label(given, failures={"r5": Failure("no picture")})
    assert results[5] == Failure("no picture")
    assert [isinstance(result, Failure) for result in results].count(True) == 1


def test_view_in_error_is_named_in_its_set() -> None:
    labeler = bad("raise", "s1/1")
    sets = [{"id": f"s{n}", "images.image": [np.full((2, 2, 3), n, np.uint8)] * 2} for n in range(2)]
    views, counts = split_sets(sets)
    made = make_table(labeler, ["s0", "s1"], LabelerRun(labeler).label(views), counts)
    assert made.table.schema == group_schema(labeler, sets=True)
    assert made.table["error"].to_pylist() == [None, "view 1: ValueError: not this one, at 0x…"]
    assert made.table["value"].to_pylist() == [[0.0, 0.0], [1.0, None]]
    assert (made.errors, made.unexpected) == (1, 1)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("prepare", "nothing to prepare"),
        ("infer", "ValueError: no such shape"),
        ("finish", "ValueError: nothing to finish"),
    ],
)
def test_failure_of_any_step_travels_to_the_end(what: str, reason: str) -> None:
    run = LabelerRun(bad(what, kind=BadDevice))
    ids = [row["id"] for row in rows()]
    prepared = run.prepare(rows())
    outputs = run.infer(ids, prepared)
    results = run.finish(ids, outputs, prepared)
    assert results == run.label(rows())
    assert [getattr(result, "reason", result["value"] if isinstance(result, dict) else None) for result in results] == [
        *(0.0, 1.0, 2.0, 3.0, 4.0),
        reason,
        *(6.0, 7.0),
    ]


def test_batch_is_the_job_s_or_the_labeler_s(tmp_path: Path) -> None:
    for resources, calls in ((None, 2), (Resources(batch=8), 1), (Resources(batch=3), 3)):
        file = tmp_path / f"calls{calls}"
        LabelerRun(bad("right", "none", kind=BadDevice, file=str(file)), resources).label(rows())
        assert file.stat().st_size == calls


def test_device_without_memory_gets_smaller_batches_from_then_on(tmp_path: Path) -> None:
    run = LabelerRun(bad("small", kind=BadDevice, file=str(tmp_path / "calls")))
    assert not any(isinstance(result, Failure) for result in run.label(rows()))
    assert run.batch == 1
    calls = (tmp_path / "calls").stat().st_size
    run.label(rows())
    assert (calls, (tmp_path / "calls").stat().st_size - calls) == (10, 8)


@pytest.mark.parametrize("what", ["assert", "too-large"])
def test_device_s_error_is_no_row_s_error(what: str) -> None:
    with pytest.raises(DeviceError, match="CUDA error"):
        LabelerRun(bad(what, kind=BadDevice)).label(rows())


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        "NCCL error in: ProcessGroupNCCL.cpp:1234, unhandled cuda error",
        "HIP error: invalid device function",
        "CUDA driver error: invalid argument",
        "Triton Error [CUDA]: device kernel image is invalid",
        "No CUDA GPUs are available",
    ],
)
def test_words_of_a_device_are_told_from_a_row_s(text: str) -> None:
    assert isinstance(device_error(RuntimeError(text)), DeviceError)
    wrapped = ValueError("the model failed")
    wrapped.__cause__ = RuntimeError(text)
    assert device_error(wrapped)
    assert not device_error(RuntimeError("shape mismatch: (3, 4) and (4, 4)"))
    assert not device_error(RowError("a picture of a CUDA core"))


def test_picture_that_cannot_be_decoded_is_its_row_s_error() -> None:
    png = encode_png(np.full((2, 3, 3), 7, np.uint8))
    good, bad, views, bad_view = decode_images(["a", "b", "c", "d"], [png, b"no picture", [png, png], [png, b""]])
    assert good.shape == views[0].shape == views[1].shape == (2, 3, 3)
    assert isinstance(bad, Failure) and isinstance(bad_view, Failure)


def test_labels_as_tests_and_documentation_make_them() -> None:
    labeler = Brightness("brightness", Brightness.Parameters(refuse_wider_than=1))
    row = label_rows(labeler, rows(1))[0]
    assert row == {"error": "wider than 1", "model": "brightness", "version": 1}
