import pytest
import torch

from model.sparse import Grid, SparseTensor
from model.vae import SDFTarget, reconstruction_loss
from model.vae.losses import pointwise_loss
from tests.shapes import as_target, ring_and_box, voxelized


def on(coords: list[list[int]], values: list[float]) -> SparseTensor:
    return SparseTensor(torch.tensor(coords, dtype=torch.int32), torch.tensor(values)[:, None])


LINE = [[0, x, 0, 0] for x in range(6)]
BAND, BEYOND = on([LINE[2], LINE[0]], [0.75, 0.5]), on([LINE[4], LINE[3], LINE[1]], [-1.0, -1.0, -1.0])
TARGET = SDFTarget(BAND, BEYOND)
DECODED = on([LINE[2], LINE[0], LINE[4], LINE[3], LINE[1]], [0.25, 0.5, -1.0, 1.0, -0.5])


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
        torch.cat([target.band.coords, target.beyond.coords]), torch.cat([target.band.feats, target.beyond.feats])
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
    decoded = SparseTensor(DECODED.coords[:2], DECODED.feats[:2])
    fit = reconstruction_loss(decoded, SDFTarget(BAND, nothing), kind="l1")
    assert fit.outside == 0
    assert fit.recon == 0.25


def test_voxels_decoded_by_another_plan_are_refused():
    with pytest.raises(ValueError, match=r"6 voxels were decoded; expected the target's 5"):
        reconstruction_loss(on(LINE, [0.0] * 6), TARGET, kind="l1")


def test_l1_and_l2_add_up():
    error = torch.randn(50)
    assert pointwise_loss(error, "l1+l2") == pointwise_loss(error, "l1") + pointwise_loss(error, "l2")


def test_sign_errors_are_the_share_on_the_wrong_side():
    truth = [0.5, 0.5, -0.5, -0.5]
    nothing = SparseTensor.on(Grid(torch.zeros(0, 4, dtype=torch.int32), num_shapes=1, extent=6), torch.zeros(0, 1))
    target = SDFTarget(on(LINE[:4], truth), nothing)
    for decoded, share in (([0.1, -0.1, 0.2, -0.9], 0.5), (truth, 0), ([-value for value in truth], 1)):
        assert reconstruction_loss(on(LINE[:4], decoded), target, kind="l1").sign_errors == share
