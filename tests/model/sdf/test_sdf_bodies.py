"""Several bodies in one mesh: what is inside is their union, less cavities. Volumes of boxes are the truth."""

from collections.abc import Sequence

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sdf import grid_surface, normalised_surface, voxelize
from model.sdf.bodies import orient_bodies
from model.sdf.edges import find_edges


def box(
    size: Sequence[float], at: Sequence[float] = (0, 0, 0), *, reversed_: bool = False, fine: bool = False
) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh = mesh.subdivide() if fine else mesh
    mesh.apply_translation(at)
    return trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1] if reversed_ else mesh.faces, process=False)


def solid_volume(mesh: trimesh.Trimesh, resolution: int = 64) -> float:
    shape = voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=2.0)
    surface = grid_surface(shape).in_frame(shape.center, shape.scale)
    return trimesh.Trimesh(*surface, process=False).volume


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    """One mesh in which vertices at one place are one, as those that are read from files are."""
    mesh = trimesh.util.concatenate(list(meshes))
    mesh.merge_vertices()
    return mesh


Box = tuple[Sequence[float], Sequence[float], str]  # size, middle, and how: r for reversed, f for finely cut


def cube(side: float, how: str = "", at: Sequence[float] = (0, 0, 0)) -> Box:
    return (side, side, side), at, how


def rod(*size: float, how: str = "") -> Box:
    return size, (0, 0, 0), how


CORNER, BESIDE, APART = (1, 1, 1), (2, 0, 0), (3, 0, 0)
CASES: dict[str, tuple[list[Box], float]] = {
    "crossing": ([cube(2), cube(2, at=CORNER)], 15),
    "crossing, one reversed": ([cube(2), cube(2, "r", CORNER)], 15),
    "crossing, both reversed": ([cube(2, "r"), cube(2, "r", CORNER)], 15),
    "three crossing rods, the middle one reversed": ([rod(4, 1, 1), rod(1, 4, 1, how="r"), rod(1, 1, 4)], 10),
    "nested": ([cube(2), cube(1)], 8),
    "nested, both reversed": ([cube(2, "r"), cube(1, "r")], 8),
    "cavity": ([cube(2), cube(1, "r")], 7),
    "cavity, all reversed": ([cube(2, "r"), cube(1)], 7),
    "body in a cavity": ([cube(3), cube(2, "r"), cube(1)], 20),
    "reversed body in a cavity": ([cube(3), cube(2, "r"), cube(1, "r")], 20),
    "cavity in a body in a cavity": ([cube(5), cube(4, "r"), cube(3), cube(2, "r")], 80),
    "cavity beside a reversed body that crosses": ([cube(3), cube(2, "r"), cube(3, "r", CORNER)], 41.375),
    "cavities that cross": ([cube(4), rod(2, 1, 1, how="r"), rod(1, 2, 1, how="r")], 61),
    "cavities that cross, all reversed": ([cube(4, "r"), rod(2, 1, 1), rod(1, 2, 1)], 61),
    "apart, one reversed": ([cube(2), cube(2, "r", APART)], 16),
    "touching, a wall each": ([cube(2), cube(2, at=BESIDE)], 16),
    "touching, walls cut differently, one reversed": ([cube(2), cube(2, "rf", BESIDE)], 16),
    "touching at an edge, one reversed": ([cube(2), cube(2, "r", (2, 2, 0))], 16),
    "both sides of its wall": ([cube(2), cube(2, "r")], 8),
    "both sides of its wall, another beside": ([cube(2), cube(2, "r"), cube(2, at=APART)], 16),
    "both sides of its wall, cut differently": ([cube(2), cube(2, "rf"), cube(2, at=APART)], 16),
    "both sides of its wall, crossed by another": ([cube(2), cube(2, "r"), cube(2, at=CORNER)], 15),
}


@pytest.mark.parametrize("name", CASES)
def test_the_volume_is_that_of_the_union_less_cavities(name: str) -> None:
    boxes, volume = CASES[name]
    mesh = joined(*(box(size, at, reversed_="r" in how, fine="f" in how) for size, at, how in boxes))
    assert solid_volume(mesh) == pytest.approx(volume, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_boxes_anywhere_in_any_orientation_are_their_union(data: st.DataObject) -> None:
    """None is inside another one; the truth is counted at the voxels' centres."""
    number = st.integers(-12, 12)
    sides = st.tuples(*[st.integers(3, 8)] * 3)
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(data.draw(st.integers(2, 5))):
        low = np.array(data.draw(st.tuples(number, number, number)), float)
        high = low + data.draw(sides)
        if not any(
            ((low >= a).all() and (high <= b).all()) or ((low <= a).all() and (high >= b).all()) for a, b in boxes
        ):
            boxes.append((low, high))
    flips = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    mesh = joined(*(box(b - a, (a + b) / 2, reversed_=flip) for (a, b), flip in zip(boxes, flips, strict=True)))
    shape = voxelize(mesh.vertices, mesh.faces, resolution=48, truncation_voxels=2.0)
    points = ((shape.coords + 0.5) * 2 / 48 - 1) * shape.scale + shape.center
    inside = np.any([((points > a) & (points < b)).all(1) for a, b in boxes], axis=0)
    clear = np.abs(shape.sdf) > 1e-4
    assert (inside == (shape.sdf < 0))[clear].all()


def test_a_reversed_body_changes_no_distance() -> None:
    boxes = [((2, 2, 2), (0, 0, 0)), ((2, 2, 2), (1, 1, 1)), ((1, 1, 3), (4, 0, 0))]
    mesh = joined(*(box(*place) for place in boxes))
    plain = voxelize(mesh.vertices, mesh.faces, resolution=64, truncation_voxels=2.0)
    for flipped in range(3):
        mixed = joined(*(box(*place, reversed_=i == flipped) for i, place in enumerate(boxes)))
        shape = voxelize(mixed.vertices, mixed.faces, resolution=64, truncation_voxels=2.0)
        assert np.array_equal(plain.coords, shape.coords)
        assert np.allclose(plain.sdf, shape.sdf, rtol=0, atol=1e-6)


def test_a_mesh_whose_bodies_agree_stays_as_it_is() -> None:
    for how in (False, True):
        mesh = joined(box((2, 2, 2), reversed_=how), box((1, 1, 1), (1, 1, 1), reversed_=how))
        edges = find_edges(mesh.faces, len(mesh.vertices), device="cpu")
        assert orient_bodies(mesh.vertices, mesh.faces, edges, device="cpu") is None


def test_patches_are_the_faces_joined_across_edges() -> None:
    apart = joined(trimesh.creation.icosphere(2), box((1, 1, 1), (3, 0, 0)))
    edges = find_edges(apart.faces, len(apart.vertices), device="cpu")
    assert not edges.branching
    assert np.array_equal(edges.patch, np.repeat([0, 320], [320, 12]))

    at_an_edge = joined(box((1, 1, 1)), box((1, 1, 1), (1, 1, 0)))
    edges = find_edges(at_an_edge.faces, len(at_an_edge.vertices), device="cpu")
    assert edges.branching
    assert np.array_equal(edges.patch, np.repeat([0, 12], 12))


def test_truth_surface_has_all_bodies_outward() -> None:
    mesh = joined(box((2, 2, 2)), box((2, 2, 2), (1, 1, 1), reversed_=True))
    surface = trimesh.Trimesh(*normalised_surface(mesh.vertices, mesh.faces), process=False)
    assert surface.volume == pytest.approx(16 * (1.9 / 3) ** 3)
    hollow = joined(box((2, 2, 2)), box((1, 1, 1), reversed_=True))
    surface = trimesh.Trimesh(*normalised_surface(hollow.vertices, hollow.faces), process=False)
    assert surface.volume == pytest.approx(7 * 0.95**3)
