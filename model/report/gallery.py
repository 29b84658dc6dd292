"""The meshes of every test shape while evaluate runs, and their pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..distributed import gather_lists, rank
from ..meshes import Mesh
from ..metrics import AnyMesh, checked_mesh
from .figures import ROW_TITLES
from .render import render_mesh

Ranking = dict[str, dict[str, float]]  # CD-L1 by shape and row, the best of stage 2 first

PICTURED = ("vae", "stage1", "stage2")  # of the rows, beside the truth
PICTURE_SIZE = 176  # pixels


class Gallery:
    """One file per shape in a scratch directory: in memory they might not fit."""

    def __init__(self, scratch: Path, rows: Sequence[str] = PICTURED) -> None:
        self.titles = {"truth": "truth"} | {row: ROW_TITLES[row] for row in rows}  # of what is kept, in this order
        self._scratch = scratch / str(rank())
        self._scratch.mkdir()
        self._files: dict[str, Path] = {}
        self.pictures = cache(self._pictures)

    def add(self, shape: str, meshes: Mapping[str, AnyMesh]) -> None:
        """Meshes by row; those of `titles` are kept."""
        path = self._scratch / f"{len(self._files)}.npz"
        arrays: dict[str, Any] = {}
        for row in self.titles:
            mesh = checked_mesh(meshes[row], row)
            arrays |= {f"{row}_vertices": mesh.vertices.astype(np.float32), f"{row}_faces": mesh.faces.astype(np.int32)}
        np.savez(path, **arrays)
        self._files[shape] = path

    def gather(self) -> None:
        """The first rank takes over what all have been given, in their order; they share the scratch directory."""
        self._files = dict(gather_lists(list(self._files.items())))

    def meshes(self, shape: str) -> list[Mesh]:
        """In the order of `titles`."""
        with np.load(self._files[shape]) as arrays:
            return [Mesh(arrays[f"{row}_vertices"], arrays[f"{row}_faces"]) for row in self.titles]

    def _pictures(self, shape: str) -> list[UInt8[np.ndarray, "size size 3"]]:
        """In the order of `titles`, all in the view that frames the truth."""
        meshes = self.meshes(shape)
        frame = meshes[0].vertices
        return [render_mesh(mesh.vertices, mesh.faces, size=PICTURE_SIZE, frame_of=frame) for mesh in meshes]
