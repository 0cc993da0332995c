"""Lists of addresses from the command line to the dataset: rows, reasons, growth, retries, and kills."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_server import Answer, PictureServer
from PIL import Image

from labeling.dataset import Dataset
from labeling.sources.source import Source
from model.inputs import InputError
from model.inputs.schema import validate
from pipelines.cli.app import main
from pipelines.ingest_job.addresses import new_ranges, open_addresses
from pipelines.jobs.specification import LabelJob


def encoded(number: int) -> bytes:
    pixels = np.full((48, 64, 3), 40 + number % 200, np.uint8)
    pixels[: 1 + number // 200] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with PictureServer() as running:
        for number in range(400):
            running.answers[f"/{number}.png"] = Answer(encoded(number))
        yield running


LOCAL = ["--allow-private", "127.0.0.1", "--timeout", "30", "--retries", "0"]


class Terminal:
    """The command line in this process, which saves the start of another."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def ingest(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """What the command prints to its output and its errors; it ends with `code`."""
        self.monkeypatch.setattr(sys, "argv", ["onediffusion", "ingest", *LOCAL, *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = self.capsys.readouterr()
        assert ended.value.code == code, errors
        return output, errors

    def refused(self, *arguments: object) -> str:
        """The one line of a refusal."""
        (line,) = self.ingest(*arguments, code=2)[1].strip().splitlines()
        return line


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(dataset: Path, group: str = "images") -> list[dict[str, Any]]:
    return list(Dataset.open(dataset).rows(group))


def reasons(dataset: Path) -> dict[str, str]:
    return {row["source"].rpartition("/")[2]: row["reason"] for row in rows(dataset, "rejected")}


def test_rows_of_a_list_become_rows_or_keep_their_reason(
    server: PictureServer, terminal: Terminal, tmp_path: Path
) -> None:
    server.answers["/1.png"].headers.append(("X-Robots-Tag", "noai"))
    server.answers["/2.png"] = Answer(b"<html>", headers=[("Content-Type", "text/html")])
    server.answers["/3.png"] = Answer(b"no picture")
    server.answers["/4.png"] = server.answers["/0.png"]
    urls = [server.url(f"/{number}.png?width=640&token=secret") for number in range(6)]
    table = {
        "URL": [*urls, server.url("/none.png"), "http://10.0.0.1/a.png", None],
        "TEXT": [f"caption {number}" for number in range(9)],
        "LICENSE": ["CC0"] * 9,
        "similarity": [number / 8 for number in range(9)],
    }
    pq.write_table(pa.table(table), tmp_path / "laion.parquet", row_group_size=4)
    output, _ = terminal.ingest(tmp_path / "laion.parquet", tmp_path / "data", "--shard-rows", 4)
    assert "2 pictures added, 7 files rejected; 2 pictures in" in output
    assert "secret" not in output
    first, second = rows(tmp_path / "data")
    assert first["source"] == server.url("/0.png?width=640")
    assert (first["text"], first["licence"], json.loads(first["metadata"])) == ("caption 0", "CC0", {"similarity": 0.0})
    assert first["image"] == encoded(0)
    assert second["text"] == "caption 5"
    assert reasons(tmp_path / "data") == {
        "1.png?width=640": "X-Robots-Tag: noai",
        "2.png?width=640": "text/html, not a picture",
        "3.png?width=640": "not a picture: text",
        "4.png?width=640": f"same bytes as {server.url('/0.png?width=640')}",
        "none.png": "HTTP 404",
        "a.png": "private address 10.0.0.1: allow with --allow-private 10.0.0.1",
        "laion.parquet, row 9": "no address in this row",
    }
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_options_reach_the_fetching(server: PictureServer, terminal: Terminal, tmp_path: Path) -> None:
    listed = write_list(
        tmp_path / "a.jsonl",
        [{"place": server.url(f"/{number}.png"), "words": f"w{number}", "text": "other"} for number in range(4)],
    )
    server.answers["/1.png"].headers.append(("X-Robots-Tag", "lab: noai"))
    server.answers["/2.png"].headers.append(("X-Robots-Tag", "noindex"))
    server.answers["/3.png"] = Answer(b"x" * (2 << 20))
    assert "no column of addresses (url); name it with --url" in terminal.refused(listed, tmp_path / "data")
    assert "did you mean 'words'" in terminal.refused(listed, tmp_path / "data", "--url", "place", "--text", "word")
    assert "--allow-private nowhere" in terminal.refused(
        listed, tmp_path / "data", "--url", "place", "--allow-private", "nowhere"
    )
    options = ["--url", "place", "--text", "words", "--contact", "me@lab.test", "--robots-name", "lab", "--max-mb", 1]
    terminal.ingest(listed, tmp_path / "data", *options, "--directives", "noai")
    assert [row["text"] for row in rows(tmp_path / "data")] == ["w0", "w2"]
    assert reasons(tmp_path / "data") == {"1.png": "X-Robots-Tag: noai", "3.png": "larger than 1 MiB"}
    assert server.headers[-1]["User-Agent"] == "lab/1 (me@lab.test)"


def test_limits_reach_the_fetching(server: PictureServer, terminal: Terminal, tmp_path: Path) -> None:
    """How much at once, how often and how long, as typed."""
    listed = write_list(tmp_path / "a.jsonl", [{"url": server.url(f"/{number}.png")} for number in range(6)])
    busy = Answer(b"busy", 503, headers=[("Retry-After", "0")])
    server.answers["/1.png"].first += [busy, busy]
    server.answers["/2.png"].first += [busy, busy, busy]
    for number in range(3, 6):
        server.answers[f"/{number}.png"].wait = 0.2
    terminal.ingest(listed, tmp_path / "data", "--connections", 8, "--host-connections", 1, "--retries", 2)
    assert reasons(tmp_path / "data") == {"2.png": "HTTP 503"}
    assert (server.requests["/1.png"], server.requests["/2.png"]) == (3, 3)
    assert server.most == 1
    server.answers["/9.png"].wait = 4.0
    slow = write_list(tmp_path / "b.jsonl", [{"url": server.url(f"/{number}.png")} for number in (8, 9)])
    terminal.ingest(slow, tmp_path / "slow", "--timeout", 1)
    assert reasons(tmp_path / "slow") == {"9.png": "timed out after 1 s without a byte"}


def test_job_file_has_the_same_options() -> None:
    options = {"url": "place", "timeout": 3, "directives": "noai, noindex", "allow_private": ["10.1.0.0/16"]}
    job = validate(LabelJob, {"kind": "label", "dataset": "d", "source": "a.csv", "ingest": options}, "job")
    fetching = job.ingest.fetching()
    assert (fetching.connect_seconds, fetching.total_seconds, fetching.networks) == (3, 18, ("10.1.0.0/16",))
    assert fetching.directives == ("noai", "noindex")
    with pytest.raises(InputError, match="--allow-private lab: give an address or a network"):
        validate(LabelJob, {"kind": "label", "dataset": "d", "ingest": {"allow_private": ["lab"]}}, "job")


def test_list_without_a_picture_leaves_nothing_behind(
    server: PictureServer, terminal: Terminal, tmp_path: Path
) -> None:
    listed = write_list(
        tmp_path / "a.jsonl", [{"url": server.url(f"/none/{end}"), "text": end} for end in ("1", "2", "\ud800")]
    )
    assert "none of 3 addresses gave a picture (3 HTTP 404)" in terminal.refused(listed, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_second_ingest_adds_what_is_new_and_tries_again_only_when_asked(
    server: PictureServer, terminal: Terminal, tmp_path: Path
) -> None:
    lists, data = tmp_path / "lists", tmp_path / "data"
    lists.mkdir()
    listed = [{"url": server.url(f"/{number}.png"), "caption": f"c{number}"} for number in range(12)]
    server.answers["/3.png"] = Answer(encoded(3), first=[Answer(status=503)])
    server.answers["/4.png"] = Answer(status=404)
    write_list(lists / "a.jsonl", listed[:7])
    assert "5 pictures added, 2 files rejected" in terminal.ingest(lists, data, "--shard-rows", 4)[0]
    asked = server.requests.total()
    assert "0 pictures added, 0 files rejected; 5 pictures in" in terminal.ingest(lists, data, "--shard-rows", 4)[0]
    assert server.requests.total() == asked

    write_list(lists / "a.jsonl", listed[:9])
    write_list(lists / "b.jsonl", [listed[0], *listed[9:]])
    source, known = Source(str(lists)), Dataset(data)
    addresses = open_addresses(source, known)
    assert addresses is not None
    assert new_ranges(source.address, addresses, known) == {"a.jsonl, rows from 8": 2, "b.jsonl, rows from 1": 4}
    assert "5 pictures added, 1 files rejected; 10 pictures in" in terminal.ingest(lists, data, "--shard-rows", 4)[0]
    assert reasons(data)["0.png"].startswith("in the dataset already, as ")
    assert server.requests["/3.png"] == server.requests["/1.png"] == 1

    assert "1 pictures added, 0 files rejected; 11 pictures in" in terminal.ingest(lists, data, "--retry-failed")[0]
    assert server.requests["/3.png"] == 2
    assert server.requests["/4.png"] == server.requests["/1.png"] == 1
    assert set(reasons(data)) == {"4.png", "0.png"}
    assert [row["text"] for row in rows(data)] == [f"c{n}" for n in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 3)]

    listed[1]["caption"] = "corrected"
    write_list(lists / "a.jsonl", listed[:9])
    assert "a.jsonl has changed in rows that were ingested before" in terminal.ingest(lists, data)[0]


def shard_files(dataset: Path) -> dict[str, bytes]:
    files = [*dataset.glob("*/[0-9]*.parquet"), dataset / "dataset.json"]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in files}


def test_killed_ingest_asks_nothing_twice_and_gives_the_same_shards(
    server: PictureServer, terminal: Terminal, tmp_path: Path
) -> None:
    """Equal pictures of different shards are settled at the end, on either side of the kill."""
    numbers = [number % 370 for number in range(400)]
    listed = write_list(tmp_path / "a.jsonl", [{"url": server.url(f"/{number}.png")} for number in numbers])
    for number in range(300, 400):
        server.answers[f"/{number}.png"].wait = 0.1
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    options = ["--shard-rows", "20"]
    command = [sys.executable, "-m", "pipelines", "ingest", str(listed), str(killed), *options, *LOCAL]
    job = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("images/[0-9]*.parquet"))) < 5 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert not (killed / "dataset.json").exists()
    written = {path: path.stat().st_mtime_ns for path in killed.glob("images/[0-9]*.parquet")}
    assert 5 <= len(written) < 20
    before = None
    while before != (before := server.requests.copy()):  # what its tasks were asking for
        time.sleep(1)
    written = {path: path.stat().st_mtime_ns for path in killed.glob("images/[0-9]*.parquet")}
    terminal.ingest(listed, killed, *options)
    done = [number for path in written for number in numbers[20 * int(path.stem) :][:20] if numbers.count(number) == 1]
    assert done
    assert all(server.requests[f"/{number}.png"] == before[f"/{number}.png"] == 1 for number in done)
    terminal.ingest(listed, calm, *options)
    assert shard_files(killed) == shard_files(calm)
    assert len(rows(calm)) == 370
    assert sum("same bytes as" in row["reason"] for row in rows(calm, "rejected")) == 30


def test_cluster_gives_the_shards_of_one_process(
    server: PictureServer, terminal: Terminal, shared_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = write_list(tmp_path / "a.jsonl", [{"url": server.url(f"/{number % 290}.png")} for number in range(300)])
    assert "290 pictures added, 10 files rejected" in terminal.ingest(listed, tmp_path / "many", "--shard-rows", 32)[0]
    assert server.most <= 8  # the default for one host, over all processes
    monkeypatch.delenv("RAY_ADDRESS")
    terminal.ingest(listed, tmp_path / "one", "--shard-rows", 32)
    assert shard_files(tmp_path / "many") == shard_files(tmp_path / "one")


def test_list_on_s3_in_parts(server: PictureServer, terminal: Terminal, s3: str, tmp_path: Path) -> None:
    from labeling.dataset import open_store

    store = open_store(f"{s3}/lists")
    for part in range(2):
        urls = [server.url(f"/{number}.png") for number in range(100 * part, 100 * part + 100)]
        pq.write_table(pa.table({"url": urls, "text": urls}), tmp_path / "part.parquet")
        store.put(f"part-{part}.parquet", (tmp_path / "part.parquet").read_bytes())
    store.put("_SUCCESS", b"")
    assert "200 pictures added" in terminal.ingest(f"{s3}/lists", f"{s3}/data", "--shard-rows", "64")[0]
    assert [row["text"] for row in Dataset.open(f"{s3}/data").rows("images")] == [
        server.url(f"/{number}.png") for number in range(200)
    ]


def test_planning_a_long_list_holds_its_shards_and_not_its_rows(tmp_path: Path) -> None:
    from labeling.dataset import open_store
    from labeling.sources.addresses.lists import open_list
    from labeling.sources.addresses.lots import cut_lots

    count = 2_000_000
    urls = pa.array(["http://pictures.test/a.jpg"]).take(pa.array(np.zeros(count, np.int64)))
    pq.write_table(pa.table({"url": urls}), tmp_path / "long.parquet", row_group_size=500_000)
    with (tmp_path / "long.csv").open("wb") as file:
        file.write(b"url\n" + b"http://pictures.test/a.jpg\n" * count)
    del urls
    store = open_store(tmp_path)
    process = psutil.Process()
    for name in ("long.parquet", "long.csv"):
        before = process.memory_info().rss
        addresses = open_list(store, [name])
        assert addresses is not None
        cut = addresses.files[0].cut(0, 1024)
        lots = list(cut_lots(cut.ranges, 0, 2))
        assert process.memory_info().rss - before < 32 << 20  # the rows take 54 MB
        assert sum(lot.rows for lot in lots) == cut.rows == count
        (rows_read,) = addresses.files[0].read(cut.ranges[-1:])
        assert len(rows_read) == cut.ranges[-1].rows
