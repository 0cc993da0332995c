"""A Slurm of two nodes on this machine, for the time of a test: Debian's daemons with a configuration of their own.

It has a munged of its own on a socket of its own, so that it does not depend on one that runs already.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from free_ports import free_ports
from slurm_accounting import SETTINGS, database_command, listens, need_accounting, write_configuration

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MinJobAge=3600
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
MailProg=/bin/true
GresTypes=gpu
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{nodes}] CPUs=4 RealMemory=16000 Gres=gpu:small:2
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=closed Nodes=ALL MaxTime=60 State=DOWN
"""


@dataclass
class SlurmSite:
    """A running site. folder: of its files, removed at its end; environment: what reaches it."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of the site prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def processes(self, work: str | None = None) -> list[psutil.Process]:
        """All processes of the site and of its jobs (with `work`: of the job with that work), by their variables.

        Children too: processes that change their title, as Ray's workers do, write it over their variables.
        """
        required = {f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()}
        required |= {f"ONEDIFFUSION_WORK={work}".encode()} if work else set()
        processes: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if required <= set(variables) and process.pid != os.getpid():
                    processes |= {process, *process.children(recursive=True)}
        return [process for process in processes if _is_alive(process)]


def need_slurm() -> None:
    """Skip where Slurm is not installed; in CI it must be."""
    missing = [program for program in PROGRAMS if not _path_of(program)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge")
    if missing:
        pytest.skip(f"{', '.join(missing)} not found; slurmctld, slurmd, slurm-client and munge are Debian packages")


@contextlib.contextmanager
def slurm_site(accounting: bool = False) -> Iterator[SlurmSite]:
    """Start it, wait until both nodes are idle, and end by their ids all processes that it started.

    accounting: with slurmdbd, so that it knows jobs that its controller has forgotten.
    """
    if accounting:
        need_accounting()
    # Not pytest's folder, which only this user may enter: munged runs as another.
    folder = Path(tempfile.mkdtemp(prefix="slurm-site-"))
    folder.chmod(0o755)
    site = SlurmSite(folder, {"SLURM_CONF": str(folder / "slurm.conf")})
    try:
        _start_munged(site)
        _start_slurm(site, _start_accounting(site) if accounting else "AccountingStorageType=accounting_storage/none")
        yield site
    finally:
        _end(site)
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _path_of(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _start(site: SlurmSite, name: str, *command: str, user: str | None = None) -> None:
    program = _path_of(command[0])
    assert program, command[0]
    with (site.folder / f"{name}.out").open("wb") as out:
        site.daemons[name] = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **site.environment},
            cwd=site.folder,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            start_new_session=True,
        )


def _start_munged(site: SlurmSite) -> None:
    user = "munge" if os.getuid() == 0 else None
    folder = site.folder / "munge"
    folder.mkdir(mode=0o700)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    sockets = site.folder / "munge.socket"
    if user:
        owner = pwd.getpwnam(user)
        for path in (folder, key):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        # The socket and its lock are made by munged beside what root makes.
        site.folder.chmod(0o1777)
    files = [f"--{name}-file={folder}/{name}" for name in ("pid", "log", "seed")]
    _start(site, "munged", "munged", "--foreground", f"--socket={sockets}", f"--key-file={key}", *files, user=user)
    _until(sockets.exists, 20, site, "munged made no socket")


def _start_accounting(site: SlurmSite) -> str:
    """Start a database and slurmdbd; the lines of slurm.conf that name it."""
    port, database = free_ports(2)
    _start(site, "mariadbd", *database_command(site.folder, database))
    _until(lambda: listens(database), 120, site, "the database does not start")
    write_configuration(site.folder, port, database)
    _start(site, "slurmdbd", "slurmdbd", "-D")
    _until(lambda: listens(port), 120, site, "slurmdbd does not start")
    return SETTINGS.format(port=port, folder=site.folder)


def forget_jobs(site: SlurmSite) -> None:
    """Start the controller anew without what it has saved: it knows no job, as some minutes after their ends."""
    _end_process(site.daemons.pop("slurmctld"))
    _start(site, "slurmctld", "slurmctld", "-D", "-c")
    _until(lambda: _idle(site), 60, site, "the nodes do not come up again")


def _start_slurm(site: SlurmSite, accounting: str) -> None:
    host = socket.gethostname().split(".")[0]
    for folder in ("state", "spool-node1", "spool-node2"):
        (site.folder / folder).mkdir()
    for attempt in range(3):
        controller, first, second = free_ports(3)
        text = CONFIGURATION.format(
            host=host,
            controller=controller,
            nodes=f"{first},{second}",
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=site.folder,
            accounting=accounting,
        )
        (site.folder / "slurm.conf").write_text(text)
        # Nothing opens these devices: jobs are only told the numbers of "their" GPUs.
        gpus = [f"NodeName=node[1-2] Name=gpu Type=small File={path}\n" for path in ("/dev/zero", "/dev/full")]
        (site.folder / "gres.conf").write_text("".join(gpus))
        if "slurmdbd" in site.daemons and not attempt:
            site.run("sacctmgr", "--immediate", "add", "cluster", "test")
        _start(site, "slurmctld", "slurmctld", "-D")
        for node in ("node1", "node2"):
            _start(site, node, "slurmd", "-D", "-N", node)
        try:
            _until(lambda: _idle(site), 60, site, "the nodes do not come up")
            return
        except AssertionError:
            if attempt == 2:
                raise
            for name in ("node1", "node2", "slurmctld"):  # perhaps another took one of the ports
                _end_process(site.daemons.pop(name))


def _idle(site: SlurmSite) -> bool:
    dead = [name for name, daemon in site.daemons.items() if daemon.poll() is not None]
    assert not dead, f"{dead} ended: {_tail(site)}"
    return site.run("sinfo", "-h", "-p", "main", "-N", "-o", "%T", check=False).split() == ["idle", "idle"]


def _until(true: Callable[[], bool], seconds: float, site: SlurmSite, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: {_tail(site)}"
        time.sleep(0.2)


def _tail(site: SlurmSite) -> str:
    logs = [*sorted(site.folder.glob("*.log")), *sorted(site.folder.glob("*.out"))]
    return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in logs)


def _end(site: SlurmSite) -> None:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        jobs = site.run("squeue", "-h", "-o", "%i", check=False).split()
        if jobs:
            site.run("scancel", *jobs, check=False)
            deadline = time.monotonic() + 20
            while site.run("squeue", "-h", "-o", "%i", check=False) and time.monotonic() < deadline:
                time.sleep(0.5)
    for name in ("node1", "node2", "slurmctld", "slurmdbd", "mariadbd", "munged"):
        if name in site.daemons:
            _end_process(site.daemons[name])
    for _ in range(3):  # what is killed may have started something in between
        left = site.processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def _end_process(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
