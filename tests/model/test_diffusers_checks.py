"""What diffusers asks of its own pipelines: the checks of its PipelineTesterMixin and PipelineLatentTesterMixin.

Each function is named after theirs. Elsewhere: save_load_local, save_load_optional_components, save_load_float16,
loading_with_variants and torch_dtype_dict (test_saving.py), encode_prompt_works_in_isolation
(test_prompt_embeddings.py). Not applicable: float16_inference, xformers and sequential_cpu_offload need
CUDA; save_load_dduf was removed; latents as images, IP adapters, FreeU and Karras schedulers belong to other models.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from skimage import data
from tiny_models import save_pipeline

from model import OneDiffusionPipeline
from model.codecs.autoencoder_dct import AutoencoderDCT

CAT = data.chelsea()[:64, :96]
SMALL = {"height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 3.0}
PARAMS = {"prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "height", "width", "guidance_scale"}
OPTIONAL = {"num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("checks"))


@pytest.fixture
def pipe(folder):
    pipeline = OneDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def inputs(seed=0, task="depth", **more):
    call = {"task": task, "prompt": "a cat", "generator": torch.Generator().manual_seed(seed), "output_type": "np"}
    pictures = {} if task == "text2image" else {"images": Image.fromarray(CAT)}
    return {**call, **pictures, **SMALL, **more}


def test_pipeline_call_signature(pipe):
    parameters = inspect.signature(pipe.__call__).parameters
    assert parameters.keys() >= PARAMS | OPTIONAL
    assert all(parameters[name].default is not inspect.Parameter.empty for name in OPTIONAL)
    assert DiffusionPipeline in type(pipe).__mro__


@pytest.mark.parametrize("task", ["text2image", "depth"])
def test_inference_batch_consistent_and_single_identical(pipe, task):
    alone = pipe(**inputs(task=task))[0]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    batched = {"prompt": ["a cat", "a c", "very long" * 100], "generator": generators}
    if task == "depth":
        batched["images"] = [Image.fromarray(CAT)] * 3
    together = pipe(**inputs(task=task, **batched))[0]
    assert len(together) == 3
    assert np.abs(together[0] - alone[0]).max() < 1e-3


def test_dict_tuple_outputs_equivalent(pipe):
    output, plain = pipe(**inputs()), pipe(**inputs(return_dict=False))
    np.testing.assert_array_equal(output[0], plain[0])
    np.testing.assert_array_equal(output.images, plain[0])
    assert torch.equal(output.latents, plain[1])
    cameras = pipe("views", [CAT, CAT], height=32, width=32, num_inference_steps=1, return_dict=False)
    assert cameras[0] is None and len(cameras) == 3


def test_components_function(pipe):
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert set(pipe.components) == parts
    again = OneDiffusionPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(again(**inputs())[0], pipe(**inputs())[0])


def test_from_pipe_consistent(pipe):
    again = OneDiffusionPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert again.config.default_size == pipe.config.default_size
    np.testing.assert_array_equal(again(**inputs())[0], pipe(**inputs())[0])


def test_to_dtype(pipe):
    pipe.to(dtype=torch.bfloat16)
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}
    assert np.isfinite(pipe(**inputs())[0]).all()


def test_attention_and_vae_slicing_forward_pass(pipe, monkeypatch):
    """Attention has no slices: diffusers skips parts without set_attention_slice, and so must its call here."""
    call = inputs(denoise_mask=[1, 1], images=None)
    expected = pipe(**call)[0]
    pipe.enable_attention_slicing(slice_size=1)
    pipe.vae.enable_slicing()
    decoded, decode = [], pipe.vae._decode
    monkeypatch.setattr(pipe.vae, "_decode", lambda z, **settings: (decoded.append(len(z)), decode(z, **settings))[1])
    call = inputs(denoise_mask=[1, 1], images=None)
    np.testing.assert_allclose(pipe(**call)[0], expected, atol=1e-3)
    assert decoded == [1, 1]


def test_model_cpu_offload_forward_pass_twice(pipe):
    expected = pipe(**inputs())[0]
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        np.testing.assert_allclose(pipe(**inputs())[0], expected, atol=1e-4)
    assert all(part.device.type == "cpu" for part in (pipe.transformer, pipe.vae, pipe.text_encoder))


def test_group_offloading_inference(pipe):
    expected = pipe(**inputs())[0]
    for part in (pipe.transformer, pipe.vae):
        part.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    np.testing.assert_allclose(pipe(**inputs())[0], expected, atol=1e-4)


def test_layerwise_casting_inference(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in pipe.transformer.parameters()}
    assert np.isfinite(pipe(**inputs())[0]).all()


def test_progress_bar(pipe, capfd):
    pipe.set_progress_bar_config(disable=False)
    pipe(**inputs())
    assert "2/2" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(**inputs())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("copies", [1, 2])
def test_num_images_per_prompt(pipe, batch, copies):
    given = {"prompt": ["a cat"] * batch, "images": [Image.fromarray(CAT)] * batch, "generator": None}
    assert pipe(**inputs(**given), num_images_per_prompt=copies)[0].shape[0] == batch * copies


def test_cfg(pipe):
    plain, guided = (pipe(**inputs(guidance_scale=scale))[0] for scale in (1.0, 7.5))
    assert plain.shape == guided.shape and not np.array_equal(plain, guided)


def test_callback_inputs(pipe):
    seen = []

    def all_of_them(pipeline, index, timestep, tensors):
        seen.append(set(tensors))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == pipeline.num_timesteps - 1 else tensors

    call = inputs(task="text2image", output_type="latent", callback_on_step_end=all_of_them)
    output = pipe(**call, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)[0]
    assert seen == [set(pipe._callback_tensor_inputs)] * 2
    assert output.abs().sum() == 0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"latents": torch.zeros(1)}, "callback_on_step_end: latents (1,); return (1, 1, 16, 4, 6)"),
        ({"latents": None}, "callback_on_step_end: latents NoneType"),
        ({"latents": torch.full((1, 1, 16, 4, 6), torch.nan)}, "latents that are not all finite"),
    ],
)
def test_callback_results_are_checked(pipe, result, message):
    with pytest.raises(ValueError, match=r"callback") as error:
        pipe(**inputs(task="text2image", callback_on_step_end=lambda *_: result))
    assert message in str(error.value)


@pytest.mark.parametrize("result", [None, {}])
@pytest.mark.parametrize("interrupt", [False, True])
def test_writes_of_a_callback_are_checked(pipe, result, interrupt):
    def spoil(pipeline, index, timestep, tensors):
        tensors["latents"].fill_(torch.nan)
        pipeline._interrupt = interrupt
        return result

    with pytest.raises(ValueError, match="callback_on_step_end: it leaves latents that are not all finite"):
        pipe(**inputs(task="text2image", output_type="latent", callback_on_step_end=spoil))


def test_pt_np_pil_outputs_equivalent(pipe):
    tensor, array, pillow = (pipe(**inputs(output_type=form))[0] for form in ("pt", "np", "pil"))
    assert np.abs(tensor.numpy().transpose(0, 2, 3, 1) - array).max() < 1e-4
    assert np.abs(np.array(pillow[0]) - (array * 255).round()).max() < 2


def test_pt_np_pil_inputs_equivalent(pipe):
    batch = torch.from_numpy(CAT.copy()).permute(2, 0, 1)[None] / 255
    forms = [Image.fromarray(CAT), [Image.fromarray(CAT)], CAT / 255, (CAT / 255)[None], batch, batch * 2 - 1]
    first, *others = (pipe(**inputs(images=form))[0] for form in forms)
    for other in others:
        assert np.abs(other - first).max() < 1e-2


def test_latents_given_are_what_a_generator_draws(pipe):
    noise = torch.randn(1, 2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(pipe(**inputs(generator=None, latents=noise))[0], pipe(**inputs())[0])


def test_codec_without_training_passes_too(pipe):
    plain = OneDiffusionPipeline(**{**pipe.components, "vae": AutoencoderDCT()})
    plain.set_progress_bar_config(disable=True)
    expected = plain(**inputs())[0]
    plain.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(plain(**inputs())[0], expected, atol=1e-4)
