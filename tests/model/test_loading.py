"""Weights of the released layout: any type, sharded, in little more memory than they take, or one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import NextDiT
from model.inputs import InputError

SMALL = {"hidden_size": 48, "depth": 1, "num_heads": 4, "multiple_of": 16, "caption_channels": 32}
MEASURE = """
import sys, torch
from model import NextDiT
def used(kind):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kind))
NextDiT(hidden_size=48, depth=1, num_heads=4, multiple_of=16, caption_channels=32)
before = used("VmRSS")
model = NextDiT.from_pretrained(sys.argv[1], torch_dtype=getattr(torch, sys.argv[2], None))
peak = used("VmHWM") - before
weights = sum(value.numel() * value.element_size() for value in model.parameters())
total = sum(float(value.detach().double().sum()) for value in model.parameters())
print(peak / weights, next(model.parameters()).dtype, total)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A sharded bf16 model of a quarter of a gigabyte, and the sum of its weights."""
    folder = tmp_path_factory.mktemp("large")
    model = NextDiT(hidden_size=1152, depth=8, num_heads=12, num_kv_heads=4, caption_channels=512).to(torch.bfloat16)
    model.save_pretrained(folder / "transformer", max_shard_size="100MB")
    return folder, sum(float(value.detach().double().sum()) for value in model.parameters())


@pytest.mark.parametrize(("asked", "dtype"), [("none", "torch.bfloat16"), ("float32", "torch.float32")])
def test_loading_peaks_at_the_size_of_the_weights(large: tuple[Path, float], asked: str, dtype: str) -> None:
    folder, total = large
    command = [sys.executable, "-c", MEASURE, str(folder), asked]
    ratio, loaded_dtype, summed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(ratio) <= 1.15
    assert loaded_dtype == dtype
    assert float(summed) == pytest.approx(total, rel=1e-6)


def test_released_layout_and_its_transformer_folder_load(large: tuple[Path, float]) -> None:
    names = {path.name for path in (large[0] / "transformer").glob("*.safetensors")}
    assert len(names) > 1
    direct = NextDiT.from_pretrained(large[0] / "transformer")
    named = NextDiT.from_pretrained(large[0], subfolder="transformer")
    assert all(torch.equal(value, named.state_dict()[key]) for key, value in direct.state_dict().items())


def test_mismatched_weights_are_refused_by_key(tmp_path: Path) -> None:
    NextDiT(**SMALL).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    broken = {key: value for key, value in whole.items() if not key.startswith("layers.0.attention.w")}
    broken |= {"freqs": torch.zeros(2), "final_layer.linear.bias": torch.zeros(3)}
    save_file(broken, path)
    with pytest.raises(InputError) as error:
        NextDiT.from_pretrained(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "missing: layers.0.attention.wq.weight, layers.0.attention.wk.weight",
        "and 3 more",
        "not of this model: freqs",
        "of another shape: final_layer.linear.bias (3,), not (64,)",
    ):
        assert part in message


def test_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    NextDiT(**SMALL).save_pretrained(tmp_path, max_shard_size="100KB")
    gone = next(tmp_path.glob("*-00002-of-*.safetensors"))
    gone.unlink()
    with pytest.raises(InputError, match=f"names {gone.name}, which is not there"):
        NextDiT.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"neither .*index\.fp16\.json nor .*fp16\.safetensors"):
        NextDiT.from_pretrained(tmp_path, variant="fp16")
    with pytest.raises(InputError, match="no such folder"):
        NextDiT.from_pretrained(tmp_path / "nowhere")


def test_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    NextDiT(**SMALL).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = tmp_path / "model" / "diffusion_pytorch_model.safetensors.index.json"
    described = json.loads(index.read_text())
    described["weight_map"]["x_embedder.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(described))
    with pytest.raises(InputError, match="outside"):
        NextDiT.from_pretrained(tmp_path / "model")
