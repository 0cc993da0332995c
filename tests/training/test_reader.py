"""Reading what the plan says: latents, conditions, degraded pictures, prompts, cameras; stopping at a changed shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_training import write_views

from labeling.dataset import Dataset, open_store, shards
from labeling.registry import load_labeler
from model.inputs import InputError
from model.pictures import decode_picture
from training.batch import Sample
from training.config import TrainingConfig, load_config
from training.dataloader import read_ahead
from training.device import DeviceBatches
from training.plan.mixture import build_manifest
from training.plan.step_plan import PlannedSample
from training.reader import PlanReader

WIDTH = 32


def _config(settings: dict[str, Any], **changes: Any) -> TrainingConfig:
    return load_config("debug", {**settings, **changes})


def _reader(config: TrainingConfig) -> PlanReader:
    return PlanReader(build_manifest(config.mixture, config.size), config, "dct")


def _first(reader: PlanReader, task: str, drop_caption: bool = False) -> PlannedSample:
    samples = (reader.dealer.plan.sample(index) for index in range(500))
    return next(sample for sample in samples if sample.task == task and sample.drop_caption == drop_caption)


def _read(reader: PlanReader, planned: PlannedSample) -> Sample:
    return reader.read_sample(planned, np.ones(planned.frames, np.float32), np.ones(planned.frames, bool))


def _stored(dataset: Path, group: str, planned: PlannedSample) -> dict[str, Any]:
    table = Dataset.open(dataset).read(group, f"{planned.shard:06d}", row_groups=[planned.row_group])
    return {name: table[name][planned.row].as_py() for name in table.column_names}


def _entry(entries: list[dict[str, Any]], task: str) -> np.ndarray[Any, Any]:
    entry = next(entry for entry in entries if entry["task"] == task)
    return np.array(entry["embedding"], np.float16).reshape(entry["tokens"], WIDTH)


@pytest.mark.parametrize(("task", "group"), [("text2image", None), ("edges", "latents-64-edges")])
def test_reader_returns_stored_latents_and_prompts(
    small_config: dict[str, Any], pictures_dataset: Path, task: str, group: str | None
) -> None:
    reader = _reader(_config(small_config))
    planned = _first(reader, task)
    sample = _read(reader, planned)
    for frame, name in enumerate(["latents-64", *([group] if group else [])]):
        stored = _stored(pictures_dataset, name, planned)
        shape = (16, stored["latent_height"], stored["latent_width"])
        np.testing.assert_array_equal(sample.latents[frame].ravel(), np.array(stored["latent"], np.float16))
        assert sample.latents[frame].shape == shape
    entries = _stored(pictures_dataset, "text", planned)["entries"]
    np.testing.assert_array_equal(sample.text, _entry(entries, task))
    dropped = _first(reader, task, drop_caption=True)
    entries = _stored(pictures_dataset, "text", dropped)["entries"]
    np.testing.assert_array_equal(_read(reader, dropped).text, _entry(entries, ""))


def test_degraded_pictures_have_the_size_of_the_latents(small_config: dict[str, Any]) -> None:
    reader = _reader(_config(small_config))
    planned = _first(reader, "deblurring")
    sample = _read(reader, planned)
    clean, blurred = sample.latents.astype(np.float32)
    assert blurred.shape == clean.shape
    # A blurred picture is the same picture with less detail: the codec's higher channels lose energy.
    assert np.corrcoef(clean[0].ravel(), blurred[0].ravel())[0, 1] > 0.6
    assert np.square(blurred[3:10]).sum() < np.square(clean[3:10]).sum()
    np.testing.assert_array_equal(_read(_reader(_config(small_config)), planned).latents, sample.latents)
    other = PlannedSample(**{**vars(planned), "degradation_seed": planned.degradation_seed + 1})
    assert not np.array_equal(_read(reader, other).latents[1], sample.latents[1])


def test_stored_degraded_pictures_are_read_as_their_latents(
    small_config: dict[str, Any], pictures_dataset: Path, write_group: Callable[..., None]
) -> None:
    source = {"dataset": str(pictures_dataset), "tasks": ["deblurring"], "degraded": "stored"}
    config = _config(small_config, mixture={"pictures": source, "views": None})
    with pytest.raises(InputError, match="no group 'latents-64-degraded-deblurring', which deblurring needs; make it"):
        build_manifest(config.mixture, config.size)
    degraded, latents = (load_labeler(name, {}) for name in ("degraded-deblurring", "latents-64-degraded-deblurring"))
    degraded.load()
    latents.load()
    rows = []
    for shard in ("000000", "000001"):
        for row in Dataset(pictures_dataset).read("images", shard).to_pylist():
            picture = degraded.label_row({"id": row["id"], "images.image": decode_picture(row["image"])})["picture"]
            known = {"id": row["id"], "images.width": row["width"], "images.height": row["height"]}
            rows.append(latents.label_row({**known, "degraded-deblurring.picture": picture}))
    rows[5] = {"error": "no picture"}
    shards, types = [[4, 4], [2, 2]], {field.name: field.type for field in latents.schema}
    write_group(pictures_dataset, "latents-64-degraded-deblurring", shards, types, rows)
    reader = _reader(config)
    assert reader.threads == 1, "no picture is decoded"
    planned = _first(reader, "deblurring")
    sample = _read(reader, planned)
    stored = _stored(pictures_dataset, "latents-64-degraded-deblurring", planned)["latent"]
    np.testing.assert_array_equal(sample.latents[1].ravel(), np.array(stored, np.float16))
    assert not sample.pictures and not np.array_equal(*sample.latents)
    assert reader.manifest.streams[0].rows == 10, "row 3 has no prompt, and row 5 no stored picture"
    assert "degraded" not in _config(small_config).fixed()["mixture"]["pictures"], "as runs of before have it"
    assert config.fixed()["mixture"]["pictures"]["degraded"] == "stored"


def test_views_alternate_with_their_rays(small_config: dict[str, Any], views_dataset: Path) -> None:
    import torch

    from model.cameras import camera_rays, rays_to_latents

    mixture = {"pictures": None, "views": {"dataset": str(views_dataset), "tasks": ["views"]}}
    config = load_config("debug", {**small_config, "mixture": mixture, "objective": {"min_views": 3}})
    reader = _reader(config)
    planned = _first(reader, "views")
    sample = _read(reader, planned)
    assert sample.latents.shape == (2 * len(planned.views), 16, 8, 8)
    latents = _stored(views_dataset, "latents-64", planned)["latent"]
    for place, view in enumerate(planned.views):
        np.testing.assert_array_equal(sample.latents[2 * place].ravel(), np.array(latents[view], np.float16))
    stored = _stored(views_dataset, "cameras", planned)
    c2w = torch.tensor([stored["c2w"][view] for view in planned.views]).reshape(-1, 4, 4)
    intrinsics = torch.tensor([stored["intrinsics"][view] for view in planned.views]).reshape(-1, 3, 3)
    rays = rays_to_latents(camera_rays(c2w, intrinsics, 8, normalize=True, scale=1.7), 8, 8)
    np.testing.assert_allclose(sample.latents[1::2].astype(np.float32), rays.numpy(), atol=2e-3)
    text = _stored(views_dataset, "text", planned)["entries"][planned.views[0]]
    np.testing.assert_array_equal(sample.text, _entry(text, "views"))


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
    reader = _reader(config)
    planned = _first(reader, "views")
    sample = _read(reader, planned)
    assert sample.latents.shape == (2 * len(planned.views), 16, 6, 10)
    stored = _stored(sets, "cameras", planned)
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
        reader = _reader(load_config("debug", {**small_config, "mixture": mixture}))
        drawn[window] = [reader.dealer.plan.sample(index).views for index in range(60)]
    assert {abs(one - other) for one, other in drawn[2]} == {1}
    assert {views[0] for views in drawn[2]} == set(range(5)), "a window lies anywhere in the set"
    assert max(abs(one - other) for one, other in drawn[None]) > 1


@pytest.mark.parametrize("budget", [16384, 40])
def test_workers_share_a_step_without_changing_it(small_config: dict[str, Any], budget: int) -> None:
    config = _config(small_config, workers={"count": 1, "pack_tokens": budget})
    reader = _reader(config)

    def samples(workers: int) -> tuple[set[int], dict[int, Sample]]:
        read = [reader.read(3, rank, workers) for rank in range(workers)]
        by_seed = {sample.noise_seed: sample for batch in read for pack in batch.packs for sample in pack}
        return {batch.frames_in_loss for batch in read}, by_seed

    frames, alone = samples(1)
    assert len(alone) == 6
    assert frames == {sum(int(sample.in_loss.sum()) for sample in alone.values())}
    for workers in (2, 3):
        again, shared = samples(workers)
        assert again == frames
        assert shared.keys() == alone.keys()
        for seed, sample in shared.items():
            np.testing.assert_array_equal(sample.latents, alone[seed].latents)
            np.testing.assert_array_equal(sample.sigmas, alone[seed].sigmas)


def test_worker_with_fewer_packs_gets_one_outside_the_loss(small_config: dict[str, Any]) -> None:
    # Seven samples that each fill a pack, for two workers: four and three.
    reader = _reader(_config(small_config, batch=7, workers={"count": 1, "pack_tokens": 32}))
    step = next(s for s in range(50) if sum(p.tokens for p in reader.dealer.plan.step(s)) > 32 * 6)
    first, second = (reader.read(step, rank, 2) for rank in range(2))
    assert len(first.packs) == len(second.packs)
    counted = sum(int(s.in_loss.sum()) for batch in (first, second) for pack in batch.packs for s in pack)
    assert counted == first.frames_in_loss
    assert sum(len(pack) for batch in (first, second) for pack in batch.packs) == 8


def test_cached_row_groups_are_read_once(small_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _reader(_config(small_config))
    reads: list[tuple[Any, ...]] = []
    original = Dataset.read

    def counted(self: Dataset, *arguments: Any) -> pa.Table:
        reads.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(Dataset, "read", counted)
    for step in range(10):
        reader.read(step, 0, 1)
    # 2 shards × 2 row groups of latents, edges, segmentation, text and images: twenty at most for sixty samples.
    assert len(reads) == len(set(map(repr, reads))) <= 20


def test_changed_or_missing_shard_is_named(
    small_config: dict[str, Any], pictures_dataset: Path, write_group: Callable[..., None]
) -> None:
    config = _config(small_config)
    manifest = build_manifest(config.mixture, config.size)
    rows = Dataset.open(pictures_dataset).rows("latents-64-edges")
    changed = [{**row, "latent": np.zeros_like(row["latent"]) if row["latent"] else None} for row in rows]
    types = {"latent": pa.list_(pa.float16()), "latent_height": pa.int32(), "latent_width": pa.int32()}
    write_group(pictures_dataset, "latents-64-edges", [[4, 4], [2, 2]], types, changed)
    reader = PlanReader(manifest, config, "dct")
    with pytest.raises(InputError, match=r"latents-64-edges/00000\d.parquet: changed since the run began"):
        _read(reader, _first(reader, "edges"))
    for shard in ("000000", "000001"):
        (pictures_dataset / "latents-64-edges" / f"{shard}.parquet").unlink()
    reader = PlanReader(manifest, config, "dct")
    with pytest.raises(InputError, match=r"latents-64-edges/00000\d.parquet: gone since the run began"):
        _read(reader, _first(reader, "edges"))


def test_prompts_of_each_task_are_read_from_its_own_group(
    small_config: dict[str, Any], pictures_dataset: Path, write_group: Callable[..., None]
) -> None:
    """Beside the group of all, which older datasets have, and where that is gone."""
    config, dataset = _config(small_config), Dataset.open(pictures_dataset)
    together = [sample for step in range(3) for pack in _reader(config).read(step, 0, 1).packs for sample in pack]
    rows = list(dataset.rows("text"))
    kind = {"entries": dataset.read("text", "000000").schema.field("entries").type}
    for task in ("text2image", "edges", "segmentation", "deblurring"):
        entries = [[entry for entry in row["entries"] if entry["task"] in ("", task)] for row in rows]
        write_group(pictures_dataset, f"text-{task}", [[4, 4], [2, 2]], kind, [{"entries": each} for each in entries])
    shutil.rmtree(pictures_dataset / "text-edges")
    manifest = build_manifest(config.mixture, config.size)
    used = {"text2image": "text-text2image", "edges": "text", "segmentation": "text-segmentation"}
    assert {stream.task: stream.text_group for stream in manifest.streams} == {**used, "deblurring": "text-deblurring"}
    apart = [
        s for step in range(3) for pack in PlanReader(manifest, config, "dct").read(step, 0, 1).packs for s in pack
    ]
    for one, other in zip(together, apart, strict=True):
        assert (one.task, one.noise_seed) == (other.task, other.noise_seed)
        np.testing.assert_array_equal(one.text, other.text)
    shutil.rmtree(pictures_dataset / "text")
    with pytest.raises(InputError, match="no group 'text-edges', which edges needs; make it with `label`"):
        build_manifest(config.mixture, config.size)


def test_shard_whose_row_groups_end_elsewhere_has_changed(small_config: dict[str, Any], pictures_dataset: Path) -> None:
    """Its content is the same, and the row that the plan names is another."""
    config = _config(small_config)
    reader = _reader(config)
    dataset = Dataset.open(pictures_dataset)
    for shard in dataset.shard_names:
        footer, table = dataset.footer("latents-64", shard), dataset.read("latents-64", shard)
        groups = [footer.row_groups[0] - 1, footer.row_groups[1] + 1]
        assert shards.write_shard(dataset.store, "latents-64", shard, table, groups, "r").content == footer.content
    with pytest.raises(InputError, match=r"latents-64/00000\d.parquet: changed since the run began"):
        _read(reader, _first(reader, "edges"))


def test_row_group_is_of_the_content_that_is_pinned(
    small_config: dict[str, Any], pictures_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is read by row groups is opened anew for each, and may be replaced between two of them."""
    _forget_sizes(pictures_dataset, monkeypatch)
    reader = _reader(_config(small_config))
    planned = _first(reader, "deblurring")
    _read(reader, planned)
    shard = f"{planned.shard:06d}"
    dataset = Dataset.open(pictures_dataset)
    footer, table = dataset.footer("images", shard), dataset.read("images", shard)
    place = table.column_names.index("image")
    table = table.set_column(place, "image", pa.array(table["image"].to_pylist()[::-1], pa.binary()))
    shards.write_shard(dataset.store, "images", shard, table, footer.row_groups, footer.recipe)
    other = PlannedSample(**{**vars(planned), "row_group": 1 - planned.row_group, "row": 0})
    with pytest.raises(InputError, match=r"images/00000\d.parquet: changed since the run began"):
        _read(reader, other)


def _forget_sizes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store pictures as before footers had their sizes."""
    dataset = Dataset.open(place)
    with monkeypatch.context() as before:
        before.setattr(shards, "sizes_text", lambda *_: None)
        for shard in dataset.shard_names:
            footer, table = dataset.footer("images", shard), dataset.read("images", shard)
            shards.write_shard(dataset.store, "images", shard, table, footer.row_groups, footer.recipe, footer.content)


def test_pictures_are_read_alone_and_as_before_where_footers_do_not_say_their_places(
    small_config: dict[str, Any], pictures_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(small_config, reader={"cache_mb": 1})
    rows: list[int] = []
    original = Dataset.read

    def counted(self: Dataset, group: str, *arguments: Any, **options: Any) -> pa.Table:
        table = original(self, group, *arguments, **options)
        rows.append(table.num_rows * (group == "images"))
        return table

    def steps() -> list[Sample]:
        reader = PlanReader(build_manifest(config.mixture, config.size), config)
        with monkeypatch.context() as reading:
            reading.setattr(Dataset, "read", counted)
            return [sample for step in range(4) for pack in reader.read(step, 0, 1).packs for sample in pack]

    alone, read_alone = steps(), sum(rows)
    _forget_sizes(pictures_dataset, monkeypatch)
    together = steps()
    assert read_alone == 0 < sum(rows)
    assert any(sample.pictures for sample in alone)
    for one, other in zip(alone, together, strict=True):
        assert one.pictures.keys() == other.pictures.keys()
        for frame, picture in one.pictures.items():
            np.testing.assert_array_equal(picture, other.pictures[frame])


def test_open_shards_are_limited_by_their_memory(small_config: dict[str, Any]) -> None:
    reader = _reader(_config(small_config, reader={"cache_mb": 1}))
    reader.read(0, 0, 1)
    files = reader._files
    assert files._used <= files._limit == 1 << 18
    assert all(file.nbytes >= 16 << 10 for file in files._values.values())
    assert len(files._values) <= 16


def test_shards_of_lists_read_like_those_of_bytes(
    small_config: dict[str, Any],
    pictures_dataset: Path,
    views_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards of before have lists of float16: their content is the same, and so is what a run reads."""
    sets = Path(shutil.copytree(views_dataset, tmp_path / "sets"))
    views = {"views": {"dataset": str(sets), "tasks": ["views"]}}
    config = _config(small_config, mixture={**small_config["mixture"], **views})
    batches = [_reader(config).read(step, 0, 1) for step in range(6)]
    manifest = build_manifest(config.mixture, config.size)
    for place in (pictures_dataset, sets):
        dataset = Dataset.open(place)
        for group in ("latents-64", "latents-64-edges", "latents-64-segmentation", "text"):
            for shard in dataset.shard_entries(group):
                footer, table = dataset.footer(group, shard), dataset.read(group, shard)
                with monkeypatch.context() as before:
                    before.setattr(shards, "with_bytes", lambda table, _: (table, []))
                    shards.write_shard(dataset.store, group, shard, table, footer.row_groups, footer.recipe)
                assert dataset.arrays(group, shard).latents is dataset.arrays(group, shard).entries is None
    old = PlanReader(manifest, config, "dct")
    for batch in batches:
        assert old.read(batch.step, 0, 1).to_bytes() == batch.to_bytes()


def test_threads_read_steps_in_their_order(small_config: dict[str, Any]) -> None:
    config = _config(small_config, reader={"threads": 3, "prefetch": 4})
    expected = _reader(config)
    reader = PlanReader(expected.manifest, config)
    device = DeviceBatches(config, "dct", "minilm", torch.device("cpu"))
    steps = range(3, 23)
    found = list(device.ready(read_ahead(reader, 0, 1, steps)))
    assert [batch.step for batch in found] == list(steps)
    assert {sample.task for batch in found for pack in batch.packs for sample in pack} >= {"deblurring", "edges"}
    for batch in found:  # degraded pictures, encoded where the model computes, among them
        assert batch.to_bytes() == expected.read(batch.step, 0, 1).to_bytes()


def test_error_of_a_reader_thread_reaches_the_consumer(small_config: dict[str, Any], pictures_dataset: Path) -> None:
    reader = PlanReader(_reader(_config(small_config)).manifest, _config(small_config))
    for shard in (pictures_dataset / "text").glob("0*.parquet"):
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"text/00000\d.parquet: not a Parquet file, or cut off"):
        list(read_ahead(reader, 0, 1, range(4)))


def test_s3_gives_the_samples_of_a_disk(small_config: dict[str, Any], pictures_dataset: Path, s3: str) -> None:
    config = _config(small_config)
    store = open_store(f"{s3}/reader")
    for name in Dataset.open(pictures_dataset).store.walk():
        store.put(name, (pictures_dataset / name).read_bytes())
    pictures = {**small_config["mixture"]["pictures"], "dataset": store.uri}
    far = _reader(_config(small_config, mixture={**small_config["mixture"], "pictures": pictures}))
    assert far.threads > 1
    near = _reader(config)
    for batch in read_ahead(far, 0, 1, range(5)):
        assert batch.to_bytes() == near.read(batch.step, 0, 1).to_bytes()


def test_wrong_text_width_is_named(small_config: dict[str, Any]) -> None:
    model = {**small_config["model"], "caption_channels": 384}
    reader = _reader(_config(small_config, model=model))
    with pytest.raises(InputError, match=r"model.caption_channels is 384, but the prompts of .* are 32 wide"):
        _read(reader, _first(reader, "text2image"))
