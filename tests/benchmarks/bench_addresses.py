"""`make bench-addresses`: an ingest of a list of addresses, beside img2dataset and beside a bare loop.

All fetch the same pictures from one server on this machine, with as many processes and connections, in rounds that take
them in turn. The bare loop is the floor: it fetches by the standard library's threads and decodes with Pillow, and
writes nothing. img2dataset (resizing off) takes part where IMG2DATASET names its command; its whole time counts, as
that of the ingest does with Ray's start. Results go to runs/bench/addresses.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

CONNECTIONS = 64
SHARD_ROWS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=384, help="pixels of the longer side")
    parser.add_argument("--img2dataset", default=os.environ.get("IMG2DATASET", ""), help="its command")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/addresses.json"))
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, served_pictures(given.pictures, given.side) as base:
        place = Path(folder)
        urls = [f"{base}/{number}.jpg" for number in range(given.pictures)]
        captions = [f"picture {number}" for number in range(given.pictures)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), place / "list.parquet")
        works: dict[str, Callable[[], int]] = {
            "ingest": lambda: ingest(place),
            "bare loop": lambda: bare_loop(urls, cores),
        }
        if given.img2dataset:
            works["img2dataset"] = lambda: img2dataset(given.img2dataset, place, cores)
            works["img2dataset, not decoding"] = lambda: img2dataset(given.img2dataset, place, cores, decode=False)
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(given.rounds):
            for name, work in works.items():
                started = time.perf_counter()
                count = work()
                seconds[name].append(time.perf_counter() - started)
                if count != given.pictures:
                    sys.exit(f"{name} got {count} of {given.pictures} pictures")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table("what", "seconds", "pictures/s", "rounds", "ingest's rate : its rate")
    for name, median in medians.items():
        rounds = " ".join(f"{one:.1f}" for one in seconds[name])
        ratio = "" if name == "ingest" else f"{median / medians['ingest']:.2f}"
        table.add_row(name, f"{median:.1f}", f"{given.pictures / median:.0f}", rounds, ratio)
    Console().print(table)
    result = {
        "pictures": given.pictures,
        "side": given.side,
        "cores": cores,
        "connections": CONNECTIONS,
        "seconds": medians,
        "rounds": seconds,
        "ratios": {name: median / medians["ingest"] for name, median in medians.items() if name != "ingest"},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if given.img2dataset and result["ratios"]["img2dataset"] < 1:
        sys.exit("missed: img2dataset was faster")


def ingest(place: Path) -> int:
    """The whole command."""
    target = place / "dataset"
    shutil.rmtree(target, ignore_errors=True)
    network = ["--allow-private", "127.0.0.1", "--host-connections", str(2 * CONNECTIONS)]
    command = [sys.executable, "-m", "pipelines", "ingest", str(place / "list.parquet"), str(target), *network]
    run([*command, "--connections", str(CONNECTIONS), "--shard-rows", str(SHARD_ROWS)])
    return sum(shard["rows"] for shard in json.loads((target / "dataset.json").read_text())["shards"])


def img2dataset(command: str, place: Path, processes: int, decode: bool = True) -> int:
    """The whole command, resizing off: with `decode` it decodes each picture and keeps its bytes."""
    target = place / "img2dataset"
    shutil.rmtree(target, ignore_errors=True)
    options = {
        "url_list": place / "list.parquet",
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": target,
        "output_format": "parquet",
        "processes_count": processes,
        "thread_count": CONNECTIONS,
        "number_sample_per_shard": SHARD_ROWS,
        "resize_mode": "no",
        "skip_reencode": True,
        "disable_all_reencoding": not decode,
    }
    run([*command.split(), *(f"--{name}={value}" for name, value in options.items())])
    return sum(json.loads(file.read_text())["successes"] for file in target.glob("*_stats.json"))


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stderr[-3000:]}{done.stdout[-1000:]}")


def bare_loop(urls: list[str], processes: int) -> int:
    """Fetch and decode with what Python and Pillow bring."""
    parts = [urls[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        return sum(pool.map(fetch_and_decode, parts))


def fetch_and_decode(urls: list[str]) -> int:
    from PIL import Image

    def one(url: str) -> bool:
        with urllib.request.urlopen(url, timeout=10) as response:
            raw = response.read()
        return Image.open(io.BytesIO(raw)).convert("RGB").width > 0

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(pool.map(one, urls))


@contextmanager
def served_pictures(count: int, side: int) -> Iterator[str]:
    """The address of a server of so many different photographs, in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(count), str(side)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.wait()


def serve(count: int, side: int) -> None:
    """Answer every request from memory with as little work as Python allows. Prints its port."""
    import asyncio

    pictures = make_pictures(count, side)

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.waiting = transport, b""

        def data_received(self, data: bytes) -> None:
            self.waiting += data
            while b"\r\n\r\n" in self.waiting:
                request, _, self.waiting = self.waiting.partition(b"\r\n\r\n")
                body = pictures[int(request.split(b" ", 2)[1][1:-4])]
                closes = b"connection: close" in request.lower()
                head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n" % len(body)
                self.transport.write(head + (b"Connection: close\r\n\r\n" if closes else b"\r\n") + body)
                if closes:
                    self.transport.close()

    async def run_server() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run_server())


def make_pictures(count: int, side: int) -> list[bytes]:
    """Different JPEGs: pieces of photographs, which compress as photographs do. A number at the end sets them apart."""
    import numpy as np
    import skimage.data
    from PIL import Image

    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea")]
    generator = np.random.default_rng(0)
    pieces: list[bytes] = []
    for number in range(min(count, 256)):
        photograph = photographs[number % len(photographs)]
        width, height = side, side * 3 // 4
        scale = generator.uniform(1.05, 1.5) * max(width / photograph.width, height / photograph.height)
        large = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
        left, top = (int(generator.integers(0, most + 1)) for most in (large.width - width, large.height - height))
        buffer = io.BytesIO()
        large.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=90)
        pieces.append(buffer.getvalue())
    # A comment behind the first marker makes each a file of its own.
    comments = (b"\xff\xfe\x00\x0a%08d" % number for number in range(count))
    return [
        pieces[number % len(pieces)][:2] + comment + pieces[number % len(pieces)][2:]
        for number, comment in enumerate(comments)
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
