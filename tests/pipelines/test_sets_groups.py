"""`sets identity` and `sets subject`: pictures of one person or item, of datasets that were labeled."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import onediffusion
from labels_here import label_here
from PIL import Image, ImageEnhance

from labeling.dataset import Dataset, dataset_status
from labeling.sets.copies import item_of_caption, item_of_folder, same_shape
from labeling.sets.graph import Links, cluster, link, pair_scores
from labeling.sets.rows import buckets
from model.inputs import InputError
from pipelines.demo_data.pictures import PHOTOGRAPHS
from pipelines.ingest import ingest
from pipelines.sets import sets

PEOPLE = ("collins", "hopper", "tesla")
COLUMNS = {"images": None, "caption": ["caption"], "origin": None}


def write_people(folder: Path, photographs: Path, half: int) -> None:
    """Crops and changed copies of photographs of three people, every other of which is of one half."""
    import matplotlib

    hopper = Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg"
    files = (photographs / "astronaut.png", hopper, PHOTOGRAPHS / "tesla_portrait.jpg")
    folder.mkdir()
    table = ["file_name,person,text"]
    for person, file in zip(PEOPLE, files, strict=True):
        whole = Image.open(file).convert("RGB")
        width, height = whole.size
        pictures = {
            "whole": whole,
            "crop": whole.crop((width // 8, 0, width - width // 10, int(height * 0.8))),
            "flip": whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, width * 9 // 10, height * 9 // 10)),
            "dark": ImageEnhance.Brightness(whole.crop((0, 0, width, height * 7 // 8))).enhance(0.6),
            "turned": whole.rotate(8, fillcolor=(128, 128, 128)).crop((width // 7, 0, width * 6 // 7, height)),
            "again": whole.resize((width * 9 // 10, height * 9 // 10)),
        }
        for number, (name, picture) in enumerate(pictures.items()):
            if number % 2 == half:
                picture.save(folder / f"{person}-{name}.jpg", quality=92)
                table.append(f"{person}-{name}.jpg,{person},{person} in a photograph: {name}")
    (folder / "metadata.csv").write_text("\n".join(table))


@pytest.fixture(scope="module")
def people_original(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Two labeled datasets, a and b, of pictures of the same three people."""
    folder = tmp_path_factory.mktemp("people")
    for half, name in enumerate("ab"):
        write_people(folder / f"{name}-files", photographs, half)
        ingest(str(folder / f"{name}-files"), str(folder / name))
        for group in ("faces", "hashes"):
            label_here(str(folder / name), group)
    return folder


@pytest.fixture
def people(people_original: Path, tmp_path: Path) -> list[str]:
    """Copies of the two datasets that a test may change."""
    return [shutil.copytree(people_original / name, tmp_path / name).as_posix() for name in "ab"]


def rows_of(uri: Path | str) -> list[dict[str, Any]]:
    return list(Dataset.open(uri).joined_rows(COLUMNS))


def persons(row: dict[str, Any]) -> list[str]:
    return [json.loads(said)["person"] for said in row["images.metadata"]]


def test_pictures_of_a_person_are_grouped_within_and_across_sources(people: list[str], tmp_path: Path) -> None:
    result = sets("identity", people, str(tmp_path / "sets"), {})
    rows = rows_of(tmp_path / "sets")
    assert result.sets == len(rows) >= 3
    assert result.left_out["nearly the same as another of its group"] >= 3, "of `again`, and of slight crops"
    for row in rows:
        assert len(set(persons(row))) == 1, "precision"
        assert 2 <= len(row["images.image"]) <= 5
        sizes = list(zip(row["images.width"], row["images.height"], strict=True))
        assert all(buckets(*size) == buckets(*sizes[0]) for size in sizes), "they can be frames of one sample"
        captions = [f"{persons(row)[0]} in a photograph"] * len(sizes)
        assert [text.partition(":")[0] for text in row["caption.caption"]] == captions
    assert {person for row in rows for person in persons(row)} == set(PEOPLE)
    assert any(set(row["origin.dataset"]) == {0, 1} for row in rows), "across sources"
    groups = {row["origin.group"][0]: persons(row)[0] for row in rows}
    assert len(groups) == len(PEOPLE), "recall: sets of a person share its group"
    copied = [identity for row in rows for identity in row["origin.row"]]
    assert len(set(copied)) == len(copied), "a picture is copied once"


def test_bytes_are_copied_and_crops_hold_the_face(people: list[str], tmp_path: Path) -> None:
    sets("identity", people, str(tmp_path / "sets"), {"duplicates": -1})
    sources = [{row["id"]: row for row in Dataset.open(uri).rows("images")} for uri in people]
    for row in rows_of(tmp_path / "sets"):
        for index, method in enumerate(row["origin.method"]):
            source = sources[row["origin.dataset"][index]][row["origin.row"][index]]
            crop, face = row["origin.crop"][index], row["origin.face"][index]
            width, height = row["images.width"][index], row["images.height"][index]
            assert face["x1"] - face["x0"] >= 48 and 0 <= face["x0"] < face["x1"] <= width
            if method == "original":
                assert crop is None and row["images.image"][index] == source["image"]
            else:
                assert (crop["x1"] - crop["x0"], crop["y1"] - crop["y0"]) == (width, height)
                assert crop["x0"] >= 0 and crop["x1"] <= source["width"] and crop["y1"] <= source["height"]


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({"distance": 0.01}, lambda result, _: result.left_out["fewer than 2 of its group"] > 9),
        ({"side": 150}, lambda result, _: result.left_out["a face below 150 pixels"] > 0),
        ({"pictures": "2:2"}, lambda _, rows: {len(row["images.image"]) for row in rows} == {2}),
        (
            {"least": 4, "pictures": "4:5", "duplicates": -1},
            lambda _, rows: all(len(row["origin.row"]) >= 4 for row in rows),
        ),
        ({"duplicates": -1}, lambda result, _: "nearly the same as another of its group" not in result.left_out),
        (
            {"where": "images.source like 'tesla%'"},
            lambda _, rows: {person for row in rows for person in persons(row)} == {"tesla"},
        ),
        ({"crop": 2.0}, lambda _, rows: all(row["images.width"] == row["images.height"] for row in rows)),
    ],
)  # fmt: skip
def test_options_have_their_effect(
    options: dict[str, Any], holds: Callable[..., bool], people: list[str], tmp_path: Path
) -> None:
    result = sets("identity", people, str(tmp_path / "sets"), options)
    assert holds(result, rows_of(tmp_path / "sets"))


def test_pictures_of_which_none_belong_together_make_no_dataset(people: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pictures belong together; 18 left out: a face below 4000 pixels"):
        sets("identity", people, str(tmp_path / "sets"), {"side": 4000})
    assert not (tmp_path / "sets/dataset.json").exists()


def test_single_faces_are_asked_for(people: list[str], tmp_path: Path) -> None:
    dataset = Dataset.open(people[0])
    table = dataset.read("faces", "000000").to_pylist()
    for row in table:  # as if a second face were seen
        row["embeddings"], row["boxes"] = row["embeddings"] * 2, row["boxes"] * 2
    import pyarrow as pa

    from labeling.dataset import write_shard

    footer = dataset.footer("faces", "000000")
    changed = pa.Table.from_pylist(table, dataset.read("faces", "000000").schema)
    write_shard(dataset.store, "faces", "000000", changed, footer.row_groups, footer.recipe)
    result = sets("identity", people, str(tmp_path / "sets"), {"alone": True, "duplicates": -1})
    assert result.left_out["several faces"] == 9
    assert all(set(row["origin.dataset"]) == {1} for row in rows_of(tmp_path / "sets"))


def test_plan_is_kept_and_lost_shards_come_back_the_same(people: list[str], tmp_path: Path) -> None:
    uri = tmp_path / "sets"
    sets("identity", people, str(uri), {})
    files = {path: path.read_bytes() for path in uri.rglob("*.parquet")}
    (uri / "images/000000.parquet").unlink()
    (uri / "dataset.json").unlink()
    planned = (uri / "plan/plan.json").stat().st_mtime_ns
    assert sets("identity", people, str(uri), {}).added > 0
    assert (uri / "plan/plan.json").stat().st_mtime_ns == planned
    assert {path: path.read_bytes() for path in uri.rglob("*.parquet")} == files
    assert sets("identity", people, str(uri), {}).added == 0
    again = tmp_path / "again"
    sets("identity", people, str(again), {})
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.parquet")} == {
        path.relative_to(uri): data for path, data in files.items()
    }
    assert all(not (one.stale or one.missing) for one in dataset_status(Dataset.open(uri)).values())
    with pytest.raises(InputError, match="holds identity sets; editing sets go into a dataset of their own"):
        sets("editing", people, str(uri), {"make": ["style"]})


def test_missing_labels_are_named_with_the_command_that_makes_them(people: list[str], tmp_path: Path) -> None:
    shutil.rmtree(Path(people[1]) / "hashes")
    with pytest.raises(
        InputError, match=r"b: group 'hashes' lacks 1 of 1 shards; make it with `label .*/b faces hashes`"
    ):
        sets("identity", people, str(tmp_path / "sets"), {})
    assert sets("identity", people, str(tmp_path / "sets"), {"duplicates": -1}).sets


def test_command_line_groups_them(people: list[str], tmp_path: Path) -> None:
    done = onediffusion("sets", "identity", *people, tmp_path / "sets", "--pictures", "3:4")
    assert done.returncode == 0, done.stderr
    assert f"sets in {tmp_path / 'sets'}" in done.stdout and "pictures left out: nearly the same" in done.stdout
    assert all(3 <= len(row["origin.row"]) <= 4 for row in rows_of(tmp_path / "sets"))


def test_page_shows_sets_with_figures_of_other_thresholds(people: list[str], tmp_path: Path) -> None:
    from pipelines.reports.page import report

    sets("identity", people, str(tmp_path / "sets"), {})
    page = Path(report(str(tmp_path / "sets"))).read_text()
    for words in ("Sets of a person", "Left out:", "precision of pairs", "recall of pairs", "from the set&#39;s mean"):
        assert words in page, words
    curve = json.loads((tmp_path / "sets/plan/plan.json").read_text())["curve"]
    assert [one["threshold"] for one in curve] == pytest.approx([0.3 + 0.05 * step for step in range(10)])
    assert all(one["precision"] == 1 and one["known"] == 18 for one in curve)
    assert curve[-1]["recall"] == 1 >= curve[0]["recall"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_groups_and_copies_the_same(
    people: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets("identity", people, str(tmp_path / "here"), {})
    monkeypatch.setattr("pipelines.sets.FEW", 0)
    monkeypatch.setattr("pipelines.sets.MANY", 0)
    sets("identity", people, str(tmp_path / "there"), {})
    files = [
        {path.relative_to(uri): path.read_bytes() for path in uri.rglob("*.parquet")}
        for uri in (tmp_path / "here", tmp_path / "there")
    ]
    assert files[0] == files[1] and files[0]


def write_items(folder: Path, photographs: Path) -> None:
    """Two items in a folder each, with captions and a name."""
    table = ["file_name,product,text"]
    for name, item in (("coffee.png", "red_cup2"), ("chelsea.png", "tabby-cat")):
        whole = Image.open(photographs / name).convert("RGB")
        (folder / item).mkdir(parents=True)
        for number, left in enumerate((0, 60, 120)):
            file = f"{item}/{number}.jpg"
            whole.crop((left, 0, left + 280, 280 - 20 * number)).save(folder / file)
            table.append(f"{file},{item} of a shop,A {item[:3]} thing on a table ({number})")
    (folder / "metadata.csv").write_text("\n".join(table))


@pytest.mark.parametrize(
    ("options", "items"),
    [
        ({}, ["red cup", "tabby cat"]),
        ({"by": "caption"}, ["red thing", "tab thing"]),
        ({"by": "product"}, ["red_cup2 of a shop", "tabby-cat of a shop"]),
        ({"by": "product", "item": "thing"}, ["thing", "thing"]),
    ],
)
def test_items_are_told_by_folder_caption_or_key(
    options: dict[str, Any], items: list[str], photographs: Path, tmp_path: Path
) -> None:
    write_items(tmp_path / "files", photographs)
    ingest(str(tmp_path / "files"), str(tmp_path / "pictures"))
    sets("subject", [str(tmp_path / "pictures")], str(tmp_path / "sets"), {**options, "duplicates": -1})
    rows = list(Dataset.open(tmp_path / "sets").joined_rows({"images": ["source"], "subject": ["item"]}))
    assert [row["subject.item"] for row in rows] == [[item] * 3 for item in items]
    assert all(len({name.partition("/")[0] for name in row["images.source"]}) == 1 for row in rows)


def test_items_are_told_by_the_embedding_of_the_segmented_object(photographs: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    from labeling.dataset import write_shard
    from model.pictures import encode_png

    write_items(tmp_path / "files", photographs)
    uri = str(tmp_path / "pictures")
    ingest(str(tmp_path / "files"), uri)
    dataset = Dataset.open(uri)
    rows = []
    for number, row in enumerate(dataset.rows("images")):
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        mask[10:-10, 10:-10] = 1
        rows.append({"id": row["id"], "mask": encode_png(mask), "names": ["thing"], "error": None})
        if number == 0:  # nothing is found in it
            rows[-1] = {**rows[-1], "mask": encode_png(0 * mask), "names": []}
    dataset.declare(
        "segmentation", {"labeler": "segmentation", "version": 1, "parameters": {}, "weights": "", "reads": []}
    )
    schema = pa.schema(
        [("id", pa.string()), ("mask", pa.binary()), ("names", pa.list_(pa.string())), ("error", pa.string())]
    )
    write_shard(
        dataset.store,
        "segmentation",
        "000000",
        pa.Table.from_pylist(rows, schema),
        dataset.footer("images", "000000").row_groups,
        "r",
    )
    label_here(uri, "embedding-object")
    options = {"by": "embedding", "similarity": 0.6, "duplicates": -1}
    result = sets("subject", [uri], str(tmp_path / "sets"), options)
    assert result.left_out["no object of it is embedded"] == 1
    made = list(Dataset.open(tmp_path / "sets").joined_rows({"images": ["source"], "subject": ["item"]}))
    assert sorted(len(row["subject.item"]) for row in made) == [2, 3]
    assert all(len({name.partition("/")[0] for name in row["images.source"]}) == 1 for row in made)
    assert {item for row in made for item in row["subject.item"]} == {"thing"}


def test_names_are_what_folders_and_captions_begin_with() -> None:
    assert item_of_folder("photos/red_backpack2/01.jpg") == "red backpack"
    assert item_of_caption("A photo of a red bicycle that leans on a wall.") == "red bicycle"
    assert item_of_caption("The clock, blurred") == "clock"
    assert item_of_caption("") == ""


def test_crops_of_any_shapes_have_one_bucket() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        sizes = random.integers(64, 1500, (int(random.integers(2, 6)), 2)).tolist()
        crops = same_shape([(0, 0, width, height) for width, height in sizes], [None] * len(sizes))
        shapes = [buckets(right - left, bottom - top) for left, top, right, bottom in crops]
        assert all(shape == shapes[0] for shape in shapes), (sizes, crops)
        for (left, top, right, bottom), (width, height) in zip(crops, sizes, strict=True):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_one_wrong_link_does_not_make_two_people_one() -> None:
    pairs = [*itertools.combinations(range(6), 2), *itertools.combinations(range(6, 12), 2), (5, 6)]
    one, other = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    links = Links(one, other, np.full(len(pairs), 0.3, np.float32))
    assert cluster(12, links, 0.5).tolist() == [0] * 6 + [6] * 6


def test_approximate_links_find_the_people_that_exact_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    centers = random.standard_normal((300, 32)).astype(np.float32)
    truth = np.repeat(np.arange(300), 8)
    vectors = 0.5 * centers[truth] / np.linalg.norm(centers[truth], axis=1, keepdims=True)
    vectors = (vectors + 0.02 * random.standard_normal(vectors.shape)).astype(np.float32)
    for exact in (10_000, 100):
        monkeypatch.setattr("labeling.sets.graph.EXACT", exact)
        links = link(vectors, 0.25)
        precision, recall = pair_scores(cluster(len(vectors), links, 0.25), truth)
        assert precision == 1.0 and recall > 0.98
        again = link(vectors, 0.25)
        assert np.array_equal(links.one, again.one) and np.array_equal(links.distance, again.distance)
