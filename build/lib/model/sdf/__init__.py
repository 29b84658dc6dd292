"""Mesh to sparse SDF and back. One convention: see SparseSDF."""

from model.sdf.grid import SparseSDF, normalised_surface, voxelize
from model.sdf.surface import Surface, extract_mesh

__all__ = ["SparseSDF", "Surface", "extract_mesh", "normalised_surface", "voxelize"]
