"""Public calls with anything for arguments: each gives a right result or one line that says what is wrong.

FUZZ_EXAMPLES sets how many calls of each kind are tried; the suite tries few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import LIGHT, told
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import save_pipeline

from model import OneDiffusionPipeline
from model.pictures import as_picture
from model.prompts import TASKS, build_prompt, draw_colors, find_task

SIDES = st.sampled_from([16, 32, 48])
NUMBERS = st.one_of(
    st.integers(-3, 40), st.floats(), st.booleans(), st.sampled_from([float("nan"), 1e308, -0.0, 2**70, -(2**70)])
)
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(["a cat", "[[depth2image]] a cat", "[[", "", "\0", "#FF0000"]))
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 16, 32]), max_size=5))
    dtype = draw(st.sampled_from(TYPES))
    kind = draw(st.sampled_from(["zeros", "ones", "random", "nan", "wide"]))
    values = {
        "zeros": torch.zeros,
        "ones": torch.ones,
        "random": torch.rand,
        "nan": lambda size: torch.full(size, torch.nan),
        "wide": lambda size: torch.rand(size) * 400 - 100,
    }[kind](tuple(shape))
    return values.nan_to_num().abs().to(dtype) if not dtype.is_floating_point else values.to(dtype)


@st.composite
def arrays(draw: Any) -> Any:
    tensor = draw(tensors())
    array = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array.astype(draw(st.sampled_from([array.dtype, np.float64, np.uint16, np.int8, object])))


@st.composite
def images(draw: Any) -> Image.Image:
    mode = draw(st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "LAB"]))
    image = Image.new(mode, draw(st.tuples(st.integers(0, 40), st.integers(1, 40))), draw(st.integers(0, 255)))
    for name in draw(st.sets(st.sampled_from(["exif", "icc_profile", "transparency", "xmp", "gamma", "chromaticity"]))):
        image.info[name] = draw(st.one_of(st.binary(max_size=30), st.integers(-2, 300), st.text(max_size=5), st.none()))
    return image


JUNK = st.one_of(
    st.none(), NUMBERS, TEXTS, tensors(), arrays(), images(), st.binary(max_size=5),
    st.lists(st.one_of(NUMBERS, TEXTS, st.none(), arrays(), images(), tensors()), max_size=3),
    st.dictionaries(TEXTS, NUMBERS, max_size=2), st.tuples(NUMBERS, NUMBERS), st.builds(object),
    st.builds(torch.Generator), st.lists(st.builds(torch.Generator), max_size=3),
)  # fmt: skip
PICTURES = st.sampled_from(
    [
        np.full((20, 30, 3), 90, np.uint8),
        np.full((33, 20), 0.25),
        torch.full((3, 17, 17), -0.5),
        Image.new("RGBA", (9, 5)),
    ]
)
COUNTS = st.integers(1, 2)
DEGREES = st.lists(st.floats(-80, 80), min_size=1, max_size=3)
SOUND = {  # what serves, at least sometimes
    "task": st.one_of(st.sampled_from(list(TASKS)), st.lists(st.sampled_from(list(TASKS)), min_size=1, max_size=3)),
    "images": st.one_of(st.none(), PICTURES, st.lists(PICTURES, max_size=3), st.lists(st.lists(PICTURES, max_size=2))),
    "prompt": st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)),
    "known": st.sampled_from([None, "image", "condition"]),
    "denoise_mask": st.lists(st.integers(0, 1), min_size=1, max_size=6),
    "negative_prompt": st.one_of(st.none(), TEXTS, st.lists(TEXTS, max_size=3)),
    "names": st.lists(st.sampled_from(["cat", "dog", "cat"]), max_size=3),
    "colors": st.lists(st.sampled_from(["#FF0000", "#00ff00", "#123456"]), max_size=3),
    "reference_prompts": st.lists(TEXTS, max_size=3),
    "azimuth": DEGREES, "elevation": DEGREES, "distance": st.lists(st.floats(0.1, 9), min_size=1, max_size=3),
    "c2w": st.sampled_from([torch.eye(4)[None], torch.eye(4).repeat(2, 1, 1), np.eye(4)[None]]),
    "intrinsics": st.sampled_from([torch.eye(3)[None], torch.eye(3).repeat(2, 1, 1).tolist()]),
    "normalize_cameras": st.sampled_from([None, True, False]),
    "height": SIDES, "width": SIDES,
    "guidance_scale": st.one_of(st.none(), st.floats(0, 9)),
    "condition_timestep": st.sampled_from(["last", "zero"]),
    "num_images_per_prompt": st.integers(1, 2),
    "generator": st.one_of(st.none(), st.builds(torch.Generator), st.lists(st.builds(torch.Generator), max_size=2)),
    "latents": st.builds(lambda frames, side: torch.randn(1, frames, 16, side, side), st.integers(1, 4), st.just(4)),
    "prompt_embeds": st.builds(lambda count, tokens: torch.randn(count, tokens, 32), COUNTS, st.integers(1, 9)),
    "prompt_attention_mask": st.builds(lambda count, tokens: torch.ones(count, tokens), COUNTS, st.integers(1, 9)),
    "negative_prompt_embeds": st.builds(lambda tokens: torch.randn(1, tokens, 32), st.integers(1, 5)),
    "output_type": st.sampled_from(["pil", "np", "pt", "latent"]),
    "return_dict": st.booleans(),
}  # fmt: skip


ORBIT = {"azimuth": [0, 30], "elevation": [10, 10], "distance": [1.5, 1.5]}
GRAY = np.full((20, 30, 3), 90, np.uint8)
WORKING: list[dict[str, Any]] = [
    {"task": "text2image"},
    {"task": "text2image", "prompt": ["a cat", "a dog"]},
    *({"task": name, "images": GRAY} for name, task in TASKS.items() if task.is_paired or task.references),
    *({"task": name, "images": [GRAY], "known": "image"} for name, task in TASKS.items() if task.is_paired),
    {"task": ["edges", "depth"], "images": [GRAY, GRAY]},
    {"task": "views", "images": [GRAY], **ORBIT},
    {"task": "views", "images": [GRAY, GRAY]},
    {"task": "depth", "images": [[GRAY], [GRAY]], "prompt": ["a", "b"]},
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> OneDiffusionPipeline:
    pipeline = OneDiffusionPipeline.from_pretrained(save_pipeline(tmp_path_factory.mktemp("fuzz")), default_size=32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@LIGHT
@given(data=st.data())
def test_pipeline_samples_or_says_what_is_wrong(pipe: OneDiffusionPipeline, data: Any) -> None:
    call = {"height": 32, "width": 32, "num_inference_steps": 1, **data.draw(st.sampled_from(WORKING))}
    call |= {name: data.draw(SOUND[name]) for name in data.draw(st.lists(st.sampled_from(sorted(SOUND)), max_size=2))}
    call |= {name: data.draw(JUNK) for name in data.draw(st.lists(st.sampled_from(sorted(SOUND)), max_size=1))}
    output = told(lambda: pipe(**call))
    if output is None:
        return
    pictures = output.images if call.get("return_dict", True) else output[0]
    kind = call.get("output_type", "pil")
    if pictures is not None and kind != "pil":
        values = np.asarray(pictures)
        assert np.isfinite(values).all() and (kind == "latent" or (values.min() >= 0 and values.max() <= 1))
    if pictures is not None and kind == "pil":
        assert {image.size for image in pictures} == {(call["width"] or 32, call["height"] or 32)} or not call["width"]


@LIGHT
@given(picture=st.one_of(JUNK, images(), arrays(), tensors()))
def test_any_picture_is_taken_or_refused(picture: Any) -> None:
    found = told(lambda: as_picture(picture))
    assert found is None or (found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.size)


@LIGHT
@given(data=st.data())
def test_prompts_are_encoded_or_refused(pipe: OneDiffusionPipeline, data: Any) -> None:
    names = ["prompt", "negative_prompt", "task", "names", "colors", "reference_prompts", "num_images_per_prompt"]
    names += ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds"]
    call: dict[str, Any] = {"task": data.draw(st.sampled_from(list(TASKS))), "prompt": "a cat"}
    call |= {name: data.draw(SOUND[name]) for name in data.draw(st.lists(st.sampled_from(names), max_size=2))}
    call |= {name: data.draw(JUNK) for name in data.draw(st.lists(st.sampled_from(names), max_size=1))}
    found = told(lambda: pipe.encode_prompt(**call))
    if found is not None:
        assert all(torch.isfinite(part).all() for part in found if part is not None and part.is_floating_point())
        assert found[0].shape[:2] == found[1].shape


@LIGHT
@given(weights=st.dictionaries(
    st.one_of(TEXTS, st.builds(
        "transformer.layers.{}.attention.{}.{}".format, st.integers(0, 3), st.sampled_from(["wq", "wk", "wx"]),
        st.sampled_from(["lora_A.weight", "lora_B.weight", "alpha", "lora_C.weight", "weight"]),
    )),
    st.one_of(tensors(), st.just(torch.zeros(4, 48)), st.just(torch.zeros(48, 4)), st.just(torch.tensor(2.0)), NUMBERS),
    max_size=4,
))  # fmt: skip
def test_adapters_are_loaded_or_refused_as_a_whole(pipe: OneDiffusionPipeline, weights: Any) -> None:
    before = set(pipe.transformer.state_dict())
    try:
        told(lambda: pipe.load_lora_weights(weights))
    finally:
        pipe.unload_lora_weights()
    assert set(pipe.transformer.state_dict()) == before


@LIGHT
@given(task=st.one_of(st.sampled_from(list(TASKS)), JUNK), caption=JUNK, names=JUNK, colors=JUNK, sources=JUNK)
def test_prompts_are_built_or_refused(task: Any, caption: Any, names: Any, colors: Any, sources: Any) -> None:
    told(lambda: find_task(task))
    told(lambda: draw_colors(names, "seed"))
    found = told(lambda: build_prompt(task, caption, names, colors, sources))
    assert found is None or isinstance(found, str)
