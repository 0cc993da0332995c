"""Image codecs: pictures to the 16-channel latents that the transformer works on, and back.

B pictures, H × W pixels, h = H/8, w = W/8.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from model.dct import BLOCK, CHANNELS, DCTCodec
from model.errors import InputError
from model.weights import model_folder, weights_digest

__all__ = ["BLOCK", "CHANNELS", "DCTCodec", "ImageCodec", "VAECodec", "codec_digest", "load_codec"]

_SUBFOLDER = "vae"


class ImageCodec(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1] ↔ latents (B, 16, h, w) of about unit variance in each channel.

    name: what a label says made it, without paths; digest: of the weights or constants.
    """

    name: str
    digest: str

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class VAECodec:
    """A diffusers AutoencoderKL with 16 channels at an eighth of the side, as Stable Diffusion 3 has.

    Latents are the mode of the posterior, so they are deterministic, times `scaling_factor`. A shift in the config is
    not applied: the published model works on latents without it.
    """

    def __init__(self, path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """`path`: folder or hub name of the autoencoder, or of a pipeline with it under vae/. Raises InputError."""
        from diffusers import AutoencoderKL

        folder = model_folder(path, _SUBFOLDER)
        vae: Any = AutoencoderKL.from_pretrained(
            str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        side = 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != CHANNELS or side != BLOCK:
            raise InputError(
                f"{path}: an autoencoder with {vae.config.latent_channels} channels at 1/{side} of the side; "
                f"the transformer works on {CHANNELS} at 1/{BLOCK}"
            )
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.digest = weights_digest(folder)
        self.name = f"AutoencoderKL {self.digest[:8]}"

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 16, h, w) float32. Raises InputError when 8 does not divide H and W."""
        height, width = pixels.shape[-2:]
        if height % BLOCK or width % BLOCK:
            raise InputError(f"a picture of {width}×{height} pixels has no latent: both sides must divide by {BLOCK}")
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mode().float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) → (B, 3, H, W) float32, not clamped to [-1, 1]."""
        latents = latents.to(self.vae.device, torch.float32) / self.scaling_factor
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()


def load_codec(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> ImageCodec:
    """The codec "dct", or the autoencoder of that hub name or path. Raises InputError.

    `dtype` is what an autoencoder computes in; latents and pictures are float32 either way.
    """
    return DCTCodec(device) if name == DCTCodec.name else VAECodec(name, device, dtype)


def codec_digest(name: str) -> str:
    """The digest of a codec, without loading it. Raises InputError."""
    return DCTCodec.digest if name == DCTCodec.name else weights_digest(model_folder(name, _SUBFOLDER))
