"""A real tokenizer in seconds: the shipped VAE, and codes drawn by k-means from latents of a few simple shapes."""

from functools import cache
from pathlib import Path

import torch
import trimesh

from model.checkpoint import load_vae
from model.quantizer import ResidualQuantizer, kmeans
from model.sparse import batch_tensors, from_arrays
from model.tokenizer import ShapeTokenizer
from model.vqvae import VQVAE
from tests.shapes import ring_and_box, voxelized

ROOT = Path(__file__).parents[1]
RESOLUTION = 64
CODEBOOK_SIZE = 256


@cache
def small_tokenizer() -> ShapeTokenizer:
    creation = trimesh.creation
    shapes = [
        creation.icosphere(subdivisions=3),
        creation.cylinder(radius=0.4, height=1.5),
        creation.cone(radius=0.6, height=1.2),
        creation.box((1.8, 1.2, 0.5)),
        ring_and_box(),
    ]
    grids = [voxelized(shape, resolution=RESOLUTION) for shape in shapes]
    vae = load_vae(ROOT / "pretrained" / "small_vae.safetensors")
    with torch.no_grad():
        latents = vae.encode(batch_tensors([from_arrays(g.coords, g.sdf, extent=RESOLUTION) for g in grids])).mean
    codes = kmeans(latents.feats, CODEBOOK_SIZE, iterations=5, generator=torch.Generator().manual_seed(0))
    quantizer = ResidualQuantizer.of([codes])
    return ShapeTokenizer(
        VQVAE(vae, quantizer), resolution=RESOLUTION, truncation_voxels=2.0, mode="solid", max_bad_flip_ratio=0.03
    )
