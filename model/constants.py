"""Numbers of the published model that several folders need. It imports nothing, so that everyone can.

Cameras have an image width of 1. A latent has LATENT_CHANNELS numbers for LATENT_FACTOR × LATENT_FACTOR pixels, and
the transformer sees PATCH_SIZE × PATCH_SIZE latents as one token.
"""

from __future__ import annotations

LATENT_CHANNELS = 16
LATENT_FACTOR = 8
PATCH_SIZE = 2
SIZE_STEP = LATENT_FACTOR * PATCH_SIZE  # the sides of whatever the model sees divide by it, in pixels

# Projections of the transformer's attention and feed-forward: what adapters are for, unless others are named.
LORA_TARGETS = ["wq", "wk", "wv", "wo", "wk_y", "wv_y", "w1", "w2", "w3"]

RAY_SCALE = 1.658  # brings ray latents to about unit variance
FOCAL_LENGTH = 1.3887  # of a camera that nothing else is known of
CAMERA_DISTANCE = 1.7  # of the first camera from where the optical axes meet, in normalized view sets

MAX_PIXELS = 100_000_000  # a picture with more is refused before it is decoded
MIN_SIDE = 32  # a picture of a dataset with a shorter side is refused
