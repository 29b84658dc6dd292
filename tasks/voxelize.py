"""Meshes to sparse SDF shards, on all cores or a Dask cluster: `python -m tasks.voxelize`."""

import time
from pathlib import Path

import pandas as pd
import pyarrow as pa

from model.errors import InputError, printable
from model.files import whole_directory
from model.meshes import SUFFIXES, find_meshes
from model.tables import write_table
from tasks import shards
from tasks.run import Settings, Voxelize, paths, run_stage, write_metrics
from tasks.voxelization import (
    Outcome,
    check_share,
    check_splits,
    forget_all_but,
    metrics_of,
    print_summary,
    shape_in_scratch,
    split_of,
    splits_brought,
    surface_of,
    voxelize_all,
)


def voxelize_meshes(settings: Settings) -> None:
    options = settings.voxelize
    started = time.monotonic()
    files = find_meshes(options.meshes)
    if not files:
        raise InputError(
            f"no mesh in {options.meshes}; expected files ending in {', '.join(SUFFIXES)} at any depth; "
            "put some there or set voxelize.meshes in params.yaml"
        )
    brought = splits_brought(options.meshes, files)
    outcomes = sorted(voxelize_all(files, options), key=lambda outcome: outcome.name)
    assert [outcome.name for outcome in outcomes] == sorted(files)
    usable = [outcome for outcome in outcomes if not outcome.reason]
    rejected = [outcome for outcome in outcomes if outcome.reason]
    rejects = {printable(files[outcome.name]): outcome.reason for outcome in rejected}
    for file, reason in rejects.items():
        print(printable(f"rejected {file}: {reason}"))
    check_share(rejects, len(outcomes), options)

    index = _index(usable, brought, options)
    check_splits(index, options, drawn=brought is None)
    metrics = metrics_of(index, num_rejected=len(rejected))
    with whole_directory(paths.SDF) as directory:
        _write_dataset(directory, usable, files, rejects, index, options)
    seconds = {"name": index.name, "seconds": [outcome.facts["seconds"] for outcome in usable]}
    write_table(paths.TIMINGS / "voxelize.parquet", pa.table(seconds))
    write_metrics("voxelize", metrics)
    forget_all_but(usable + rejected)

    print_summary(index)
    print(
        f"voxelize: {len(usable)} of {len(outcomes)} meshes in {time.monotonic() - started:.0f} s, {len(rejected)} "
        f"rejected; {metrics['num_train']} train, {metrics['num_val']} val, {metrics['num_test']} test"
    )


def _index(usable: list[Outcome], brought: dict[str, str] | None, options: Voxelize) -> pd.DataFrame:
    """A line for each shape: its split, and all facts about it but for how long it took."""
    if brought is not None:
        print(f"voxelize: splits are those that {options.meshes} says")
    rows = []
    for outcome in usable:
        facts = {key: value for key, value in outcome.facts.items() if key != "seconds"}
        facts["notes"] = "; ".join(facts["notes"])
        facts["on_edge_of_hash"] &= brought is None  # where no split is drawn, none can move
        drawn = split_of(facts["surface_hash"], val_share=options.val_share, test_share=options.test_share)
        split = drawn if brought is None else brought[outcome.name]
        rows.append({"name": outcome.name, "split": split, "sha256": outcome.sha256, **facts})
    return pd.DataFrame(rows)


def _write_dataset(
    directory: Path,
    usable: list[Outcome],
    files: dict[str, Path],
    rejects: dict[str, str],
    index: pd.DataFrame,
    options: Voxelize,
) -> None:
    rows = map(shape_in_scratch, usable)
    places = shards.write_shards(directory, rows, shapes_per_shard=options.shapes_per_shard)
    index = index.join(pd.DataFrame(places))
    shards.write_index(
        directory / shards.INDEX, index, resolution=options.resolution, truncation_voxels=options.truncation_voxels
    )
    schema = pa.schema([("file", pa.string()), ("reason", pa.string())])
    table = pa.table({"file": list(rejects), "reason": list(rejects.values())}, schema=schema)
    write_table(directory / shards.REJECTS, table)
    test = index[index.split == "test"]
    surfaces = ((name, surface_of(files[name], sha256)) for name, sha256 in zip(test.name, test.sha256, strict=True))
    shards.write_surfaces(directory / shards.SURFACES, surfaces)


if __name__ == "__main__":
    run_stage("voxelize", voxelize_meshes)
