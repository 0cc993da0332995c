"""Reading sets of views: their latents, the rays of their cameras, and which of them a sample shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from plan_readers import entry_of, first_sample, plan_reader, read_sample, stored_row
from tiny_training import write_views

from training.config import load_config


def test_views_alternate_with_their_rays(small_config: dict[str, Any], views_dataset: Path) -> None:
    import torch

    from model.cameras import camera_rays, rays_to_latents

    mixture = {"pictures": None, "views": {"dataset": str(views_dataset), "tasks": ["views"]}}
    config = load_config("debug", {**small_config, "mixture": mixture, "objective": {"min_views": 3}})
    reader = plan_reader(config)
    planned = first_sample(reader, "views")
    sample = read_sample(reader, planned)
    assert sample.latents.shape == (2 * len(planned.views), 16, 8, 8)
    latents = stored_row(views_dataset, "latents-64", planned)["latent"]
    for place, view in enumerate(planned.views):
        np.testing.assert_array_equal(sample.latents[2 * place].ravel(), np.array(latents[view], np.float16))
    stored = stored_row(views_dataset, "cameras", planned)
    c2w = torch.tensor([stored["c2w"][view] for view in planned.views]).reshape(-1, 4, 4)
    intrinsics = torch.tensor([stored["intrinsics"][view] for view in planned.views]).reshape(-1, 3, 3)
    rays = rays_to_latents(camera_rays(c2w, intrinsics, 8, normalize=True, scale=1.7), 8, 8)
    np.testing.assert_allclose(sample.latents[1::2].astype(np.float32), rays.numpy(), atol=2e-3)
    text = stored_row(views_dataset, "text", planned)["entries"][planned.views[0]]
    np.testing.assert_array_equal(sample.text, entry_of(text, "views"))


def test_views_that_are_not_square_have_the_rays_of_what_is_left_of_them(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    """960 × 540 pixels in a bucket of 80 × 48: 900 × 540 are left of them."""
    import torch

    from model.cameras import camera_rays, rays_to_latents

    sets = write_views(tmp_path / "views", (6, 10), (960, 540))
    config = load_config(
        "debug", {**small_config, "mixture": {"pictures": None, "views": {"dataset": str(sets), "tasks": ["views"]}}}
    )
    reader = plan_reader(config)
    planned = first_sample(reader, "views")
    sample = read_sample(reader, planned)
    assert sample.latents.shape == (2 * len(planned.views), 16, 6, 10)
    stored = stored_row(sets, "cameras", planned)
    c2w = torch.tensor([stored["c2w"][view] for view in planned.views]).reshape(-1, 4, 4)
    # Focal lengths and center in pixels, what is cut off the left, and a new width.
    pixels = np.array([1.4 * 960, 1.4 * 960, 0.5 * 960 - 30, 0.5 * 960]) / 900
    K = torch.tensor([[pixels[0], 0, pixels[2]], [0, pixels[1], pixels[3]], [0, 0, 1]]).float()
    rays = rays_to_latents(camera_rays(c2w, K.expand(len(c2w), 3, 3), (6, 10), normalize=True, scale=1.7), 6, 10)
    np.testing.assert_allclose(sample.latents[1::2].astype(np.float32), rays.numpy(), atol=4e-3)
    assert reader.read(0, 0, 1).packs, "they are packed as other pictures are"


def test_views_of_a_window_are_near_each_other(small_config: dict[str, Any], views_dataset: Path) -> None:
    source = {"dataset": str(views_dataset), "tasks": ["views"], "views": [2, 2]}
    drawn = {}
    for window in (None, 2):
        mixture = {"pictures": None, "views": {**source, "window": window}}
        reader = plan_reader(load_config("debug", {**small_config, "mixture": mixture}))
        drawn[window] = [reader.dealer.plan.sample(index).views for index in range(60)]
    assert {abs(one - other) for one, other in drawn[2]} == {1}
    assert {views[0] for views in drawn[2]} == set(range(5)), "a window lies anywhere in the set"
    assert max(abs(one - other) for one, other in drawn[None]) > 1
