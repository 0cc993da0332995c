"""Pictures ↔ 16-channel latents: AutoencoderKL, or a DCT that needs no training."""

from __future__ import annotations

from model.codecs.image_codec import ImageCodec, codec_digest, codec_name, load_autoencoder, load_codec

__all__ = ["ImageCodec", "codec_digest", "codec_name", "load_autoencoder", "load_codec"]
