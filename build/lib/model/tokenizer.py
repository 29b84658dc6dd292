"""The finished product: mesh to integer tokens and back."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.checkpoint import save_weights
from model.errors import InputError
from model.quantizer import VectorQuantizer, nearest_codes
from model.sdf import SparseSDF, extract_mesh, voxelize
from model.sparse import Grid, from_arrays
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Tokens:
    """A shape as integers: one code per occupied latent voxel, and the affine back to the mesh's own frame."""

    coords: Int[np.ndarray, "num_tokens 3"]  # int32, latent voxels of 8^3 voxels each, in C order
    indices: Int[np.ndarray, " num_tokens"]  # int64, rows of the codebook
    center: Float[np.ndarray, "3"]  # world = cube * scale + center
    scale: float
    fingerprint: str  # of the tokenizer that made them

    def __len__(self) -> int:
        return len(self.indices)


class ShapeTokenizer:
    def __init__(self, vqvae: VQVAE, *, resolution: int, truncation_voxels: float):
        self.vqvae = vqvae.eval()
        self.resolution = resolution
        self.truncation_voxels = truncation_voxels

    @property
    def device(self) -> torch.device:
        return self.vqvae.quantizer.codebook.device

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of all weights and of the grid: tokens of one tokenizer mean nothing to another."""
        digest = hashlib.sha256(f"{self.resolution} {self.truncation_voxels}".encode())
        for key, value in sorted(self.vqvae.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def from_pretrained(directory: str | Path, *, device: torch.device | str = "cpu") -> "ShapeTokenizer":
        """A tokenizer that save_pretrained wrote. Raises InputError naming the file that is missing or damaged."""
        directory = Path(directory)
        try:
            config = json.loads((directory / CONFIG_FILE).read_text())
            state = load_file(directory / WEIGHTS_FILE)
            vqvae = VQVAE(SparseSDFVAE(VAEConfig(**config["vae"])), VectorQuantizer(**config["codebook"]))
            vqvae.load_state_dict(state)
            resolution, truncation_voxels = config["resolution"], config["truncation_voxels"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{directory}: not a saved tokenizer ({reason}); run dvc repro stage2") from error
        tokenizer = ShapeTokenizer(vqvae, resolution=resolution, truncation_voxels=truncation_voxels)
        tokenizer.vqvae.to(device)
        return tokenizer

    def save_pretrained(self, directory: str | Path) -> None:
        """config.json and model.safetensors (float32)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        size, dim = self.vqvae.quantizer.codebook.shape
        config = {
            "vae": asdict(self.vqvae.vae.config),
            "codebook": {"size": size, "dim": dim},
            "resolution": self.resolution,
            "truncation_voxels": self.truncation_voxels,
        }
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        save_weights(self.vqvae, directory / WEIGHTS_FILE, dtype=torch.float32)

    @torch.no_grad()
    def encode(self, shape: trimesh.Trimesh | SparseSDF) -> Tokens:
        """Tokens of a mesh in any frame and scale, or of a grid that was voxelised before."""
        if isinstance(shape, trimesh.Trimesh):
            shape = voxelize(
                shape.vertices, shape.faces, resolution=self.resolution, truncation_voxels=self.truncation_voxels
            )
        if (shape.resolution, shape.truncation_voxels) != (self.resolution, self.truncation_voxels):
            raise InputError(
                f"the grid has resolution {shape.resolution} and truncation {shape.truncation_voxels} voxels, but this "
                f"tokenizer was trained at {self.resolution} and {self.truncation_voxels}; voxelise it again"
            )
        x = from_arrays(shape.coords, shape.sdf, extent=self.resolution).to(self.device)
        z_e = self.vqvae.encode(x)
        indices = nearest_codes(z_e.feats, self.vqvae.quantizer.codebook)
        order = z_e.grid.keys.argsort()
        return Tokens(
            coords=z_e.coords[order, 1:].cpu().numpy(),
            indices=indices[order].cpu().numpy(),
            center=np.asarray(shape.center, np.float64),
            scale=float(shape.scale),
            fingerprint=self.fingerprint,
        )

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> trimesh.Trimesh:
        """The mesh in its original frame. Raises InputError for tokens that are not this tokenizer's."""
        if tokens.fingerprint != self.fingerprint:
            raise InputError(
                f"the tokens come from tokenizer {tokens.fingerprint} but this is {self.fingerprint}; "
                "decode them with the one that made them"
            )
        coords = torch.from_numpy(np.pad(tokens.coords, ((0, 0), (1, 0))).astype(np.int32))
        grid = Grid(coords.to(self.device), num_shapes=1, extent=self.resolution // 8)
        decoded = self.vqvae.decode_indices(torch.from_numpy(tokens.indices).to(self.device), grid)
        surface = extract_mesh(
            decoded.coords[:, 1:].cpu().numpy(), decoded.feats[:, 0].cpu().numpy(), resolution=self.resolution
        )
        vertices = surface.vertices.astype(np.float64) * tokens.scale + tokens.center
        return trimesh.Trimesh(vertices, surface.faces, process=False)

    def reconstruct(self, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
        return self.decode(self.encode(mesh))
