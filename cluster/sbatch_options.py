"""Options of sbatch that a target may give, and those that the project gives itself.

sbatch lets the later of two win, takes the beginnings of long names, and reads directives of other systems too.
"""

from __future__ import annotations

import re

# Options by which jobs are found, stopped and told to write a checkpoint, or that another key of the target stands for.
_OWN = {
    "array": "workers.tasks of the job, and tasks_at_once",
    **dict.fromkeys(("job-name", "dependency", "output", "error", "input", "open-mode", "signal"), ""),
    **dict.fromkeys(("export", "export-file", "get-user-env", "chdir", "wrap", "clusters", "uid", "gid"), ""),
    **dict.fromkeys(("wait", "parsable", "test-only", "quiet", "help", "usage", "version", "propagate"), ""),
    **dict.fromkeys(("nodes", "ntasks", "cpus-per-task", "cpus-per-gpu"), "workers of the job, and cpus_per_node"),
    **dict.fromkeys(
        (f"ntasks-per-{part}" for part in ("node", "core", "socket", "gpu")), "workers of the job, and cpus_per_node"
    ),
    **dict.fromkeys(("gres", "gpus", "tres-per-task"), "gpus_per_node and gpu_type"),
    **dict.fromkeys((f"gpus-per-{part}" for part in ("node", "task", "socket")), "gpus_per_node and gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_gb_per_node"),
    **{name: name for name in ("partition", "account", "qos", "reservation", "constraint", "exclusive")},
    **dict.fromkeys(("container-image", "container-mounts", "container-name"), "container"),
    "time": "hours",
    "requeue": "requeue",
    "no-requeue": "requeue",
}
_SHORT = {
    "A": "account",
    "a": "array",
    "B": "extra-node-info",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "h": "help",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "O": "overcommit",
    "o": "output",
    "p": "partition",
    "Q": "quiet",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "u": "usage",
    "V": "version",
    "v": "verbose",
    "W": "wait",
    "w": "nodelist",
    "x": "exclude",
}
_DIRECTIVE = re.compile(r"^\s*#\s*(SBATCH|SLURM|PBS|BSUB)\b", re.MULTILINE)
# bash refuses to set these.
_READ_ONLY = ("BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID")


def checked_option(option: str) -> str:
    """An option of sbatch as "--NAME" or "--NAME=VALUE". Raises ValueError for another form, and for one of ours."""
    if short := re.match(r"-([A-Za-z])", option):
        name = _SHORT.get(short[1], "")
        if name:
            _refuse_own(option, name)
        raise ValueError(f"write {option!r} with its long name, as --{name or 'NAME'}=VALUE")
    if not (written := re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^\n\0]*)?", option)):
        if named := re.match(r"\s*--([A-Za-z][A-Za-z0-9_-]*)", option):
            _refuse_own(f"--{named[1]}", named[1].lower().replace("_", "-"))
        raise ValueError(f"write {option!r} as --NAME=VALUE, in one line")
    _refuse_own(f"--{written[1]}", written[1])
    return option


def checked_setup(lines: str) -> str:
    """Shell lines that hold no directives of sbatch, which would be read as further options. Raises ValueError."""
    if found := _DIRECTIVE.search(lines):
        raise ValueError(f"a line with #{found[1]} is an option of sbatch; give it under `options`, as --NAME=VALUE")
    return lines


def checked_names(variables: dict[str, str]) -> dict[str, str]:
    """Variables that bash can set. Raises ValueError."""
    for name in variables:
        if name in _READ_ONLY:
            raise ValueError(f"{name} is bash's own and cannot be set; leave it out")
    return variables


def _refuse_own(written: str, name: str) -> None:
    """Raise ValueError where a name, or the beginning of one, is an option that the project gives itself."""
    for own, key in _OWN.items():
        if own.startswith(name):
            remedy = f"; set {key}" if key else "; leave it out"
            same = "" if written == f"--{own}" else f" (--{own})"
            raise ValueError(f"{written}{same} is what jobs of this project are steered by{remedy}")
