"""Folders of models and adapters, damaged or described wrongly anywhere: they serve, or one line says what is wrong.

FUZZ_EXAMPLES sets how many of each kind are tried; the suite tries few.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import HEAVY, LIGHT, NO_PATHS, told
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import save_file
from tiny_models import save_pipeline

from model import NextDiT, OneDiffusionPipeline
from model.cameras import camera_latents, orbit_cameras, recover_cameras

CALL = {"task": "text2image", "prompt": "a cat", "height": 32, "width": 32, "num_inference_steps": 1}
ODD = [None, True, 0, 1, 3, -1, 0.5, float("nan"), float("inf"), 2**40, "", "x", "8", [], [1], ["x"], {}, {"x": 1}]
VALUES = st.one_of(st.sampled_from(ODD), st.integers(-9, 99), st.floats(), st.text(max_size=6))
OF_LOADERS = [
    "variant", "torch_dtype", "dtype", "device_map", "max_memory", "offload_folder", "offload_state_dict",
    "low_cpu_mem_usage", "use_safetensors", "quantization_config", "disable_mmap", "revision", "cache_dir", "token",
    "local_files_only", "force_download", "transformer", "vae", "text_encoder", "tokenizer", "scheduler",
    "default_size", "torch_dtyp",
]  # fmt: skip
LAYER = "layers.0.attention.wq"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pipeline(tmp_path_factory.mktemp("files") / "released"))


@pytest.fixture(scope="module")
def pipe(released: Path) -> OneDiffusionPipeline:
    return quiet(OneDiffusionPipeline.from_pretrained(released))


def quiet(pipeline: OneDiffusionPipeline) -> OneDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def serves(folder: Path, **settings: Any) -> None:
    """Load a folder and sample: both work, or one of them is refused in a line."""
    pipeline = told(lambda: OneDiffusionPipeline.from_pretrained(folder, **settings))
    if pipeline is not None:
        output = told(lambda: quiet(pipeline)(**CALL, output_type="np"))
        assert output is None or np.isfinite(output.images).all()


@HEAVY
@given(data=st.data())
def test_damaged_bytes_are_told_or_do_not_matter(released: Path, tmp_path_factory: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("damage") / "model"
    shutil.copytree(released, folder, copy_function=os.link)
    file = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    file.unlink()  # a link to what others use
    how = data.draw(st.sampled_from(["flip", "cut", "zeros", "twice"]))
    place = data.draw(st.integers(0, min(len(content), 4000) - 1))  # headers lie at the beginning
    if how == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(
        {"cut": content[:place], "zeros": content[:place] + bytes(len(content) - place), "twice": content * 2}.get(
            how, content
        )
    )
    try:
        serves(folder)
    finally:
        shutil.rmtree(folder)


@HEAVY
@given(data=st.data())
def test_any_value_in_a_configuration_is_taken_or_told(released: Path, tmp_path_factory: Any, data: Any) -> None:
    folder = tmp_path_factory.mktemp("values") / "model"
    shutil.copytree(released, folder, copy_function=os.link)
    names = ["model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"]
    names += ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"]
    for _ in range(data.draw(st.integers(1, 2))):
        file = folder / data.draw(st.sampled_from(names))
        values = json.loads(file.read_text())
        file.unlink()  # a link to what others use
        key = data.draw(st.sampled_from(sorted(values)))
        if data.draw(st.integers(0, 3)):
            values[key] = data.draw(VALUES)
        else:
            del values[key]
        file.write_text(json.dumps(values))
    try:
        serves(folder)
    finally:
        shutil.rmtree(folder)


@HEAVY
@given(settings=st.dictionaries(st.sampled_from(OF_LOADERS), VALUES, min_size=1, max_size=2))
def test_any_argument_of_a_loader_is_taken_or_told(released: Path, tmp_path_factory: Any, settings: Any) -> None:
    serves(released, **settings)
    of_models = {name: value for name, value in settings.items() if name not in ("transformer", "vae", "scheduler")}
    told(lambda: NextDiT.from_pretrained(released, **of_models))


@LIGHT
@given(
    changes=st.dictionaries(st.sampled_from(sorted(LoraConfig().to_dict())), VALUES, max_size=2),
    more=st.sets(st.sampled_from(["alpha", "lora_magnitude_vector", "lora_B.bias", "lora_C.weight"]), max_size=1),
)
def test_any_metadata_of_an_adapter_are_taken_or_told(
    pipe: OneDiffusionPipeline, tmp_path_factory: Any, changes: Any, more: Any
) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=[LAYER]).to_dict() | {"target_modules": [LAYER]} | changes
    weights = {f"{LAYER}.lora_A.weight": torch.zeros(4, 48), f"{LAYER}.lora_B.weight": torch.zeros(48, 4)}
    weights |= {f"{LAYER}.{name}": torch.ones(() if name == "alpha" else 48) for name in more}
    file = Path(tmp_path_factory.getbasetemp()) / "adapter.safetensors"
    described = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=str)
    save_file(
        {f"transformer.{key}": value for key, value in weights.items()}, file, {"lora_adapter_metadata": described}
    )
    before = set(pipe.transformer.state_dict())
    try:
        told(lambda: pipe.load_lora_weights(file))
        told(lambda: pipe(**CALL, output_type="latent"))  # an alpha of 10³⁰⁰ is told there
    finally:
        pipe.unload_lora_weights()
    assert set(pipe.transformer.state_dict()) == before


@LIGHT
@given(
    directory=st.one_of(
        st.sampled_from(["a", "a/b", "a/../c", "file", "file/x", "", ".", "..", None, *NO_PATHS]), VALUES
    ),
    settings=st.dictionaries(
        st.sampled_from(["variant", "max_shard_size", "safe_serialization", "is_main_process", "max_shard_sizes"]),
        st.one_of(VALUES, st.sampled_from(["fp16", "5GB", "20KB", "1 MB", 20_000])),
        max_size=2,
    ),
)
def test_saving_anywhere_is_whole_or_told(
    pipe: OneDiffusionPipeline, tmp_path_factory: Any, directory: Any, settings: Any
) -> None:
    here = tmp_path_factory.mktemp("saving") / "here"
    here.mkdir()
    (here / "file").touch()
    where = here / directory if isinstance(directory, str) and directory else directory
    if isinstance(where, Path) and here.parent not in [where, *where.parents]:
        return
    told(lambda: pipe.transformer.save_pretrained(where, **settings))
    assert (here / "file").is_file() or not here.exists()
    shutil.rmtree(here.parent)


NUMBERS = st.lists(st.one_of(st.floats(), st.integers(-400, 400)), min_size=0, max_size=3)


@LIGHT
@given(azimuth=NUMBERS, elevation=NUMBERS, distance=NUMBERS, normalize=st.booleans())
def test_any_cameras_have_rays_or_are_told(azimuth: Any, elevation: Any, distance: Any, normalize: bool) -> None:
    c2w = told(lambda: orbit_cameras(azimuth, elevation, distance))
    if c2w is None:
        return
    intrinsics = torch.eye(3).repeat(len(c2w), 1, 1)
    rays = told(lambda: camera_latents(c2w, intrinsics, 4, normalize=normalize))
    if rays is not None:
        assert torch.isfinite(rays).all()
        told(lambda: recover_cameras(rays, intrinsics))
