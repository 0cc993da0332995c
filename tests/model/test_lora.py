import json

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_models import save_pipeline

from model import OneDiffusionPipeline
from model.inputs import InputError
from model.lora import LORA_TARGETS

CALL = {"task": "text2image", "prompt": "a cat", "height": 32, "width": 32, "num_inference_steps": 2}


@pytest.fixture
def pipe(tmp_path):
    pipeline = OneDiffusionPipeline.from_pretrained(save_pipeline(tmp_path / "released"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline):
    return pipeline(**CALL, generator=torch.Generator().manual_seed(0)).latents


def adapted(pipeline):
    """A random adapter on all the projections, as training would leave it."""
    pipeline.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS), "style")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in pipeline.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return pipeline


def test_lora_saves_loads_fuses_and_unfuses(pipe, tmp_path):
    plain = sample(pipe)
    expected = sample(adapted(pipe))
    assert (expected - plain).abs().max() > 1e-2
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    assert len(layers) == 2 * len(LORA_TARGETS) * len(pipe.transformer.layers)
    metadata = pipe.transformer.peft_config["style"].to_dict()
    OneDiffusionPipeline.save_lora_weights(tmp_path / "lora", layers, transformer_lora_adapter_metadata=metadata)
    assert metadata["lora_alpha"] == 2 * metadata["r"]
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]

    again = OneDiffusionPipeline.from_pretrained(tmp_path / "released")
    again.set_progress_bar_config(disable=True)
    again.load_lora_weights(tmp_path / "lora", adapter_name="style")
    assert again.get_active_adapters() == ["style"]
    torch.testing.assert_close(sample(again), expected, atol=1e-5, rtol=1e-5)
    again.fuse_lora()
    torch.testing.assert_close(sample(again), expected, atol=1e-4, rtol=1e-4)
    again.unfuse_lora()
    again.disable_lora()
    torch.testing.assert_close(sample(again), plain, atol=1e-4, rtol=1e-4)
    again.unload_lora_weights()
    assert not any("lora" in name for name in again.transformer.state_dict())


def test_gradients_reach_only_the_adapter(pipe):
    transformer = adapted(pipe).transformer
    transformer.requires_grad_(False)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
    x, t, y = torch.randn(2, 16, 4, 4), torch.tensor([900.0, 0.0]), torch.randn(3, 32)
    transformer.forward_packed([x], [t], [y])[0].square().mean().backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in transformer.named_parameters())


def test_weights_that_are_no_adapter_are_refused(pipe, tmp_path):
    with pytest.raises(InputError, match=r"no LoRA of this transformer: it holds 'unet.x.weight'"):
        pipe.load_lora_weights({"unet.x.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="nothing to save"):
        OneDiffusionPipeline.save_lora_weights(tmp_path, {})
    with pytest.raises(InputError, match="takes no scale"):
        pipe.load_lora_weights({"transformer.layers.0.attention.wq.lora_A.weight": torch.zeros(1)}, scale=2)


def layers_of(pipeline):
    return {
        f"transformer.{key}": value
        for key, value in get_peft_model_state_dict(pipeline.transformer, adapter_name="style").items()
    }


def test_alpha_survives_without_metadata_given(pipe, tmp_path):
    """The strength of an adapter is alpha / r, and its tensors do not say it."""
    expected = sample(adapted(pipe))
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    OneDiffusionPipeline.save_lora_weights(tmp_path / "lora", layers)
    again = OneDiffusionPipeline.from_pretrained(tmp_path / "released")
    again.set_progress_bar_config(disable=True)
    again.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(sample(again), expected, atol=1e-5, rtol=1e-5)
    again.unload_lora_weights()
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in layers_of(pipe) if "lora_A" in key}
    again.load_lora_weights({**layers_of(pipe), **alphas})  # as programs that write no metadata do
    torch.testing.assert_close(sample(again), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="their alpha is not known: give transformer_lora_adapter_metadata"):
        OneDiffusionPipeline.save_lora_weights(tmp_path, {key: value.clone() for key, value in layers.items()})


def test_keys_shapes_and_pairs_are_checked_before_anything_is_loaded(pipe):
    weights = layers_of(adapted(pipe))
    pipe.unload_lora_weights()
    first = next(key for key in weights if "wq.lora_A" in key)
    second = first.replace("lora_A", "lora_B")
    for changed, message in (
        ({"text_encoder.block.0.q.lora_A.weight": torch.zeros(4, 4)}, "it holds 'text_encoder"),
        ({second: None}, "LoRA of layers.0.attention.wq: it has no lora_B.weight"),
        ({first: None}, "LoRA of layers.0.attention.wq: it has no lora_A.weight"),
        ({first: torch.zeros(4, 96)}, "a layer of 96 → 48, this transformer's is 48 → 48; it is of another model"),
        ({first: torch.zeros(3, 48)}, "lora_A (3, 48) and lora_B (48, 4); they must be (r, 48) and (48, r)"),
        ({first: torch.zeros(4)}, "lora_A (4,)"),
        ({first: torch.zeros(4, 48, device="meta")}, "it has no numbers, only a shape"),
        ({first.replace("lora_A.weight", "alpha"): torch.ones(2)}, "an alpha is one finite number"),
        ({first: torch.full((4, 48), torch.nan)}, "not all numbers are finite"),
        ({first: torch.zeros(4, 48, dtype=torch.int64)}, "no tensor of floats"),
        (
            {first.replace("layers.0", "layers.7"): torch.zeros(4, 48)},
            "'layers.7.attention.wq': the transformer has no",
        ),
    ):
        given = {key: value for key, value in {**weights, **changed}.items() if value is not None}
        with pytest.raises(InputError) as error:
            pipe.load_lora_weights(given)
        assert message in str(error.value)
        assert not getattr(pipe.transformer, "peft_config", None)
    pipe.load_lora_weights(weights, adapter_name="one")
    with pytest.raises(InputError, match="one already in use"):
        pipe.load_lora_weights(weights, adapter_name="one")
    with pytest.raises(InputError, match="adapters one are loaded: save_lora_weights saves them"):
        pipe.save_pretrained("nowhere")


def written(folder, weights, **changes):
    """An adapter's file with metadata of peft, some of them changed."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["layers.0.attention.wq"]).to_dict() | changes
    config = {
        f"transformer.{name}": sorted(value) if isinstance(value, set) else value for name, value in config.items()
    }
    folder.mkdir()
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    save_file(weights, folder / "pytorch_lora_weights.safetensors", metadata)
    return folder


WQ = "transformer.layers.0.attention.wq"


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"r": 8}, {}, "rank 8 in its metadata, 4 in its weights"),
        ({"rank_pattern": {"layers.0.attention.wq": 2}}, {}, "rank 2 in its metadata, 4 in its weights"),
        ({"use_dora": True}, {}, "its metadata have use_dora, its weights have no lora_magnitude_vector"),
        ({"lora_bias": True}, {}, "its metadata have lora_bias, its weights have no lora_B.bias"),
        ({}, {"lora_B.bias": torch.zeros(48)}, "its weights have lora_B.bias, its metadata have no lora_bias"),
        ({"use_dora": True}, {"lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector (4,), not (48,)"),
        ({}, {"alpha": torch.tensor(2.0)}, "alpha 8 in its metadata, 2 in its weights"),
        ({"lora_alpha": float("nan")}, {}, "lora_alpha nan in its metadata"),
        ({"alpha_pattern": {"wq": "8"}}, {}, "alpha_pattern '8' in its metadata"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights 'pissa', which changes the weights below it"),
    ],
)
def test_metadata_of_another_adapter_are_refused(pipe, tmp_path, changes, more, message):
    weights = {f"{WQ}.lora_A.weight": torch.randn(4, 48), f"{WQ}.lora_B.weight": torch.randn(48, 4)}
    weights |= {f"{WQ}.{name}": value for name, value in more.items()}
    with pytest.raises(InputError) as error:
        pipe.load_lora_weights(written(tmp_path / "lora", weights, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not getattr(pipe.transformer, "peft_config", None)
    assert torch.isfinite(sample(pipe)).all()


@pytest.mark.parametrize("others", [False, True])
def test_adapter_that_peft_refuses_halfway_leaves_nothing(pipe, tmp_path, others):
    if others:
        adapted(pipe)
    before, names = sample(pipe), sorted(pipe.transformer.state_dict())
    weights = {f"{WQ}.lora_A.weight": torch.randn(4, 48), f"{WQ}.lora_B.weight": torch.randn(48, 4)}
    with pytest.raises(InputError, match="LoRA: Requested bias: odd"):
        pipe.load_lora_weights(written(tmp_path / "lora", weights, bias="odd"))
    assert sorted(pipe.transformer.state_dict()) == names and torch.equal(sample(pipe), before)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {"alpha": torch.tensor(8)}),
        ({"use_dora": True}, {"lora_magnitude_vector": torch.ones(48)}),
        ({"lora_bias": True}, {"lora_B.bias": torch.ones(48)}),
        ({"init_lora_weights": "eva"}, {}),
        ({"use_rslora": True, "rank_pattern": {"wk": 2}}, {}),
    ],
)
def test_adapters_of_all_plain_kinds_are_loaded(pipe, tmp_path, changes, more):
    weights = {f"{WQ}.lora_A.weight": torch.randn(4, 48), f"{WQ}.lora_B.weight": torch.randn(48, 4)}
    weights |= {f"{WQ}.{name}": value for name, value in more.items()}
    plain = sample(pipe)
    pipe.load_lora_weights(written(tmp_path / "lora", weights, **changes))
    assert not torch.equal(sample(pipe), plain)
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe), plain)


def test_only_adapters_are_saved(pipe, tmp_path):
    with pytest.raises(InputError, match="this NextDiT has no adapter"):
        OneDiffusionPipeline.save_lora_weights(tmp_path / "lora", pipe.transformer)
    for layers, message in (
        ([1], "transformer_lora_layers: list; give tensors by name"),
        ({"layers.0.attention.wq.weight": torch.zeros(1)}, "is no tensor of an adapter"),
        ({f"{WQ}.lora_A.weight": torch.full((1,), torch.nan)}, "not all numbers are finite"),
    ):
        with pytest.raises(InputError, match=message):
            OneDiffusionPipeline.save_lora_weights(tmp_path / "lora", layers)
    expected = sample(adapted(pipe))
    OneDiffusionPipeline.save_lora_weights(tmp_path / "lora", pipe.transformer)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(sample(pipe), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.set_adapters("other"), "adapter 'other' is not loaded; there are style"),
        (lambda pipe: pipe.set_adapters(["style"], [0.5, 0.5]), "set_adapters: Length of adapter names 1"),
        (lambda pipe: pipe.set_adapters("style", float("nan")), "adapter_weights nan: give finite numbers"),
        (lambda pipe: pipe.set_adapters([]), r"adapter_names \[\]: give names of style"),
        (lambda pipe: pipe.delete_adapters("other"), "adapter 'other' is not loaded"),
        (lambda pipe: pipe.fuse_lora(lora_scale=float("inf")), "lora_scale inf: give finite numbers"),
        (lambda pipe: pipe.fuse_lora(adapter_names=["other"]), "adapter 'other' is not loaded"),
        (lambda pipe: pipe.fuse_lora(components=["text_encoder"]), "fuse_lora: text_encoder is not found"),
        (lambda pipe: (pipe.unload_lora_weights(), pipe.fuse_lora()), "no adapter is loaded: call load_lora_weights"),
    ],
)
def test_adapters_that_are_not_there_are_told(pipe, call, message):
    before = sample(pipe)
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        call(adapted(pipe))
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe), before)


def test_sources_that_are_none_are_refused(pipe, tmp_path):
    for source, settings, message in (
        (None, {}, "LoRA None: give a file, a folder"),
        ([1], {}, r"LoRA \[1\]: give a file"),
        ("", {}, "LoRA '': give a file"),
        (str(tmp_path), {"revision": "v2"}, "revision has no effect for a file or folder"),
        ({"x": torch.zeros(1)}, {"weight_name": "x"}, "weight_name has no effect for tensors"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.load_lora_weights(source, **settings)


def test_file_that_is_no_adapter_is_one_line(pipe, tmp_path):
    OneDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(adapted(pipe).transformer, adapter_name="style")
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    for where, message in (
        (tmp_path, "damaged"),
        (tmp_path / "nowhere", "no LoRA there"),
        (tmp_path / "released", "no LoRA"),
    ):
        with pytest.raises(InputError, match=rf"^{where}[^\n]*{message}[^\n]*$"):
            pipe.load_lora_weights(where)
