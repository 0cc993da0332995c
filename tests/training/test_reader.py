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
from plan_readers import debug_config, entry_of, first_sample, plan_reader, read_sample, stored_row

from labeling.dataset import Dataset, open_store, shards
from labeling.registry import load_labeler
from model.inputs import InputError
from model.pictures import decode_picture
from training.batch import Sample
from training.dataloader import read_ahead
from training.device import DeviceBatches
from training.plan.mixture import build_manifest
from training.plan.step_plan import PlannedSample
from training.reader import PlanReader
from training.sample_names import SampleNames


@pytest.mark.parametrize(("task", "group"), [("text2image", None), ("edges", "latents-64-edges")])
def test_reader_returns_stored_latents_and_prompts(
    small_config: dict[str, Any], pictures_dataset: Path, task: str, group: str | None
) -> None:
    reader = plan_reader(debug_config(small_config))
    planned = first_sample(reader, task)
    sample = read_sample(reader, planned)
    for frame, name in enumerate(["latents-64", *([group] if group else [])]):
        stored = stored_row(pictures_dataset, name, planned)
        shape = (16, stored["latent_height"], stored["latent_width"])
        np.testing.assert_array_equal(sample.latents[frame].ravel(), np.array(stored["latent"], np.float16))
        assert sample.latents[frame].shape == shape
    entries = stored_row(pictures_dataset, "text", planned)["entries"]
    np.testing.assert_array_equal(sample.text, entry_of(entries, task))
    dropped = first_sample(reader, task, drop_caption=True)
    entries = stored_row(pictures_dataset, "text", dropped)["entries"]
    np.testing.assert_array_equal(read_sample(reader, dropped).text, entry_of(entries, ""))


def test_degraded_pictures_have_the_size_of_the_latents(small_config: dict[str, Any]) -> None:
    reader = plan_reader(debug_config(small_config))
    planned = first_sample(reader, "deblurring")
    sample = read_sample(reader, planned)
    clean, blurred = sample.latents.astype(np.float32)
    assert blurred.shape == clean.shape
    # A blurred picture is the same picture with less detail: the codec's higher channels lose energy.
    assert np.corrcoef(clean[0].ravel(), blurred[0].ravel())[0, 1] > 0.6
    assert np.square(blurred[3:10]).sum() < np.square(clean[3:10]).sum()
    np.testing.assert_array_equal(read_sample(plan_reader(debug_config(small_config)), planned).latents, sample.latents)
    other = PlannedSample(**{**vars(planned), "degradation_seed": planned.degradation_seed + 1})
    assert not np.array_equal(read_sample(reader, other).latents[1], sample.latents[1])


def test_stored_degraded_pictures_are_read_as_their_latents(
    small_config: dict[str, Any], pictures_dataset: Path, write_group: Callable[..., None]
) -> None:
    source = {"dataset": str(pictures_dataset), "tasks": ["deblurring"], "degraded": "stored"}
    config = debug_config(small_config, mixture={"pictures": source, "views": None})
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
    reader = plan_reader(config)
    assert reader.threads == 1, "no picture is decoded"
    planned = first_sample(reader, "deblurring")
    sample = read_sample(reader, planned)
    stored = stored_row(pictures_dataset, "latents-64-degraded-deblurring", planned)["latent"]
    np.testing.assert_array_equal(sample.latents[1].ravel(), np.array(stored, np.float16))
    assert not sample.pictures and not np.array_equal(*sample.latents)
    assert reader.manifest.streams[0].rows == 10, "row 3 has no prompt, and row 5 no stored picture"
    assert "degraded" not in debug_config(small_config).fixed()["mixture"]["pictures"], "as runs of before have it"
    assert config.fixed()["mixture"]["pictures"]["degraded"] == "stored"


@pytest.mark.parametrize("budget", [16384, 40])
def test_workers_share_a_step_without_changing_it(small_config: dict[str, Any], budget: int) -> None:
    config = debug_config(small_config, workers={"count": 1, "pack_tokens": budget})
    reader = plan_reader(config)

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
    reader = plan_reader(debug_config(small_config, batch=7, workers={"count": 1, "pack_tokens": 32}))
    step = next(s for s in range(50) if sum(p.tokens for p in reader.dealer.plan.step(s)) > 32 * 6)
    first, second = (reader.read(step, rank, 2) for rank in range(2))
    assert len(first.packs) == len(second.packs)
    counted = sum(int(s.in_loss.sum()) for batch in (first, second) for pack in batch.packs for s in pack)
    assert counted == first.frames_in_loss
    assert sum(len(pack) for batch in (first, second) for pack in batch.packs) == 8


def test_cached_row_groups_are_read_once(small_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = plan_reader(debug_config(small_config))
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
    config = debug_config(small_config)
    manifest = build_manifest(config.mixture, config.size)
    rows = Dataset.open(pictures_dataset).rows("latents-64-edges")
    changed = [{**row, "latent": np.zeros_like(row["latent"]) if row["latent"] else None} for row in rows]
    types = {"latent": pa.list_(pa.float16()), "latent_height": pa.int32(), "latent_width": pa.int32()}
    write_group(pictures_dataset, "latents-64-edges", [[4, 4], [2, 2]], types, changed)
    reader = PlanReader(manifest, config, "dct")
    with pytest.raises(InputError, match=r"latents-64-edges/00000\d.parquet: changed since the run began"):
        read_sample(reader, first_sample(reader, "edges"))
    for shard in ("000000", "000001"):
        (pictures_dataset / "latents-64-edges" / f"{shard}.parquet").unlink()
    reader = PlanReader(manifest, config, "dct")
    with pytest.raises(InputError, match=r"latents-64-edges/00000\d.parquet: gone since the run began"):
        read_sample(reader, first_sample(reader, "edges"))


def test_prompts_of_each_task_are_read_from_its_own_group(
    small_config: dict[str, Any], pictures_dataset: Path, write_group: Callable[..., None]
) -> None:
    """Beside the group of all, which older datasets have, and where that is gone."""
    config, dataset = debug_config(small_config), Dataset.open(pictures_dataset)
    together = [sample for step in range(3) for pack in plan_reader(config).read(step, 0, 1).packs for sample in pack]
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
    shown = first_sample(PlanReader(manifest, config, "dct"), "text2image")
    assert SampleNames(manifest, config).prompt(shown) == "text2image", "what a page of pictures says"
    with pytest.raises(InputError, match="no group 'text-edges', which edges needs; make it with `label`"):
        build_manifest(config.mixture, config.size)


def test_shard_whose_row_groups_end_elsewhere_has_changed(small_config: dict[str, Any], pictures_dataset: Path) -> None:
    """Its content is the same, and the row that the plan names is another."""
    config = debug_config(small_config)
    reader = plan_reader(config)
    dataset = Dataset.open(pictures_dataset)
    for shard in dataset.shard_names:
        footer, table = dataset.footer("latents-64", shard), dataset.read("latents-64", shard)
        groups = [footer.row_groups[0] - 1, footer.row_groups[1] + 1]
        assert shards.write_shard(dataset.store, "latents-64", shard, table, groups, "r").content == footer.content
    with pytest.raises(InputError, match=r"latents-64/00000\d.parquet: changed since the run began"):
        read_sample(reader, first_sample(reader, "edges"))


def test_row_group_is_of_the_content_that_is_pinned(
    small_config: dict[str, Any], pictures_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is read by row groups is opened anew for each, and may be replaced between two of them."""
    _forget_sizes(pictures_dataset, monkeypatch)
    reader = plan_reader(debug_config(small_config))
    planned = first_sample(reader, "deblurring")
    read_sample(reader, planned)
    shard = f"{planned.shard:06d}"
    dataset = Dataset.open(pictures_dataset)
    footer, table = dataset.footer("images", shard), dataset.read("images", shard)
    place = table.column_names.index("image")
    table = table.set_column(place, "image", pa.array(table["image"].to_pylist()[::-1], pa.binary()))
    shards.write_shard(dataset.store, "images", shard, table, footer.row_groups, footer.recipe)
    other = PlannedSample(**{**vars(planned), "row_group": 1 - planned.row_group, "row": 0})
    with pytest.raises(InputError, match=r"images/00000\d.parquet: changed since the run began"):
        read_sample(reader, other)


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
    config = debug_config(small_config, reader={"cache_mb": 1})
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
    reader = plan_reader(debug_config(small_config, reader={"cache_mb": 1}))
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
    config = debug_config(small_config, mixture={**small_config["mixture"], **views})
    batches = [plan_reader(config).read(step, 0, 1) for step in range(6)]
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
    config = debug_config(small_config, reader={"threads": 3, "prefetch": 4})
    expected = plan_reader(config)
    reader = PlanReader(expected.manifest, config)
    device = DeviceBatches(config, "dct", "minilm", torch.device("cpu"))
    steps = range(3, 23)
    found = list(device.ready(read_ahead(reader, 0, 1, steps)))
    assert [batch.step for batch in found] == list(steps)
    assert {sample.task for batch in found for pack in batch.packs for sample in pack} >= {"deblurring", "edges"}
    for batch in found:  # degraded pictures, encoded where the model computes, among them
        assert batch.to_bytes() == expected.read(batch.step, 0, 1).to_bytes()


def test_error_of_a_reader_thread_reaches_the_consumer(small_config: dict[str, Any], pictures_dataset: Path) -> None:
    reader = PlanReader(plan_reader(debug_config(small_config)).manifest, debug_config(small_config))
    for shard in (pictures_dataset / "text").glob("0*.parquet"):
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"text/00000\d.parquet: not a Parquet file, or cut off"):
        list(read_ahead(reader, 0, 1, range(4)))


def test_s3_gives_the_samples_of_a_disk(small_config: dict[str, Any], pictures_dataset: Path, s3: str) -> None:
    config = debug_config(small_config)
    store = open_store(f"{s3}/reader")
    for name in Dataset.open(pictures_dataset).store.walk():
        store.put(name, (pictures_dataset / name).read_bytes())
    pictures = {**small_config["mixture"]["pictures"], "dataset": store.uri}
    far = plan_reader(debug_config(small_config, mixture={**small_config["mixture"], "pictures": pictures}))
    assert far.threads > 1
    near = plan_reader(config)
    for batch in read_ahead(far, 0, 1, range(5)):
        assert batch.to_bytes() == near.read(batch.step, 0, 1).to_bytes()


def test_wrong_text_width_is_named(small_config: dict[str, Any]) -> None:
    model = {**small_config["model"], "caption_channels": 384}
    reader = plan_reader(debug_config(small_config, model=model))
    with pytest.raises(InputError, match=r"model.caption_channels is 384, but the prompts of .* are 32 wide"):
        read_sample(reader, first_sample(reader, "text2image"))
