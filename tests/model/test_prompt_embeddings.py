"""Prompts as texts or embeddings, of any lengths, with a text encoder in memory or without one."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from skimage import data
from tiny_models import save_pipeline

from model import OneDiffusionPipeline
from model.inputs import InputError
from model.prompts import TASKS
from model.sampling import set_timesteps
from model.text import cut_texts

CAT = data.chelsea()
SMALL = {"height": 32, "width": 32, "num_inference_steps": 2}
TEXT = {"prompt": "a cat", "negative_prompt": "the dog the dog the dog"}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipeline = OneDiffusionPipeline.from_pretrained(save_pipeline(tmp_path_factory.mktemp("embeds")))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def given(encoded):
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return dict(zip(names, encoded, strict=True))


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("lengths", [(0, 40), (12, 1)])
def test_guidance_equals_two_calls_without_padding(pipe, task, lengths):
    """Prompts of different lengths share a batch: neither sees the padding of the other, for any task."""
    positive, negative = (" ".join(["cat", "the"] * count) for count in lengths)
    settings = {"names": ["cat"]} if TASKS[task].phrase else {}
    pictures = [CAT] if TASKS[task].is_paired or TASKS[task].references else None
    if task == "views":
        settings = {"azimuth": [0, 30], "elevation": [10, 10], "distance": [1.5, 1.5]}
        pictures = [CAT]
    call = {"guidance_scale": 3.0, "output_type": "latent", **SMALL, **settings}
    seen = {}

    def watch(pipeline, index, timestep, tensors):
        seen[index] = tensors["latents"].clone()
        return {}

    together = pipe(
        task, pictures, positive, negative_prompt=negative, generator=seeded(), callback_on_step_end=watch, **call
    ).latents
    text = pipe.encode_prompt(positive, negative, task=task, names=settings.get("names", ()))
    assert text[0].shape[1] != text[2].shape[1]
    # One step from where the call was after its first, with each prompt alone and nothing padded.
    frames = seen[0].shape[1]
    known = [frame for frame in range(frames) if torch.equal(seen[0][:, frame], together[:, frame])]
    timesteps = set_timesteps(pipe.scheduler, 2, (frames - len(known)) * 4, torch.device("cpu"))
    levels = torch.where(torch.tensor([frame in known for frame in range(frames)]), timesteps[-1], timesteps[1])[None]
    with torch.no_grad():
        to, away = (
            pipe.transformer.forward_packed(list(seen[0]), list(levels), [embeds[0]])[0] for embeds in text[::2]
        )
    step = pipe.scheduler.sigmas[2] - pipe.scheduler.sigmas[1]
    expected = seen[0][0] + step * (away + 3.0 * (to - away))
    changed = [frame for frame in range(frames) if frame not in known]
    assert changed
    torch.testing.assert_close(together[0, changed], expected[changed], rtol=1e-3, atol=1e-4)


def test_embeddings_stand_for_their_prompts(pipe):
    expected = pipe("depth", CAT, **TEXT, **SMALL, generator=seeded()).latents
    encoded = pipe.encode_prompt(*TEXT.values(), task="depth")
    without = OneDiffusionPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None})
    without.set_progress_bar_config(disable=True)
    for pipeline in (pipe, without):
        again = pipeline("depth", CAT, **SMALL, **given(encoded), generator=seeded()).latents
        assert torch.equal(again, expected)


def test_given_embeddings_are_repeated_and_may_have_other_lengths(pipe):
    encoded = pipe.encode_prompt(["a cat", "the dog the dog"], "", task="text2image", num_images_per_prompt=1)
    generators = [seeded(seed) for seed in range(4)]
    four = pipe("text2image", **given(encoded), **SMALL, num_images_per_prompt=2, generator=generators).latents
    for place, caption in enumerate(("a cat", "a cat", "the dog the dog", "the dog the dog")):
        alone = pipe("text2image", prompt=caption, **SMALL, generator=seeded(place)).latents
        torch.testing.assert_close(four[place : place + 1], alone, rtol=1e-4, atol=1e-4)
    one = dict(list(given(encoded).items())[:2])  # the negative prompt as a text
    mixed = pipe("text2image", **one, **SMALL, generator=[seeded(0), seeded(2)]).latents
    torch.testing.assert_close(mixed, four[::2], rtol=1e-4, atol=1e-4)


def test_pipeline_without_encoder_is_saved_and_loaded(pipe, tmp_path):
    OneDiffusionPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None}).save_pretrained(tmp_path)
    again = OneDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.text_encoder is None and again.tokenizer is None
    encoded = pipe.encode_prompt(*TEXT.values(), task="text2image")
    assert again("text2image", **given(encoded), **SMALL).images[0].size == (32, 32)
    with pytest.raises(InputError, match="this pipeline has no text_encoder: give prompt_embeds"):
        again("text2image", prompt="a cat", **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a cat"}, "give prompt or prompt_embeds, not both"),
        ({"prompt_embeds": torch.zeros(1, 4, 5)}, "prompt_embeds: 5 wide, the transformer takes 32"),
        ({"prompt_embeds": torch.zeros(4, 32)}, "give a tensor of floats (samples, tokens, 32)"),
        (
            {"prompt_embeds": torch.zeros(1, 4, 32, dtype=torch.int64)},
            "torch.int64 (1, 4, 32); give a tensor of floats",
        ),
        ({"prompt_embeds": [0.0]}, "prompt_embeds: list; give a tensor"),
        ({"prompt_embeds": torch.zeros(0, 4, 32)}, "prompt_embeds: Tensor; give a tensor with a row for each sample"),
        ({"prompt_embeds": torch.full((1, 4, 32), torch.nan)}, "prompt_embeds: not all numbers are finite"),
        ({"prompt_attention_mask": torch.ones(1, 3)}, "prompt_attention_mask: (1, 3); give a tensor (1, 4)"),
        ({"prompt_attention_mask": torch.zeros(1, 4)}, "at least one in each"),
        ({"prompt_attention_mask": torch.full((1, 4), 0.5)}, "give 1 for tokens of the prompt"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 2, 32)}, "not both"),
        ({"negative_prompt_embeds": torch.zeros(3, 2, 32)}, "3 negative_prompt_embeds for 1 prompts"),
        ({"negative_prompt_attention_mask": torch.ones(1, 2)}, "without negative_prompt_embeds"),
        ({"task": "identity", "images": CAT, "reference_prompts": ["a"]}, "reference_prompts with prompt_embeds"),
        ({"task": "subject", "images": CAT, "names": ["cup"]}, "names with prompt_embeds, which are of a whole prompt"),
    ],
)
def test_embeddings_that_do_not_serve_are_refused(pipe, settings, message):
    with pytest.raises(InputError) as error:
        pipe(**{"task": "text2image", "prompt_embeds": torch.zeros(1, 4, 32), **SMALL, **settings})
    assert message in str(error.value)


def test_bare_prompt_is_not_encoded_without_its_task(pipe):
    with pytest.raises(InputError, match="prompt 'a cat': name its task, or begin it with the token"):
        pipe.encode_prompt("a cat")
    with pytest.raises(InputError, match=r"prompt '\[\[nonsense\]\] a cat': name its task"):
        pipe.encode_prompt("[[nonsense]] a cat")
    token = pipe.encode_prompt("[[text2image]] a cat")
    assert torch.equal(token[0], pipe.encode_prompt("a cat", task="text2image")[0])
    assert pipe.encode_prompt("a cat", task="text2image", do_classifier_free_guidance=False)[2:] == (None, None)


def test_long_prompt_says_what_is_left_out(pipe, caplog):
    words = "a cat " * 200 + "the dog"
    with caplog.at_level(logging.WARNING):
        pipe("text2image", prompt=words, **SMALL)
    [record] = [record.getMessage() for record in caplog.records if "takes 300 tokens" in record.getMessage()]
    assert record.endswith("the dog'") and "leaves out 'a cat" in record
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pipe("text2image", prompt="a cat " * 20, **SMALL)
    assert not caplog.records
    assert cut_texts(pipe.tokenizer, 8, ["the dog the dog the dog the dog the dog"]) == ["dog the dog"]


def test_text_encoder_that_is_not_finite_is_named(pipe, monkeypatch):
    weight = pipe.text_encoder.encoder.final_layer_norm.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("inf")))
    with pytest.raises(InputError, match="text encoder: numbers that are not finite for the prompt"):
        pipe("text2image", prompt="a cat", **SMALL)


@pytest.mark.parametrize(
    ("part", "task", "message"),
    [("encoder", "depth", "latents of a known picture"), ("decoder", "text2image", "decoded pictures")],
)
def test_image_codec_that_is_not_finite_is_named(pipe, monkeypatch, part, task, message):
    weight = getattr(pipe.vae, part).conv_in.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    pictures = [CAT] if task == "depth" else None
    with pytest.raises(InputError, match=f"image codec: {message} with numbers that are not finite"):
        pipe(task, pictures, "a cat", **SMALL)


def test_words_that_no_task_takes_are_refused(pipe):
    for settings, message in (
        ({"names": ["cat"]}, "depth names no classes; names belong to segmentation, boxes and subject"),
        ({"reference_prompts": ["a cat"]}, "reference_prompts belong to identity and subject"),
        ({"intrinsics": torch.eye(3)[None]}, "intrinsics belong to views"),
    ):
        with pytest.raises(InputError, match=message):
            pipe("depth", CAT, **SMALL, **settings)
    with pytest.raises(InputError, match="colors belong to segmentation and boxes"):
        pipe("subject", CAT, **SMALL, names=["cup"], colors=["#FF0000"])
    for settings, message in (
        ({"prompt": "[[depth2image]] a cat", "names": ["cat"]}, "are put into a prompt by its task: name it"),
        ({"prompt_embeds": torch.zeros(1, 4, 32), "task": "depth"}, "prompt_embeds are of a whole prompt: leave out"),
        ({"prompt": "a cat", "task": "depth", "reference_prompts": ["a"]}, "depth refers to no captions"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.encode_prompt(**settings)
    for settings in ({"colors": np.array([])}, {"names": torch.zeros(0)}, {"reference_prompts": np.array(["a", "b"])}):
        for call, given in ((pipe, {"task": "depth", "images": CAT, **SMALL}), (pipe.encode_prompt, {"prompt": "a"})):
            with pytest.raises(InputError, match=f"{next(iter(settings))} .*: give a list of texts"):
                call(**given, **settings)
    with pytest.raises(InputError, match="2 reference_prompts for 1 pictures"):
        pipe("identity", CAT, **SMALL, reference_prompts=["a", "b"])


def test_sampling_frames_takes_the_guidance_of_each_step(pipe):
    """A callback of diffusers may change the guidance, as PipelineTesterMixin has it."""
    seen = []

    def increase(pipeline, index, timestep, tensors):
        seen.append(pipeline.guidance_scale)
        pipeline._guidance_scale += 1.0
        return tensors

    call = {"prompt": "a cat", **SMALL, "guidance_scale": 2.0, "output_type": "latent"}
    changed = pipe("text2image", **call, generator=seeded(), callback_on_step_end=increase).latents
    assert seen == [2.0, 3.0] and pipe.guidance_scale == 2.0 + pipe.num_timesteps
    constant = pipe("text2image", **call, generator=seeded()).latents
    assert not torch.allclose(changed, constant, atol=1e-3)
