"""`onediffusion doctor`: what this machine has is looked at; what it lacks is judged from answers recorded elsewhere.

RECORDED holds what nvidia-smi and torch said on machines with GPUs, and what Slurm's commands print at other sites.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from cluster.slurm.partitions import association_findings, partition_findings
from cluster.slurm.script import node_shape
from cluster.target import SlurmTarget
from cluster.work import Finding, ResourceRequest
from model.inputs import InputError
from pipelines.cli.app import app
from pipelines.doctor import machine
from pipelines.doctor.command import doctor, gathered
from pipelines.doctor.links import bandwidth_finding, port_finding
from pipelines.doctor.machine import GB, Gpus, disk_finding, gpu_finding, memory_finding, version_finding
from pipelines.doctor.place import clock_finding, place_findings

H100 = ("NVIDIA H100 80GB HBM3",) * 8
RECORDED = [
    (Gpus("570.86.15", H100, "12.8", 8, 8), ""),
    (Gpus("580.65.06", H100, "13.0", 8, 8), ""),
    (Gpus("570.86.15", H100, "13.0", 0, 8), "update the driver to 580.65.6 or later"),
    (Gpus("470.57.02", H100, "12.8", 0, 8), "update the driver to 525.60.13 or later"),
    (Gpus("570.86.15", H100, None, 0, 8), "install the CUDA build of torch"),
    (Gpus("570.86.15", H100, None, 0, 0), ""),
    (Gpus("570.86.15", H100, "12.8", 2, 8), "CUDA_VISIBLE_DEVICES"),
    (Gpus(None, (), "12.8", 0, 8), "install NVIDIA's driver"),
    (Gpus(None, (), "12.8", 0, 0), ""),
]
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=YES DefaultTime=01:00:00 MaxTime=2-00:00:00 State=UP TotalNodes=3
PartitionName=debug AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=00:30:00 State=DRAIN TotalNodes=1
"""
NODES = """\
NodeName=g1 CPUTot=128 Gres=gpu:h100:8(S:0-1) OS=Linux 5.14 RealMemory=2000000 State=IDLE Partitions=gpu,debug
NodeName=g2 CPUTot=128 Gres=gpu:h100:8(S:0-1) RealMemory=2000000 State=MIXED Partitions=gpu
NodeName=g3 CPUTot=128 Gres=gpu:h100:8(S:0-1) RealMemory=2000000 State=DOWN*+DRAIN Partitions=gpu Reason=disk
"""
ASSOCIATIONS = "lab|normal,long|10|50|1-00:00:00|gres/gpu=64\nteaching|normal||||\n"


@pytest.mark.parametrize(("gpus", "remedy"), RECORDED)
def test_recorded_gpus_are_judged(gpus: Gpus, remedy: str) -> None:
    finding = gpu_finding(gpus, "g1")
    assert finding.ok == (not remedy)
    assert remedy in finding.remedy


def test_recorded_site_is_judged() -> None:
    def remedies(workers: int = 16, **values: object) -> list[str]:
        target = SlurmTarget.model_validate(
            {"type": "slurm", "cpus_per_node": 128, "gpus_per_node": 8, "gpu_type": "h100", **values}
        )
        shape = node_shape(target, ResourceRequest(workers, workers, 16.0, 1.0))
        found = [*partition_findings(target, shape, PARTITIONS, NODES)]
        found += association_findings(target, "ada", ASSOCIATIONS)
        assert all(bool(finding.remedy) != finding.ok for finding in found)
        return [finding.remedy for finding in found if not finding.ok]

    assert remedies() == []
    assert remedies(hours=12) == []
    assert remedies(hours=36) == ["lower `hours` to 24 or less"]
    assert remedies(partition="gpus")[0].startswith("correct `partition` in the target (did you mean 'gpu'?)")
    assert [remedy.partition(",")[0] for remedy in remedies(partition="debug", hours=1)] == [
        "wait",
        "lower `hours`; jobs are told before the limit",
        "lower cpus_per_node",
    ]
    assert remedies(24) == ["wait for nodes that are down or drained (`sinfo -R`)"]
    assert remedies(gpu_type="a100") == [
        "lower cpus_per_node, gpus_per_node or memory_gb_per_node, or ask for fewer workers"
    ]
    assert remedies(account="labs")[0].startswith("correct `account` in the target (did you mean 'lab'?)")
    target = SlurmTarget(type="slurm", cpus_per_node=1)
    assert "sacctmgr add user" in association_findings(target, "ada", "")[0].remedy


def test_sizes_versions_links_and_clock_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.versions()
    assert version_finding({**here, "torch": here["torch"] + "+cu128"}, here, "g1").ok
    assert "ray 2.1 (sent from" in version_finding({**here, "ray": "2.1"}, here, "g1").found
    assert "install constraints.txt" in version_finding({**here, "ray": "absent"}, here, "g1").remedy
    assert memory_finding(4 * GB, 8 * GB, "g1").ok
    assert "--shm-size" in memory_finding(4 * GB, 64 << 20, "g1").remedy
    assert disk_finding("disk", "/scratch", 100 * GB, 50 * GB, 10 * GB, "g1").ok
    assert "free at least 10 GB" in disk_finding("disk", "/scratch", 100 * GB, 5 * GB, 10 * GB, "g1").remedy
    assert "over 95% full" in disk_finding("disk", "/scratch", 1000 * GB, 40 * GB, 10 * GB, "g1").remedy
    assert bandwidth_finding("gloo", "nodes", 2, 1e6).ok
    assert bandwidth_finding("nccl", "nodes", 8, 4e10).ok
    assert "NCCL_SOCKET_IFNAME" in bandwidth_finding("nccl", "nodes", 8, 1e8).remedy
    assert "open all TCP ports" in port_finding(["10.0.0.1: 10.0.0.2:4711 (refused)"], 2).remedy
    assert clock_finding(formatdate(1000.0), 1010.0, "g1") == Finding(
        "S3's clock", "g1", True, "this clock is 10 s ahead"
    )
    assert "chrony" in clock_finding(formatdate(1000.0), 1000.0 - 1200, "g1").remedy
    assert machine.compiler_remedy(lambda name: None) == "install a C compiler there (gcc), which Triton calls"


def test_many_nodes_share_a_line() -> None:
    lines = gathered([Finding("versions", f"g{n}", n != 7, "as sent" if n != 7 else "ray 2.1") for n in range(64)])
    assert [(line.where, line.ok) for line in lines] == [("63 nodes", True), ("g7", False)]


def test_place_is_probed(tmp_path: Path, s3: str) -> None:
    (disk,) = place_findings(str(tmp_path), "here", 1 << 20)
    stored, clock = place_findings(f"{s3}/doctor-test", "here", 1 << 20)
    for finding in (disk, stored):
        assert finding.ok and "writes" in finding.found and "reads" in finding.found, finding
    assert (clock.ok and clock.found.startswith("this clock is 0 s")) or "1 s" in clock.found
    (absent,) = place_findings("s3://no-such-bucket/x", "here", 1 << 20)
    assert not absent.ok and "credentials" in absent.remedy
    (tmp_path / "file").touch()
    assert not place_findings(str(tmp_path / "file"), "here", 1 << 20)[0].ok
    assert not [path for path in (tmp_path / "doctor").iterdir() if path.name.startswith("probe")]


def test_doctor_of_this_machine(tmp_path: Path, shared_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.time()
    code = app(["doctor", str(tmp_path), "--target", "local", "--workers", "2", "--cpus", "0.5"], standalone_mode=False)
    table = capsys.readouterr().out
    assert code in (0, 1), time.time() - began  # the disk of the machine that tests run on may be nearly full
    for check in ("versions", "GPUs and", "attention", "shared", "disk", "cache of", "ports", "all-reduce"):
        assert check in table, table
    assert "(gloo)" in table and "no GPU" in table
    assert not list(tmp_path.rglob("*.json"))


def test_doctor_refuses_what_cannot_be_examined(tmp_path: Path) -> None:
    target = tmp_path / "lab.yaml"
    target.write_text("{type: kubernetes, image: lab/onediffusion:1}")
    with pytest.raises(InputError, match="name a place on S3 or a volume"):
        doctor(str(target))
    target.write_text("{type: slurm, cpus_per_node: 8, shared_disk: false}")
    with pytest.raises(InputError, match="name a place on S3"):
        doctor(str(target))
