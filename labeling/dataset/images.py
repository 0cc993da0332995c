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
        # What follows is missing in shards of before.
        ("width", pa.list_(pa.int32())),  # of the image, in pixels: what is cut off it, its camera loses too
        ("height", pa.list_(pa.int32())),
        ("points", pa.list_(pa.list_(pa.float32()))),  # of each view 3 numbers for a point: x, y (1 wide) and depth
        ("mask", pa.list_(pa.binary())),  # of each view a PNG, 255 where what is shown is
        ("kind", pa.string()),  # where the cameras come from: mesh, transforms, colmap, co3d, realestate, photographs
        ("reprojection", pa.float32()),  # mean distance of seen points from where they are projected, in pixels
        ("baseline", pa.float32()),  # median distance of views in a row ÷ distance of what they look at
        ("overlap", pa.float32()),  # mean share of what a view shows that the next one shows too
        ("left_out", pa.string()),  # JSON object: picture of the scene that is no view → reason
        ("error", pa.string()),
    ]
)


def set_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that are sets: every column but the id is a list with one entry per view."""
    return pa.schema([field if field.name == "id" else pa.field(field.name, pa.list_(field.type)) for field in schema])
