"""A byte that has changed in a shard: the samples are what they were, or one line names the file and the row group."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.dataset import Dataset
from model.inputs import InputError
from training.config import load_config, override_config, parse_config
from training.plan.mixture import build_manifest
from training.reader import PlanReader

STEPS = 3


@pytest.fixture
def config(small_config: dict[str, Any], views_dataset: Path) -> Any:
    sources = {**small_config["mixture"], "views": {"dataset": str(views_dataset), "tasks": ["views"]}}
    values = override_config(load_config("debug").model_dump(mode="json"), {**small_config, "mixture": sources})
    return parse_config(values, "test")


def samples(config: Any, manifest: Any) -> list[bytes]:
    """What a reader of its own reads."""
    reader = PlanReader(manifest, config, "dct")
    packs = [pack for step in range(STEPS) for pack in reader.read(step, 0, 1).packs]
    return [np.asarray(part).tobytes() for pack in packs for sample in pack for part in (sample.latents, sample.text)]


def outcome(config: Any, manifest: Any) -> list[bytes] | str:
    try:
        return samples(config, manifest)
    except InputError as error:
        return str(error)


def test_changed_byte_is_told_or_of_no_consequence(config: Any, pictures_dataset: Path) -> None:
    manifest = build_manifest(config.mixture, config.size)
    sound = samples(config, manifest)
    draw, told = random.Random(0), 0
    files = [path for path in sorted(pictures_dataset.glob("*/*.parquet")) if path.parent.name != "segmentation"]
    for number in range(36):
        file = files[number % len(files)]
        content = file.read_bytes()
        place = draw.randrange(4, len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])
        found = outcome(config, manifest)
        file.write_bytes(content)
        if isinstance(found, str):
            told += 1
            assert "\n" not in found and str(file) in found
        else:
            assert found == sound, f"byte {place} of {file} changes samples unseen"
    assert told > 5


@pytest.mark.parametrize("group", ["latents-64", "text"])
def test_line_names_file_and_row_group(config: Any, pictures_dataset: Path, group: str) -> None:
    manifest = build_manifest(config.mixture, config.size)
    file = pictures_dataset / group / "000000.parquet"
    content, column = file.read_bytes(), "latent" if group != "text" else "entries"
    metadata = pq.read_metadata(file)
    chunks = [metadata.row_group(1).column(index) for index in range(metadata.num_columns)]
    chunk = max((one for one in chunks if one.path_in_schema.startswith(column)), key=lambda c: c.total_compressed_size)
    end = chunk.data_page_offset + chunk.total_compressed_size
    start = end - chunk.total_compressed_size * 7 // 8
    # Nearly every array of the row group, so that the first one that is read tells.
    damaged = bytes(byte ^ 1 if index % 16 == 15 else byte for index, byte in enumerate(content[start:end]))
    file.write_bytes(content[:start] + damaged + content[end:])
    said = r"^[^\n]*000000\.parquet row group 1: damaged[^\n]*label its group again"
    with pytest.raises(InputError, match=said):
        samples(config, manifest)
    with pytest.raises(InputError, match=said):
        Dataset(pictures_dataset).read(group, "000000")


def test_picture_of_a_damaged_row_group_is_told_to_labelers(pictures_dataset: Path) -> None:
    file = pictures_dataset / "images" / "000000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3] + b"\0\1\2" + content[len(content) // 3 + 3 :])
    with pytest.raises(InputError, match=r"images/000000\.parquet row group 0: damaged"):
        Dataset(pictures_dataset).join("000000", {"images": ["image"]})


def test_shards_without_checksums_are_not_read_as_a_whole(
    config: Any, pictures_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older versions wrote them. What is read of them are the row groups that are needed, with plausible lengths."""
    manifest = build_manifest(config.mixture, config.size)
    sound = samples(config, manifest)
    file = pictures_dataset / "latents-64" / "000000.parquet"
    footer = {key: value for key, value in pq.read_metadata(file).metadata.items() if key in _OLD_KEYS}
    table = Dataset(pictures_dataset).read("latents-64", "000000")

    def write(taken: int) -> None:
        place, lists = table.column_names.index("latent"), table["latent"].to_pylist()
        shorter = pa.array([one and one[taken:] for one in lists], pa.list_(pa.float16()))
        changed = table.set_column(place, "latent", shorter).replace_schema_metadata(None)
        with pq.ParquetWriter(file, changed.schema, use_dictionary=False) as writer:
            for start in (0, 4):
                writer.write_table(changed.slice(start, 4))
            writer.add_key_value_metadata(footer)

    write(0)
    read: list[Any] = []
    original = Dataset.read

    def counted(self: Dataset, *arguments: Any) -> Any:
        read.append(arguments[3])
        return original(self, *arguments)

    monkeypatch.setattr(Dataset, "read", counted)
    assert samples(config, manifest) == sound
    assert read and all(groups is not None and len(groups) == 1 for groups in read)
    write(16)
    with pytest.raises(InputError, match=r"latents-64/000000\.parquet row group \d: damaged; delete the file"):
        samples(config, manifest)


_OLD_KEYS = (b"recipe", b"content", b"columns", b"errors")
