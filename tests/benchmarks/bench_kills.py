"""`make bench-kills`: twenty random kills of a labeling job's processes; the shards are those of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from label_kills import KINDS, label_with_kills, shards

KILLS, A_RUN = 20, 5
NAMES = ["simple_labelers:Brightness", "simple_labelers:Doubled", "edges", "latents-96-edges"]


def main(seed: int = 0) -> None:
    from model.pictures import encode_png
    from pipelines.ingest import ingest
    from pipelines.label import label

    draw, random_pixels = random.Random(seed), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        source, calm = Path(folder, "source"), Path(folder, "calm")
        source.mkdir()
        for index in range(400):
            picture = random_pixels.integers(0, 256, (300, 300 + index, 3), np.uint8)
            (source / f"{index:03d}.png").write_bytes(encode_png(picture))
        ingest(str(source), str(calm), shard_rows=40)
        started = time.monotonic()
        label(str(calm), NAMES)
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        done: Counter[str] = Counter()
        while done.total() < KILLS:
            killed = Path(folder, f"killed-{done.total()}")
            shutil.copytree(calm, killed, ignore=shutil.ignore_patterns("edges", "latents*", "brightness", "doubled"))
            kinds = draw.choices(KINDS, k=min(A_RUN, KILLS - done.total()))
            started = time.monotonic()
            kills = label_with_kills(killed, NAMES, kinds, draw.randrange(1 << 30))
            done += kills
            assert shards(killed) == shards(calm), f"other shards after {kinds}"
            print(f"{dict(kills)}: the same shards after {time.monotonic() - started:.0f} s", flush=True)
            shutil.rmtree(killed)
    print(f"{done.total()} kills: {dict(done)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
