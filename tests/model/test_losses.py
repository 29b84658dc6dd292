import pytest
import torch

from model.losses import SDFTarget, align, pointwise_loss, reconstruction_loss, sign_error_share
from model.sparse import Grid, SparseTensor, subdivide
from tests.shapes import as_target, by_coords, random_tensor, ring_and_box, voxelized


def on(coords: list[list[int]], values: list[float]) -> SparseTensor:
    return SparseTensor(torch.tensor(coords, dtype=torch.int32), torch.tensor(values)[:, None])


LINE = [[0, x, 0, 0] for x in range(6)]
DECODED = on(LINE, [0.5, -0.5, 0.25, 1.0, -1.0, 0.0])
TARGET = SDFTarget(band=on([LINE[2], LINE[0]], [0.75, 0.5]), beyond=on([LINE[4], LINE[3], LINE[1]], [-1.0, -1.0, -1.0]))


# --- alignment -------------------------------------------------------------------------------------------------------


def test_decoded_voxels_are_matched_by_coordinate_in_the_targets_order():
    decoded = subdivide(random_tensor(1, num_shapes=2, seed=1))
    decoded = decoded.with_feats(torch.randn(len(decoded.coords), 1))
    wanted = decoded.coords[torch.randperm(len(decoded.coords))[:100]]
    values = by_coords(decoded)
    matched = align(decoded, wanted)
    assert matched.flatten().tolist() == [values[tuple(coord)].item() for coord in wanted.tolist()]


def test_a_voxel_that_was_not_decoded_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"voxel \[0, 3, 3, 3\] was not decoded"):
        align(DECODED, torch.tensor([[0, 0, 0, 0], [0, 3, 3, 3]], dtype=torch.int32))


def test_only_matched_voxels_get_a_gradient():
    feats = DECODED.feats.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(align(DECODED.with_feats(feats), TARGET.band.coords).sum(), feats)
    assert gradient.flatten().tolist() == [1, 0, 1, 0, 0, 0]


# --- reconstruction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "recon", "outside"),
    [
        ("l1", 0.5 / 2, (0 + 2 + 0.5) / 3),
        ("l2", 0.25 / 2, (0 + 4 + 0.25) / 3),
        ("l1+l2", 0.75 / 2, (0 + 6 + 0.75) / 3),
    ],
)
def test_reconstruction_by_hand(kind, recon, outside):
    """In the band, decoded 0.25 and 0.5 against 0.75 and 0.5; beyond it -1, 1 and -0.5 against -1."""
    fit = reconstruction_loss(DECODED, TARGET, kind=kind)
    assert fit.matched.flatten().tolist() == [0.25, 0.5]
    assert fit.recon.item() == pytest.approx(recon)
    assert fit.outside.item() == pytest.approx(outside)


@pytest.mark.parametrize("kind", ["l1", "l2", "l1+l2"])
def test_a_perfect_decoder_has_no_loss(kind):
    target = as_target(voxelized(ring_and_box()))
    decoded = SparseTensor(
        torch.cat([target.beyond.coords, target.band.coords]), torch.cat([target.beyond.feats, target.band.feats])
    )
    fit = reconstruction_loss(decoded, target, kind=kind)
    assert (fit.recon, fit.outside) == (0, 0)
    assert torch.equal(fit.matched, target.band.feats)


def test_band_and_beyond_are_all_voxels_of_the_bricks_each_once():
    """So every decoded voxel has a target."""
    target = as_target(voxelized(ring_and_box()))
    coords = torch.cat([target.band.coords, target.beyond.coords])
    bricks = (coords // 8).unique(dim=0)
    assert len(coords) == len(coords.unique(dim=0)) == 512 * len(bricks)
    assert target.band.feats.abs().max() < 1
    assert set(target.beyond.feats.unique().tolist()) == {-1.0, 1.0}


def test_no_voxel_beyond_the_band_costs_nothing():
    """A wide band can fill its bricks."""
    nothing = SparseTensor.on(Grid(torch.zeros(0, 4, dtype=torch.int32), num_shapes=1, extent=6), torch.zeros(0, 1))
    fit = reconstruction_loss(DECODED, SDFTarget(TARGET.band, nothing), kind="l1")
    assert fit.outside == 0
    assert fit.recon == 0.25


def test_l1_and_l2_add_up():
    error = torch.randn(50)
    assert pointwise_loss(error, "l1+l2") == pointwise_loss(error, "l1") + pointwise_loss(error, "l2")


def test_sign_errors_are_the_share_on_the_wrong_side():
    matched = torch.tensor([[0.1], [-0.1], [0.2], [-0.9]])
    truth = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]])
    assert sign_error_share(matched, truth) == 0.5
    assert sign_error_share(truth, truth) == 0
    assert sign_error_share(-truth, truth) == 1
