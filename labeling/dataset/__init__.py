"""The dataset of aligned column groups: the one contract that other folders may import. It knows no labeler."""

from __future__ import annotations

from labeling.dataset.array_file import ArrayFile, Want, read_arrays
from labeling.dataset.array_pages import PageCache
from labeling.dataset.checksums import changed_shard, damaged_shard, gone_shard
from labeling.dataset.dataset import DATASET_FILE, EARLIER, GROUP_FILE, SCHEMA_VERSION, Dataset, ShardInfo
from labeling.dataset.digests import check_type, digest_column, digest_json
from labeling.dataset.entries import DROPPED_CAPTION, TEXT, entry_columns, is_text, text_group
from labeling.dataset.footers import FooterTable
from labeling.dataset.images import (
    CAMERA_SCHEMA,
    CAMERAS,
    ID_COLUMN,
    IMAGE_COLUMN,
    IMAGE_SCHEMA,
    IMAGES,
    REJECTED,
    REJECTED_SCHEMA,
    set_schema,
)
from labeling.dataset.index import IndexLog
from labeling.dataset.join import Columns
from labeling.dataset.lease import LEASE_EXPIRY, LEASE_FILES, is_leased, lease, refuse_others
from labeling.dataset.parallel import in_parallel
from labeling.dataset.row_errors import (
    NOT_SELECTED,
    MissingParameter,
    RowErrors,
    Unavailable,
    missing_parameter,
    read_row_errors,
    upstream_groups,
)
from labeling.dataset.selection import Condition, Selection, evaluate, read_condition, select_rows
from labeling.dataset.shards import RECIPE_FIELDS, Footer, is_stored_as_now, recipe, shard_file, write_shard
from labeling.dataset.sql import Tables
from labeling.dataset.status import (
    Footers,
    GroupStatus,
    dataset_status,
    expected_recipe,
    expected_recipes,
    fresh_shards,
    group_status,
    groups_of,
)
from labeling.dataset.storage import (
    PAUSE_SECONDS,
    Entry,
    GrowingText,
    LocalStore,
    Store,
    lines_of_many,
    open_store,
    stored_lines,
    text_parts,
)

__all__ = [
    "CAMERAS",
    "CAMERA_SCHEMA",
    "DATASET_FILE",
    "DROPPED_CAPTION",
    "EARLIER",
    "GROUP_FILE",
    "ID_COLUMN",
    "IMAGES",
    "IMAGE_COLUMN",
    "IMAGE_SCHEMA",
    "LEASE_EXPIRY",
    "LEASE_FILES",
    "NOT_SELECTED",
    "PAUSE_SECONDS",
    "RECIPE_FIELDS",
    "REJECTED",
    "REJECTED_SCHEMA",
    "SCHEMA_VERSION",
    "TEXT",
    "ArrayFile",
    "Columns",
    "Condition",
    "Dataset",
    "Entry",
    "Footer",
    "FooterTable",
    "Footers",
    "GroupStatus",
    "GrowingText",
    "IndexLog",
    "LocalStore",
    "MissingParameter",
    "PageCache",
    "RowErrors",
    "Selection",
    "ShardInfo",
    "Store",
    "Tables",
    "Unavailable",
    "Want",
    "changed_shard",
    "check_type",
    "damaged_shard",
    "dataset_status",
    "digest_column",
    "digest_json",
    "entry_columns",
    "evaluate",
    "expected_recipe",
    "expected_recipes",
    "fresh_shards",
    "gone_shard",
    "group_status",
    "groups_of",
    "in_parallel",
    "is_leased",
    "is_stored_as_now",
    "is_text",
    "lease",
    "lines_of_many",
    "missing_parameter",
    "open_store",
    "read_arrays",
    "read_condition",
    "read_row_errors",
    "recipe",
    "refuse_others",
    "select_rows",
    "set_schema",
    "shard_file",
    "stored_lines",
    "text_group",
    "text_parts",
    "upstream_groups",
    "write_shard",
]
