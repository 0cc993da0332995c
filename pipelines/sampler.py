"""A checkpoint with its codec and text encoder, ready to run any task in either direction.

Symbols as in MODEL.md: B batch, F frames, V views, K known image frames, h × w latents.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.cameras import camera_rays, latents_to_rays, rays_to_cameras, rays_to_latents
from model.codecs import load_codec
from model.errors import InputError
from model.pictures import Picture, aspect_bucket, fit_picture
from model.sampling import sample_frames
from model.text import load_text_encoder
from training.checkpoint import load_checkpoint

C2W_SCALING = 1.7  # distance of the first camera in normalised camera frames (MODEL.md, Cameras)


@dataclass(frozen=True)
class Request:
    """One sample to draw.

    prompt: with its task token. mask: 1 for each frame to generate, in frame order. known: the pictures of the known
    image frames, in frame order. width, height: of every frame, in pixels. seed: of the noise. rays: for view sets,
    (V, 16, h, w) latents of all cameras (those not known are ignored).
    """

    prompt: str
    mask: tuple[int, ...]
    known: tuple[Picture, ...]
    width: int
    height: int
    seed: int = 0
    rays: Tensor | None = None


class Sampler:
    """Samples from one checkpoint. Not thread-safe."""

    def __init__(self, checkpoint: str, device: str | None = None) -> None:
        """checkpoint: a run or one of its checkpoints, local or s3://. Raises InputError when there is none."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of weights that are read in no time
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)
        self.transformer, self.state = load_checkpoint(checkpoint)
        self.dtype = torch.float32
        if self.device != "cpu":
            self.dtype = torch.bfloat16
            self.transformer.to(self.device, self.dtype)
        self.codec = load_codec(self.state.get("codec", "dct"), device=self.device)
        self.text = load_text_encoder(self.state.get("text_encoder", "minilm"), device=self.device)
        self.size = int(self.state.get("config", {}).get("size", 256))
        self.scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, max_shift=1.15
        )

    def bucket(self, picture: Picture) -> tuple[int, int]:
        """(width, height) that a picture of this aspect is sampled at."""
        return aspect_bucket(picture.shape[1], picture.shape[0], self.size)

    def encode(self, picture: Picture, width: int, height: int) -> Tensor:
        """Latents (16, h, w) of a picture, cropped and resized to width × height."""
        pixels = torch.from_numpy(fit_picture(picture, width, height).copy()).permute(2, 0, 1)[None]
        return self.codec.encode(pixels.to(self.device).float() / 127.5 - 1)[0]

    def decode(self, latents: Tensor) -> Picture:
        """(16, h, w) latents → (H, W, 3) uint8."""
        pixels = self.codec.decode(latents[None].float())[0].clamp(-1, 1)
        array = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(array)

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], steps: int = 50, guidance: float = 4.0, batch: int = 16
    ) -> list[Tensor]:
        """Final latents (F, 16, h, w) of each request; requests of one shape and mask run together.

        Raises InputError for sizes that do not divide by 16 and masks that do not fit the pictures given.
        """
        results: list[Tensor | None] = [None] * len(requests)
        alike: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            _check(request)
            shape = (request.mask, len(request.known), request.width, request.height, request.rays is None)
            alike.setdefault(shape, []).append(index)
        for indices in alike.values():
            for start in range(0, len(indices), batch):
                some = indices[start : start + batch]
                for index, latents in zip(some, self._run([requests[i] for i in some], steps, guidance), strict=True):
                    results[index] = latents
        return [result for result in results if result is not None]

    def _run(self, requests: Sequence[Request], steps: int, guidance: float) -> Tensor:
        first = requests[0]
        shape = (len(first.mask), 16, first.height // 8, first.width // 8)
        # Each sample has a generator of its own: what it gives does not depend on who shares its batch.
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in requests])
        known = torch.stack(
            [
                torch.stack([self.encode(picture, r.width, r.height) for picture in r.known])
                if r.known
                else torch.zeros((0, *shape[1:]), device=self.device)
                for r in requests
            ]
        )
        embeds, mask = self._prompts([request.prompt for request in requests], guidance > 1)
        rays = torch.stack([r.rays for r in requests]) if first.rays is not None else None
        latents: Tensor = sample_frames(
            self.transformer,
            self.scheduler,
            noise.to(self.device, self.dtype),
            known.to(self.device, self.dtype),
            list(first.mask),
            embeds.to(self.device, self.dtype),
            mask.to(self.device),
            steps,
            guidance=guidance,
            camera_rays=None if rays is None else rays.to(self.device, self.dtype),
        )
        return latents.float().cpu()

    def _prompts(self, prompts: Sequence[str], guided: bool) -> tuple[Tensor, Tensor]:
        """Padded embeddings (B, L, Y) and their mask (B, L), the empty prompts of guidance first."""
        encoded = self.text.encode([*([""] * len(prompts) if guided else []), *prompts])
        longest = max(len(one) for one in encoded)
        embeds = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, longest - len(one))) for one in encoded])
        mask = torch.stack([torch.arange(longest, device=one.device) < len(one) for one in encoded])
        return embeds, mask


def camera_latents(c2w: Tensor, intrinsics: Tensor, width: int, height: int) -> Tensor:
    """(V, 16, h, w) camera frames of view sets as training sees them: normalised, the first camera at 1.7.

    c2w: (V, 4, 4) OpenGL camera-to-world; intrinsics: (V, 3, 3), image width 1. Raises InputError unless the views are
    square, as the published cameras are.
    """
    if width != height:
        raise InputError(f"views must be square to have cameras, not {width} × {height}")
    rays = camera_rays(c2w, intrinsics, width // 8, normalize=True, scale=C2W_SCALING)
    return rays_to_latents(rays, height // 8, width // 8)


def recover_cameras(latents: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """R (V, 3, 3) and T (V, 3) in PyTorch3D's convention from generated camera frames (V, 16, h, w)."""
    rotation, translation = rays_to_cameras(latents_to_rays(latents), intrinsics, latents.shape[-1])
    return rotation, translation


def _check(request: Request) -> None:
    if request.width % 16 or request.height % 16:
        raise InputError(f"{request.width} × {request.height}: sides must divide by 16")
    frames, views = len(request.mask), 1 if request.rays is None else 2
    known = sum(not wanted for wanted in request.mask[::views])
    pictures = known if views == 2 or frames == 1 else sum(not wanted for wanted in request.mask)
    if len(request.known) != pictures:
        raise InputError(f"{len(request.known)} pictures given for {pictures} known image frames of {frames} frames")
