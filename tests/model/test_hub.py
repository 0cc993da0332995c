"""What a caller says about the hub, and about how to load, reaches it or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from fuzzing import NO_PATHS, told
from tiny_models import save_pipeline

from model import NextDiT, OneDiffusionPipeline
from model.inputs import InputError

HUB = {
    "revision": "v2",
    "cache_dir": "elsewhere",
    "token": "a-token",
    "local_files_only": True,
    "force_download": True,
}
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pipeline(tmp_path_factory.mktemp("hub") / "released"))


@pytest.fixture
def asked(released: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the hub is asked for; it gives the released folder."""
    calls: list[dict[str, Any]] = []

    def download(name: str, **arguments: Any) -> str:
        calls.append({"name": name, **arguments})
        return str(released)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize("cls", [OneDiffusionPipeline, NextDiT])
def test_hub_arguments_reach_the_hub(asked: list[dict[str, Any]], cls: Any) -> None:
    cls.from_pretrained("own/er", **HUB)
    assert asked
    for call in asked:
        assert {name: call[name] for name in ("name", *HUB)} == {"name": "own/er", **HUB}


def test_variant_alone_is_downloaded(asked: list[dict[str, Any]], released: Path, tmp_path: Path) -> None:
    pipeline = OneDiffusionPipeline.from_pretrained(released)
    pipeline.save_pretrained(released, variant="fp16")
    OneDiffusionPipeline.from_pretrained("own/er", variant="fp16")
    assert "*/*.fp16.safetensors" in asked[0]["allow_patterns"]
    assert "*/*.safetensors" not in asked[0]["allow_patterns"]
    OneDiffusionPipeline.from_pretrained("own/er")
    assert asked[-1]["ignore_patterns"] == ["*.*.safetensors"]


def test_parts_that_are_given_are_not_downloaded(asked: list[dict[str, Any]]) -> None:
    OneDiffusionPipeline.from_pretrained("own/er", text_encoder=None, tokenizer=None)
    assert {"text_encoder/*", "tokenizer/*"} <= set(asked[-1]["ignore_patterns"])


@pytest.mark.parametrize("cls", [OneDiffusionPipeline, NextDiT])
def test_weights_may_be_asked_for_as_stored(released: Path, cls: Any) -> None:
    assert cls.from_pretrained(released, torch_dtype="auto").dtype == torch.float32


def test_cache_of_the_hub_serves_without_it(released: Path, tmp_path: Path) -> None:
    """A real cache, as the hub's library lays it out, with the revision of that name."""
    root = tmp_path / "models--own--er"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "v2").write_text(COMMIT)
    shutil.copytree(released, root / "snapshots" / COMMIT)
    where = {"cache_dir": str(tmp_path), "local_files_only": True}
    assert OneDiffusionPipeline.from_pretrained("own/er", revision="v2", **where).config.default_size == 64
    assert NextDiT.from_pretrained("own/er", subfolder="transformer", revision="v2", **where).dtype == torch.float32
    with pytest.raises(InputError, match="own/er: no such folder, and the hub does not give it"):
        OneDiffusionPipeline.from_pretrained("own/er", revision="v3", **where)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"revison": "v2"}, r"takes no revison \(did you mean 'revision'\?\)"),
        ({"revision": "v2"}, "is a folder, and only models of the hub have revisions"),
        ({"torch_dtype": "bf16"}, "torch_dtype 'bf16': give a type of torch"),
        ({"use_safetensors": False}, "weights are read from safetensors alone"),
        ({"variant": "bf16"}, "bf16"),
        ({"variant": "*"}, r"variant '\*': give a short name"),
        ({"revision": 5}, "revision 5: give the name of a branch"),
        ({"cache_dir": "a\0b"}, "cache_dir .*: no file or folder can have this name"),
        ({"token": 3}, "token: give the token as a text"),
        ({"local_files_only": "yes"}, "local_files_only 'yes': give True or False"),
        ({"trust_remote_code": True}, "takes no trust_remote_code"),
        ({"max_memory": {"cpu": "1GB"}}, "max_memory has no effect without a device_map"),
        ({"offload_state_dict": True}, "offload_state_dict has no effect without a device_map"),
    ],
)
@pytest.mark.parametrize("cls", [OneDiffusionPipeline, NextDiT])
def test_arguments_without_effect_are_refused(released: Path, cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cls.from_pretrained(released, **settings)


@pytest.mark.parametrize("cls", [OneDiffusionPipeline, NextDiT])
@pytest.mark.parametrize("name", NO_PATHS, ids=ascii)
def test_impossible_names_of_folders_are_told(released: Path, cls: Any, name: Any) -> None:
    assert told(lambda: cls.from_pretrained(name, local_files_only=True)) is None
    assert told(lambda: NextDiT.from_pretrained(released, subfolder=name)) is None


def test_pipeline_refuses_parts_that_do_not_serve(released: Path) -> None:
    for settings, message in (
        ({"device_map": "everywhere"}, "everywhere not supported"),
        ({"torch_dtype": {"transforme": torch.float16}}, "torch_dtype 'transforme'"),
        ({"default_size": 0}, "default_size 0"),
        ({"default_size": 100}, "default_size 100: it must divide by 16; take 96"),
        ({"dtype": torch.float16, "torch_dtype": torch.float32}, "both mean the same; give one"),
        ({"torch_dtype": torch.int8}, "torch_dtype torch.int8: give one of torch.float64"),
        ({"variant": ""}, "variant '': give a short name"),
        ({"vae": 5}, "5 is of type"),
        ({"default_size": 8}, "default_size 8: it must divide by 16; take 16"),
    ):
        with pytest.raises(InputError, match=message):
            OneDiffusionPipeline.from_pretrained(released, **settings)
    with pytest.raises(InputError, match="'': give a model's folder or a hub name"):
        OneDiffusionPipeline.from_pretrained("")
    with pytest.raises(InputError, match="vae 'dct': give what its from_pretrained loads"):
        OneDiffusionPipeline(**{**OneDiffusionPipeline.from_pretrained(released).components, "vae": "dct"})
    without = OneDiffusionPipeline.from_pretrained(released, scheduler=None)
    with pytest.raises(InputError, match="this pipeline has no scheduler"):
        without("text2image", height=32, width=32)


def test_device_map_reaches_the_parts(released: Path) -> None:
    pipeline = OneDiffusionPipeline.from_pretrained(released, device_map="cpu")
    assert pipeline.hf_device_map == "cpu"
    pipeline.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_inference_steps": 1}
    assert pipeline("text2image", prompt="a cat", **call).images[0].size == (32, 32)
