import numpy as np
import pytest
import trimesh

from model.report.render import MARGIN, WHITE, SheetRow, draw_sheet, render_mesh


def covered(picture: np.ndarray) -> np.ndarray:
    return (picture < WHITE).any(2)


def test_sphere_is_a_disc_of_its_radius():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.7)
    picture = render_mesh(ball.vertices, ball.faces, size=128)
    assert (picture.shape, picture.dtype) == ((128, 128, 3), np.uint8)
    radius = 64 / MARGIN
    assert covered(picture).sum() == pytest.approx(np.pi * radius**2, rel=0.03)
    rows, columns = np.nonzero(covered(picture))
    assert (rows.mean(), columns.mean()) == pytest.approx((63.5, 63.5), abs=0.5)


def test_up_is_z_and_right_turns_with_azimuth():
    tower = trimesh.creation.box((0.1, 0.1, 1.8))
    rows, columns = np.nonzero(covered(render_mesh(tower.vertices, tower.faces, size=64, elevation=0.0)))
    assert np.ptp(rows) > 10 * np.ptp(columns)
    beam = trimesh.creation.box((0.1, 1.8, 0.1))  # along y: across the picture from +x, a point from +y
    frame = trimesh.creation.box((2, 2, 2)).vertices
    wide, narrow = (
        covered(render_mesh(beam.vertices, beam.faces, size=64, azimuth=a, elevation=0.0, frame_of=frame))
        for a in (0.0, 90.0)
    )
    assert wide.sum() > 10 * narrow.sum()
    marker = trimesh.creation.icosphere(radius=0.1)
    marker.apply_translation((0, 0.8, 0))
    seen = covered(render_mesh(marker.vertices, marker.faces, size=64, azimuth=0.0, elevation=0.0, frame_of=frame))
    assert np.nonzero(seen)[1].mean() > 32  # from +x, +y is to the right: no mirror image


def test_nearer_surface_hides_the_farther():
    far, near = trimesh.creation.box((0.2, 1, 1)), trimesh.creation.box((0.2, 1, 1))
    near.apply_translation((0.5, 0, 0))
    both = trimesh.util.concatenate([far, near])
    view = {"size": 64, "azimuth": 0.0, "elevation": 0.0, "frame_of": near.vertices}
    assert (render_mesh(both.vertices, both.faces, **view) == render_mesh(near.vertices, near.faces, **view)).all()


def test_faces_show_their_direction_whatever_their_winding():
    box = trimesh.creation.box()
    picture = render_mesh(box.vertices, box.faces, size=64)
    assert (picture == render_mesh(box.vertices, box.faces[:, ::-1], size=64)).mean() > 0.99
    shades, counts = np.unique(picture[..., 0][covered(picture)], return_counts=True)
    assert (counts > 200).sum() == 3, shades  # three visible sides, three tones


@pytest.mark.parametrize("factor", [1e-9, 50.0, 1e6])
@pytest.mark.parametrize("place", [0.0, 300.0])
def test_the_picture_depends_on_neither_units_nor_place(factor: float, place: float):
    part = trimesh.util.concatenate([trimesh.creation.icosphere(3), trimesh.creation.box((3, 0.4, 0.4))])
    here = render_mesh(part.vertices, part.faces, size=64)
    there = render_mesh((part.vertices + place) * factor, part.faces, size=64)
    assert (np.abs(here.astype(int) - there).max(2) > 2).mean() < 0.01  # of the pixels: a ray may graze an edge


def test_what_reaches_far_out_of_the_frame_is_not_cut_open():
    frame = trimesh.creation.box((1, 1, 1)).vertices
    long = trimesh.creation.box((1000, 1, 1))
    view = {"size": 64, "azimuth": 0.0, "elevation": 0.0, "frame_of": frame}
    end = trimesh.creation.box((1, 1, 1))
    shown = render_mesh(long.vertices, long.faces, **view)
    assert np.abs(shown.astype(int) - render_mesh(end.vertices, end.faces, **view)).max() <= 2


def test_no_faces_is_a_white_picture():
    assert (render_mesh(np.zeros((0, 3)), np.zeros((0, 3), int), size=16) == WHITE).all()


def test_sheet_holds_every_picture():
    pictures = [np.full((32, 32, 3), shade, np.uint8) for shade in (10, 20, 30, 40)]
    sheet = draw_sheet(["truth", "VAE"], [SheetRow("a", pictures[:2]), SheetRow("b", pictures[2:])])
    assert sheet.shape[1] == 64
    for shade in (10, 20, 30, 40):
        assert (sheet == shade).all(2).sum() >= 32 * 32
