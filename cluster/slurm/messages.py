"""What Slurm says, in one line for a person: why a job waits, how it ended, and why it was not taken."""

from __future__ import annotations

import re

# Reasons of pending jobs (squeue %r) → what they mean. A pattern has to match at the start.
_PENDING = (
    ("None$", "Slurm has not looked at it yet"),
    ("Resources", "there is no room on the partition's nodes now"),
    ("Priority", "jobs of higher priority come first"),
    ("BeginTime", "it was put back, and Slurm lets some minutes pass before it starts again"),
    ("Dependency$", "a job of the same name has to end first"),
    ("DependencyNeverSatisfied", "it waits for a job that failed; stop it and submit again"),
    ("JobHeldUser", "it is held; release it with `scontrol release {id}`"),
    ("JobHeldAdmin", "the site's administrators hold it"),
    ("job requeued in held state|launch failed requeued held", "it could not be started and is held; see `logs`"),
    ("PartitionTimeLimit", "the partition does not allow so long; lower `hours` in the target"),
    ("PartitionNodeLimit", "the partition does not allow so many nodes; ask for fewer workers"),
    ("PartitionDown|PartitionInactive", "the partition is closed; choose another in the target, or wait"),
    ("PartitionConfig|BadConstraints", "no node of the partition is as the target asks for"),
    ("ReqNodeNotAvail", "its nodes are reserved, drained or down"),
    ("Nodes required for job are DOWN", "its nodes are reserved, drained or down"),
    ("NodeDown", "a node that it needs is down"),
    ("Reservation", "it waits for its reservation"),
    ("Licenses", "it waits for a license"),
    ("InvalidAccount", "the account is not valid; correct `account` in the target"),
    ("InvalidQOS", "the QOS is not valid; correct `qos` in the target"),
    ("QOSNotAllowed", "the account or partition does not allow this QOS; correct `qos` in the target"),
    (r"QOS.*(TimeLimit|Wall)", "the QOS does not allow so long; lower `hours` in the target"),
    (r"QOS.*(PerJob|MinCpu|MinGRES)", "the QOS does not allow a job of this size; ask for fewer workers"),
    ("QOS", "the limit of the QOS is reached; it starts when other jobs have ended"),
    (r"Assoc.*(TimeLimit|Wall)", "the account does not allow so long; lower `hours` in the target"),
    (r"Assoc.*PerJob", "the account does not allow a job of this size; ask for fewer workers"),
    ("Assoc", "the limit of the account is reached; it starts when other jobs have ended"),
    ("MaxMemPerLimit|JobSize", "it asks for more memory than the partition allows"),
    ("JobLaunchFailure|SystemFailure|Prolog|Cleaning", "a node had trouble starting it; Slurm tries again"),
)

_ENDED = {
    "CANCELLED": "it was canceled",
    "TIMEOUT": "it reached its time limit; raise `hours` in the target, or submit it again to continue",
    "DEADLINE": "it reached its deadline",
    "NODE_FAIL": "one of its nodes failed; submit it again",
    "BOOT_FAIL": "one of its nodes did not boot; submit it again",
    "PREEMPTED": "another job took its place; submit it again",
    "OUT_OF_MEMORY": "it ran out of memory; raise `memory_gb_per_node` in the target",
}

# Errors of sbatch → (key of the target that is wrong, what to do).
_REFUSED = (
    (r"[Ii]nvalid partition", "partition", "`sinfo -s` lists those of this site"),
    (r"group not permitted|not (permitted|allowed) to use (this|the requested) partition", "partition",
     "choose one that you may use"),
    (r"partition.*(not available|state)|not in an up state", "partition", "choose another, or wait"),
    (r"[Ii]nvalid account", "account", "`sacctmgr show associations user=$USER` lists yours"),
    (r"[Ii]nvalid qos", "qos", "`sacctmgr show qos` lists those of this site"),
    (r"[Ii]nvalid wckey", "options", "give a valid --wckey"),
    (r"time limit is invalid|[Ii]nvalid --time|time limit exceeds", "hours", "`sinfo -o '%P %l'` shows the limits"),
    (r"reservation", "reservation", "`scontrol show reservation` lists them"),
    (r"[Ii]nvalid feature", "constraint", "`sinfo -o '%P %f'` lists features"),
    (r"[Ii]nvalid generic resource|[Ii]nvalid gres", "gpu_type", "`sinfo -o '%P %G'` lists what nodes have"),
    (r"[Mm]emory specification|[Mm]emory required", "memory_gb_per_node", "`sinfo -o '%P %m'` lists it in MB"),
    (r"Node count", "cpus_per_node", "the job needs more nodes than the partition has: ask for fewer workers"),
    (r"More processors|[Nn]ode configuration is not available|CPU count", "cpus_per_node, gpus_per_node, gpu_type",
     "`sinfo -o '%P %D %c %m %G'` lists what nodes have"),
    (r"accounting/QOS policy|QOS.*[Ll]imit|Assoc.*[Ll]imit", "hours, account, qos",
     "the job exceeds a limit of the account or QOS: ask for less"),
    (r"[Uu]nrecognized option|[Ii]nvalid option|invalid option", "options", "see `sbatch --help`"),
)  # fmt: skip

_UNREACHABLE = re.compile(
    "Unable to contact slurm controller|Could not establish a configuration source|Connection (refused|timed out)"
    "|Unable to process configuration|controller.*not responding|Zero Bytes were transmitted|Socket timed out"
)

# After these the controller may have carried out the request.
_SILENT = re.compile("Zero Bytes were transmitted|Socket timed out|Connection timed out")


def pending_reason(reason: str, job: str) -> str:
    """Why a job waits, as "there is no room … (Resources)". A reason that is not known stays as it is.

    reason: as squeue gives it; job: its number.
    """
    for pattern, line in _PENDING:
        if re.match(pattern, reason):
            return f"{line.format(id=job)} ({reason})" if reason != "None" else line
    return reason


def ended_reason(state: str, code: str) -> str:
    """How a job ended; "" for one that did what it should. code: as "1:0", its exit code and signal."""
    if state == "COMPLETED":
        return ""
    exit_code = code.partition(":")[0]
    return _ENDED.get(state) or f"it ended with exit code {exit_code or '?'}; `logs` has its last words"


def ended_jobs(lines: list[str]) -> list[tuple[str, str]]:
    """Number of a job, or task, and how it ended, of the last job that accounting tells of.

    lines: of sacct, as JobID|State|ExitCode|…. What accounting takes for running though the queue does not know it was
    lost with the controller, and is left out.
    """
    told = [line.split("|") for line in lines]
    last = max((_number(identity) for identity, *_ in told), default=0)
    return [
        (identity, ended_reason(state.split()[0], code))
        for identity, state, code, *_ in told
        if _number(identity) == last and state.split()[0] not in ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED")
    ]


def _number(identity: str) -> int:
    return int(identity.partition("_")[0])


def is_unreachable(text: str) -> bool:
    """Whether a command could not ask the site's controller."""
    return bool(_UNREACHABLE.search(text))


def is_silence(text: str) -> bool:
    """Whether the controller may have done what it was asked, and only its answer is missing."""
    return bool(_SILENT.search(text))


def refusal(text: str, values: dict[str, object]) -> str:
    """Why sbatch did not take a job, and what to do. values: the target's keys and values."""
    lines = [line.partition("error: ")[2] or line for line in text.splitlines() if line.strip()]
    reason = "; ".join(dict.fromkeys(line.removeprefix("Batch job submission failed: ") for line in lines))
    for pattern, keys, remedy in _REFUSED:
        if re.search(pattern, reason):
            settings = ", ".join(f"{key} {values[key]!r}" for key in keys.split(", ") if values.get(key))
            return f"the site refuses the job: {reason} ({settings or keys + ' of the target'}); {remedy}"
    return f"the site refuses the job: {reason or 'sbatch gave no reason'}"
