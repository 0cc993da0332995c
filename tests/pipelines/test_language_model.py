"""Captions by vLLM in actors of `ray.data.llm`: what is asked of Ray, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_networks import save_llava

from labeling.dataset import Dataset
from labeling.registry import load_labeler
from labeling.resources import Resources
from model.inputs import InputError
from pipelines.ingest import ingest
from pipelines.label import label


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "llava").mkdir()
    save_llava(tmp_path / "llava")
    return tmp_path / "llava"


def dataset_of(pictures: Path, folder: Path) -> Dataset:
    Image.new("RGB", (90, 60), (9, 9, 9)).save(pictures / "dark.png")
    ingest(str(pictures), str(folder), shard_rows=3)
    return Dataset.open(folder)


def test_without_vllm_a_line_says_what_to_do_and_nothing_is_declared(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    dataset = dataset_of(pictures, tmp_path / "dataset")
    given = {"caption": {"model": str(model), "engine": "vllm"}}
    with pytest.raises(InputError, match=r"^caption: vllm is not installed.*--resources caption.python=.*endpoint$"):
        label(dataset.uri, ["caption"], given)
    elsewhere = {"caption": Resources(python="/opt/vllm/bin/python", gpus=0.5)}
    with pytest.raises(InputError, match=r"caption.gpus: 0.5; vLLM takes whole GPUs"):
        label(dataset.uri, ["caption"], given, resources=elsewhere)
    with pytest.raises(InputError, match=r"edges.python: no model of edges runs in another environment"):
        label(dataset.uri, ["edges"], resources={"edges": Resources(python="/opt/vllm/bin/python")})
    assert dataset.groups() == ["images"]


def test_parameters_of_the_engine() -> None:
    with pytest.raises(InputError, match="engine vllm computes the model that is named, and no endpoint"):
        load_labeler("caption", {"model": "a", "engine": "vllm", "endpoint": "http://host/v1"})
    with pytest.raises(InputError, match="engine vllm computes the model that is named"):
        load_labeler("caption", {"engine": "vllm"})
    given = {"model": "owner/model", "engine": "vllm", "dtype": "bf16", "extra": {"max_model_len": 4096}}
    labeler = load_labeler("caption", given)
    assert labeler.has_network and not labeler.uses_device
    assert labeler.language_model is not None and labeler.language_model.source == "owner/model"
    assert labeler.language_model.engine == {
        "limit_mm_per_prompt": {"image": 1}, "dtype": "bfloat16", "max_model_len": 4096,
    }  # fmt: skip


@pytest.mark.usefixtures("ray_prepared")
def test_what_ray_is_asked_for() -> None:
    from ray.data.llm import vLLMEngineProcessorConfig

    from pipelines.labeling_job.language_model import processor_config

    labeler = load_labeler("caption", {"model": "owner/model", "engine": "vllm"})
    assert labeler.language_model is not None
    resources = Resources(gpus=2, batch=64, python="/opt/vllm/bin/python")
    config = vLLMEngineProcessorConfig(**processor_config(labeler.language_model, "caption", resources, gpus=8))
    assert config.model_source == "owner/model" and config.batch_size == 64 and config.concurrency == (1, 4)
    assert config.engine_kwargs["tensor_parallel_size"] == 2 and config.placement_group_config is None
    assert config.runtime_env == {"py_executable": "/opt/vllm/bin/python"}
    assert config.should_continue_on_error and config.prepare_multimodal_stage["enabled"]
    on_cpus = processor_config(labeler.language_model, "caption", Resources(gpus=0, processes=(2, 2)), gpus=8)
    with pytest.raises(InputError, match=r"caption: 2 GPUs for vLLM, and the cluster has 1; give less"):
        processor_config(labeler.language_model, "caption", resources, gpus=1, may_grow=False)
    assert on_cpus["placement_group_config"] == {"bundles": [{"CPU": 1.0}]} and on_cpus["concurrency"] == (2, 2)
