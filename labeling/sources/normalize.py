"""One raw file becomes an image as datasets store it, and what its row is called."""

from __future__ import annotations

import hashlib

from model.pixels.normalize import normalize
from model.pixels.outcome import EncodedImage, Rejected

__all__ = ["EncodedImage", "Rejected", "image_id", "normalize"]


def image_id(raw: bytes) -> str:
    """Content hash of a raw file: the id of its row."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
