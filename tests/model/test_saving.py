"""A pipeline saved whole, in shards, as a variant, in bf16, over an older one: loaded, it is the one that was saved."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_pipeline

from model import NextDiT, OneDiffusionPipeline
from model.codecs import load_codec
from model.inputs import InputError
from model.text import load_text_encoder

SHARDS = "50KB"


def load(folder, **settings):
    pipeline = OneDiffusionPipeline.from_pretrained(folder, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline):
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "latent"}
    return pipeline("text2image", prompt="a cat", generator=torch.Generator().manual_seed(0), **call).latents


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def pipe(released):
    return load(released)


@pytest.fixture(scope="module")
def other(released):
    pipeline = load(released)
    with torch.no_grad():
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            for parameter in part.parameters():
                parameter.mul_(1.01)
    return pipeline


def test_saving_over_an_older_folder_leaves_nothing_of_it(pipe, other, tmp_path):
    before, after = latents(pipe), latents(other)
    pipe.save_pretrained(tmp_path, max_shard_size=SHARDS)
    assert list(tmp_path.glob("*/*.index.json"))
    assert torch.equal(latents(load(tmp_path)), before)
    other.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*/*.index.json")) and not list(tmp_path.glob("*/*-of-*"))
    assert torch.equal(latents(load(tmp_path)), after)
    pipe.save_pretrained(tmp_path, max_shard_size=SHARDS)
    assert not (tmp_path / "transformer/diffusion_pytorch_model.safetensors").exists()
    assert torch.equal(latents(load(tmp_path)), before)
    assert not list(tmp_path.parent.glob(".saving-*"))


@pytest.mark.parametrize("first", [{"max_shard_size": SHARDS}, {}], ids=["shards", "whole"])
@pytest.mark.parametrize("second", [{"max_shard_size": SHARDS}, {}], ids=["then shards", "then whole"])
def test_variants_in_one_folder_leave_each_other_alone(pipe, other, tmp_path, first, second):
    other.save_pretrained(tmp_path, variant="fp16", **first)
    pipe.save_pretrained(tmp_path, **second)
    assert torch.equal(latents(load(tmp_path)), latents(pipe))
    assert torch.equal(latents(load(tmp_path, variant="fp16")), latents(other))
    with pytest.raises(InputError, match="no weights of the variant 'bf16' are there; there is fp16"):
        load(tmp_path, variant="bf16")


def test_types_are_as_stored_unless_they_are_asked_for(released, tmp_path):
    half = load(released, torch_dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert {part.dtype for part in (again.transformer, again.vae, again.text_encoder)} == {torch.bfloat16}
    assert torch.equal(latents(again), latents(half))
    mixed = load(tmp_path / "half", torch_dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert (mixed.vae.dtype, mixed.transformer.dtype) == (torch.float32, torch.bfloat16)
    assert load(tmp_path / "half", torch_dtype=torch.float32).text_encoder.dtype == torch.float32


def test_transformer_alone_is_saved_over_an_older_one(pipe, other, tmp_path):
    pipe.transformer.save_pretrained(tmp_path, max_shard_size=SHARDS)
    other.transformer.save_pretrained(tmp_path)
    again = NextDiT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in other.transformer.state_dict().items())


def test_pickles_are_asked_for_and_safetensors_written(pipe, tmp_path, caplog):
    """As the checks of diffusers save."""
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert "written as safetensors all the same" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]
    assert torch.equal(latents(load(tmp_path)), latents(pipe))


def test_unsavable_parts_are_refused(pipe, tmp_path):
    (tmp_path / "file").touch()
    for settings, message in (
        ({"save_directory": tmp_path / "file"}, "a file is there; name a folder"),
        ({"save_directory": tmp_path / "x", "variant": "../fp16"}, "variant '../fp16': give a short name"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.save_pretrained(**settings)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("how", ["cut", "emptied", "gone"])
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_damaged_file_of_a_pipeline_is_one_line_that_names_it(released, tmp_path, name, how):
    folder = shutil.copytree(released, tmp_path / "damaged")
    file = folder / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2]}.get(how, b""))
    if how == "gone":
        file.unlink()
    with pytest.raises(InputError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message and (name in message or (how == "gone" and name.split("/")[0] in message))


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_missing_are_not_drawn_at_random(released, tmp_path, name):
    folder = shutil.copytree(released, tmp_path / "damaged")
    path = folder / f"{name}.safetensors"
    weights = load_file(path)
    gone = sorted(weights)[-1]
    save_file({key: value for key, value in weights.items() if key != gone}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"^[^\n]*" + gone):
        load(folder)


def test_configuration_of_no_such_model_is_one_line(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "damaged")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_heads": 5}))
    with pytest.raises(InputError, match=r"transformer/config\.json: no NextDiT"):
        load(folder)


@pytest.mark.parametrize("name", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_damaged_codec_is_named(released, tmp_path, name):
    folder = shutil.copytree(released, tmp_path / "damaged")
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(InputError, match=rf"^[^\n]*{name}: damaged[^\n]*$"):
        load_codec(str(folder))


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]
)
def test_damaged_text_encoder_is_named(released, tmp_path, name):
    folder = shutil.copytree(released, tmp_path / "damaged")
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(InputError, match=rf"^[^\n]*{name}: damaged[^\n]*$"):
        load_text_encoder(str(folder))
