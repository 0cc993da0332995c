"""A checkpoint as a diffusers folder: what is sampled from it is what the checkpoint gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_run import save_run
from typer.testing import CliRunner

from labeling.dataset import open_store
from model import NextDiT, OneDiffusionPipeline
from model.inputs import InputError
from model.quantization import KEPT
from pipelines.cli.app import app
from pipelines.export import export
from pipelines.sampler import load_pipeline

LIVE = 3.0  # what the live weights are, times the averaged ones


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("export"), LIVE)


def draw(pipeline: OneDiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("text2image", prompt="a cat", num_inference_steps=2, generator=generator, output_type="np")
    return np.asarray(result.images[0])


def test_exported_folder_draws_what_the_checkpoint_draws(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out")])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "out")
    exported = OneDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert np.array_equal(draw(exported), draw(load_pipeline(str(run), "cpu")))
    files = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert ".bin" not in files and ".pt" not in files and ".safetensors" in files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_live_weights_and_bf16_are_exported_by_choice(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--live", "--bf16"])
    assert result.exit_code == 0
    averaged = load_pipeline(str(run), "cpu").transformer.state_dict()
    for name, value in NextDiT.from_pretrained(tmp_path / "out" / "transformer").state_dict().items():
        assert torch.equal(value, (LIVE * averaged[name]).bfloat16()), name


def test_folder_with_something_in_it_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="there is something already"):
        export(str(run), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for taken in (tmp_path / "clone", tmp_path / "mine.txt"):
        if not taken.exists():
            (taken / ".git").mkdir(parents=True)
        with pytest.raises(InputError, match="there is something already"):
            export(str(run), str(taken))
    assert (tmp_path / "clone" / ".git").is_dir()
    with pytest.raises(InputError, match="no checkpoint there"):
        export(str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_file_holds_the_transformer_under_its_published_names(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "models" / "mine.safetensors"
    result = CliRunner().invoke(app, ["export", str(run), str(path), "--format", "comfyui"])
    assert result.exit_code == 0 and result.output.strip() == str(path)
    expected = load_pipeline(str(run), "cpu").transformer
    assert {name: value.shape for name, value in load_file(path).items()} == {
        name: value.shape for name, value in expected.state_dict().items()
    }
    again = NextDiT.from_single_file(path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "onediffusion"
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.safetensors"]
    with pytest.raises(InputError, match="there is something already"):
        export(str(run), str(path), form="comfyui")
    with pytest.raises(InputError, match="writes one file; name it"):
        export(str(run), str(tmp_path / "folder"), form="comfyui")


def test_eight_bits_in_one_file_say_how_far_they_are_off(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    result = CliRunner().invoke(app, ["export", str(run), str(path), "--format", "comfyui", "--quantize", "fp8"])
    assert result.exit_code == 0, result.output
    stated = re.search(r"fp8: .* velocities are ([\d.]+)% from those of bf16", result.output)
    assert stated and 0.1 < float(stated[1]) < 10
    stored = load_file(path)
    assert stored["layers.0.attention.wq.weight"].dtype == torch.float8_e4m3fn
    assert stored["layers.0.adaLN_modulation.1.weight"].dtype == stored["x_embedder.weight"].dtype == torch.bfloat16
    assert NextDiT.from_single_file(path).dtype == torch.bfloat16
    with pytest.raises(InputError, match="ComfyUI reads no such file"):
        export(str(run), str(tmp_path / "int8.safetensors"), form="comfyui", quantize="int8")


@pytest.mark.torchao
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_pipeline_in_eight_bits_is_read_back(run: Path, tmp_path: Path, kind: str) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--quantize", kind])
    assert result.exit_code == 0, result.output
    stated = re.search(rf"{kind}: .* velocities are ([\d.]+)% from those of bf16", result.output)
    assert stated and 0.1 < float(stated[1]) < 10
    exported = OneDiffusionPipeline.from_pretrained(tmp_path / "out")
    weight = exported.transformer.layers[0].attention.wq.weight
    assert type(weight).__name__ in ("Int8Tensor", "Float8Tensor")
    plain = load_pipeline(str(run), "cpu", dtype=torch.bfloat16)
    assert np.abs(draw(exported) - draw(plain)).mean() < 0.05
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.torchao
def test_pipeline_is_quantized_while_it_is_loaded(run: Path, tmp_path: Path) -> None:
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig as TextConfig

    folder = tmp_path / "plain"
    export(str(run), str(folder))
    eight = Int8WeightOnlyConfig(version=2)
    of_transformer = TorchAoConfig(eight, modules_to_not_convert=list(KEPT))
    parts = PipelineQuantizationConfig(quant_mapping={"transformer": of_transformer, "text_encoder": TextConfig(eight)})
    loaded = OneDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, quantization_config=parts)
    for part in (loaded.transformer, loaded.text_encoder):
        assert "Int8Tensor" in {type(value).__name__ for value in part.parameters()}
    plain = load_pipeline(str(run), "cpu", dtype=torch.bfloat16)
    assert np.abs(draw(loaded) - draw(plain)).mean() < 0.05
    alone = NextDiT.from_pretrained(folder, torch_dtype=torch.bfloat16, quantization_config=of_transformer)
    assert np.isfinite(draw(OneDiffusionPipeline.from_pretrained(folder, transformer=alone))).all()
    with pytest.raises(InputError, match="PipelineQuantizationConfig"):
        OneDiffusionPipeline.from_pretrained(folder, quantization_config=of_transformer)


def test_pipeline_of_diffusers_is_exported_with_its_own_parts(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "first"))
    export(str(tmp_path / "first"), str(tmp_path / "second"))
    first, second = (OneDiffusionPipeline.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert np.array_equal(draw(first), draw(second))


def test_export_to_s3_is_read_back(run: Path, s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/exported")
    assert export(str(run), store.uri) == store.uri
    for name in store.walk():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name))
    assert np.array_equal(draw(OneDiffusionPipeline.from_pretrained(tmp_path)), draw(load_pipeline(str(run), "cpu")))
