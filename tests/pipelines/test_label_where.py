"""`label --where`: the selected rows are labeled, the others keep their place; what is labeled is not labeled again."""

from __future__ import annotations

import pytest
from commands import onediffusion

from labeling.dataset import NOT_SELECTED, Dataset, dataset_status, select_rows
from model.inputs import InputError
from pipelines.label import label, plan
from pipelines.row_errors import labeled_errors

pytestmark = pytest.mark.usefixtures("ray_cluster")
BRIGHTNESS, DOUBLED = "simple_labelers:Brightness", "simple_labelers:Doubled"


def labeled(dataset: Dataset, group: str, column: str) -> list[bool]:
    """Of each row, whether it has a label; one that has none says why."""
    rows = list(dataset.rows(group))
    ids = [row["id"] for row in dataset.rows("images", ["id"])]
    assert [row["id"] for row in rows] == ids
    assert all((row["error"] is None) == (row[column] is not None) for row in rows)
    return [row[column] is not None for row in rows]


def selected(dataset: Dataset, where: str) -> list[bool]:
    selection = select_rows(dataset, where)
    return [bool(one) for shard in dataset.shard_names for one in selection.mask(shard)]


def test_selected_rows_are_labeled_and_keep_their_labels(dataset: Dataset) -> None:
    first, second = "images.width > 550", "images.height >= 400 and images.width < 620"
    before, now = selected(dataset, first), selected(dataset, second)
    assert 0 < sum(before) < len(before) and any(new and not old for new, old in zip(now, before, strict=True))
    result = label(dataset.uri, [BRIGHTNESS, DOUBLED], where=first)
    assert labeled(dataset, "brightness", "value") == labeled(dataset, "doubled", "twice") == before
    assert {row["error"] for row in dataset.rows("brightness")} == {None, NOT_SELECTED}
    errors = labeled_errors(dataset.uri, list(result.fresh))
    rest = len(before) - sum(before)
    assert errors.lines() == [
        f"{rest} rows have no brightness, doubled: they are not selected. To have them labeled: "
        f"onediffusion label {dataset.uri} brightness doubled --where true"
    ]
    errors.check()
    assert not label(dataset.uri, []).written, "a refresh keeps the condition"
    # Another condition: what is labeled stays, and is not labeled again.
    values = [row["value"] for row in dataset.rows("brightness")]
    label(dataset.uri, [BRIGHTNESS], where=second)
    assert labeled(dataset, "brightness", "value") == [a or b for a, b in zip(before, now, strict=True)]
    after = [row["value"] for row in dataset.rows("brightness")]
    assert all(old is None or old == new for old, new in zip(values, after, strict=True))
    label(dataset.uri, [BRIGHTNESS, DOUBLED], where="true")
    assert all(labeled(dataset, "doubled", "twice"))
    assert not label(dataset.uri, []).written
    assert all(not (state.stale or state.missing) for state in dataset_status(dataset).values())


def test_condition_follows_what_it_reads(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS])
    values = sorted(row["value"] for row in dataset.rows("brightness"))
    where = f"brightness.value > {values[len(values) // 2]}"
    with pytest.raises(InputError, match="labelers read each other in a circle: brightness → selection-"):
        label(dataset.uri, [BRIGHTNESS], where=where)
    label(dataset.uri, [DOUBLED], where=where)
    assert labeled(dataset, "doubled", "twice") == selected(dataset, where)
    # Twice as bright: all rows are selected that were and some more, without being asked for.
    label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"gain": 2.0}})
    assert labeled(dataset, "doubled", "twice") == selected(dataset, where)
    assert sum(selected(dataset, where)) > len(values) // 2
    assert all(not (state.stale or state.missing) for state in dataset_status(dataset).values())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("images.widht > 3", "no column 'images.widht'"),
        ("images.width > (select avg(width) from images)", "cannot depend on other rows"),
        ("brightness.value > 3", "no column 'brightness.value'"),
    ],
)
def test_bad_condition_labels_nothing(dataset: Dataset, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        label(dataset.uri, [BRIGHTNESS], where=where)
    assert dataset.groups() == ["images"]


def test_the_command_line_selects(dataset: Dataset) -> None:
    assert plan(dataset.uri, ["edges"], where="images.width > 300").keys() >= {"edges"}
    done = onediffusion("label", dataset.uri, "edges", "--where", "images.width > 300", "--dry-run")
    rows = select_rows(dataset, "images.width > 300").rows
    total = sum(shard.rows for shard in dataset.shards)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{rows} of {total} rows where images.width > 300"
