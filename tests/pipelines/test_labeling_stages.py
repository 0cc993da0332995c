"""The parts of the labeling job that need no Ray: stages, and decoded images as bytes."""

from __future__ import annotations

import numpy as np

from labeling.registry import load_labeler
from model.pictures import encode_png
from pipelines.labeling_job.decoded_images import decode_and_pack, unpack
from pipelines.labeling_job.stages import make_stages
from simple_labelers import Brightness, Doubled


def test_labelers_of_one_kind_share_a_stage_unless_another_reads_between_them() -> None:
    edges = load_labeler("edges", {})
    latents = {group: load_labeler(group, {}) for group in ("latents-96", "latents-96-edges")}
    other = load_labeler("latents-64", {"codec": "owner/model"})
    active = {"latents-96": latents["latents-96"], "edges": edges, "latents-64": other}
    active["latents-96-edges"] = latents["latents-96-edges"]
    assert [list(stage) for stage in make_stages(active)] == [
        ["edges"],
        ["latents-64"],
        ["latents-96", "latents-96-edges"],
    ]
    bright = {group: Brightness(group, Brightness.Parameters()) for group in ("brightness", "brightness-again")}
    doubled = Doubled("doubled", Doubled.Parameters())
    active = {"brightness": bright["brightness"], "doubled": doubled, "brightness-again": bright["brightness-again"]}
    assert [list(stage) for stage in make_stages(active)] == [["brightness"], ["doubled"], ["brightness-again"]]


def test_decoded_images_come_back_from_bytes() -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((3, 5), (8, 2), (1, 1))]
    encoded = [encode_png(image) for image in images]
    for one, other in zip(unpack(decode_and_pack(encoded)), images, strict=True):
        assert np.array_equal(one, other)
    sets = unpack(decode_and_pack([encoded[:2], encoded[2:]]))
    assert [[view.shape for view in views] for views in sets] == [[(3, 5, 3), (8, 2, 3)], [(1, 1, 3)]]
    assert unpack(b"") == []
