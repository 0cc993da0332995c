"""A pipeline saved whole, in shards, as a variant, in bf16, over an older one: loaded, it is the one that was saved."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from fuzzing import NO_PATHS
from safetensors.torch import load_file, save_file
from tiny_models import save_pipeline

from model import NextDiT, OneDiffusionPipeline
from model.codecs import load_codec
from model.inputs import InputError
from model.text import load_text_encoder
from model.weights import check_loaded

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
    other.transformer.save_pretrained(tmp_path, max_shard_size=None)
    again = NextDiT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in other.transformer.state_dict().items())


def test_pickles_are_asked_for_and_safetensors_written(pipe, tmp_path, caplog):
    """As the checks of diffusers save."""
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert "written as safetensors all the same" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]
    assert torch.equal(latents(load(tmp_path)), latents(pipe))


def test_unsavable_parts_are_refused(pipe, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vae").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    for settings, message in (
        ({"save_directory": tmp_path / "file"}, "a file is there; name a folder"),
        ({"save_directory": tmp_path / "file" / "x"}, "no folder can be made there"),
        ({"save_directory": tmp_path / "nowhere"}, "no folder can be made there"),
        ({"save_directory": ""}, "save_directory '': name a folder"),
        ({"save_directory": None}, "save_directory None: give the path"),
        *(({"save_directory": name}, "^save_directory .*: (give the path|no file or folder can)") for name in NO_PATHS),
        ({"save_directory": tmp_path / "old"}, "vae: a file is there, and it is to be a folder"),
        ({"save_directory": "x", "variant": "../fp16"}, "variant '../fp16': give a short name"),
        ({"save_directory": "x", "max_shard_size": "big"}, "max_shard_size 'big': give a number of bytes"),
        ({"save_directory": "x", "max_shard_size": 0}, "max_shard_size 0: give a number of bytes"),
        ({"save_directory": "x", "max_shard_sise": "5GB"}, r"takes no max_shard_sise \(did you mean 'max_shard_size'"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.save_pretrained(**settings)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "nowhere", "old", "vae"]


def test_files_of_the_user_stay_where_they_are(pipe, tmp_path, monkeypatch):
    """A path that ends in "..", from a folder with files of its own."""
    here = tmp_path / "project" / "here"
    here.mkdir(parents=True)
    (here / "notes.txt").write_text("mine")
    monkeypatch.chdir(here)
    pipe.save_pretrained("..")
    assert [path.name for path in here.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]
    assert torch.equal(latents(load(tmp_path / "project")), latents(pipe))


def test_files_in_folders_of_a_part_are_saved_too(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "templates")
    (folder / "tokenizer" / "additional_chat_templates").mkdir()
    (folder / "tokenizer" / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    load(folder).save_pretrained(tmp_path / "again")
    assert [path.name for path in tmp_path.glob("again/tokenizer/*/*")] == ["short.jinja"]


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


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("transformer/config.json", {"num_heads": 5}, r"transformer/config\.json: no NextDiT"),
        ("transformer/config.json", {"norm_eps": None}, r"no NextDiT \(norm_eps is a small number\)"),
        ("vae/config.json", {"block_out_channels": [8, 8]}, "/vae: nothing that can be loaded"),
        ("text_encoder/config.json", {"d_model": "x"}, "/text_encoder: nothing that can be loaded"),
        (
            "text_encoder/config.json",
            {"num_layers": 1},
            "2 layers encoder.block in its weights, 1 in its",
        ),
        ("tokenizer/tokenizer.json", None, "/tokenizer: nothing that can be loaded"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": ""}, "tokenizer T5Tokenizer.*: it makes no tokens"),
        ("scheduler/scheduler_config.json", None, "scheduler_config.json: it names no _class_name"),
        ("scheduler/scheduler_config.json", {"max_shift": "x"}, "max_shift 'x' in its configuration"),
        ("model_index.json", {"_class_name": []}, r"model_index\.json: _class_name \[\]; it is a text"),
        ("model_index.json", {"vae": ["diffusers", []]}, r"model_index\.json: vae .*; it names a library and a class"),
        ("model_index.json", {"vae": None}, "vae None; it names a library and a class"),
        ("model_index.json", {"default_size": [1]}, r"default_size \[1\]: give a whole number"),
        ("vae/config.json", {"norm_num_groups": True}, "norm_num_groups True in its config.json; it is a whole number"),
        ("vae/config.json", {"norm_num_groups": 0.5}, "norm_num_groups 0.5 in its config.json"),
        ("vae/config.json", {"norm_num_groups": -1}, "norm_num_groups -1 in its config.json"),
        ("vae/config.json", {"mid_block_add_attention": False}, "no place for decoder.mid_block.attentions"),
        ("vae/config.json", {"use_quant_conv": False}, "no place for quant_conv"),
        ("text_encoder/config.json", {"d_kv": 16}, "/text_encoder: "),
        ("vae/config.json", {"scaling_factor": float("nan")}, "scaling_factor nan in its config.json"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", None, "index.json: it names no weights"),
    ],
)
def test_configuration_of_another_model_is_one_line_that_names_the_part(released, tmp_path, name, changes, message):
    folder = shutil.copytree(released, tmp_path / "other")
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes} if changes else {}))
    with pytest.raises(InputError, match=rf"^[^\n]*{message}[^\n]*$"):
        latents(load(folder))


def test_pipeline_without_its_transformer_is_saved_and_embeds_prompts(released, tmp_path):
    """Nothing that a newer diffusers will refuse is called on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load(released, transformer=None).save_pretrained(tmp_path / "encoder")
        encoder = load(tmp_path / "encoder")
    assert encoder.transformer is None
    embeds, mask, *_ = encoder.encode_prompt("a cat", task="text2image")
    expected = load(released).encode_prompt("a cat", task="text2image")
    assert torch.equal(embeds, expected[0]) and torch.equal(mask, expected[1])
    with pytest.raises(InputError, match="this pipeline has no transformer"):
        latents(encoder)


def test_weights_in_pickles_alone_are_told(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "pickles")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="/vae: no weights in safetensors; convert them first"):
        load(folder)


def test_json_of_no_object_is_named(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "other")
    for path in sorted(folder.rglob("*.json")):
        whole = path.read_text()
        for content in ("[1]", "null", '"x"'):
            path.write_text(content)
            with pytest.raises(InputError, match=rf"{path.name}: [^\n]* and no object with names and values"):
                load(folder)
        path.write_text(whole)


def test_files_that_are_not_loaded_do_not_matter(released, tmp_path):
    folder = shutil.copytree(released, tmp_path / "folder")
    (folder / "notes.json").write_text('{"a": 1}\n{"b": 2}\n')
    (folder / "logs").mkdir()
    (folder / "logs" / "empty.json").touch()
    (folder / "vae" / "._diffusion_pytorch_model.safetensors").write_text("of a Mac")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_text("cut")
    (folder / "text_encoder" / "model.safetensors").write_text("cut")
    without = load(folder, text_encoder=None, tokenizer=None)
    assert without.text_encoder is None
    with pytest.raises(InputError, match=r"text_encoder/model\.safetensors: damaged"):
        load(folder)


def test_quantized_weights_are_not_missed():
    """Quantizers keep scales beside the weights, under names that the files of the weights do not have."""
    part = torch.nn.Linear(2, 2)
    part.hf_quantizer = object()
    part._register_state_dict_hook(lambda module, state, *_: state.update({"weight.absmax": torch.zeros(1)}))
    part.register_buffer("scale", torch.zeros(1))
    with tempfile.TemporaryDirectory() as folder:
        save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, f"{folder}/model.safetensors")
        check_loaded(part, Path(folder))
        save_file({"weight": torch.zeros(2, 2)}, f"{folder}/model.safetensors")
        with pytest.raises(InputError, match="the weights lack bias"):
            check_loaded(part, Path(folder))


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
