"""What voxelize leaves: sparse SDFs in Parquet, with an index. Imports no torch, for voxelize's many processes."""

from tasks.shards.shards import (
    INDEX,
    REJECTS,
    SPLITS,
    SURFACES,
    Located,
    PackedSDF,
    Place,
    Shards,
    open_shards,
    packed_of,
    read_facts,
    read_lone_shape,
    read_packed,
    shape_of,
    shape_row,
    write_index,
    write_lone_shape,
    write_shards,
    write_surfaces,
)
