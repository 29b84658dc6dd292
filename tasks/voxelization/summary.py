"""What is said about the shapes of a data set: nothing is dropped, changed or lost in silence."""

import pandas as pd

from model.errors import InputError
from tasks import shards
from tasks.run import Voxelize, paths

LOST = 0.001  # share of a mesh's area above which what is lost of it is worth a line
AMBIGUOUS = 0.03  # share of bad flips above which a mesh has no clear inside


def print_summary(index: pd.DataFrame) -> None:
    """One line for each kind of thing that a user should know of."""
    _print_kinds(index)
    for line in _summary_of_notes(index):
        print(line)
    if index.on_edge_of_hash.any():
        names = list(index.name[index.on_edge_of_hash])
        print(
            f"{len(names)} meshes, such as {names[0]}, lie on the edge of the rounding that splits are drawn from: "
            f"another file format may move them (on_edge_of_hash in {paths.SDF / shards.INDEX})"
        )


def _print_kinds(index: pd.DataFrame) -> None:
    """What is not simply a solid with a clear inside, and what is lost: nothing goes in silence."""
    where = paths.SDF / shards.INDEX
    shells, mixed = (int((index["mode"] == kind).sum()) for kind in ("shell", "mixed"))
    if shells or mixed:
        print(
            f"{shells} meshes are shells, {mixed} solids with shells for what is too thin for a voxel (mode in {where})"
        )
    shares = index.set_index("name").lost_area_share
    lost = shares[shares > LOST]
    if len(lost):
        print(
            f"{len(lost)} meshes lose more than {LOST:.1%} of their area, in parts too thin for a voxel, at most "
            f"{lost.max():.1%} of {lost.idxmax()} (lost_area_share in {where}); raise voxelize.resolution "
            "or set voxelize.mode to auto or shell"
        )
    ambiguous = int((index.bad_flip_ratio > AMBIGUOUS).sum())
    if ambiguous:
        print(f"{ambiguous} meshes have no clear inside (bad_flip_ratio above {AMBIGUOUS} in {where})")


def _summary_of_notes(index: pd.DataFrame) -> list[str]:
    """For each kind of note, how many meshes have it, and one of them."""
    names: dict[str, list[str]] = {}
    for name, notes in zip(index.name, index.notes, strict=True):
        for kind in dict.fromkeys(note.rpartition(": ")[0] for note in notes.split("; ") if note):
            names.setdefault(kind, []).append(name)
    column = f"column notes of {paths.SDF / shards.INDEX}"
    return [f"{kind}: {len(found)} meshes, such as {found[0]} ({column})" for kind, found in sorted(names.items())]


def metrics_of(index: pd.DataFrame, *, num_rejected: int) -> dict[str, float]:
    return {
        "num_meshes": len(index),
        **{f"num_{split}": int((index.split == split).sum()) for split in shards.SPLITS},
        "num_rejected": num_rejected,
        "rejected_share": num_rejected / (len(index) + num_rejected),
        "num_watertight": int(index.watertight.sum()),
        "num_cleaned": int((index.num_dropped_faces > 0).sum()),
        "num_shells": int((index["mode"] == "shell").sum()),
        "num_mixed": int((index["mode"] == "mixed").sum()),
        "mean_voxels": float(index.num_voxels.mean()),
        "mean_bricks": float(index.num_bricks.mean()),
        "mean_bad_flip_ratio": float(index.bad_flip_ratio.mean()),
        "mean_lost_area_share": float(index.lost_area_share.mean()),
    }


def check_share(rejects: dict[str, str], num_files: int, options: Voxelize) -> None:
    share = len(rejects) / num_files
    if share > options.max_rejected_share or len(rejects) == num_files:
        some = "; ".join(f"{file}: {reason}" for file, reason in list(rejects.items())[:3])
        raise InputError(
            f"{len(rejects)} of {num_files} meshes can't be used (share {share:.3f}, voxelize.max_rejected_share is "
            f"{options.max_rejected_share:g}); repair or remove them, or raise it in params.yaml; the first: {some}"
        )


def check_splits(index: pd.DataFrame, options: Voxelize, *, drawn: bool) -> None:
    """Raise InputError where a split, drawn or brought by the user, has no usable mesh."""
    shares = {"val": options.val_share, "test": options.test_share} if drawn else {}
    for split in shards.SPLITS:
        if not (index.split == split).any():
            raised = f" or raise voxelize.{split}_share ({shares[split]:g})" if split in shares else ""
            raise InputError(
                f"none of the {len(index)} meshes fell into the {split} split; expected some; add meshes{raised}"
            )
