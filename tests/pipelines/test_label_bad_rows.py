"""Rows that crash, hang or break a labeler, in a job from the command line: they are in error, and the job goes on."""

from __future__ import annotations

import json
import subprocess

import pytest
from commands import onediffusion

from labeling.dataset import Dataset
from model.pictures import decode_picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]
REASONS = {
    "abort": "the process died: SIGABRT",
    "exit": "the process died: exit code 3",
    "hang": "no answer within 5 s",
    "key": "the labeler gave no column 'value', but 'brightness'",
    "shared-memory": "more than 0.5 GB of memory",
}


def label(dataset: Dataset, *arguments: str) -> subprocess.CompletedProcess[str]:
    return onediffusion("label", dataset.uri, *arguments)


def test_bad_rows_are_in_error_and_the_job_goes_on(dataset: Dataset) -> None:
    pictures = {row["id"]: row["image"] for row in dataset.rows("images", ["id", "image"])}
    assert len(pictures) > len(REASONS)
    bad = dict(zip(pictures, REASONS, strict=False))
    arguments = ["--set", f"many.rows={json.dumps(bad)}", "--resources", "many.timeout=5"]
    arguments += ["--resources", "many.memory_gb=0.5"]
    done = label(dataset, "bad_labelers:BadOnMany", *arguments)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in dataset.rows("many")}
    assert list(rows) == list(pictures)
    assert {bad[row["id"]]: row["error"] for row in rows.values() if row["error"]} == REASONS
    for identity in pictures.keys() - bad.keys():
        assert rows[identity]["value"] == pytest.approx(decode_picture(pictures[identity]).mean())
    assert all(reason in done.stdout + done.stderr for reason in REASONS.values())
    assert "Traceback" not in done.stderr
    again = label(dataset, "bad_labelers:BadOnMany")
    assert again.returncode == 0 and "0 shards labeled" in again.stdout


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("load-input", 2, "bad.what: no such weights; take others"),
        ("load", 1, "the weights are not there"),
        ("load-crash", 1, "the process died: SIGABRT"),
        ("abort", 1, "the process died: SIGABRT"),  # with every row
    ],
)
def test_labeler_that_never_works_ends_the_job_in_a_few_lines(
    dataset: Dataset, what: str, code: int, words: str
) -> None:
    done = label(dataset, "bad_labelers:Bad", "--set", f"bad.what={what}", "--shards", "0:1")
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
