"""A zoo of files, broken and odd: each comes out as it is to look, or is rejected with its reason."""

from __future__ import annotations

import importlib
import warnings

import pytest
from picture_zoo.case import LEAST_SIDE, MOST_PIXELS, fault
from picture_zoo.files import damaged, whole_files

from labeling.sources.normalize import Rejected, normalize
from model.pictures import decode_picture


@pytest.mark.parametrize("group", ["turns", "colors", "depths", "containers", "refused", "damage"])
def test_each_file_of_the_zoo_is_right_or_rejected_with_its_reason(group: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the encoders that make the files
        cases = list(importlib.import_module(f"picture_zoo.{group}").cases())
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    faults = [line for case in cases if (line := fault(case))]
    assert not faults, "\n".join([f"{len(faults)} of {len(cases)} files:", *faults])


def test_no_damaged_file_raises_anything_but_its_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = whole_files()
    taken, reasons = 0, []
    for name, raw in damaged(whole, 480):
        try:
            image = normalize(raw, MOST_PIXELS, LEAST_SIDE)
        except Rejected as error:
            reasons.append(str(error))
            continue
        taken += 1
        assert decode_picture(image.encoded).shape == (image.height, image.width, 3), name
    assert 100 < taken < 400
    assert all(reason and "\n" not in reason for reason in reasons)
