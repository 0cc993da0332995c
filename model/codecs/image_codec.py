"""Image codecs: pictures to the 16-channel latents that the transformer works on, and back.

B pictures, H × W pixels, h = H/8, w = W/8.
"""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.codecs.block_transform import analyze, block_constants, synthesize
from model.codecs.dct import DIGEST
from model.constants import LATENT_CHANNELS, LATENT_FACTOR
from model.inputs import InputError, shown
from model.weights import check_files, check_loaded, model_folder, read_object, weights_digest

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from model.codecs.autoencoder_dct import AutoencoderDCT

DCT = "dct"
_DCT_CLASS = "AutoencoderDCT"  # in its config.json
_SUBFOLDER = "vae"


class ImageCodec:
    """Pictures (B, 3, H, W) in [-1, 1] ↔ latents (B, 16, h, w) float32 of about unit variance in each channel.

    Latents are the mode of the posterior, so they are deterministic, times `scaling_factor`. A shift in the
    autoencoder's configuration is not applied: the published model works on latents without it.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderDCT,
        name: str = "",
        digest: str = "",
        device: torch.device | None = None,
    ) -> None:
        """name: what labels record as their codec, without paths; digest: of weights or constants.

        device: where the autoencoder computes, if it is elsewhere while idle (offloading); None: where it is.
        """
        self.vae: Any = vae
        self.name = name
        self.digest = digest
        self.device: torch.device = vae.device if device is None else device

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 16, h, w). Raises InputError when 8 does not divide H and W."""
        height, width = pixels.shape[-2:]
        if height % LATENT_FACTOR or width % LATENT_FACTOR:
            raise InputError(
                f"a picture of {width}×{height} pixels has no latent: both sides must divide by {LATENT_FACTOR}"
            )
        return self._encode(pixels)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) → (B, 3, H, W), not clamped to [-1, 1]."""
        return self._decode(latents.to(self.device, torch.float32))

    def _encode(self, pixels: Tensor) -> Tensor:
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        latents = latents / self.vae.config.scaling_factor
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()


class _DctCodec(ImageCodec):
    """What `AutoencoderDCT` computes, without diffusers, whose import takes longer than most uses of this codec."""

    def __init__(self, device: str | torch.device) -> None:
        self.name, self.digest, self.device = DCT, DIGEST, torch.device(device)
        self._constants = {name: value.to(device) for name, value in block_constants().items()}

    def _encode(self, pixels: Tensor) -> Tensor:
        constants = self._constants
        pixels = pixels.to(self.device, torch.float32)
        return analyze(pixels, constants["analysis"], constants["mean"], constants["std"])

    def _decode(self, latents: Tensor) -> Tensor:
        constants = self._constants
        return synthesize(latents, constants["synthesis"], constants["mean"], constants["std"])


def load_codec(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> ImageCodec:
    """The codec "dct", or the autoencoder of that hub name or path, computing in `dtype`.

    A path holds a diffusers AutoencoderKL with 16 channels at an eighth of the side, as Stable Diffusion 3 has, or a
    pipeline with it under vae/; one that was exported with "dct" there is "dct". Raises InputError.
    """
    if _is_dct(name):
        return _DctCodec(device)
    digest = weights_digest(model_folder(name, _SUBFOLDER))
    return ImageCodec(load_autoencoder(name, device, dtype), codec_name(name), digest)


def load_autoencoder(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The codec of `load_codec` as a model of diffusers: an AutoencoderDCT or AutoencoderKL. Raises InputError."""
    if _is_dct(name):
        from model.codecs.autoencoder_dct import AutoencoderDCT

        return AutoencoderDCT().to(device)
    from diffusers import AutoencoderKL

    folder = model_folder(name, _SUBFOLDER)
    check_files(folder)
    vae: Any = AutoencoderKL.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True)
    check_loaded(vae, folder)
    check_autoencoder(vae, name)
    return vae.to(device).eval().requires_grad_(False)


def check_autoencoder(vae: Any, name: str) -> None:
    """Raise InputError for an autoencoder of another kind, or with latents of other channels or another size."""
    from diffusers import AutoencoderKL

    from model.codecs.autoencoder_dct import AutoencoderDCT

    vae = getattr(vae, "_orig_mod", vae)  # what torch.compile wraps
    scale = getattr(getattr(vae, "config", None), "scaling_factor", None)
    if isinstance(vae, AutoencoderKL) and not (
        isinstance(scale, Real) and not isinstance(scale, bool) and math.isfinite(scale) and float(scale) > 0
    ):
        raise InputError(f"{name}: scaling_factor {shown(scale)} in its config.json; it is a number above 0, as 1.5305")
    if isinstance(vae, AutoencoderDCT):
        return
    if not isinstance(vae, AutoencoderKL):
        raise InputError(f"{name}: {type(vae).__name__}; take an AutoencoderKL, or the codec that needs no training")
    # JSON's true counts as 1, and layers are made of halves and of less than nothing, until a kernel refuses them in
    # the middle of a sample.
    for key, parameter in inspect.signature(AutoencoderKL).parameters.items():
        value = getattr(vae.config, key, None)
        if key == "sample_size" and isinstance(value, list | tuple):  # which decides on tiles alone
            continue
        if type(parameter.default) is int and (type(value) is not int or value < 1):
            raise InputError(f"{name}: {key} {shown(value)} in its config.json; it is a whole number of 1 or more")
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.latent_channels != LATENT_CHANNELS or side != LATENT_FACTOR:
        raise InputError(
            f"{name}: an autoencoder with {vae.config.latent_channels} channels at 1/{side} of the side; "
            f"the transformer works on {LATENT_CHANNELS} at 1/{LATENT_FACTOR}"
        )


def codec_digest(name: str) -> str:
    """The digest of a codec, without loading it. Raises InputError."""
    return DIGEST if _is_dct(name) else weights_digest(model_folder(name, _SUBFOLDER))


def codec_name(name: str) -> str:
    """What labels record as their codec, without loading it. Raises InputError."""
    return DCT if _is_dct(name) else f"AutoencoderKL {codec_digest(name)[:8]}"


def _is_dct(name: str) -> bool:
    """Whether a codec is the one that needs no training, by its name or as an exported pipeline has it."""
    return name == DCT or read_object(model_folder(name, _SUBFOLDER) / "config.json").get("_class_name") == _DCT_CLASS
