"""Several pictures of each of some people and items, for the demo's sets: crops of its photographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from labeling.sets.rows import encode_jpeg

PEOPLE, ITEMS = "people", "items"
_SIDE = 320  # pixels of the shorter side, at most
_WINDOWS = ((0.0, 0.0, 1.0, 1.0), (0.08, 0.0, 0.94, 0.86), (0.0, 0.04, 0.9, 0.9))  # left, top, right, bottom
_SHOWN = {  # name → photographs, and the caption of one
    f"{PEOPLE}/eileen-collins": (["astronaut.png"], "Eileen Collins in an orange space suit"),
    f"{PEOPLE}/grace-hopper": (["grace_hopper.jpg"], "Grace Hopper in the uniform of the Navy"),
    f"{PEOPLE}/nikola-tesla": (["tesla_portrait.jpg", "tesla_sitting.jpg"], "Nikola Tesla rests his head on a hand"),
    f"{ITEMS}/red-cup": (["coffee.png"], "A red cup with coffee on a wooden table"),
    f"{ITEMS}/white-car": (["car.jpg"], "A white car on a road"),
}


def write_crops(photographs: Path, folder: Path) -> None:
    """Fill `folder` with pictures in folders by name, and their metadata.csv. photographs: what `gather_pictures` made.

    The same files with the same bytes every time.
    """
    from PIL import Image

    table = ["file_name,person,text"]
    for name, (files, caption) in _SHOWN.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            whole = Image.open(io.BytesIO((photographs / file).read_bytes())).convert("RGB")
            scale = min(1.0, _SIDE / min(whole.size))
            whole = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS)
            for number, (left, top, right, bottom) in enumerate(_WINDOWS):
                width, height = whole.size
                crop = whole.crop(
                    (round(left * width), round(top * height), round(right * width), round(bottom * height))
                )
                picture = np.asarray(crop if number != 2 else crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
                target = f"{name}/{Path(file).stem}-{number}.jpg"
                (folder / target).write_bytes(encode_jpeg(np.ascontiguousarray(picture)))
                person = name.rpartition("/")[2] if name.startswith(PEOPLE) else ""
                table.append(f"{target},{person},{caption}")
    (folder / "metadata.csv").write_text("\n".join(table) + "\n")
