"""What a Slurm site is sent, and what its answers become; no site is needed for these."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.slurm.backend import SlurmBackend
from cluster.slurm.messages import ended_jobs, ended_reason, is_unreachable, pending_reason, refusal
from cluster.slurm.node import free_port, reachable_address
from cluster.slurm.script import Shape, gres, node_shape
from cluster.target import SlurmTarget, load_target, parse_target
from cluster.work import ResourceRequest, Work
from model.inputs import InputError


def target(**values: Any) -> SlurmTarget:
    found = parse_target({"type": "slurm", "cpus_per_node": 32, **values}, "site.yaml")
    assert isinstance(found, SlurmTarget)
    return found


def work(**values: Any) -> Work:
    given = {"name": "label-1a2b3c4d-1", "kind": "label", "address": "s3://lab/d/jobs/label-1a2b3c4d", **values}
    return Work(arguments=("execute", given["address"], "--attempt", "1"), **given)


def options(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("workers", "values", "wanted"),
    [
        (ResourceRequest(1, 1, 1.0), {}, Shape(1, 1, 1, 0, 0)),  # its share of a node
        (ResourceRequest(2, 2, 32.0), {}, Shape(2, 2, 32, 0, 0)),
        (ResourceRequest(3, 3, 16.0), {}, Shape(2, 2, 32, 0, 0)),
        (
            ResourceRequest(2, 2, 1.0, 1.0),
            {"gpus_per_node": 4, "memory_gb_per_node": 256},
            Shape(1, 1, 16, 2, 128 * 1024),
        ),
        (ResourceRequest(8, 8, 1.0, 1.0), {"gpus_per_node": 4}, Shape(2, 2, 32, 4, 0)),
        (ResourceRequest(1, 8, 1.0, 1.0), {"gpus_per_node": 4}, Shape(1, 2, 32, 4, 0)),
        (ResourceRequest(2, 2, 1.0, 0.5), {"gpus_per_node": 1}, Shape(1, 1, 32, 1, 0)),
        (ResourceRequest(6, 6, 1.0, 0.6), {"gpus_per_node": 4}, Shape(2, 2, 24, 3, 0)),  # Ray puts none on two GPUs
        (ResourceRequest(2, 2, 1.0, 0.4), {"gpus_per_node": 2}, Shape(1, 1, 16, 1, 0)),
        (ResourceRequest(2, 2, 1.0, 0.0, 100.0), {"memory_gb_per_node": 128}, Shape(2, 2, 32, 0, 128 * 1024)),
        (ResourceRequest(2, 2, 1.0, 0.0, 3.0), {}, Shape(1, 1, 2, 0, 6 * 1024)),
        (ResourceRequest(1, 1, 1.0, 1.0), {"gpus_per_node": 4, "exclusive": True}, Shape(1, 1, 32, 4, 0)),
        (ResourceRequest(1, 1, 0.0), {}, Shape(1, 1, 32, 0, 0)),
    ],
)
def test_workers_map_to_nodes(workers: ResourceRequest, values: dict[str, Any], wanted: Shape) -> None:
    assert node_shape(target(**values), workers) == wanted


def test_worker_larger_than_node_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs 1 GPUs, and the nodes of this target have 0 \(gpus_per_node\)"):
        node_shape(target(), ResourceRequest(gpus=1.0))
    with pytest.raises(InputError, match=r"needs 64 CPUs.* 32 \(cpus_per_node\)"):
        node_shape(target(), ResourceRequest(cpus=64.0))


def test_script_states_target(tmp_path: Path) -> None:
    site = target(
        partition="gpu",
        account="lab",
        qos="long",
        reservation="tuesday",
        constraint="a100&nvlink",
        hours=1.5,
        gpus_per_node=4,
        gpu_type="a100",
        memory_gb_per_node=100,
        options=["--mail-type=FAIL"],
        setup=["module load cuda"],
        environment={"HF_HUB_OFFLINE": "1", "NOTE": "it's $HOME", "TWO": "lines;\n`touch x`"},
        folder=str(tmp_path / "100% of it"),
        python="/shared/venv/bin/python",
        working_dir="/shared/onediffusion",
    )
    text = SlurmBackend(site).plan(work(resources=ResourceRequest(1, 8, 1.0, 1.0)))["sbatch script"]
    assert set(options(text)) >= {
        *("--job-name=label-1a2b3c4d-1", "--dependency=singleton", "--nodes=1-2", "--ntasks-per-node=1"),
        *("--cpus-per-task=32", "--gres=gpu:a100:4", "--mem=102400M", "--time=90", "--partition=gpu", "--account=lab"),
        *("--qos=long", "--reservation=tuesday", "'--constraint=a100&nvlink'", "--export=ALL", "--requeue"),
        *("--signal=B:USR1@300", "--open-mode=append", "--mail-type=FAIL"),
        f"'--output={tmp_path}/100%% of it/label-1a2b3c4d-1.out'",
    }
    lines = text.splitlines()
    assert lines.index("module load cuda") < lines.index("export HF_HUB_OFFLINE=1")
    told = subprocess.run(["bash", "-c", text[: text.index("# Ray on every")] + "env"], capture_output=True, text=True)
    assert "NOTE=it's $HOME\n" in told.stdout, told.stderr
    assert "TWO=lines;\n`touch x`\n" in told.stdout
    assert "OMP_NUM_THREADS=1\n" in told.stdout
    assert "arguments=(execute s3://lab/d/jobs/label-1a2b3c4d --attempt 1)" in lines
    assert {"python=/shared/venv/bin/python", "working_dir=/shared/onediffusion"} <= set(lines)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert not tmp_path.joinpath("100% of it").exists(), "a plan touches nothing"


def test_job_array_has_a_task_for_each_range(tmp_path: Path) -> None:
    site = SlurmBackend(target(folder=str(tmp_path), tasks_at_once=4))
    text = site.plan(work(tasks=10))["sbatch script"]
    given = options(text)
    assert {"--array=0-9%4", f"--output={tmp_path}/label-1a2b3c4d-1.%a.out"} <= set(given)
    assert not [option for option in given if option.startswith("--dependency")], "they would wait for each other"
    line = next(line for line in text.splitlines() if line.startswith("arguments="))
    told = subprocess.run(
        ["bash", "-c", f'{line}; echo "${{arguments[@]}}"'],
        env={"SLURM_ARRAY_TASK_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert told.stdout.split()[-2:] == ["--task", "7"]
    (tmp_path / "label-1a2b3c4d-1.10.out").write_text("last\n")
    (tmp_path / "label-1a2b3c4d-1.9.out").write_text("a line\nand another\n")
    assert list(site.logs("label-1a2b3c4d-1")) == ["[9] a line", "[9] and another", "[10] last"]


def test_accounting_tells_how_the_last_job_ended() -> None:
    lines = ["7|FAILED|2:0|node1", "9_0|COMPLETED|0:0|node1", "9_1|CANCELLED by 0|0:15|node2", "9_[2-3]|PENDING|0:0|"]
    assert ended_jobs(lines) == [("9_0", ""), ("9_1", "it was canceled")]
    assert ended_jobs([]) == []


def test_minimal_target_gives_minimal_script() -> None:
    text = SlurmBackend(target(requeue=False)).plan(work())["sbatch script"]
    names = [option.partition("=")[0] for option in options(text)]
    assert not {"--partition", "--account", "--time", "--gres", "--mem", "--exclusive"} & set(names)
    assert "--no-requeue" in names
    assert f"python={sys.executable}" in text.splitlines()
    assert "--mem=0" in options(SlurmBackend(target(exclusive=True)).plan(work())["sbatch script"])


def test_script_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter3-hunter3")
    plan = SlurmBackend(target()).plan(work())
    assert "hunter" not in str(plan)


def test_local_address_needs_shared_disk(tmp_path: Path) -> None:
    site = SlurmBackend(target(shared_disk=False, working_dir="/opt/onediffusion"))
    assert "--output=/tmp/label-1a2b3c4d-1.out" in site.plan(work(data=("s3://lab/d",)))["sbatch script"]
    with pytest.raises(InputError, match=f"{tmp_path}: the nodes of this target do not see"):
        site.plan(work(data=("s3://lab/d", str(tmp_path))))
    with pytest.raises(InputError, match=f"{tmp_path}: the nodes of this target do not see"):
        site.plan(work(address=str(tmp_path)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cpus_per_node": 0}, "cpus_per_node: Input should be greater than or equal to 1, got 0"),
        ({"hours": 0.05}, "hours 0.05 leaves no time before the signal that comes 300 s"),
        ({"partiton": "gpu"}, "no key 'partiton' (did you mean 'partition'?)"),
        ({"partition": "gpu --account=x"}, "partition: "),
        (
            {"options": ["-p gpu"]},
            "options.0: -p gpu (--partition) is what jobs of this project are steered by; set pa",
        ),
        (
            {"options": ["-Jmine"]},
            "options.0: -Jmine (--job-name) is what jobs of this project are steered by; leave it",
        ),
        ({"options": ["-a 0-3"]}, "options.0: -a 0-3 (--array) is"),
        ({"options": ["-o/dev/null"]}, "options.0: -o/dev/null (--output) is"),
        ({"options": ["-b now"]}, "options.0: write '-b now' with its long name, as --begin=VALUE"),
        ({"options": ["--export ALL,X=1"]}, "options.0: --export is"),
        ({"options": ["--export=NONE"]}, "options.0: --export is"),
        ({"options": [" --job-name=mine"]}, "options.0: --job-name is"),
        ({"options": ["--Job_Name=mine"]}, "options.0: --Job_Name (--job-name) is"),
        ({"options": ["--clusters=other"]}, "options.0: --clusters is"),
        ({"options": ["--comment two words"]}, "options.0: write '--comment two words' as --NAME=VALUE, in one line"),
        ({"options": ["--comment=a\n#SBATCH --job-name=mine"]}, "options.0: write "),
        ({"setup": ["#SBATCH --job-name=mine"]}, "setup.0: a line with #SBATCH is an option of sbatch; give it under"),
        ({"setup": ["true\n #PBS -N mine"]}, "setup.0: a line with #PBS is"),
        ({"environment": {"MY-VAR": "1"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"X;touch y": "1"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"": "1"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"2024": "1"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"UID": "1"}}, "environment: UID is bash's own"),
        ({"options": ["--mail-type=FAIL", "--job-name=mine"]}, "options.1: --job-name is what jobs of this project"),
        ({"options": ["--array=0-3"]}, "options.0: --array is"),
        ({"options": ["--outp=/dev/null"]}, "options.0: --outp (--output) is"),
        ({"options": ["--no-requeue"]}, "options.0: --no-requeue is what jobs of this project are steered by; set req"),
        ({"options": ["--time 5"]}, "options.0: --time is what jobs of this project are steered by; set hours"),
        ({"options": ["--nodes=4"]}, "options.0: --nodes is"),
        ({"container": "lab#image:1"}, "container needs `python`: the interpreter within the image"),
        ({"container_mounts": ["/a:/a"]}, "container_mounts has no effect without `container`"),
        ({"options": ["--container-image=x"]}, "options.0: --container-image is what jobs of this project are steered"),
        ({"scratch": "/scratch/" + "x" * 40}, "scratch: "),
    ],
)
def test_wrong_target_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"site.yaml: {words}")) as raised:
        target(**values)
    assert "\n" not in str(raised.value)


def test_example_target_is_valid() -> None:
    assert isinstance(load_target("slurm"), SlurmTarget)
    text = Path(str(sys.modules["cluster.target"].TARGETS), "slurm.yaml").read_text()
    # What is commented out can be used as it is.
    keys = dict.fromkeys(SlurmTarget.model_fields)
    given = [line[2:] for line in text.splitlines() if line.startswith("# ") and line[2:].partition(":")[0] in keys]
    assert len(given) > 8
    for line in given:
        import yaml

        needed = {"python": "/usr/bin/python3"} if line.startswith("container") else {}
        needed |= {"container": "/shared/onediffusion.sqsh"} if line.startswith("container_mounts") else {}
        target(**needed | yaml.safe_load(line))


def test_container_holds_every_process_of_ours(tmp_path: Path) -> None:
    """The script with commands of Slurm that only note how they were called; pyxis itself is not to be had here."""
    values = {"container": "lab#onediffusion:1", "python": "/usr/bin/python3", "container_mounts": ["/data:/data:ro"]}
    text = SlurmBackend(target(working_dir="/opt/onediffusion", scratch=str(tmp_path)[:32], **values)).plan(work())
    script = text["sbatch script"].replace('cd "$working_dir"', "cd /")
    (tmp_path / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path}/steps\nexit 1\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURMD_NODENAME": "n1", "SLURM_JOB_NAME": "x"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "finds no checkout" in done.stdout
    (step,) = (tmp_path / "steps").read_text().splitlines()
    assert "--nodelist=n1" in step and "--container-image=lab#onediffusion:1" in step
    assert ":/opt/onediffusion,/data:/data:ro " in step and "/usr/bin/python3 -c" in step
    body = script[script.index("cd /") :]
    ours = [line for line in body.splitlines() if '"$python"' in line or '"${ray[@]}"' in line]
    assert len(ours) >= 8
    outside = [
        line for line in ours if '"${inside[@]}"' not in line and "fail" not in line and "--address=" not in line
    ]
    outside = [line for line in outside if "exec" not in line]  # the body of the other nodes' step, which has it
    assert not outside, "what is not in a step of the container"
    assert "container=()" in SlurmBackend(target()).plan(work())["sbatch script"]


def test_missing_slurm_commands_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for act in (lambda site: site.submit(work()), lambda site: site.state("x"), lambda site: site.stop("x")):
        with pytest.raises(InputError, match="squeue: not found on this machine; submit from a login node"):
            act(SlurmBackend(target()))


# As Slurm 22.05 and later write them.
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("invalid partition specified: gpuu\n"
         "sbatch: error: Batch job submission failed: Invalid partition name specified",
         "(partition 'gpu'); `sinfo -s`"),
        ("Batch job submission failed: Invalid account or account/partition combination specified",
         "(account 'lab'); `sacctmgr show associations"),
        ("Batch job submission failed: Invalid qos specification", "(qos of the target); `sacctmgr show qos`"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
         "(hours 2.0); `sinfo"),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time "
         "limits)", "(hours 2.0, account 'lab'); the job exceeds a limit of the account or QOS"),
        ("Batch job submission failed: User's group not permitted to use this partition", "choose one that you may"),
        ("Invalid generic resource (gres) specification", "(gpu_type of the target); "),
        ("Batch job submission failed: Something new", "the site refuses the job: Something new"),
    ],
)  # fmt: skip
def test_refusal_names_key_to_correct(said: str, words: str) -> None:
    values = target(partition="gpu", account="lab", hours=2).model_dump()
    line = refusal(f"sbatch: error: {said}\n", values)
    assert words in line
    assert "sbatch: error" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "there is no room on the partition's nodes now (Resources)"),
        ("None", "Slurm has not looked at it yet"),
        ("Dependency", "a job of the same name has to end first (Dependency)"),
        ("JobHeldUser", "release it with `scontrol release 17` (JobHeldUser)"),
        ("QOSMaxCpuPerUserLimit", "the limit of the QOS is reached"),
        ("QOSMaxWallDurationPerJobLimit", "lower `hours`"),
        ("QOSMaxGRESPerJob", "ask for fewer workers"),
        ("AssocGrpCpuLimit", "the limit of the account is reached"),
        ("AssocGrpGRES", "the limit of the account is reached"),
        ("AssocMaxWallDurationPerJobLimit", "the account does not allow so long"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "its nodes are reserved, drained or down (ReqNodeNotAvail, Un"),
        ("PartitionTimeLimit", "lower `hours` in the target (PartitionTimeLimit)"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_pending_reason_is_readable(reason: str, words: str) -> None:
    assert words in pending_reason(reason, "17")


def test_end_is_explained() -> None:
    assert ended_reason("COMPLETED", "0:0") == ""
    assert "exit code 2;" in ended_reason("FAILED", "2:0")
    assert "raise `memory_gb_per_node`" in ended_reason("OUT_OF_MEMORY", "0:125")
    assert is_unreachable("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert not is_unreachable("slurm_load_jobs error: Invalid user id")


def test_gpus_use_names_of_site() -> None:
    assert gres(target(), Shape(1, 1, 1, 0, 0)) == ""
    assert gres(target(), Shape(1, 1, 1, 2, 0)) == "gpu:2"
    assert gres(target(gpu_type="a100"), Shape(1, 1, 1, 2, 0)) == "gpu:a100:2"


def test_free_port_and_reachable_address() -> None:
    assert reachable_address("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"known|resol"):
        reachable_address("no-such-node.invalid")
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 15, "drawn, not the first that is free"
    with socket.socket() as taken:
        taken.bind(("", 0))
        assert taken.getsockname()[1] not in ports
