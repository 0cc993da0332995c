import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
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
