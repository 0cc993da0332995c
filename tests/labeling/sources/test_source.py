"""Sources: what an address names, and what archives hold."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.sources.source import Source
from model.inputs import InputError


def names(source: Source) -> list[str]:
    return [item.name for item in source.items()]


def test_folders_globs_tars_and_parquet_list_their_items_in_order(pictures: Path, tmp_path: Path) -> None:
    assert names(Source(str(pictures))) == sorted(path.name for path in pictures.iterdir())
    assert names(Source(f"{pictures}/*.jpg")) == ["cut.jpg", "rocket.jpg"]
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for path in pictures.glob("c*.png"):
            archive.add(path, f"inside/../../{path.name}")
    tar = Source(str(tmp_path / "some.tar"))
    assert [(item.name.rsplit("/", 1)[-1], tar.read(item)[0]) for item in tar.items()] == [
        (path.name, path.read_bytes()) for path in sorted(pictures.glob("c*.png"))
    ]
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem} for path in pictures.glob("c*")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet", row_group_size=2)
    parquet = Source(str(tmp_path / "some.parquet"))
    assert [parquet.read(item) for item in parquet.items()] == [
        (row["image"]["bytes"], {"text": row["caption"]}) for row in rows
    ]


def test_unreadable_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    with pytest.raises(InputError, match=r"cut\.tar cannot be read \("):
        Source(str(tmp_path)).items()
    (tmp_path / "cut.tar").unlink()
    (tmp_path / "cut.parquet").write_bytes(b"x" * 700)
    with pytest.raises(InputError, match=r"cut\.parquet cannot be read \("):
        Source(str(tmp_path / "cut.parquet")).items()
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "words.parquet")
    with pytest.raises(InputError, match="no column of encoded pictures"):
        Source(str(tmp_path / "words.parquet")).items()


def test_metadata_needs_the_column_file_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("name,text\na.png,hello\n")
    with pytest.raises(InputError, match="no column 'file_name'"):
        Source(str(tmp_path)).items()
