"""The target `slurm`: batch jobs of a site, through its own commands."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm.messages import ended_jobs, ended_reason, is_silence, is_unreachable, pending_reason, refusal
from cluster.slurm.partitions import association_findings, partition_findings
from cluster.slurm.script import gres, node_shape, output_file, script, script_folder
from cluster.target import SlurmTarget
from cluster.user_data import one_at_a_time, write_whole
from cluster.work import AlreadySubmitted, Finding, Phase, TargetState, Work
from model.inputs import InputError, one_line

COMMAND_SECONDS = 120.0
ACCOUNTED_DAYS = 60  # that accounting is asked about
KILLED_SECONDS = 120.0  # for Slurm to end the processes of a canceled job
PHASES: dict[str, Phase] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "pending"),
    **dict.fromkeys(("CONFIGURING", "POWER_UP_NODE"), "pending"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"), "running"),
}  # fmt: skip
# A shell may set these for all its jobs (SBATCH_PARTITION …). They count where the target does not name its own.
DEFAULTS = ("partition", "account", "qos", "reservation", "constraint")
# Variables that say where the site is. Other variables of Slurm are about a job that this process may run in.
SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_CONF_SERVER")


@dataclass(frozen=True)
class _SlurmJob:
    """A job as squeue lists it, or a task of a job array.

    id: its number, of a task ARRAY_TASK; array: the number that sbatch told; task: None without an array; cpus: on all
    its nodes; gres: on each; user: the number of the user.
    """

    id: str
    array: int
    task: int | None
    state: str
    reason: str
    nodes: int
    cpus: int
    gres: str
    user: str

    @property
    def is_alive(self) -> bool:
        return self.state in PHASES

    @property
    def phase(self) -> Phase:
        return PHASES.get(self.state, "ended")


class SilenceError(InputError):
    """A command got no answer: it may have been carried out."""


class SlurmBackend:
    """Batch jobs, found by their name: also those of other users, where the site shows them.

    Slurm takes any number of jobs of one name. This class makes sure that there is only one: on one machine by a lock,
    and between machines by withdrawing the later of two jobs, which could not have begun (`singleton`).
    """

    sees_all = False  # some sites show only this user's

    def __init__(self, target: SlurmTarget) -> None:
        self.target = target

    def plan(self, work: Work) -> dict[str, str]:
        """The batch script; see `Backend.plan`."""
        self._check_addresses(work)
        return {"sbatch script": script(self.target, work)}

    def examine(self, work: Work) -> list[Finding]:
        """What the site's partitions, and limits of its accounting, allow; see `Backend.examine`."""
        partitions = self._do("scontrol", "--oneliner", "show", "partition")
        nodes = self._do("scontrol", "--oneliner", "show", "node")
        settings = self._do("scontrol", "show", "config")
        shape = node_shape(self.target, work.resources)
        return partition_findings(self.target, shape, partitions, nodes) + self._limits(settings)

    def _limits(self, settings: str) -> list[Finding]:
        """What accounting says of this user; a site without it has no such limits."""
        if "accounting_storage/slurmdbd" not in settings:
            return [Finding("limits of the account", "the site", True, "no accounting, so none")]
        user = getpass.getuser()
        command = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}")
        try:
            told = self._call(*command, "format=Account,QOS,MaxJobs,MaxSubmit,MaxWall,GrpTRES")
        except InputError as error:
            return [Finding("limits of the account", "the site", False, str(error), "install Slurm's sacctmgr here")]
        return association_findings(self.target, user, told.stdout)

    def remarks(self, work: Work) -> list[str]:
        """See `Backend.remarks`."""
        return []

    def submit(self, work: Work) -> None:
        """Send it; see `Backend.submit`."""
        text = self.plan(work)["sbatch script"]
        duplicate = AlreadySubmitted(f"{work.name}: is at this site already; see it with `squeue --name={work.name}`")
        with one_at_a_time("slurm"):
            if any(job.is_alive for job in self._jobs(work.name)):
                raise duplicate
            path = self._write(work.name, text)
            try:
                answer = self._call("sbatch", "--parsable", str(path))
            except SilenceError as silence:
                self._look_whether_taken(work.name, silence)
                return
            if answer.returncode:
                raise InputError(refusal(answer.stderr, self.target.model_dump()) + self._partitions(answer.stderr))
            number = int(answer.stdout.strip().partition(";")[0].split()[-1])
            try:
                first = min((job.array for job in self._jobs(work.name) if job.is_alive), default=number)
                if first != number:
                    self._do("scancel", str(number))
            except InputError as error:  # it is there; the next look shows whether it is alone
                raise ConnectionError(str(error)) from None
            if first != number:
                raise duplicate

    def state(self, name: str) -> TargetState:
        """See `Backend.state`. A site forgets a job some minutes after its end; then its accounting is asked."""
        jobs = self._job(name)
        if not jobs:
            ended = ended_jobs(self._accounting(name))
            reasons = [reason for _, reason in ended if reason]
            return TargetState("ended", next(iter(reasons), "")) if ended else TargetState("absent")
        running = [job for job in jobs if job.phase == "running"]
        if running:
            states = {job.state for job in running}
            return TargetState("running", "" if "RUNNING" in states else f"Slurm says {', '.join(sorted(states))}")
        pending = [job for job in jobs if job.phase == "pending"]
        if any(job.state in ("CONFIGURING", "POWER_UP_NODE") for job in pending):
            return TargetState("pending", "its nodes are being prepared")
        if pending:
            return TargetState("pending", pending_reason(pending[0].reason, pending[0].id))
        told = (ended_reason(job.state, self._exit_code(job)) for job in jobs)
        return TargetState("ended", next(filter(None, told), ""))

    def stop(self, name: str) -> None:
        """See `Backend.stop`. Only the batch script gets the signal, since Ray is needed for the checkpoint."""
        alive = [job for job in self._jobs(name) if job.is_alive]
        for job in alive:
            if job.user != str(os.getuid()):
                raise InputError(
                    f"{name}: another user's job ({job.id}), and it cannot be ended by force from here; it has been "
                    "asked to end, and `onediffusion jobs` tells when it has"
                )
        waiting = [job.id for job in alive if job.phase == "pending"]
        if waiting:  # first, or they would begin where others have ended
            self._do("scancel", *waiting)
        running = [job.id for job in alive if job.phase == "running"]
        for identity in running:
            # Otherwise it would requeue itself, as after any other interruption.
            self._call("scontrol", "update", f"JobId={identity}", "Requeue=0")
            self._call("scancel", "--batch", "--signal=TERM", identity)
        for identity in running:
            self._until_over(identity, self.target.checkpoint_seconds)
        left = [job.id for job in self._jobs(name) if job.is_alive]
        if left:
            self._do("scancel", *left)
        for identity in left:
            self._until_over(identity, KILLED_SECONDS)

    def scale(self, name: str, work: Work) -> bool:
        """True where the job has the nodes, and on each the CPUs and GPUs, that the work asks for."""
        jobs, shape = self._job(name), node_shape(self.target, work.resources)
        if not jobs or len(jobs) != work.tasks:
            return False
        return all(
            job.is_alive
            and shape.min_nodes <= job.nodes <= shape.max_nodes
            and job.cpus >= shape.cpus * job.nodes
            and (not shape.gpus or job.gres.endswith(gres(self.target, shape)))
            for job in jobs
        )

    def logs(self, name: str) -> Iterator[str]:
        """The file that sbatch was told to write; see `Backend.logs`."""
        path = output_file(self.target, name)
        paths = [path] if path.exists() else sorted(path.parent.glob(f"{name}.*.out"), key=_task_of)
        for path in paths:
            text = path.read_text(errors="replace")
            yield from (line if len(paths) == 1 else f"[{_task_of(path)}] {line}" for line in text.splitlines())
        if not paths and not self.target.shared_disk:
            nodes = dict.fromkeys(line.split("|")[3] for line in self._accounting(name))
            where = f" ({', '.join(nodes)})" if nodes else ""
            place = f"{path} on the job's first node{where}"
            yield f"what Slurm kept of {name} is in {place}; this target has no shared disk"

    def _look_whether_taken(self, name: str, silence: SilenceError) -> None:
        """Look for the job after sbatch got no answer. Raises ConnectionError unless it is there."""
        with suppress(InputError):
            if any(job.is_alive for job in self._jobs(name)):
                return
        raise ConnectionError(str(silence)) from None

    def _check_addresses(self, work: Work) -> None:
        local = [address for address in (work.address, *work.data) if not address.startswith("s3://")]
        if local and not self.target.shared_disk:
            raise InputError(
                f"{local[0]}: the nodes of this target do not see this machine's files (shared_disk: false); "
                "put it on S3 and give its s3:// address"
            )

    def _write(self, name: str, text: str) -> Path:
        path = script_folder(self.target) / f"{name}.sh"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot keep scripts there ({error.strerror}); correct `folder`") from None
        return path

    def _jobs(self, name: str) -> list[_SlurmJob]:
        """Jobs of this name that the site still knows, the oldest first; of a job array, its tasks."""
        command = ("squeue", "--noheader", "--array", "--states=all", f"--name={name}")
        listed = self._do(*command, "--format=%i|%F|%K|%T|%r|%D|%C|%b|%U")
        jobs = []
        for line in listed.splitlines():
            identity, array, task, state, reason, nodes, cpus, gres_of_node, user = line.strip().split("|")
            number = int(task) if task.isdecimal() else None
            counts = int(nodes), int(cpus)
            jobs.append(_SlurmJob(identity, int(array), number, state, reason, *counts, gres_of_node, user))
        return sorted(jobs, key=lambda job: (job.array, job.task or 0))

    def _job(self, name: str) -> list[_SlurmJob]:
        """The tasks of the job that is alive, of the first if there are two; otherwise of the last."""
        jobs = self._jobs(name)
        chosen = next((job for job in jobs if job.is_alive), jobs[-1] if jobs else None)
        return [job for job in jobs if chosen and job.array == chosen.array]

    def _accounting(self, name: str) -> list[str]:
        """What the site's accounting kept of jobs of this name (JobID|State|ExitCode|NodeList); none without it."""
        fields = "--format=JobID,State,ExitCode,NodeList"
        command = ("sacct", "--noheader", "--parsable2", "--allocations", "--allusers", f"--name={name}", fields)
        with suppress(InputError):
            told = self._call(*command, f"--starttime=now-{ACCOUNTED_DAYS}days")
            return told.stdout.splitlines() if told.returncode == 0 else []
        return []

    def _exit_code(self, job: _SlurmJob) -> str:
        words = self._call("scontrol", "--oneliner", "show", "job", job.id).stdout.split()
        return next((word.partition("=")[2] for word in words if word.startswith("ExitCode=")), "")

    def _until_over(self, identity: str, seconds: float) -> None:
        """Wait until a job is neither running nor being ended; it may be back in the queue."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            listed = self._call("squeue", "--noheader", "--array", "--states=all", f"--jobs={identity}", "--format=%T")
            if listed.returncode or PHASES.get(listed.stdout.strip()) != "running":
                return
            time.sleep(0.5)

    def _partitions(self, error: str) -> str:
        """The partitions of the site, for an error that is about one, else ""."""
        if "nvalid partition" not in error:
            return ""
        listed = self._call("sinfo", "--noheader", "--format=%R").stdout.split()
        return f": {', '.join(dict.fromkeys(listed))}" if listed else ""

    def _do(self, *command: str) -> str:
        """The output of a command. Raises InputError when it fails, which is the site's affair."""
        done = self._call(*command)
        if done.returncode:
            raise InputError(f"{command[0]}: {one_line(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm. Raises InputError where there is none, or no controller answers it.

        A SilenceError among these may have reached the controller.
        """
        try:
            done = subprocess.run(  # noqa: S603 - the site's own commands
                command, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=self._environment(), check=False
            )
        except FileNotFoundError:
            raise InputError(
                f"{command[0]}: not found on this machine; submit from a login node of the site, where Slurm's "
                "commands are, or choose another target"
            ) from None
        except subprocess.TimeoutExpired:
            raise SilenceError(_unreachable(f"no answer within {COMMAND_SECONDS:.0f} s")) from None
        if done.returncode and is_unreachable(done.stderr):
            kind = SilenceError if is_silence(done.stderr) else InputError
            raise kind(_unreachable(one_line(done.stderr)))
        return done

    def _environment(self) -> dict[str, str]:
        """This process's environment, without variables that override the target or belong to a job it runs in."""
        allowed = {f"SBATCH_{name.upper()}" for name in DEFAULTS if getattr(self.target, name) is None}
        return {
            name: value
            for name, value in os.environ.items()
            if name in SITE or name in allowed or not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_"))
        }


def _task_of(path: Path) -> int:
    """The number of a task whose output file it is; -1 where it is none."""
    number = path.stem.rpartition(".")[2]
    return int(number) if number.isdecimal() else -1


def _unreachable(cause: str) -> str:
    return f"the site's controller does not answer ({cause}); try `scontrol ping`, then again later"
