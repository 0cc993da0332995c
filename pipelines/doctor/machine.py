"""What a node has: versions, GPUs and driver, a kernel of attention, shared memory, disks, the cache of models."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.work import Finding
from model.inputs import one_line

PACKAGES = ("torch", "ray", "pyarrow", "numpy", "transformers", "diffusers", "accelerate")
GB = 1 << 30
FULL_SHARE = 0.95  # Ray stops spilling where a disk is fuller (RAY_local_fs_capacity_threshold)
LEAST_DISK = 10 * GB  # for spills, and what a checkpoint is written beside
LEAST_CACHE = 25 * GB  # the published pipeline, with its text encoder
# CUDA of torch → the oldest driver on Linux that runs it (CUDA toolkit release notes, "minor version compatibility").
DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}


@dataclass(frozen=True)
class Gpus:
    """driver: as nvidia-smi says it, None without one; names: of the GPUs that it lists; cuda: what torch was built
    for, None for its CPU build; visible: how many torch sees in a process that was given `reserved`."""

    driver: str | None
    names: tuple[str, ...]
    cuda: str | None
    visible: int
    reserved: float


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide whether processes understand each other."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def version_finding(found: dict[str, str], sent: dict[str, str], where: str) -> Finding:
    """Versions of a node beside those of the machine that sent the job; a build's suffix (+cu128) may differ."""
    bare = {name: value.partition("+")[0] for name, value in found.items()}
    absent = [name for name, value in bare.items() if value == "absent"]
    other = [
        f"{name} {found[name]} (sent from {sent[name]})"
        for name in bare
        if name in sent and name not in absent and bare[name] != sent[name].partition("+")[0]
    ]
    told = f"python {found['python']}, torch {found['torch']}, ray {found['ray']}"
    if absent:
        return Finding("versions", where, False, f"{', '.join(absent)} not installed", "install constraints.txt there")
    if other:
        return Finding("versions", where, False, ", ".join(other), "install the same constraints.txt in both places")
    return Finding("versions", where, True, told)


def read_gpus(reserved: float) -> Gpus:
    """What nvidia-smi and torch say here."""
    import torch

    lines: list[str] = []
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        lines = [line for line in asked.stdout.splitlines() if "," in line] if asked.returncode == 0 else []
    driver = lines[0].partition(",")[0].strip() if lines else None
    names = tuple(line.partition(",")[2].strip() for line in lines)
    return Gpus(driver, names, torch.version.cuda, torch.cuda.device_count(), reserved)


def gpu_finding(gpus: Gpus, where: str) -> Finding:
    """Whether torch can use the GPUs: its build, the driver, and their number."""
    check = "GPUs and driver"
    asked = f"{gpus.reserved:g} asked for"
    build = f"torch for CUDA {gpus.cuda}" if gpus.cuda else "torch without CUDA"
    if not gpus.names and not gpus.reserved:
        return Finding(check, where, True, f"no GPU, {asked}; {build}")
    if not gpus.names:
        remedy = "install NVIDIA's driver (Kubernetes: its GPU operator or device plugin), or name other nodes"
        return Finding(check, where, False, f"no GPU that nvidia-smi lists, {asked}", remedy)
    told = f"{len(gpus.names)} × {gpus.names[0]}, driver {gpus.driver}, {build}"
    if not gpus.cuda:
        if not gpus.reserved:
            return Finding(check, where, True, f"{told}; {asked}")
        return Finding(check, where, False, told, "install the CUDA build of torch there (constraints.txt's pin)")
    least = DRIVERS.get(int(gpus.cuda.split(".")[0]))
    driver = tuple(int(part) for part in (gpus.driver or "0").split(".") if part.isdecimal())
    if least and driver < least:
        needed = ".".join(map(str, least))
        remedy = f"update the driver to {needed} or later, or install torch for an older CUDA"
        return Finding(check, where, False, told, remedy)
    if gpus.visible < gpus.reserved:
        remedy = "look at CUDA_VISIBLE_DEVICES, and at the devices that the container or cgroup is given"
        return Finding(check, where, False, f"{told}; torch sees {gpus.visible}, {asked}", remedy)
    return Finding(check, where, True, told)


def attention_finding(where: str) -> Finding:
    """Compile FlexAttention as training does on a GPU, and compare it with attention that is not compiled."""
    import torch

    check = "attention"
    if not torch.cuda.is_available():
        return Finding(check, where, True, "no GPU here: not compiled, by PyTorch's own kernels")
    try:
        difference = _compiled_difference()
    except Exception as error:
        return Finding(check, where, False, one_line(error, 160), compiler_remedy())
    remedy = "" if difference < 0.02 else "this torch and GPU disagree: take torch and driver of constraints.txt"
    return Finding(check, where, not remedy, f"FlexAttention compiled; differs by {difference:.1e}", remedy)


def compiler_remedy(which: Callable[[str], str | None] = shutil.which) -> str:
    """What Triton, which compiles attention, may lack: a C compiler, or Python's headers."""
    if not (os.environ.get("CC") or which("gcc") or which("cc") or which("clang")):
        return "install a C compiler there (gcc), which Triton calls"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"install Python's headers there (python{sys.version_info.major}.{sys.version_info.minor}-dev)"
    return "compare driver and torch above; TORCH_LOGS=+dynamo,inductor tells more"


def _compiled_difference() -> float:
    """The largest difference between FlexAttention, compiled with a block mask, and attention without."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (torch.randn(1, 4, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    half = torch.arange(512, device="cuda") // 256
    mask = create_block_mask(lambda b, h, i, j: half[i] == half[j], 1, 1, 512, 512, device="cuda")
    compiled = torch.compile(flex_attention)(q, k, v, block_mask=mask)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=half[:, None] == half[None, :])
    return float((compiled - expected).abs().max())


def memory_finding(object_store: float, shared: int, where: str) -> Finding:
    """Whether Ray's object store fits into /dev/shm. object_store, shared: bytes; otherwise Ray uses a disk."""
    told = f"object store {object_store / GB:.1f} GB, /dev/shm {shared / GB:.1f} GB"
    if object_store > shared:
        remedy = "raise `shared_memory` (Kubernetes), `--shm-size` (docker), or lower the object store"
        return Finding("shared memory", where, False, told, remedy)
    return Finding("shared memory", where, True, told)


def disk_finding(check: str, folder: str, total: int, free: int, least: int, where: str) -> Finding:
    """Whether a disk has room, and is not so full that Ray stops spilling to it. total, free, least: bytes."""
    told = f"{free / GB:.0f} of {total / GB:.0f} GB free in {folder}"
    if free < least:
        return Finding(check, where, False, told, f"free at least {least / GB:.0f} GB there, or name another disk")
    if total - free >= FULL_SHARE * total:
        return Finding(
            check, where, False, told, f"free some: Ray writes to no disk that is over {FULL_SHARE:.0%} full"
        )
    return Finding(check, where, True, told)


def model_cache_finding(where: str) -> Finding:
    """Where models are downloaded to, and whether this process may write there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(there)
    offline = " (nothing is fetched: HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") in ("1", "true") else ""
    models = len(list(folder.glob("models--*")))
    told = f"{models} models in {folder}{offline}, {usage.free / GB:.0f} GB free"
    if not offline and not os.access(there, os.W_OK):
        return Finding("cache of models", where, False, told, "set HF_HOME to a folder that jobs may write to")
    if not offline and usage.free < LEAST_CACHE and not models:
        remedy = f"set HF_HOME to a disk with {LEAST_CACHE / GB:.0f} GB, one that the nodes share at best"
        return Finding("cache of models", where, False, told, remedy)
    return Finding("cache of models", where, True, told)


def examine_machine(
    sent: dict[str, str], reserved: float, object_store: float, session_folder: str | None
) -> list[Finding]:
    """All findings of this node. reserved: GPUs of this process; object_store: bytes of Ray's on this node."""
    where = socket.gethostname()
    findings = [version_finding(versions(), sent, where), gpu_finding(read_gpus(reserved), where)]
    findings.append(attention_finding(where))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0  # noqa: S108 - Linux's own
    findings.append(memory_finding(object_store, shared, where))
    spills = session_folder or tempfile.gettempdir()
    usage = shutil.disk_usage(spills)
    findings.append(disk_finding("disk for spills", spills, usage.total, usage.free, LEAST_DISK, where))
    findings.append(model_cache_finding(where))
    return findings
