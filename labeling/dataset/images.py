"""The groups that a dataset begins with: names and schemas of images, of files that were rejected, and of cameras."""

from __future__ import annotations

import pyarrow as pa

IMAGES = "images"  # the group that every dataset has; the other groups have its rows in its order
ID_COLUMN = "images.id"
IMAGE_COLUMN = "images.image"
REJECTED = "rejected"
CAMERAS = "cameras"

IMAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # digest of the raw file
        ("image", pa.binary()),  # encoded, upright, 8 bits, opaque, sRGB
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),  # name of the file in its source
        ("author", pa.string()),
        ("licence", pa.string()),
        ("text", pa.string()),
        ("right", pa.binary()),  # encoded right image of a rectified stereo pair
        ("disparity", pa.binary()),  # 16-bit PNG, 0 where unknown
        ("disparity_scale", pa.float32()),  # inverse depth of one level of disparity
        ("metadata", pa.string()),  # JSON object: what else the source says of it; shards of before lack the column
    ]
)
REJECTED_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("size", pa.int64())])
CAMERA_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("c2w", pa.list_(pa.list_(pa.float32()))),  # of each view 16 numbers, row by row: OpenGL camera-to-world
        ("intrinsics", pa.list_(pa.list_(pa.float32()))),  # of each view 9 numbers, row by row: the image is 1 wide
        ("error", pa.string()),
    ]
)


def set_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that are sets: every column but the id is a list with one entry per view."""
    return pa.schema([field if field.name == "id" else pa.field(field.name, pa.list_(field.type)) for field in schema])
