"""Our network against the original authors' on the same weights: a two-block VAE of 512 channels from a seed.

The expected values were computed once, in float32 on a CPU, with the original's encoder, attention, norm and decoder
code and submanifold convolutions, for the sphere below. Wrong axis orders, mirrored kernels, a plain mean in the
pooling or another position embedding are off by 0.1 and more.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_vae
from model.sparse import SparseTensor, find_rows, from_arrays
from model.vae import SparseSDFVAE, VAEConfig
from model.vae.network import Posterior

CONFIG = VAEConfig(model_channels=512, num_blocks=2, latent_channels=8)
FILE_ORDER = {"encoder": ["input_layer", "blocks", "input_layer1", "downsample", "out_layer"],
              "decoder": ["input_layer", "blocks", "upsample", "out_layer"]}  # fmt: skip

# coordinates: the first and last channel of the mean, then of the log-variance
LATENTS = {
    (4, 6, 5): (-1.38440, 1.34458, 0.49373, -0.56135),
    (2, 5, 3): (-0.06336, 1.33599, 0.49457, -0.15609),
    (3, 3, 1): (-0.81722, 2.48064, 0.42899, -1.23762),
    (2, 1, 2): (-0.74757, 1.60374, 0.30797, -1.33330),
}
OUTPUTS = {
    (22, 18, 39): 0.03115,
    (42, 38, 48): 0.07022,
    (40, 25, 54): 0.01902,
    (25, 28, 53): -0.00547,
    (44, 50, 32): 0.06584,
    (34, 49, 45): 0.04410,
    (33, 23, 8): 0.00767,
    (23, 9, 37): 0.02676,
}
LATENT_NORM, OUTPUT_NORM = 61.973854, 14.26652


def published_state() -> dict[str, torch.Tensor]:
    """Names, shapes and order of a published file, values from a seed."""
    random = np.random.RandomState(1234)
    state = {}
    for name, shape in published_shapes().items():
        values = random.standard_normal(size=shape).astype(np.float32)
        if name.endswith("bias"):
            values *= 0.05
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            fan_in = math.prod(shape[:-1]) if name.endswith("kernel") else shape[1]
            values /= np.sqrt(fan_in)
        state[name] = torch.from_numpy(values)
    return state


def published_shapes() -> dict[str, tuple[int, ...]]:
    ours = SparseSDFVAE(CONFIG).state_dict()
    shapes = {}
    for half, parts in FILE_ORDER.items():
        for part in parts:
            for name in (key for key in ours if key.startswith(f"{half}.{part}.")):
                shape = tuple(ours[name].shape)
                stem, leaf = name.rsplit(".", 1)
                is_convolution = f"{stem}.weight" in ours and ours[f"{stem}.weight"].ndim == 5
                if not is_convolution and "skip_connection" not in stem:
                    shapes[name] = shape
                elif leaf == "bias":
                    shapes[f"{stem}.conv.bias"] = shape
                else:
                    shapes[f"{stem}.conv.kernel"] = (27, shape[4], shape[0]) if is_convolution else shape[::-1]
    return shapes


def sphere() -> SparseTensor:
    """Radius 22 voxels in the middle of 64^3, stored within 2 voxels."""
    coords = np.argwhere(np.ones((64, 64, 64), bool))
    sdf = (np.linalg.norm(coords - 31.5, axis=1) - 22) / 2
    band = np.abs(sdf) < 1
    return from_arrays(coords[band], sdf[band].astype(np.float32), extent=64)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> SparseSDFVAE:
    file = tmp_path_factory.mktemp("published") / "vae.ckpt"
    torch.save({"vae": published_state(), "dit": {}}, file)
    return load_vae(Path(file))


@pytest.fixture(scope="module")
def posterior(vae: SparseSDFVAE) -> Posterior:
    with torch.no_grad():
        return vae.encode(sphere())


def at(x: SparseTensor, voxels: list[tuple[int, ...]]) -> torch.Tensor:
    rows, found = find_rows(torch.tensor([(0, *voxel) for voxel in voxels], dtype=torch.int32), x.grid)
    assert found.all()
    return x.feats[rows]


def test_latents_are_the_originals(posterior: Posterior):
    assert len(posterior.mean.grid) == 152
    mean, logvar = at(posterior.mean, list(LATENTS)), at(posterior.logvar, list(LATENTS))
    ends = torch.cat([mean[:, [0, 7]], logvar[:, [0, 7]]], 1)
    assert torch.allclose(ends, torch.tensor(list(LATENTS.values())), rtol=0, atol=1e-4)
    moments = torch.cat([posterior.mean.feats, posterior.logvar.feats])
    assert float(moments.norm()) == pytest.approx(LATENT_NORM, rel=1e-4)


def test_decoded_values_are_the_originals(vae: SparseSDFVAE, posterior: Posterior):
    with torch.no_grad():
        decoded = vae.decode(posterior.mean)
    assert len(decoded.grid) == 152 * 8**3
    assert torch.allclose(at(decoded, list(OUTPUTS))[:, 0], torch.tensor(list(OUTPUTS.values())), rtol=0, atol=2e-5)
    assert float(decoded.feats.norm()) == pytest.approx(OUTPUT_NORM, rel=1e-4)
