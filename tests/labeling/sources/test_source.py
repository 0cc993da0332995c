"""Sources: what an address names, and what folders, archives and tables hold."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.dataset import open_store
from labeling.sources.facts import Naming
from labeling.sources.items import Reading
from labeling.sources.source import Source
from labeling.sources.tar import _Ranges
from model.inputs import InputError


def names(source: Source) -> list[str]:
    return [item.name for item in source.items()]


def read(source: Source) -> dict[str, Reading]:
    return {reading.item.name: reading for reading in source.read(source.items())}


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w", **options: Any) -> None:
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_folders_patterns_tars_and_parquet_list_their_items_in_order(pictures: Path, tmp_path: Path) -> None:
    assert names(Source(str(pictures))) == sorted(path.name for path in pictures.iterdir())
    assert names(Source(f"{pictures}/*.jpg")) == ["cut.jpg", "rocket.jpg"]
    assert names(Source(f"{pictures}/rocket.jpg")) == ["rocket.jpg"]
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for path in pictures.glob("c*.png"):
            archive.add(path, f"inside/../../{path.name}")
    tar = read(Source(str(tmp_path / "some.tar")))
    assert {name.rsplit("/", 1)[-1]: reading.raw for name, reading in tar.items()} == {
        path.name: path.read_bytes() for path in pictures.glob("c*.png")
    }
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem} for path in pictures.glob("c*")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet", row_group_size=2)
    parquet = read(Source(str(tmp_path / "some.parquet")))
    assert [(reading.raw, reading.facts) for reading in parquet.values()] == [
        (row["image"]["bytes"], {"caption": row["caption"]}) for row in rows
    ]


def test_patterns_stay_within_folders_and_literal_names_win(tmp_path: Path) -> None:
    for name in ("Trip [2023]/a.png", "Trip [2023]/sub/b.png", "Trip 2/c.png", "top.png", "x.parquet/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    write_tar(tmp_path / "photos[1].tar", [("a.png", b"x")])

    def found(address: str) -> list[str]:
        return Source(f"{tmp_path}/{address}").files()[0]["name"].to_pylist()

    assert found("Trip [2023]") == ["a.png", "sub/b.png"]
    assert found("Trip [2023]/*.png") == ["a.png"]
    assert found("photos[1].tar") == ["photos[1].tar"]
    assert found("*.png") == ["top.png"]
    assert found("**/*.png") == [
        "Trip 2/c.png",
        "Trip [2023]/a.png",
        "Trip [2023]/sub/b.png",
        "top.png",
        "x.parquet/d.png",
    ]
    assert found("Trip [!2]*/**") == ["Trip [2023]/a.png", "Trip [2023]/sub/b.png"]
    assert found("Trip ?/*") == ["Trip 2/c.png"]
    assert found("x.parquet") == ["d.png"]
    assert found("to[a-p].p[n]g") == ["top.png"]
    with pytest.raises(InputError, match="goes into all of them"):
        Source(f"{tmp_path}/*.jpg").listing()


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    for folder in (source / "sub", outside / "deep"):
        folder.mkdir(parents=True)
    (source / "a.png").write_bytes(b"a")
    (outside / "deep" / "b.png").write_bytes(b"b")
    for link, target in (
        ("sub/circle", source),
        ("around", tmp_path),
        ("out", outside),
        ("sub/again", outside),
        ("file.png", outside / "deep" / "b.png"),
        ("nothing.png", tmp_path / "missing.png"),
    ):
        os.symlink(target, source / link)
    os.symlink(outside, outside / "deep" / "circle")
    listing = Source(str(source)).listing()
    assert listing.items["name"].to_pylist() == ["a.png", "file.png", "out/deep/b.png"]
    assert [(trouble.name, trouble.reason) for trouble in listing.troubles] == [
        ("nothing.png", "link to a file that is not there")
    ]


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    Path(os.fsdecode(raw + b"/caf\xe9.png")).write_bytes(b"picture")
    Path(os.fsdecode(raw + b"/caf\xe9.txt")).write_bytes("au lait: 3 €".encode("cp1252"))
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", [("d\udce9j\udce0.png", b"vu")], encoding="utf-8", errors="surrogateescape")
    readings = read(Source(str(tmp_path)))
    assert {name: (one.raw, one.facts) for name, one in readings.items()} == {
        "caf\\xe9.png": (b"picture", {"text": "au lait: 3 €"}),
        "tars/a.tar/d\\xe9j\\xe0.png": (b"vu", {}),
    }


def test_captions_beside_pictures_belong_to_them(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"a", "a.txt": b"of a", "a-1.jpg": b"a1", "b.jpg": b"b",
        "b.jpg.json": b'{"caption": "of b", "likes": 3}',
        "c.jpg": b"c", "c.caption": b"of c", "c.json": b"[broken", "d.v2.jpg": b"d", "d.v2.txt": b"of d",
        "notes.txt": b"of nothing", "sub/a.jpg": b"other",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    said = {name: reading.facts for name, reading in read(Source(str(tmp_path))).items()}
    assert said == {
        "a-1.jpg": {}, "a.jpg": {"text": "of a"}, "b.jpg": {"caption": "of b", "likes": 3}, "c.jpg": {"text": "of c"},
        "d.v2.jpg": {"text": "of d"}, "notes.txt": {}, "sub/a.jpg": {},
    }  # fmt: skip


def test_captions_whose_names_differ_in_form_or_case_belong_to_their_picture(tmp_path: Path) -> None:
    accent = [unicodedata.normalize(form, "é") for form in ("NFD", "NFC")]
    files = [(f"{accent[0]}.png", b"a"), (f"{accent[1]}.txt", b"of a"), ("B.JPG", b"b"), ("b.TXT", b"of b")]
    files += [("c.png", b"c"), ("C.png", b"C"), ("c.txt", b"of c")]
    (tmp_path / "folder").mkdir()
    for name, data in files:
        (tmp_path / "folder" / name).write_bytes(data)
    write_tar(tmp_path / "a.tar", files)
    for source in ("folder", "a.tar"):
        said = {reading.raw: reading.facts.get("text") for reading in read(Source(str(tmp_path / source))).values()}
        assert said == {b"a": "of a", b"b": "of b", b"c": "of c", b"C": None}


def test_archive_is_what_its_bytes_are_whatever_its_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "plain.tar", [("a.png", b"a"), ("a.txt", b"of a"), ("b.png", b"b")])
    data = (tmp_path / "plain.tar").read_bytes()
    (tmp_path / "named.tar.gz").write_bytes(data)
    (tmp_path / "packed.tar").write_bytes(gzip.compress(data))
    for name in ("named.tar.gz", "packed.tar"):
        found = read(Source(str(tmp_path / name)))
        assert {key: (one.raw, one.facts) for key, one in found.items()} == {
            f"{name}/a.png": (b"a", {"text": "of a"}),
            f"{name}/b.png": (b"b", {}),
        }


def test_webdataset_as_img2dataset_leaves_it(tmp_path: Path) -> None:
    said = {"caption": "of a", "url": "http://e.org/a.jpg", "status": "success", "width": 3}
    files = {"000000000.jpg": b"a", "000000000.txt": b"of a", "000000000.json": json.dumps(said).encode()}
    write_tar(tmp_path / "00000.tar", list(files.items()))
    (tmp_path / "00001").mkdir()
    for name, data in files.items():
        (tmp_path / "00001" / name).write_bytes(data)
    for shard in ("00000", "00001"):
        pq.write_table(pa.table({"url": ["http://e.org/a.jpg"], "key": ["0"]}), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 1}')
    readings = read(Source(str(tmp_path)))
    wanted = {**{key: value for key, value in said.items() if key != "caption"}, "text": "of a"}
    assert {name: (one.raw, one.facts) for name, one in readings.items()} == {
        "00000.tar/000000000.jpg": (b"a", wanted),
        "00001/000000000.jpg": (b"a", wanted),
    }


def odd_tar(path: Path) -> None:
    members = [("one.png", b"old"), ("._one.png", b"fork"), ("é" * 120 + ".png", b"long"), ("one.png", b"new")]
    write_tar(path, members, "w", format=tarfile.PAX_FORMAT)
    with tarfile.open(path, "a") as archive:
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "one.png"
            archive.addfile(info)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_tars_are_read_as_they_unpack(tmp_path: Path, suffix: str) -> None:
    odd_tar(tmp_path / "odd")
    data = (tmp_path / "odd").read_bytes()
    path = tmp_path / f"odd{suffix}"
    if suffix == ".tar.xz":
        import lzma

        path.write_bytes(lzma.compress(data))
    else:
        codec = {".tar.gz": "gzip", ".tar.bz2": "bz2", ".tar.zst": "zstd"}.get(suffix)
        with pa.output_stream(path, compression=codec) as stream:
            stream.write(data)
    found = {name.removeprefix(f"{path.name}/"): one.raw for name, one in read(Source(str(path))).items()}
    assert found == {"one.png": b"new", "é" * 120 + ".png": b"long", "hard.png": b"new"}


def test_one_bad_archive_does_not_cost_the_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", [("a.png", b"a" * 600), ("b.png", b"b" * 600)])
    data = (tmp_path / "good.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:1700])
    (tmp_path / "damaged.tar").write_bytes(data[:1536] + b"\x07" * 512 + data[2048:])
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "page.tar").write_bytes(b"<html>" * 200)
    (tmp_path / "bad.parquet").write_bytes(b"x" * 700)
    source = Source(str(tmp_path))
    listing = source.listing()
    found = {one.item.name: (one.raw, one.reason) for one in source.read(source.items())}
    assert found["good.tar/b.png"] == (b"b" * 600, "")
    assert found["damaged.tar/a.png"] == (b"a" * 600, "")
    reasons = {trouble.name: trouble.reason for trouble in listing.troubles}
    assert reasons.keys() == {"cut.tar", "damaged.tar", "empty.tar", "page.tar", "bad.parquet"}
    assert reasons["cut.tar"] == "damaged at byte 1536, after 1 members; those before are taken"
    assert reasons["page.tar"] == "cannot be read (invalid header); is all of it there?"


def test_unreadable_archives_alone_are_named(tmp_path: Path) -> None:
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


def test_parquet_of_any_kind_gives_its_pictures_and_columns(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(b"a")
    others = {"n": [1, 2], "tags": [["x"], []], "when": [None, 0.5], "thumb": [b"t", b"t"]}
    columns = {
        "plain": pa.array([b"a", b"b"]),
        "large": pa.array([b"a", b"b"], pa.large_binary()),
        "view": pa.array([b"a", b"b"], pa.binary_view()),
        "dictionary": pa.array([b"a", b"b"]).dictionary_encode(),
        "struct": pa.array([{"bytes": b"a", "path": None}, {"bytes": b"b", "path": "x"}]),
        "paths": pa.array([{"bytes": None, "path": "img/a.png"}, {"bytes": None, "path": "../b.png"}],
                          pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    }  # fmt: skip
    for name, column in columns.items():
        pq.write_table(pa.table({"image": column, **others}), tmp_path / f"{name}.parquet")
        readings = list(read(Source(str(tmp_path / f"{name}.parquet"))).values())
        assert readings[0].raw == b"a", name
        assert readings[0].facts == {"n": 1, "tags": ["x"]}
        assert readings[1].facts == {"n": 2, "tags": [], "when": 0.5}
        if name == "paths":
            assert readings[1].reason == "../b.png is not below the folder of its table"
        else:
            assert readings[1].raw == b"b", name
    for naming, column in ((Naming(text="tag"), "tag"), (Naming(image="imag"), "imag")):
        with pytest.raises(InputError, match=f"no column '{column}'.*did you mean"):
            Source(str(tmp_path / "plain.parquet"), naming).listing()
    pq.write_table(pa.table({"file_name": ["img/a.png", "img/b.png"]}), tmp_path / "beside.parquet")
    first, second = read(Source(str(tmp_path / "beside.parquet"))).values()
    assert (first.raw, second.reason) == (b"a", "img/b.png is not there")


def test_odd_values_beside_a_picture_in_parquet_do_not_cost_it(tmp_path: Path) -> None:
    places = pa.array([0, 4], pa.int32()).buffers()[1]
    latin = pa.Array.from_buffers(pa.string(), 1, [None, places, pa.py_buffer(b"caf\xe9")])
    columns = {
        "text": latin,
        "late": pa.array([253402300800000], pa.timestamp("ms")),
        "zone": pa.array([7], pa.timestamp("ms", tz="Mars/Phobos")),
        "n": pa.array([3]),
    }
    pq.write_table(pa.table({"image": [b"a"], **columns}), tmp_path / "odd.parquet")
    (reading,) = read(Source(str(tmp_path / "odd.parquet"))).values()
    assert reading.raw == b"a"
    assert reading.facts == {"text": "caf\ufffd", "late": "10000-01-01 00:00:00.000", "zone": "7", "n": 3}
    png = b"\x89PNG\r\n\x1a\n" + bytes(40)
    texts = [base64.b64encode(png).decode(), "data:image/png;base64," + base64.b64encode(png).decode(), "iVBORw0KGgo="]
    pq.write_table(pa.table({"image": texts}), tmp_path / "text.parquet")
    assert [one.raw for one in read(Source(str(tmp_path / "text.parquet"))).values()] == [png, png, png[:8]]
    (tmp_path / "closed.parquet").write_bytes(b"PARE" + bytes(100) + b"PARE")
    (trouble,) = Source(str(tmp_path)).listing().troubles
    assert trouble.name == "closed.parquet" and "encrypted" in trouble.reason


def test_s3_keys_with_blanks_plus_signs_and_brackets(s3: str) -> None:
    store = open_store(f"{s3}/odd keys+")
    for name in ("a b.png", "c+d.png", "e%20f.png", "ü [1].png", "deep/er/g.png"):
        store.put(name, name.encode())
    readings = read(Source(f"{s3}/odd keys+"))
    assert {name: one.raw.decode() for name, one in readings.items()} == {name: name for name in readings}
    assert len(readings) == 5
    assert names(Source(f"{s3}/odd keys+/ü [1].png")) == ["ü [1].png"]
    assert names(Source(f"{s3}/odd keys+/*/er/*.png")) == ["deep/er/g.png"]


def test_folder_markers_of_s3_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["p/", "p/deep/", "p/deep/g.png", "p/old_$folder$", "p/.hidden/x.png", "p/a b+.png"]
    page = {"Contents": [{"Key": key, "Size": 0, "ETag": '"e"'} for key in keys]}
    store = open_store("s3://lab/p")
    monkeypatch.setattr(store, "_pages", lambda *arguments: [page])
    assert [name for name, _ in store.scan()] == ["deep/g.png", "a b+.png"]


def test_archives_on_s3_come_in_few_requests(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        (f"{index:03d}.{suffix}", f"{index}{suffix}".encode() * 300) for index in range(40) for suffix in ("png", "txt")
    ]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar.gz", members, "w:gz")
    store = open_store(f"{s3}/archives")
    for name in ("a.tar", "b.tar.gz"):
        store.put(name, (tmp_path / name).read_bytes())
    source = Source(f"{s3}/archives")
    items = source.items()
    asked = []
    read_part = _Ranges._read

    def counted(ranges: _Ranges, offset: int, size: int) -> bytes:
        asked.append(size)
        return read_part(ranges, offset, size)

    monkeypatch.setattr(_Ranges, "_read", counted)
    found = {one.item.name: (one.raw, one.facts["text"]) for one in source.read(items)}
    wanted = dict(members)
    for archive in ("a.tar", "b.tar.gz"):
        for index in range(40):
            raw, text = found[f"{archive}/{index:03d}.png"]
            assert (raw, text.encode()) == (wanted[f"{index:03d}.png"], wanted[f"{index:03d}.txt"])
    assert len(asked) == 1
