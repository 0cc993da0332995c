"""Sections of `make bench-gpu` about the models beside the transformer: image codec, text encoder, a labeler."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import Setting, gigabytes, median_seconds, require, timed

Figures = dict[str, Any]


def codec(setting: Setting) -> Figures:
    """An autoencoder of SD3's size with random weights, through ImageCodec."""
    from diffusers import AutoencoderKL

    from model.codecs import ImageCodec

    torch.manual_seed(0)
    channels, side, batch = ((16, 32), 64, 2) if setting.small else ((128, 256, 512, 512), 512, 8)
    with torch.device(setting.device):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(channels),
            up_block_types=["UpDecoderBlock2D"] * len(channels),
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=8 if setting.small else 32,
            scaling_factor=1.5305,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
    figures: Figures = {"parameters": sum(parameter.numel() for parameter in vae.parameters()), "side": side}
    pixels = torch.rand(batch, 3, side, side, device=setting.device) * 2 - 1
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        coder = ImageCodec(vae.to(dtype))
        latents = coder.encode(pixels)
        figures[f"{name}_encoded_per_second"] = batch / median_seconds(setting, lambda c=coder: c.encode(pixels), 3)
        figures[f"{name}_decoded_per_second"] = batch / median_seconds(
            setting, lambda c=coder, z=latents: c.decode(z), 3
        )
    return figures


def text(setting: Setting) -> Figures:
    """A T5 encoder of the size of XXL with random weights in bf16, on prompts of 300 tokens."""
    from transformers import T5Config, T5EncoderModel

    large = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    tiny = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    config = T5Config(**(tiny if setting.small else large), feed_forward_proj="gated-gelu", vocab_size=32128)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(setting.device):
            encoder = T5EncoderModel(config).eval()
    finally:
        torch.set_default_dtype(default)
    batch, length = (2, 32) if setting.small else (16, 300)
    tokens = torch.randint(0, 32128, (batch, length), device=setting.device)

    @torch.no_grad()
    def encode() -> Any:
        return encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state

    assert encode().isfinite().all()
    figures: Figures = {"parameters": sum(parameter.numel() for parameter in encoder.parameters())}
    figures["tokens_per_second"] = batch * length / median_seconds(setting, encode, 3)
    if setting.cuda:
        figures["gigabytes"] = gigabytes(torch.cuda.max_memory_allocated())
    return figures


def labeler(setting: Setting) -> Figures:
    """The depth labeler with a random model of the size of Depth Anything V2 Small, on the GPU beside the CPU."""
    from PIL import Image

    from labeling.labelers.depth import DepthLabeler

    draws = np.random.default_rng(0)
    count, (height, width) = (2, (96, 128)) if setting.small else (16, (480, 640))
    coarse = draws.integers(0, 255, (count, 12, 16, 3), np.uint8)
    pictures = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    rows = [{"images.image": picture, "id": str(number)} for number, picture in enumerate(pictures)]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        _save_depth_anything(Path(folder), setting.small)
        levels = {}
        for name in ("cpu", "gpu"):
            one = DepthLabeler("depth", DepthLabeler.Parameters(model=folder))
            one.device = setting.device if name == "gpu" else "cpu"
            one.load()
            some = rows[:2] if name == "cpu" else rows
            one.label(some[:1])
            seconds, labels = timed(setting, lambda one=one, some=some: one.label(some))
            figures[f"{name}_pictures_per_second"] = len(some) / seconds
            levels[name] = [np.asarray(Image.open(io.BytesIO(row["depth"])), np.float32) for row in labels[:2]]
        if setting.cuda:
            assert one._network.device.type == "cuda", "the labeler did not go to the GPU"
        prepared = [one.prepare(row) for row in rows]
        inputs = [each.inputs for each in prepared]
        outputs = one.infer(inputs)
        for step, work in (
            ("prepare", lambda: [one.prepare(row) for row in rows]),
            ("infer", lambda: one.infer(inputs)),
            (
                "finish",
                lambda: [one.finish(*pair) for pair in zip(outputs, (p.context for p in prepared), strict=True)],
            ),
        ):
            figures[f"{step}_pictures_per_second"] = count / median_seconds(setting, work, 3)
        figures["network_pictures_per_second"] = 1 / median_seconds(setting, lambda: _network(one, pictures[:1]), 3)
        figures["network_batched_pictures_per_second"] = count / median_seconds(
            setting, lambda: _network(one, pictures), 3
        )
    # A share of the range between the nearest and the farthest, which labels spread over 65534 levels.
    apart = [np.abs(a - b).max() / 65534 for a, b in zip(levels["cpu"], levels["gpu"], strict=True)]
    figures["largest_difference"] = float(max(apart))
    require(figures["largest_difference"] < 0.02, "the labels differ", figures)
    return figures


@torch.no_grad()
def _network(one: Any, pictures: list[Any]) -> Any:
    inputs = one._processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
    return one._network(**inputs.to(one._network.device)).predicted_depth


def _save_depth_anything(folder: Path, small: bool) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    width, depth, side = (48, 4, 70) if small else (384, 12, 518)
    stages = [f"stage{depth * part // 4}" for part in (1, 2, 3, 4)]
    backbone = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_features=stages,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        patch_size=14,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": side, "width": side}, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False
    ).save_pretrained(folder)
