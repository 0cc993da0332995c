"""A run's checkpoint as a pipeline, and many calls of it at once. Heavy imports stay inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.pictures import Picture, aspect_bucket
from training.checkpoint import load_checkpoint
from training.checkpoint.loading import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model import OneDiffusionPipeline


@dataclass(frozen=True)
class Call:
    """One sample to draw: arguments of the pipeline that differ between samples.

    mask: 1 for each frame to generate, in frame order. images: the pictures of the known image frames. width, height:
    of every frame, in pixels. c2w, intrinsics: (V, 4, 4) and (V, 3, 3) of a view set; c2w where cameras are known.
    """

    task: str
    prompt: str
    mask: tuple[int, ...]
    images: tuple[Picture, ...]
    width: int
    height: int
    seed: int = 0
    c2w: Tensor | None = None
    intrinsics: Tensor | None = None


def load_pipeline(
    checkpoint: str, device: str | None = None, weights: Weights = "averaged", dtype: torch.dtype | None = None
) -> OneDiffusionPipeline:
    """The pipeline of a run or one of its checkpoints, local or s3://, on a GPU in bf16 if there is one; or that of a
    folder in diffusers layout or a hub name.

    weights, dtype: of the transformer, see `training.checkpoint.load_checkpoint`.
    Raises InputError when there is no checkpoint.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers.utils.logging import disable_progress_bar

    from model import OneDiffusionPipeline
    from model.codecs import load_autoencoder
    from model.text import load_text_encoder

    disable_progress_bar()  # weights load too fast for one to be of use
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        # OMP_NUM_THREADS says how many cores this process may use. With more threads than cores sampling takes many
        # times as long, since every operation waits for the slowest thread.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    if device != "cpu":
        dtype = dtype or torch.bfloat16
    transformer, state = load_checkpoint(checkpoint, weights, dtype)
    if not state and (Path(checkpoint, "model_index.json").is_file() or not Path(checkpoint).exists()):
        pipeline = OneDiffusionPipeline.from_pretrained(checkpoint, transformer=transformer)  # a folder, or of the hub
    else:
        text = load_text_encoder(state.get("text_encoder", "minilm"))
        pipeline = OneDiffusionPipeline(
            transformer,
            load_autoencoder(state.get("codec", "dct")),
            text.model,
            text.tokenizer,
            FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, max_shift=1.15
            ),
            default_size=int(state.get("config", {}).get("size", 256)),
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    return pipeline


def bucket(pipeline: OneDiffusionPipeline, picture: Picture) -> tuple[int, int]:
    """(width, height) that a picture of this aspect is sampled at."""
    return aspect_bucket(picture.shape[1], picture.shape[0], pipeline.config.default_size)


def sample_all(
    pipeline: OneDiffusionPipeline, calls: Sequence[Call], steps: int, guidance: float, batch: int = 16
) -> list[tuple[list[Picture], Any]]:
    """For each call the images (H, W, 3) of its generated frames, and its cameras (R, T), None without generated ones.

    Calls of one shape run in batches; each has its own noise, so its result does not depend on the others.
    """
    import torch

    results: list[Any] = [None] * len(calls)
    same_shape: dict[Any, list[int]] = {}
    for index, call in enumerate(calls):
        alone = index if call.intrinsics is not None else None  # the pipeline takes the cameras of one view set
        key = (call.task, call.mask, len(call.images), call.width, call.height, alone)
        same_shape.setdefault(key, []).append(index)
    for indices in same_shape.values():
        for start in range(0, len(indices), batch):
            some = [calls[index] for index in indices[start : start + batch]]
            first = some[0]
            output = pipeline(
                first.task,
                [list(call.images) for call in some],
                [call.prompt for call in some],
                denoise_mask=first.mask,
                c2w=first.c2w,
                intrinsics=first.intrinsics,
                width=first.width,
                height=first.height,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(call.seed) for call in some],
                output_type="np",
            )
            each = 0 if output.images is None else len(output.images) // len(some)
            for place, index in enumerate(indices[start : start + batch]):
                pictures = [] if not each else output.images[place * each : (place + 1) * each]
                cameras = output.cameras[place] if output.cameras else None
                results[index] = ([np.uint8((picture * 255).round()) for picture in pictures], cameras)
    return results
