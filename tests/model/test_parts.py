"""Parts of a pipeline that do not fit each other, told before anything is sampled."""

from __future__ import annotations

import re
import tempfile

import pytest
from diffusers import AutoencoderTiny, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import save_pipeline, save_vae
from transformers import T5Config, T5EncoderModel

from model import NextDiT, OneDiffusionPipeline
from model.inputs import InputError

SMALL = {"height": 32, "width": 48, "num_inference_steps": 2}
DYNAMIC = {"use_dynamic_shifting": True}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return OneDiffusionPipeline.from_pretrained(save_pipeline(tmp_path_factory.mktemp("parts")))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: save_vae_of(levels=3), "vae: an autoencoder with 16 channels at 1/4 of the side"),
        (lambda: save_vae_of(latent_channels=4), "vae: an autoencoder with 4 channels at 1/8 of the side"),
        (lambda: {"vae": AutoencoderTiny(latent_channels=16)}, "vae: AutoencoderTiny; take an AutoencoderKL"),
        (lambda: {"text_encoder": T5EncoderModel(T5Config(d_model=16, d_kv=4, num_layers=1))}, "16 wide, the transf"),
        (
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler(max_image_seq_len=256)},
            "base_image_seq_len and max_image_seq_len are both 256",
        ),
        (
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=1)},
            r"scheduler: its configuration gives \[1000.0, 1000.0\] as .* toward 0; correct it",
        ),
        (
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler(**DYNAMIC, num_train_timesteps=3)},
            r"gives \[3.0, .*\] as timesteps, which are to fall from 1000",
        ),
        (
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler(**DYNAMIC, invert_sigmas=True)},
            "which are to fall from 1000",
        ),
        (lambda: {"scheduler": DDIMScheduler()}, "scheduler DDIMScheduler: take a FlowMatchEulerDiscreteScheduler"),
        (
            lambda: {"transformer": NextDiT(hidden_size=48, depth=1, num_heads=4, in_channels=4)},
            "NextDiT of 4 channels",
        ),
    ],
)
def test_parts_that_do_not_fit_are_told_before_sampling(pipe, part, message):
    other = OneDiffusionPipeline(**{**pipe.components, **part()})
    with pytest.raises(InputError) as error:
        other("text2image", prompt="a cat", **SMALL)
    assert re.search(message, str(error.value))


def save_vae_of(**settings):
    with tempfile.TemporaryDirectory() as folder:
        return {"vae": save_vae(folder, **settings)}


def test_tokens_that_the_encoder_does_not_know_are_told(pipe):
    small = T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4))
    other = OneDiffusionPipeline(**{**pipe.components, "text_encoder": small})
    with pytest.raises(InputError, match="the tokenizer has tokens up to"):
        other("text2image", prompt="a cat zzz", **SMALL)
