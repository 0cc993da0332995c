"""What a Ray cluster is asked to install for a job."""

from __future__ import annotations

from cluster.checkout import job_pins


def test_jobs_install_what_they_need_and_no_more() -> None:
    names = {pin.split("==")[0].lower() for pin in job_pins()}
    assert {"torch", "transformers", "mmcv", "mediapipe", "trimesh", "pandas", "numpy"} <= names
    others = {"ray", "dagster", "dagster-ray", "kubernetes", "mkdocs-material", "mypy", "pytest", "playwright"}
    assert not others & names
