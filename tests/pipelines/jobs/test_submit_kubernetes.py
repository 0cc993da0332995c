"""A training of 64 ranks on Kubernetes, from the command line: what would be sent, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_schemas import pod_templates, ray_errors, validate_pod
from typer.testing import CliRunner, Result

from cluster.work import MORE_CPUS
from pipelines.cli.app import app
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.steps import run_job

pytestmark = pytest.mark.slow  # it imports torch, and draws up a model of 2.8 billion weights


def test_labeling_counts_the_cpus_of_pods_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of those that a target's `cpu_pods` gives a job."""
    given: list[float] = []

    def label(*arguments: Any, most_cpus: float, **options: Any) -> None:
        given.append(most_cpus)
        raise NotImplementedError

    monkeypatch.setattr("pipelines.label.label", label)
    values = {"kind": "label", "dataset": str(tmp_path), "groups": ["edges"], "workers": {"count": 2, "cpus": 3}}
    for more in ("0", "42"):
        monkeypatch.setenv(MORE_CPUS, more)
        with pytest.raises(NotImplementedError):
            run_job(parse_specification(values, "job"), None)  # type: ignore[arg-type]  # a label job has no use for it
    assert given == [6, 48]


JOB = {
    "kind": "train",
    "config": "stage1-256",
    "overrides": {"mixture": {"pictures": {"dataset": "s3://lab/pictures"}}},
    "run": "s3://lab/runs/stage1",
}
MACHINE = {"gpus": 8, "cpus": 180}


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Dry runs of a job on a target, both as their files have them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def submit(target: dict[str, Any], job: dict[str, Any] = JOB) -> Result:
        values = {"type": "kubernetes", "image": "registry.example.com/onediffusion:0.1.0"} | target
        (tmp_path / "target.yaml").write_text(yaml.safe_dump(values))
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        arguments = ["submit", str(tmp_path / "job.yaml"), "--target", str(tmp_path / "target.yaml"), "--dry-run"]
        return CliRunner().invoke(app, arguments)

    return submit


def test_sixty_four_ranks_are_eight_pods_with_eight_gpus(submitted: Any) -> None:
    shown = submitted({"gpu_pool": MACHINE})
    assert shown.exit_code == 0, shown.output
    manifest = yaml.safe_load(shown.stdout)  # all else is a comment, so that kubectl takes it as it is
    assert ray_errors(manifest) == []
    for template in pod_templates(manifest):
        validate_pod(template)
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert (group["replicas"], asked["nvidia.com/gpu"], asked["cpu"]) == (8, 8, "180")
    parts = [float(size) for size in re.findall(r"^#   .* ([\d.]+) GiB$", shown.stdout, re.MULTILINE)]
    *parts, together = parts
    assert sum(parts) == pytest.approx(together, abs=0.1 * len(parts))
    assert int(asked["memory"].removesuffix("Gi")) == pytest.approx(together, abs=1)


def test_memory_that_is_too_little_is_refused_and_the_figure_does(submitted: Any) -> None:
    refused = submitted({"gpu_pool": MACHINE | {"memory": "60Gi"}})
    assert refused.exit_code != 0
    message = str(refused.exception) if refused.exception else refused.output
    figure = re.search(
        r"gpu_pool\.memory 60Gi .* with 8 workers needs .* for copies of a checkpoint.*; (\d+)Gi would do", message
    )
    assert figure and "\n" not in message
    assert submitted({"gpu_pool": MACHINE | {"memory": f"{figure[1]}Gi"}}).exit_code == 0
    assert submitted({"gpu_pool": MACHINE | {"memory": f"{int(figure[1]) - 2}Gi"}}).exit_code != 0


def test_job_names_a_pool_and_spot_nodes_are_remarked(submitted: Any) -> None:
    target = {"gpu_pools": {"h100": MACHINE | {"spot": True}}, "grace_seconds": 15}
    shown = submitted(target, JOB | {"workers": {"count": 64, "gpus": 1, "gpu_type": "h100"}})
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^#   gpu_pools\.h100 is of spot nodes, and a checkpoint takes about \d+ s", shown.output, re.M)
    elsewhere = submitted({}, JOB | {"workers": {"count": 64, "gpus": 1, "gpu_type": "h100"}})
    assert "workers.gpu_type h100: the target has no such pool" in str(elsewhere.exception)
