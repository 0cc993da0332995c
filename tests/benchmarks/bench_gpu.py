"""`make bench-gpu`: what a CUDA GPU does of attention, training steps, checkpoints, codecs and labels, and how fast.

Needs torch and the model's packages, and neither Ray nor S3. A section that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECTIONS = {  # name: (module, function)
    "attention": ("gpu_training", "attention"),
    "steps": ("gpu_training", "steps"),
    "graphs": ("gpu_training", "graphs"),
    "fsdp": ("gpu_training", "fsdp"),
    "checkpoints": ("gpu_training", "checkpoints"),
    "lora": ("gpu_training", "lora"),
    "codec": ("gpu_models", "codec"),
    "text": ("gpu_models", "text"),
    "labeler": ("gpu_models", "labeler"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}; by commas")
    parser.add_argument("--small", action="store_true", help="small sizes, on the CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gpu.json"))
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")

    try:
        import torch
    except ImportError:
        sys.exit("bench-gpu needs torch, which is not installed")
    if not torch.cuda.is_available() and not options.small:
        sys.exit("bench-gpu needs a CUDA GPU, and torch finds none; --small tries the script on the CPU")
    results: dict[str, Any] = {"machine": machine(), "sections": {}}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()), flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in chosen:
        began = time.perf_counter()
        results["sections"][name] = result = run(name, device, options.small)
        result["section_seconds"] = time.perf_counter() - began
        show(name, result)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1))
    failed = [name for name, result in results["sections"].items() if "failed" in result]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, device: str, small: bool) -> dict[str, Any]:
    """Figures of a section, or why there are none; memory of the section before is free."""
    import importlib

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    try:
        module, function = SECTIONS[name]
        work: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
        from gpu_common import Setting

        return work(Setting(device, small))
    except ModuleNotFoundError as error:
        return {"skipped": f"{error.name} is not installed"}
    except Exception as error:
        traceback.print_exc(limit=-6)
        return {**getattr(error, "figures", {}), "failed": f"{type(error).__name__}: {str(error).strip()[:800]}"}


def machine() -> dict[str, str]:
    import platform

    import torch

    found = {"torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        found |= {"device": torch.cuda.get_device_name(), "memory": f"{memory:.0f} GiB"}
    for package in ("diffusers", "transformers", "peft", "triton"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def show(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}")
    for key, value in figures.items():
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        print(f"  {key:38} {text}", flush=True)


if __name__ == "__main__":
    main()
