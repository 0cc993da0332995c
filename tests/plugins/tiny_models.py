"""Tiny random models of the classes that people name, saved in folders as the real ones are."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from model import NextDiT

SPECIAL_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>")
PLAIN_WORDS = ("USER", ":", "describe", "a", "the", "cat", "dog", "sits", "stands", "on", "red", "sofa", "grass")
WORDS = (*SPECIAL_WORDS, *PLAIN_WORDS)
# The layers of a transformer of one layer, by the names most configurations use.
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"image_size": 32, "patch_size": 16}


def save_t5(root):
    """A tiny random T5 encoder in the layout of a diffusers pipeline."""
    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    pieces += [(f"▁{word}", -2.0) for word in ("a", "dog", "the", "cat")]
    pieces += [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz[]2."]
    T5TokenizerFast(vocab=pieces, extra_ids=0).save_pretrained(root / "tokenizer")
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(root / "text_encoder")
    return root


def save_pipeline(root):
    """A tiny random OneDiffusion in the released layout, its scheduler as published."""
    torch.manual_seed(0)
    transformer = NextDiT(
        hidden_size=48, depth=2, num_heads=4, num_kv_heads=2, multiple_of=16, caption_channels=32, qk_norm=True
    )
    for parameter in transformer.parameters():  # gates start at 0, which would hide what text does
        if not parameter.any():
            parameter.data.normal_(std=0.2)
    transformer.save_pretrained(root / "transformer")
    save_vae(root / "vae", scaling_factor=1.5305)
    save_t5(root)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "OneDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "default_size": 64,
        # As released: the module of a package that is not installed here.
        "transformer": ["onediffusion.models.denoiser.nextdit", "NextDiT"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def save_vae(folder, levels=4, **config):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        layers_per_block=1,
        **{"latent_channels": 16, **config},
    )
    vae.save_pretrained(folder)
    return vae


def save_depth_anything(folder, kind="relative"):
    """A tiny random Depth Anything in a folder."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    # Random layers as small as they are initialized give next to the same depth everywhere.
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    # Around 2, by so little that neither the ReLU nor the sigmoid that ends it saturates.
    last = model.head.conv3
    spread: list[float] = []
    hook = last.register_forward_hook(lambda _module, _inputs, output: spread.append(output.std().item()))
    with torch.no_grad():
        model(torch.randn(1, 3, 56, 84))
        hook.remove()
        last.weight *= 0.3 / spread[0]
        last.bias.fill_(0.0)
        hook = last.register_forward_hook(lambda _module, _inputs, output: spread.append(output.mean().item()))
        model(torch.randn(1, 3, 56, 84))
        hook.remove()
        last.bias.fill_(2.0 - spread[1])
    model.save_pretrained(folder, safe_serialization=True)
    DPTImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)  # fmt: skip


def word_tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, **special, cls_token="[CLS]", sep_token="[SEP]", extra_special_tokens=["<image>"]
    )


SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZE = {"size": {"height": 32, "width": 32}}


def save_captioner(network, folder):
    network.generation_config.pad_token_id, network.generation_config.eos_token_id = 0, 3
    # A random model may end at once, or write special tokens.
    network.generation_config.suppress_tokens = list(range(len(SPECIAL_WORDS)))
    network.save_pretrained(folder)


def save_blip(folder, words=PLAIN_WORDS):
    """A tiny random BLIP in a folder, which writes these words."""
    text = {**SMALL, **SPECIAL, "vocab_size": len(WORDS), "sep_token_id": 3, "encoder_hidden_size": 16}
    config = BlipConfig(text_config={**text, "bos_token_id": 2}, vision_config={**SMALL, **VISION}, projection_dim=16)
    network = BlipForConditionalGeneration(config)
    head = network.text_decoder.cls.predictions
    for bias in (head.bias, head.decoder.bias):  # it decodes by a configuration of its own
        bias.data = torch.tensor([0.0 if word in words else -1e4 for word in WORDS])
    save_captioner(network, folder)
    BlipProcessor(BlipImageProcessorPil(**SIZE), word_tokenizer()).save_pretrained(folder)
