"""Pictures of rows and of their conditions, as they are to be encoded: what the labels of latents are made from.

H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeling.dataset import IMAGES
from model.constants import LATENT_CHANNELS, LATENT_FACTOR
from model.inputs import InputError, one_line
from model.prompts import find_task
from training.plan.planned_sample import PlannedSample
from training.plan.streams import Stream
from training.size_cache import SizeCache

if TYPE_CHECKING:
    from model.pictures import Picture

Tables = Callable[[Stream, str, PlannedSample], pa.Table]
Places = Callable[[Stream, str, PlannedSample], str]
Encoded = Mapping[tuple[object, ...], NDArray[np.uint8]]


class FittedPicture(NamedTuple):
    """A (H, W, 3) picture fitted to a size, and the width and height that it had before."""

    picture: Picture
    width: int
    height: int


class RowPictures:
    """Decodes, draws, degrades and fits the pictures of samples. Safe to be used by several threads."""

    def __init__(self, table: Tables, place: Places, limit: int) -> None:
        """table: the row group that has a sample's row of a group; place: what errors call that row; limit: bytes of
        the pictures that are kept, since small datasets soon use them again."""
        self._table, self._place = table, place
        self._cache = SizeCache(limit, lambda fitted: int(fitted.picture.nbytes))

    def key(self, stream: Stream, planned: PlannedSample, view: int | None = None) -> tuple[object, ...]:
        """What an image, or a view of a set, is known by."""
        return (*_row(stream, planned), "image", view, stream.size)

    def __contains__(self, key: tuple[object, ...]) -> bool:
        """Whether the image of that key is kept."""
        return key in self._cache

    def image(
        self,
        stream: Stream,
        planned: PlannedSample,
        read: Encoded,
        view: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> FittedPicture:
        """The image of a row, or a view of a set. size: (width, height), its bucket around stream.size by default.

        read: images that are read already, encoded, by their keys; others are taken from their row group.
        """
        from model.pictures import aspect_bucket, decode_picture, fit_picture

        key = self.key(stream, planned, view)

        def fit() -> FittedPicture:
            data = read.get(key)
            if data is None:
                image = self._table(stream, IMAGES, planned)["image"][planned.row]
                data = (image if view is None else image[view]).as_py()
            try:
                picture = decode_picture(bytes(data))
            except Exception as error:  # Pillow raises nearly anything for bytes that are no picture
                raise self._unreadable(stream, IMAGES, planned, error) from None
            height, width = picture.shape[:2]
            fitted = fit_picture(picture, *(size or aspect_bucket(width, height, stream.size)))
            return FittedPicture(fitted, width, height)

        kept: FittedPicture = self._cache.get(key, fit)
        return kept if size in (None, kept.picture.shape[1::-1]) else fit()

    def degraded(
        self, stream: Stream, planned: PlannedSample, read: Encoded, size: tuple[int, int] | None = None
    ) -> Picture:
        """(H, W, 3) uint8, the image degraded as the plan drew it. read, size: as of `image`."""
        from model.conditions import degrade

        fitted = self.image(stream, planned, read, size=size)
        return degrade(fitted.picture, stream.task, planned.degradation_seed)

    def condition(self, stream: Stream, planned: PlannedSample, width: int, height: int) -> Picture:
        """(H, W, 3) uint8, the label that is the stream's condition as it is drawn over an image of width × height.

        Raises InputError for a label that cannot be drawn so.
        """
        from model.conditions import condition_picture
        from model.pictures import aspect_bucket, fit_picture

        group = find_task(stream.task).label
        assert group is not None

        def read() -> FittedPicture:
            row = {
                f"{name}.{column}": self._table(stream, name, planned)[column][planned.row].as_py()
                for name, columns in stream.drawn_columns.items()
                for column in columns
            }
            try:
                drawn = condition_picture(group, row, width, height)
            except InputError as error:
                raise InputError(f"{self._place(stream, group, planned)}: {error}; label {group} again") from None
            except Exception as error:
                raise self._unreadable(stream, group, planned, error) from None
            return FittedPicture(fit_picture(drawn, *aspect_bucket(width, height, stream.size)), width, height)

        drawn: FittedPicture = self._cache.get((*_row(stream, planned), group, stream.size), read)
        return drawn.picture

    def _unreadable(self, stream: Stream, group: str, planned: PlannedSample, error: Exception) -> InputError:
        what = f"{self._place(stream, group, planned)}: no picture can be read ({one_line(error, 120)})"
        return InputError(f"{what}; delete the file and make its group again")


def _row(stream: Stream, planned: PlannedSample) -> tuple[object, ...]:
    return stream.source, planned.shard, planned.row_group, planned.row


def latent_shape(picture: Picture) -> tuple[int, int, int]:
    """(C, h, w) of what a (H, W, 3) picture is encoded to."""
    return LATENT_CHANNELS, picture.shape[0] // LATENT_FACTOR, picture.shape[1] // LATENT_FACTOR
