"""The plan: a pure function of manifest, seed and step, with exact shares and whole epochs."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from training.config import ObjectiveConfig
from training.plan.first_version import FirstPlan
from training.plan.lanes import LaneOrder, lane_turns
from training.plan.manifest import Manifest, SourcePin
from training.plan.pinned_shards import ShardPin, Shards
from training.plan.step_plan import Plan, load_plan
from training.plan.streams import Stream
from training.seeded_generator import SeededGenerator, indexed_words

WEIGHTS = {"text2image": 2.0, "edges": 1.0, "views": 0.1}


def _manifest(lanes: int) -> Manifest:
    """Pictures: three shards of 8 + 4 rows, every third row unfit for edges. Sets: one shard of 5 with 1 … 5 views."""
    fit = np.arange(12) % 3 != 0
    pictures = [
        ShardPin(f"{n:06d}", [8, 4], {}, {"text2image@64": None, "edges@64": np.packbits(fit).tobytes().hex()})
        for n in range(3)
    ]
    sets = [ShardPin("000000", [5], {}, {"views@64": None}, views=[1, 2, 3, 4, 5])]
    sources = {
        "a": SourcePin("a", "pictures", {}, Shards.of(pictures)),
        "b": SourcePin("b", "sets", {}, Shards.of(sets)),
    }
    rows = {"text2image": 36, "edges": 24, "views": 5}
    streams = [
        Stream("b" if task == "views" else "a", task, weight, 64, rows[task]) for task, weight in WEIGHTS.items()
    ]
    return Manifest(sources, streams, lanes)


@pytest.fixture(params=[0, 6], ids=["version 1", "lanes"])
def lanes(request: pytest.FixtureRequest) -> int:
    return request.param


def _plan(lanes: int, seed: int = 0, batch: int = 16, window: int = 2, **objective: float) -> Plan | FirstPlan:
    found = ObjectiveConfig(**{"min_views": 2, "max_views": 4, **objective})
    return load_plan(_manifest(lanes), seed, batch, found, window)


def test_step_does_not_depend_on_earlier_steps(lanes: int) -> None:
    in_a_row = list(map(_plan(lanes).step, range(300)))
    for step in (299, 0, 137):
        assert _plan(lanes).step(step) == in_a_row[step]
    backwards = _plan(lanes)
    assert [backwards.step(step) for step in (299, 12, 298)] == [in_a_row[step] for step in (299, 12, 298)]


def test_samples_of_a_run_stay_the_same_with_every_version(lanes: int) -> None:
    """A run that is resumed must go on with the samples that it would have had."""
    text = repr([_plan(lanes).step(step) for step in (0, 1, 63, 64, 65, 299, 100_000)])
    expected = "34753b66832c91a2" if lanes else "6185cbd4690ae4ec"
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == expected


def test_noise_levels_of_a_run_stay_the_same_with_every_version(lanes: int) -> None:
    leveled = _plan(lanes, known_frame_share=0.5).draw(7, range(16))
    values = [(levels.round(5).tolist(), in_loss.tolist()) for _, levels, in_loss in leveled]
    expected = "de294bb6ecdeaba5" if lanes else "51b7175df9c2c0f5"
    assert hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest() == expected


def test_noise_levels_are_as_configured(lanes: int) -> None:
    drawn = _plan(lanes, known_frame_share=0.5, shift=3.0, batch=4000).draw(0, range(4000))
    pairs = [each for each in drawn if each[0].task == "edges"]
    known = np.array([~in_loss for _, _, in_loss in pairs])
    assert not known.all(1).any()
    assert np.mean(known, axis=0) == pytest.approx(0.25, abs=0.04), "either, evenly"
    sigmas = np.concatenate([levels[in_loss] for _, levels, in_loss in drawn])
    assert all((levels[~in_loss] == 0).all() for _, levels, in_loss in drawn)
    normal = np.log(sigmas / 3 / (1 - sigmas))  # σ' = 3σ / (1 + 2σ) of a logit-normal σ
    assert abs(normal.mean()) < 0.06 and abs(normal.std() - 1) < 0.04
    sets = [in_loss for planned, _, in_loss in drawn if planned.task == "views"]
    assert all(in_loss.any() for in_loss in sets) and any(not in_loss.all() for in_loss in sets)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("batch", [16, 3000])
def test_sizes_of_a_step_are_those_of_its_samples(lanes: int, batch: int, share: float) -> None:
    plan = _plan(lanes, batch=batch, known_frame_share=share)
    for step in (0, 3, 70):
        sizes, leveled = plan.sizes(step), plan.draw(step, range(batch))
        assert sizes.tokens.tolist() == [planned.tokens for planned, _, _ in leveled]
        assert sizes.frames_in_loss == sum(int(in_loss.sum()) for _, _, in_loss in leveled)
        assert all(len(in_loss) == len(levels) == planned.frames for planned, levels, in_loss in leveled)


def test_seed_changes_tasks_and_noise(lanes: int) -> None:
    first, second = _plan(lanes, seed=0).step(0), _plan(lanes, seed=1).step(0)
    assert [sample.noise_seed for sample in first] != [sample.noise_seed for sample in second]
    assert [sample.task for sample in first] != [sample.task for sample in second]


def test_tasks_have_exact_shares_of_a_block(lanes: int) -> None:
    plan = _plan(lanes)
    counts = Counter(sample.task for step in range(10 * plan.tasks.block // 16) for sample in plan.step(step))
    total = sum(WEIGHTS.values())
    for task, weight in WEIGHTS.items():
        assert abs(counts[task] - 10 * plan.tasks.block * weight / total) <= 1


def test_step_mixes_tasks_at_random(lanes: int) -> None:
    plan = _plan(lanes)
    shares = [sum(sample.task == "edges" for sample in plan.step(step)) / 16 for step in range(60)]
    assert 0.2 < np.mean(shares) < 0.45
    assert np.std(shares) > 0.05, "drawn at random, not dealt in turn"


@pytest.mark.parametrize("window", [1, 2, 100])
def test_epoch_has_every_eligible_row_once(window: int) -> None:
    plan = _plan(0, window=window)
    assert isinstance(plan, FirstPlan)
    rows = plan._rows[1]  # edges: 8 eligible rows a shard
    first = [rows.at(position)[:3] for position in range(24)]
    second = [rows.at(position)[:3] for position in range(24, 48)]
    expected = {(s, int(r >= 8), r - 8 * (r >= 8)) for s in range(3) for r in range(12) if r % 3}
    assert set(first) == set(second) == expected
    assert len(first) == 24
    assert first != second, "epochs are shuffled differently"


@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize("lanes", [1, 5, 6, 64])
def test_epoch_in_lanes_has_every_eligible_row_once(lanes: int, window: int) -> None:
    """Also where lanes are more than rows, as they are of small datasets."""
    manifest = _manifest(lanes)
    rows = LaneOrder(manifest.sources["a"].shards, manifest.streams[1], 0, window, lanes)
    expected = {(s, int(r >= 8), r - 8 * (r >= 8)) for s in range(3) for r in range(12) if r % 3}
    epochs = [[tuple(row) for row in rows.at(np.arange(24) + 24 * epoch)[:3].T.tolist()] for epoch in range(3)]
    assert all(set(epoch) == expected and len(epoch) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    both = rows.at(np.arange(20, 30))[:3].T.tolist()  # over the end of an epoch
    assert list(map(tuple, both)) == epochs[0][20:] + epochs[1][:6]


def test_lanes_have_equal_parts_and_read_few_shards() -> None:
    pins = [ShardPin(f"{n:06d}", [4] * 4, {}, {"text2image@64": None}) for n in range(160)]
    stream = Stream("a", "text2image", 1.0, 64, 160 * 16)
    order = LaneOrder(Shards.of(pins), stream, 0, 2, 8)
    positions = np.arange(160 * 16)
    lanes, shards = order.lane(positions), order.at(positions)[0]
    assert np.bincount(lanes).tolist() == [320] * 8
    for lane in range(8):
        walked = shards[lanes == lane]
        assert len(set(walked.tolist())) <= 160 / 8 + 2
        assert max(len(set(walked[start : start + 8].tolist())) for start in range(0, 312, 8)) <= 4
    assert (np.ptp(np.stack([np.bincount(lanes[start : start + 5], minlength=8) for start in range(99)])) <= 1).all()


@pytest.mark.parametrize("weights", [[1.0] * 9, [5.0, 0.5, 0.5, 2.0, 0.5, 0.5]])
def test_samples_of_a_step_are_in_all_lanes_whatever_the_tasks(weights: list[float]) -> None:
    tasks = ["text2image", "edges", "depth", "pose", "boxes", "segmentation", "deblurring", "inpainting", "upscaling"]
    streams = [Stream("a", task, weight, 64, 51_200) for task, weight in zip(tasks, weights, strict=False)]
    pins = [ShardPin(f"{n:06d}", [16] * 8, {}, {stream.key: None for stream in streams}) for n in range(400)]
    manifest = Manifest({"a": SourcePin("a", "pictures", {}, Shards.of(pins))}, streams, 128)
    plan = Plan(manifest, 0, 256, ObjectiveConfig(), 8)
    counts = np.stack([np.bincount(plan.sizes(step).lanes, minlength=128) for step in range(50)])
    assert (counts == 0).sum(axis=1).mean() < 0.1 * 128
    assert counts.max() <= 6


def test_row_groups_without_rows_have_none_that_are_eligible() -> None:
    bits = np.packbits([True, False, True, False]).tobytes().hex()
    shards = Shards.of([ShardPin("000000", [0, 4, 0], {}, {"edges@64": bits}), ShardPin("000001", [0], {}, {})])
    assert shards.counts("edges@64").tolist() == [0, 2, 0]
    assert shards.kept([np.packbits([True] * 4), np.zeros(0, np.uint8)]).counts("edges@64").tolist()[:3] == [0, 2, 0]


@pytest.mark.parametrize("lanes", [1, 2, 5, 64, 96, 97])
def test_lanes_take_turns_evenly(lanes: int) -> None:
    turns = lane_turns(lanes)
    assert sorted(turns.tolist()) == list(range(lanes))
    for count in (2, 3, 8):
        for start in range(lanes):
            some = np.sort(np.take(turns, range(start, start + count), mode="wrap"))
            for part in range(count):  # of the first k parts of all lanes, draws in a row visit their share
                share = count * -(-lanes * part // count) / lanes
                assert abs((some < lanes * part / count).sum() - share) <= 2


def test_window_keeps_reads_local() -> None:
    plan = _plan(0, window=2)
    assert isinstance(plan, FirstPlan)
    positions = [plan._rows[0].at(position)[:2] for position in range(36)]
    for end in range(36):
        begun, to_come = set(positions[: end + 1]), set(positions[end + 1 :])
        assert len(begun & to_come) <= 2, "a window is read to its end before the next one"
    changes = [len(set(positions[: end + 1])) for end in range(36)]
    assert changes[7] <= 2, "the first window has two row groups"


def test_views_are_distinct_and_within_bounds(lanes: int) -> None:
    plan = _plan(lanes, batch=5000)
    sets = [sample for sample in plan.step(0) if sample.task == "views"]
    for sample in sets:
        available = sample.row + 1
        assert len(set(sample.views)) == len(sample.views)
        assert min(2, available) <= len(sample.views) <= min(4, available)
        assert max(sample.views) < available
        assert sample.frames == 2 * len(sample.views)
        assert sample.tokens == sample.frames * 16
    assert {len(sample.views) for sample in sets if sample.row == 4} == {2, 3, 4}
    assert {sample.views[0] for sample in sets if sample.row == 4} == {0, 1, 2, 3, 4}


def test_captions_are_dropped_at_the_configured_share(lanes: int) -> None:
    dropped = np.mean([sample.drop_caption for sample in _plan(lanes, batch=4000, caption_dropout=0.25).step(0)])
    assert 0.22 < dropped < 0.28


def test_seeded_generator_is_pinned() -> None:
    """The same on any machine and with any numpy: a run resumed elsewhere must go on with the same samples."""
    generator = SeededGenerator(7, "test", 3)
    assert generator.word() == 1448646740997517480
    assert generator.permutation(6).tolist() == [0, 1, 2, 5, 4, 3]
    numbers = np.array([SeededGenerator("normal", n).normal() for n in range(4000)])
    assert abs(numbers.mean()) < 0.06
    assert abs(numbers.std() - 1) < 0.04


def test_words_of_a_thing_do_not_depend_on_what_is_asked_for_with_it() -> None:
    together = indexed_words((7, "words"), 100, 50, 8)
    assert (indexed_words((7, "words"), 120, 3, 8) == together[20:23]).all()
    assert int(together[0, 0]) == 18257235978092868268
    assert len(set(together.ravel().tolist())) == together.size
