"""The pipeline on a tiny random model in the released layout: every task, both ways, as diffusers' users call it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from skimage import data
from tiny_models import save_pipeline

from model import NextDiT, OneDiffusionPipeline, sample_frames
from model.cameras import camera_latents, default_intrinsics, orbit_cameras
from model.codecs.autoencoder_dct import AutoencoderDCT
from model.inputs import InputError
from model.pictures import fit_picture
from model.prompts import TASKS

CAT, COFFEE = data.chelsea(), data.coffee()
SMALL = {"height": 32, "width": 48, "num_inference_steps": 2}
PAIRED = [name for name, task in TASKS.items() if task.is_paired]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def pipe(folder):
    pipeline = OneDiffusionPipeline.from_pretrained(folder, default_size=64)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pipeline_equals_its_parts(pipe):
    output = pipe("depth", CAT, "a cat", **SMALL, generator=seeded(), guidance_scale=3.0)
    fitted = torch.from_numpy(fit_picture(CAT, 48, 32).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    known = pipe.vae.encode(fitted).latent_dist.mode() * 1.5305
    ids = pipe.tokenizer(["", "[[depth2image]] a cat"], padding="max_length", max_length=300, return_tensors="pt")
    with torch.no_grad():
        embeds = pipe.text_encoder(**ids).last_hidden_state
    expected = sample_frames(
        pipe.transformer,
        FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config),
        torch.randn(1, 2, 16, 4, 6, generator=seeded()),
        known[None],
        [1, 0],
        embeds,
        ids["attention_mask"],
        2,
        guidance=3.0,
    )
    torch.testing.assert_close(output.latents, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.latents[:, 1], known)


@pytest.mark.parametrize("task", PAIRED)
def test_pairs_go_both_ways(pipe, task):
    settings = {"names": ["cat", "dog"]} if TASKS[task].phrase else {}
    forth = pipe(task, CAT, "a cat", **SMALL, **settings, output_type="pt")
    assert forth.images.shape == (1, 3, 32, 48)
    assert set(forth.keys()) == {"latents", "images"}
    back = pipe(task, Image.fromarray(CAT), "a cat", known="image", **SMALL, **settings)
    assert back.images[0].size == (48, 32)
    read = {"depth": "depth", "pose": "keypoints", "segmentation": "segmentation", "boxes": "boxes"}.get(task)
    assert set(back.keys()) == {"latents", "images", *([read] if read else [])}
    if task == "depth":
        assert back.depth[0].shape == (32, 48) and 0 <= back.depth[0].min() <= back.depth[0].max() <= 1
    if task == "segmentation":
        assert {name: mask.shape for name, mask in back.segmentation[0].items()} == {"cat": (32, 48), "dog": (32, 48)}
    if task == "pose":
        assert back.keypoints[0].shape == (18, 3)
    if task == "boxes":
        assert set(back.boxes[0]) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("task", "pictures", "settings"),
    [
        ("text2image", None, {}),
        ("editing", CAT, {}),
        ("subject", [CAT, COFFEE], {"names": ["cup"], "reference_prompts": ["a cat", "the dog"]}),
        ("identity", [CAT, COFFEE, CAT], {"reference_prompts": ["a cat", "the dog", "a cat"]}),
        (("edges", "segmentation"), [CAT, COFFEE], {"names": ["cat"]}),
    ],
)
def test_unpaired_tasks_generate_an_image(pipe, task, pictures, settings):
    output = pipe(task, pictures, "the dog", **SMALL, **settings, output_type="np")
    assert output.images.shape == (1, 32, 48, 3)
    assert output.latents.shape[1] == 1 + (len(pictures) if isinstance(pictures, list) else pictures is not None)


def test_image_and_depth_are_generated_together(pipe):
    output = pipe("depth", prompt="a cat", denoise_mask=[1, 1], **SMALL)
    assert len(output.images) == 2 and len(output.depth) == 1


@pytest.mark.parametrize("views", [1, 12])
def test_views_are_generated_from_one_image(pipe, views):
    angles = {"azimuth": [30.0 * view for view in range(views)], "elevation": [10] * views, "distance": [1.5] * views}
    settings = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0}
    output = pipe("views", [CAT][: views - 1], "a cat", **angles, **settings)
    assert len(output.images) == max(views - 1, 1)
    c2w = orbit_cameras(*angles.values())
    rays = camera_latents(c2w, default_intrinsics(views), 4, normalize=False)
    torch.testing.assert_close(output.latents[0, 1::2], rays)
    given = pipe("views", [CAT][: views - 1], "a cat", c2w=c2w, normalize_cameras=False, **settings)
    assert torch.equal(given.latents[:, 1::2], output.latents[:, 1::2])


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 64)])
def test_views_that_are_not_square_have_rays_through_their_pixels(pipe, width, height):
    c2w = orbit_cameras([0, 40], [10, 20], [1.5, 1.5])
    settings = {"c2w": c2w, "width": width, "height": height, "num_inference_steps": 1, "guidance_scale": 1.0}
    h, w = height // 8, width // 8
    rays = pipe("views", [CAT], "a cat", **settings).latents[0, 1::2]
    top, left, side = (h - min(h, w)) // 2, (w - min(h, w)) // 2, min(h, w)
    square = camera_latents(c2w, default_intrinsics(2), side, normalize=True)
    torch.testing.assert_close(rays[..., top : top + side, left : left + side], square)
    given = pipe("views", [CAT], "a cat", intrinsics=default_intrinsics(2, (h, w)), **settings)
    assert torch.equal(given.latents[0, 1::2], rays)


def test_cameras_are_generated_for_images(pipe):
    output = pipe("views", [CAT, COFFEE], denoise_mask=[0, 1, 0, 1], height=32, width=32, num_inference_steps=2)
    assert output.images is None
    rotation, translation = output.cameras[0]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-4, rtol=0)
    assert translation.shape == (2, 3)
    some = pipe("views", [CAT], "a cat", denoise_mask=[0, 1, 1, 1], height=32, width=32, num_inference_steps=1)
    assert len(some.images) == 1 and some.cameras[0][0].shape == (2, 3, 3)


def test_batched_samples_equal_single_ones(pipe):
    both = pipe(
        "edges", [[CAT], [COFFEE]], ["a cat", "the dog the dog"], **SMALL, generator=[seeded(1), seeded(2)]
    ).latents
    alone = pipe("edges", COFFEE, "the dog the dog", **SMALL, generator=seeded(2)).latents
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    twice = pipe("edges", CAT, "a cat", **SMALL, num_images_per_prompt=2, generator=[seeded(1), seeded(3)]).latents
    torch.testing.assert_close(twice[:1], both[:1], atol=1e-4, rtol=1e-4)
    assert not torch.equal(twice[0, 0], twice[1, 0])


def test_save_and_load_preserve_output(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = OneDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.config.default_size == 64
    one, other = (p("text2image", prompt="a cat", **SMALL, generator=seeded()).latents for p in (pipe, again))
    assert torch.equal(one, other)


@pytest.mark.parametrize("module", ["model.autoencoder_dct", "somewhere.else"])
def test_pipeline_folder_with_moved_modules_loads(folder, tmp_path, module):
    OneDiffusionPipeline.from_pretrained(folder, vae=AutoencoderDCT()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = [module, "AutoencoderDCT"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = OneDiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.vae, AutoencoderDCT)
    assert isinstance(loaded.transformer, NextDiT)


def test_callbacks_change_latents_and_interrupt(pipe):
    seen = []

    def watch(pipeline, index, timestep, tensors):
        seen.append((index, float(timestep), tensors["latents"].shape))
        pipeline._interrupt = index == 1
        return {"latents": tensors["latents"] * 0}

    settings = {**SMALL, "num_inference_steps": 4}
    output = pipe("text2image", prompt="a cat", **settings, callback_on_step_end=watch, output_type="latent")
    assert [index for index, _, _ in seen] == [0, 1]
    assert output.latents.any(), "the step after which it ended is kept"
    with pytest.raises(InputError, match="embeds"):
        pipe("text2image", **SMALL, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["embeds"])


def test_default_steps_and_guidance_are_those_of_the_task(pipe, monkeypatch):
    import model.pipeline as module

    asked = []

    def spy(*arguments):
        asked.append(arguments[7:9])
        return sample_frames(*arguments[:7], 1, *arguments[8:])

    monkeypatch.setattr(module, "sample_frames", spy)
    for task, pictures in (("text2image", None), ("editing", CAT), ("identity", CAT), ("views", [CAT, CAT])):
        pipe(task, pictures, "a cat", height=32, width=32)
    assert asked == [(50, 4.0), (50, 3.5), (75, 4.0), (60, 4.0)]


@pytest.mark.parametrize("vae", [None, AutoencoderDCT()], ids=["AutoencoderKL", "AutoencoderDCT"])
def test_offloading_preserves_output(folder, vae):
    """With diffusers' own hooks, and the CPU as the device to run on (layer by layer accelerate cannot do that)."""
    parts = {} if vae is None else {"vae": vae}
    pipeline = OneDiffusionPipeline.from_pretrained(folder, default_size=64, **parts)
    pipeline.set_progress_bar_config(disable=True)
    call = ("depth", CAT, "a cat")
    expected = pipeline(*call, **SMALL, generator=seeded()).latents
    pipeline.enable_model_cpu_offload(device="cpu")
    moved = []
    for name in ("text_encoder", "transformer", "vae"):
        hook = getattr(pipeline, name)._hf_hook
        come = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, come=come, **kwargs: (moved.append(name), come(*args, **kwargs))[1]
    torch.testing.assert_close(pipeline(*call, **SMALL, generator=seeded()).latents, expected)
    assert list(dict.fromkeys(moved)) == ["text_encoder", "vae", "transformer"]


def test_bf16_runs_at_default_size(folder):
    half = OneDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, default_size=64)
    half.set_progress_bar_config(disable=True)
    output = half("depth", CAT, "a cat", known="image", num_inference_steps=2)
    assert output.latents.dtype == torch.bfloat16
    assert output.images[0].size == (80, 48)  # the aspect of the picture


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 40, "width": 48}, "width 48 × height 40: both must divide by 16"),
        ({"height": 32}, "give height and width, or neither"),
        ({"images": [CAT, CAT]}, "2 images are more than the 1 known image frames"),
        ({"images": "cat.png"}, "no picture: str"),
        ({"images": np.zeros((4, 4, 5))}, "no picture: (4, 4, 5)"),
        ({"images": [[CAT], [CAT]]}, "2 sequences of images for 1 prompts"),
        ({"names": ["cat"], "colors": ["#123456"]}, "'#123456' is not one of the model's colors"),
        ({"names": ["cat"], "colors": []}, "0 colors for 1 names"),
        ({"names": ["cat", "dog"], "colors": ["#FF0000", "#ff0000"]}, "two classes share one; give each its own"),
        ({"names": ["cat", "cat"], "colors": ["#FF0000", "#0000FF"]}, "'cat' has two of them; a class has one color"),
        ({"prompt": "[[nonsense]] a cat"}, "it begins with [[, and not with [[semanticmap2image]]"),
        ({"prompt": "[[canny2image]] a cat"}, "it begins with [[, and not with [[semanticmap2image]]"),
        ({"prompt": "[[semanticmap2image]] a cat", "names": ["cat"]}, "it lacks <#FFFF00 yellow mask: cat>"),
        ({"normalize_cameras": True}, "normalize_cameras belongs to views with cameras"),
        ({"guidance_scale": 1, "negative_prompt": 5}, "negative_prompt 5: give a text"),
        ({"guidance_scale": 1, "negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"images": [CAT, CAT], "known": "image"}, 'for a sample of each, give 2 prompts, as ["", ""]'),
        ({"latents": torch.zeros(1, 1, 16, 4, 4)}, "they must be (1, 2, 16, 4, 4)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 samples"),
        ({"azimuth": [0], "elevation": [0], "distance": [1]}, "segmentation has no cameras"),
        ({"azimuth": [0]}, "give azimuth, elevation and distance of every view"),
        ({"output_type": "PIL"}, "output_type 'PIL'"),
        ({"output_type": "latents"}, "output_type 'latents' (did you mean 'latent'?)"),
        ({"num_inference_steps": 0}, "num_inference_steps 0: give a whole number of 1 or more"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5: give a whole number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"height": -16, "width": 16}, "height -16: give a whole number of 1 or more"),
        ({"prompt": []}, "prompt []: give a text"),
        ({"prompt": None}, "prompt None: give a text"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": 3}, "negative_prompt 3: give a text"),
        ({"return_dict": None}, "return_dict None: give True or False"),
        ({"prompt": "  [[canny2image]] a cat"}, "it begins with [[, and not with"),
        ({"condition_timestep": "first"}, "condition_timestep 'first'"),
        ({"images": 255.0 * np.ones((8, 8, 3))}, "picture with floats from 255 to 255: give 0…1, -1…1 or uint8"),
        ({"images": np.full((8, 8, 3), np.nan)}, "picture with floats from nan to nan"),
        ({"images": np.ones((8, 8, 3), np.uint16)}, "no picture"),
    ],
)
def test_wrong_calls_are_refused(pipe, settings, message):
    size = {} if {"height", "width"} & settings.keys() else {"height": 32, "width": 32}
    with pytest.raises(InputError) as error:
        pipe("segmentation", **{"images": CAT, "prompt": "a cat", **size, **settings})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ({"elevation": [90.0]}, "elevation 90: give degrees between -90 and 90"),
        ({"distance": [0.0]}, "distance 0: a camera is away from what it looks at"),
        ({"azimuth": [float("inf")]}, "azimuth inf: give finite numbers"),
        ({"azimuth": []}, "azimuth: give a number for each view"),
        ({"azimuth": ["north"]}, "azimuth ['north']: give a sequence of numbers"),
        ({"azimuth": "1"}, "azimuth '1': give a sequence of numbers"),
        ({"azimuth": {0.0: 1}}, "give a sequence of numbers"),
        ({"known": "image"}, "leave out known"),
        ({"distance": [1e-300]}, "distance 1e-300: give 1e-06 to 1e+06"),
        ({"c2w": 2 * torch.eye(4)[None]}, "the last row of each matrix must be 0, 0, 0, 1"),
        ({"c2w": torch.diag(torch.tensor([-1.0, 1, 1, 1]))[None]}, "c2w: a matrix mirrors space"),
        ({"intrinsics": torch.diag(torch.tensor([-1.0, 1, 1]))[None]}, "focal lengths must be more than 0"),
        (
            {"intrinsics": [[[900.0, 0, 512], [0, 900, 512], [0, 0, 1]]]},
            "they are in pixels; divide the first two rows",
        ),
        ({"denoise_mask": [1, 1]}, "generates all cameras: leave out those that are given"),
        ({"c2w": torch.full((1, 4, 4), torch.nan)}, "c2w: not all numbers are finite"),
        ({"c2w": torch.zeros(1, 4, 4)}, "c2w: a matrix cannot be inverted"),
        ({"intrinsics": torch.zeros(1, 3, 3)}, "intrinsics: a matrix cannot be inverted"),
    ],
)
def test_cameras_without_rays_are_refused(pipe, cameras, message):
    orbit = {} if "c2w" in cameras else {"azimuth": [0.0], "elevation": [10.0], "distance": [1.5]}
    with pytest.raises(InputError) as error:
        pipe("views", prompt="a cat", num_inference_steps=1, **{**orbit, **cameras})
    assert message in str(error.value)


def test_classes_of_one_name_share_a_color(pipe):
    call = {"names": ["cat", "dog", "cat"], "colors": ["#FF0000", "#0000FF", "#ff0000"], "known": "image"}
    assert list(pipe("segmentation", CAT, "a cat", **call, **SMALL).segmentation[0]) == ["cat", "dog"]
    whole = "[[semanticmap2image]] <#FF0000 red mask: cat> a cat"
    call = {"names": ["cat"], "colors": ["#FF0000"], "known": "image"}
    assert list(pipe("segmentation", CAT, whole, **call, **SMALL).segmentation[0]) == ["cat"]


def test_cameras_are_read_in_any_form(pipe):
    call = {"denoise_mask": [0, 1, 0, 1], "height": 32, "width": 32, "num_inference_steps": 1}
    for form in ("latent", "np"):
        assert pipe("views", [CAT, COFFEE], output_type=form, **call).cameras[0][0].shape == (2, 3, 3)


def test_lists_of_batches_are_lists_of_pictures(pipe):
    tensor = torch.from_numpy(CAT.copy()).permute(2, 0, 1)
    both = pipe("depth", [tensor[None], tensor[None]], ["", ""], **SMALL, output_type="pt").images
    assert len(both) == 2
    several = pipe("identity", [torch.stack([tensor, tensor])], "a cat", **SMALL)
    assert several.latents.shape[1] == 3


def test_negative_prompt_without_guidance_is_told(pipe, caplog):
    pipe("text2image", prompt="a cat", negative_prompt="a dog", guidance_scale=1.0, **SMALL)
    assert "a negative prompt has no effect without guidance" in caplog.text
    caplog.clear()
    pipe("text2image", prompt="a cat", guidance_scale=1.0, **SMALL)
    assert not caplog.text


def test_negative_prompts_belong_to_their_samples(pipe):
    settings = {"guidance_scale": 3.0, "output_type": "latent", **SMALL}
    prompts, negatives = ["a cat", "a dog"], ["a dog the cat", ""]
    together = pipe(
        "text2image", prompt=prompts, negative_prompt=negatives, generator=[seeded(0), seeded(1)], **settings
    )
    for place, negative in enumerate(("a dog the cat", None)):
        alone = pipe("text2image", prompt=prompts[place], negative_prompt=negative, generator=seeded(place), **settings)
        torch.testing.assert_close(together.latents[place : place + 1], alone.latents, rtol=1e-4, atol=1e-4)


def test_forms_of_one_picture_give_the_same(pipe):
    tensor = torch.from_numpy(CAT.copy()).permute(2, 0, 1)
    forms = [CAT, Image.fromarray(CAT), CAT / 255.0, CAT / 127.5 - 1, tensor, tensor / 255.0, tensor / 127.5 - 1]
    first, *others = [
        pipe("depth", form, "a cat", output_type="latent", generator=seeded(), **SMALL).latents for form in forms
    ]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-3)


def test_sampling_that_is_not_finite_says_where(pipe, monkeypatch):
    forward = pipe.transformer.forward
    calls = []

    def spoil(*arguments, **settings):
        calls.append(1)
        return forward(*arguments, **settings) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(pipe.transformer, "forward", spoil)
    with pytest.raises(InputError, match="not finite at step 2 of 2"):
        pipe("text2image", prompt="a cat", guidance_scale=1.0, **SMALL)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("of another kind"),
    ],
)
def test_too_little_memory_is_told(pipe, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pipe.transformer, "forward", fail)
    said = r"^too little memory for 2 samples of 1 frames of 48 × 32 \([^\n]*\); give fewer[^\n]*$"
    told = (RuntimeError, "^of another kind$") if "kind" in str(error) else (InputError, said)
    with pytest.raises(told[0], match=told[1]):
        pipe("text2image", prompt="a", num_images_per_prompt=2, height=32, width=48, num_inference_steps=1)


def test_folder_without_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        OneDiffusionPipeline.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        OneDiffusionPipeline.from_pretrained(tmp_path / "nowhere")
