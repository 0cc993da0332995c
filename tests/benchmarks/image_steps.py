"""Carries out the Dockerfile step by step in folders, for a machine that has no Docker: how long it takes, how large.

    make check-image
    make check-image ARGUMENTS="--device cpu --set TORCH_INDEX=file:///opt/wheels --bind /opt/wheels"

As root, on Debian with debootstrap. The base image is Debian of the same name with its own Python 3.11 in its place, at
/usr/local/bin/python; `pip` installs to /usr/local in both. Every RUN, COPY, WORKDIR, ENV and USER is carried out in a
chroot as Docker would. Registries are asked as pip is configured here (its environment variables are passed on).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "runs" / "bench" / "image.json"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
DEVICES = ("null", "zero", "full", "random", "urandom")
PYTHON = "python3 python3-pip python3-dev ca-certificates"  # of Debian, in the place of the base image's


@dataclass
class Stage:
    """What a stage has become: its folder, and what later instructions see."""

    folder: Path
    directory: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of a Dockerfile's instructions, comments dropped and lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (words[0], words[1]) for line in joined.splitlines() if (words := line.split(maxsplit=1)) and len(words) == 2
    ]


def stages(found: list[tuple[str, str]], arguments: dict[str, str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(name, what it is from, its instructions) of the stages that the last one needs, in order."""
    given, every = dict(arguments), []
    for name, rest in found:
        if name == "FROM":
            words = _expand(rest, given).split()
            every.append((words[2] if len(words) == 3 else str(len(every)), words[0], []))
        elif not every:
            key, _, value = rest.partition("=")
            given.setdefault(key, value)
        else:
            every[-1][2].append((name, rest))
    needed = {every[-1][0]}
    for name, base, steps in reversed(every):
        if name in needed:
            needed |= {base, *(match for _, rest in steps for match in re.findall(r"--from=(\S+)", rest))}
    return [stage for stage in every if stage[0] in needed]


class Build:
    """Carries out stages in folders below one."""

    def __init__(self, folder: Path, arguments: dict[str, str], binds: list[str]) -> None:
        self.folder, self.arguments, self.binds = folder, arguments, binds
        self.done: dict[str, Stage] = {}
        self.steps: list[dict[str, object]] = []

    def stage(self, name: str, base: str, steps: list[tuple[str, str]]) -> None:
        """Carry out a stage. Raises CalledProcessError for a step that fails."""
        if base in self.done:
            before = self.done[base]
            stage = Stage(self.folder / name, before.directory, dict(before.variables), before.user)
            subprocess.run(["cp", "-al", f"{before.folder}/.", str(stage.folder)], check=True)
        else:
            stage = Stage(self.folder / name)
            self._debian(base, stage.folder)
        given: dict[str, str] = {}
        for kind, rest in steps:
            began = time.monotonic()
            if kind == "ARG":
                key, _, value = rest.partition("=")
                given[key] = self.arguments.get(key, value)
                continue
            rest = rest if kind == "RUN" else _expand(rest, stage.variables | given)
            if kind == "RUN":
                self._run(stage, ["sh", "-c", rest], stage.variables | given)
            elif kind == "WORKDIR":
                stage.directory = str(Path(stage.directory, rest))
                (stage.folder / stage.directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif kind == "ENV":
                stage.variables |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif kind == "USER":
                stage.user = rest
            elif kind == "COPY":
                self._copy(stage, shlex.split(rest))
            seconds = time.monotonic() - began
            self.steps.append({"stage": name, "step": f"{kind} {rest}"[:100], "seconds": round(seconds, 1)})
            print(f"{name}: {kind} {rest[:90]} … {seconds:.1f} s", flush=True)
        self.done[name] = stage

    def _debian(self, image: str, folder: Path) -> None:
        match = re.fullmatch(r"python:3\.11-slim-(\w+)", image)
        if not match:
            raise SystemExit(f"{image}: only Python 3.11 on Debian can be put in the place of a base image here")
        # It mounts /proc and /sys in the folder: where it is interrupted, nobody may empty those with the folder.
        private = ["unshare", "--mount", "--propagation", "private"]
        command = [*private, "debootstrap", "--variant=minbase", match[1], str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
        own = folder / "usr/local/share/ca-certificates"
        shutil.copytree("/usr/local/share/ca-certificates", own, dirs_exist_ok=True)  # of this machine's registries
        stage, binds, self.binds = Stage(folder), self.binds, []
        self._run(
            stage, ["sh", "-c", f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {PYTHON}"], {}
        )
        self.binds = binds
        for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")

    def _run(self, stage: Stage, command: list[str], variables: dict[str, str]) -> None:
        """Run a command in a chroot. Its mounts are in a namespace of its own: nothing is left of them outside.

        What it sees of this machine it cannot write to: packages that it installs write below /etc.
        """
        mounts = ""
        for place in ("/proc", *self.binds):
            inside = stage.folder / place.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            here = shlex.quote(str(inside))
            mounts += f"mount --bind {shlex.quote(place)} {here} && mount -o remount,bind,ro {here} && "
        devices = stage.folder / "dev"
        devices.mkdir(exist_ok=True)
        mounts += f"mount -t tmpfs -o mode=755 tmpfs {devices} && mkdir -m 1777 {devices}/shm && "
        for name in DEVICES:
            mounts += f"touch {devices}/{name} && mount --bind /dev/{name} {devices}/{name} && "
        passed = {
            name: value for name, value in os.environ.items() if re.match(r"(PIP_|https?_proxy|no_proxy)", name, re.I)
        }
        home = "/root" if stage.user.startswith("0") else "/home/onediffusion"
        environment = passed | {"PATH": PATH, "HOME": home, "DEBIAN_FRONTEND": "noninteractive"} | variables
        inner = f"cd {shlex.quote(stage.directory)} && exec {shlex.join(command)}"
        chroot = shlex.join(["chroot", f"--userspec={stage.user}", str(stage.folder), "sh", "-c", inner])
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{mounts}exec {chroot}"]
        subprocess.run(private, check=True, env=environment)

    def _copy(self, stage: Stage, words: list[str]) -> None:
        source_root = ROOT
        if words[0].startswith("--from="):
            source_root = self.done[words.pop(0).removeprefix("--from=")].folder
        *sources, destination = words
        target = stage.folder / str(Path(stage.directory, destination)).lstrip("/")
        for source in sources:
            path = source_root / source.lstrip("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-al" if source_root != ROOT else "-a", f"{path}/.", str(target)], check=True)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)


def _expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], ""), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a build argument")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="FOLDER", help="to be seen in the chroot, not to be changed"
    )
    parser.add_argument("--until", default="", metavar="STAGE", help="the last stage to carry out")
    parser.add_argument("--check", default="", help="a command to run at the end, as the image's user")
    options = parser.parse_args()
    arguments = {"DEVICE": options.device} | dict(pair.split("=", 1) for pair in options.set)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="image-", dir=os.environ.get("TMPDIR")) as folder:
        build = Build(Path(folder), arguments, options.bind)
        for stage in stages(instructions((ROOT / "Dockerfile").read_text()), arguments):
            build.stage(*stage)
            if stage[0] == options.until:
                break
        seconds = time.monotonic() - began
        final = list(build.done.values())[-1]
        size = int(subprocess.run(["du", "-sb", str(final.folder)], capture_output=True, check=True).stdout.split()[0])
        if options.check:
            build._run(final, ["sh", "-c", options.check], final.variables)
    figures = {
        "device": options.device,
        "seconds": round(seconds),
        "gigabytes": round(size / 1e9, 2),
        "steps": build.steps,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{options.device}: {seconds:.0f} s, {size / 1e9:.2f} GB unpacked → {OUT}")


if __name__ == "__main__":
    main()
