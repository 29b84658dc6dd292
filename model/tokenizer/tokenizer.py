"""The finished product: mesh to integer tokens and back."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, Int

from ..bricks import BRICK_SIZE, BRICK_VOXELS
from ..checkpoint import CONFIG_FILE
from ..errors import InputError
from ..files import write_whole
from ..hub import local_path
from ..meshes import Mesh, load_mesh
from ..sdf import Mode, SparseSDF, Surface, extract_from_bricks, voxelize
from ..sparse import Grid, SparseTensor, batch_tensors, find_places, from_arrays
from ..tensors import digest_of_tensors
from ..tokens import Tokens, Vocabulary, check_made_by
from ..vqvae import GRID_KEYS, REMEDY, VQVAE, config_of, load_vqvae, save_vqvae
from .card import model_card

__all__ = ["ShapeTokenizer", "Tokens"]

CARD_FILE = "README.md"
SHIPPED = "tokenizer_128"
Shape = str | Path | Mesh | trimesh.Trimesh | SparseSDF  # a path is that of a mesh file


class ShapeTokenizer:
    """Meshes in any frame to integers, and integers back to meshes.

    The same shape gives the same tokens for any number of threads, batch and device, except at rounding ties: a latent
    whose two nearest codes are equally far to about 1e-5 of the distance may get either. On one device the same
    tokens give the same mesh, to the bit; between a CPU and a GPU the decoded field, and so the mesh, differs by
    rounding.

    All of it is float32. Decoding in half precision is the caller's to ask for, by torch.autocast around decode; it
    moves the surface, and encode, whose tokens it would change, takes no notice of it.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        *,
        resolution: int,
        truncation_voxels: float,
        mode: Mode | Literal["auto"],
        max_bad_flip_ratio: float,
    ):
        """How meshes are voxelised is as model.sdf.voxelize says, and should be what the network was trained with."""
        self.vqvae = vqvae.eval()
        self.resolution = resolution
        self.truncation_voxels = truncation_voxels
        self.mode: Mode | Literal["auto"] = mode
        self.max_bad_flip_ratio = max_bad_flip_ratio

    @property
    def device(self) -> torch.device:
        return self.vqvae.quantizer.device

    @property
    def grid_options(self) -> dict[str, Any]:
        """What model.sdf.voxelize takes to make this tokenizer's grids."""
        return {key: getattr(self, key) for key in GRID_KEYS}

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the flat sequences; vocabulary.size is what a language model needs to know."""
        return Vocabulary(tuple(self.vqvae.quantizer.num_codes), self.resolution // BRICK_SIZE)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of all weights and of config.json: tokens of one tokenizer mean nothing to another."""
        config = config_of(self.vqvae, digest_of_tensors(self.vqvae.state_dict()), self.grid_options)
        assert config.fingerprint is not None
        return config.fingerprint

    @staticmethod
    def from_pretrained(path: str | Path | None = None, *, device: torch.device | str = "cpu") -> "ShapeTokenizer":
        """A tokenizer that save_pretrained wrote: a folder, or hf://owner/name[@revision] on the Hugging Face hub.

        Without a path it is the one that comes with the library. Raises InputError naming the file that is missing or
        damaged.
        """
        directory = shipped_tokenizer() if path is None else local_path(path)
        try:
            vqvae, config = load_vqvae(directory, device=device)
            if missing := [key for key, value in config.grid.items() if value is None]:
                raise InputError(f"{CONFIG_FILE} has no {missing[0]}")
        except InputError as error:
            reason = str(error).removeprefix(f"{directory}: ").removeprefix(f"{directory}/").split(f"; {REMEDY}")[0]
            raise InputError(
                f"{directory}: not a saved tokenizer ({reason}); run dvc repro, or name another: a folder or "
                "hf://owner/name"
            ) from error
        return ShapeTokenizer(vqvae, **config.grid)

    def save_pretrained(
        self,
        directory: str | Path,
        metrics: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """config.json, model.safetensors and a model card, README.md: a folder that the hub takes as it is.

        `metrics` are the figures of the card, by row and name, as in metrics/evaluate.json. With torch.float16 the
        folder is half as large and holds another tokenizer, whose weights are rounded and whose fingerprint is its own.
        """
        directory = Path(directory)
        config = save_vqvae(self.vqvae, directory, self.grid_options, dtype=dtype)
        card = model_card(config, self.vocabulary, metrics or {})
        write_whole(directory / CARD_FILE, card)

    def encode(self, shape: Shape) -> Tokens:
        """Tokens of a mesh file or of a mesh in any frame and scale, or of a grid that was voxelised before.

        Raises InputError for a file that can't be read whole, and for what has no surface, no extent or no inside at
        this resolution.
        """
        return self.encode_batch([shape])[0]

    @torch.no_grad()
    def encode_batch(self, shapes: Sequence[Shape]) -> list[Tokens]:
        """Tokens of each shape, the network running once for all.

        Memory grows with the voxels of all of them, and on the CPU with the number of shapes too.
        """
        if not shapes:
            return []
        grids = [self.voxelize(shape) for shape in shapes]
        tensors = [from_arrays(grid.coords, grid.sdf, extent=self.resolution) for grid in grids]
        with torch.autocast(self.device.type, enabled=False):
            z_e = self.vqvae.encode(batch_tensors(tensors).to(self.device))
        indices = self.vqvae.quantizer.indices_of(z_e.feats)
        order = z_e.grid.keys.argsort()  # by shape, then in C order
        coords, codes = z_e.coords[order].cpu().numpy(), indices[order].cpu().numpy()
        ends = np.searchsorted(coords[:, 0], np.arange(len(grids) + 1))
        return [
            Tokens(
                coords=coords[start:end, 1:],
                indices=codes[start:end],
                center=np.asarray(grid.center, np.float64),
                scale=float(grid.scale),
                fingerprint=self.fingerprint,
            )
            for grid, start, end in zip(grids, ends[:-1], ends[1:], strict=True)
        ]

    def voxelize(self, shape: Shape) -> SparseSDF:
        """The grid that encode works on; one that is given comes back if it is of this tokenizer's kind."""
        if not isinstance(shape, SparseSDF):
            if isinstance(shape, (str, Path)):
                shape = _mesh_of_file(shape)
            if not isinstance(shape, (Mesh, trimesh.Trimesh)):
                raise InputError(
                    f"got {type(shape).__name__}; expected a mesh file's path, Mesh, trimesh.Trimesh or SparseSDF; "
                    "make one mesh of a scene with its to_mesh()"
                )
            shape = voxelize(shape.vertices, shape.faces, **self.grid_options, device=str(self.device))
        if (shape.resolution, shape.truncation_voxels) != (self.resolution, self.truncation_voxels):
            raise InputError(
                f"the grid has resolution {shape.resolution} and truncation {shape.truncation_voxels} voxels, but this "
                f"tokenizer was trained at {self.resolution} and {self.truncation_voxels}; voxelise it again"
            )
        if not (shape.sdf < 0).any():
            raise InputError(
                f"no voxel is inside it at resolution {self.resolution}; expected a body at least a voxel thick; "
                "close it or thicken it"
            )
        return shape

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> trimesh.Trimesh:
        """The mesh in its original frame; without faces where the decoded field changes sign nowhere.

        The order of the tokens means nothing. Raises InputError for tokens that are not this tokenizer's.
        """
        self.check(tokens)
        tokens = tokens.in_c_order()
        coords = torch.from_numpy(np.pad(tokens.coords, ((0, 0), (1, 0))).astype(np.int32))
        grid = Grid(coords.to(self.device), num_shapes=1, extent=self.resolution // BRICK_SIZE)
        indices = torch.from_numpy(tokens.by_level.astype(np.int64)).to(self.device)
        surface = decoded_surface(self.vqvae.decode_indices(indices, grid), grid, resolution=self.resolution)
        return trimesh.Trimesh(*surface.in_frame(tokens.center, tokens.scale), process=False)

    def check(self, tokens: Tokens) -> None:
        """Raise InputError for tokens of another tokenizer, and for codes and voxels that this one does not have."""
        if not isinstance(tokens, Tokens):
            raise InputError(
                f"got {type(tokens).__name__}; expected Tokens; make them by from_sequence of a sequence, by "
                "Tokens.load of a file"
            )
        check_made_by(self.fingerprint, tokens.fingerprint)
        self.vocabulary.check(tokens)

    def reconstruct(self, mesh: Shape) -> trimesh.Trimesh:
        return self.decode(self.encode(mesh))

    def to_sequence(self, tokens: Tokens) -> list[int]:
        """The shape as a flat sequence for a language model, as Vocabulary says; it carries no frame."""
        self.check(tokens)
        return self.vocabulary.flatten(tokens)

    def from_sequence(
        self,
        sequence: Sequence[int] | Int[np.ndarray, " length"],
        *,
        center: Float[np.ndarray, "3"] | Sequence[float] = (0.0, 0.0, 0.0),
        scale: float = 1.0,
    ) -> Tokens:
        """The inverse of to_sequence, in C order. Without center and scale the shape stays in the [-1, 1] cube.

        A sequence does not say which tokenizer it is of: it is taken for this one's. Raises InputError with the place
        where it is not a shape of this vocabulary.
        """
        codes = self.vocabulary.parse(sequence)
        return Tokens(codes.coords, codes.indices, np.asarray(center), scale, self.fingerprint)

    def allowed_next(self, prefix: Sequence[int] | Int[np.ndarray, " length"]) -> Bool[np.ndarray, " size"]:
        """Which integers of the vocabulary may follow the beginning of a sequence; none after its end.

        It reads the whole prefix. For one that grows, keep a SequenceReader(tokenizer.vocabulary), which takes each new
        integer alone; for a language model, see ShapeLogitsProcessor. Raises InputError naming the place where the
        prefix is not the beginning of a shape.
        """
        return self.vocabulary.read(prefix).allowed


def shipped_tokenizer() -> Path:
    """The folder of the one that comes with the library: in a wheel beside its rooms, in a checkout beside model/."""
    library = Path(__file__).parents[1]
    beside = library / "pretrained" / SHIPPED
    return beside if beside.is_dir() else library.parent / "pretrained" / SHIPPED


def _mesh_of_file(path: str | Path) -> Mesh:
    try:
        return load_mesh(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} can't be opened ({error.strerror}); give the path of a mesh file") from error


def decoded_surface(decoded: SparseTensor, latents: Grid, *, resolution: int) -> Surface:
    """The surface, in the [-1, 1] cube, of a field that was decoded from the latent voxels of one shape.

    That of model.sdf.extract_mesh, on the field's own device and without moving the place of every voxel to the host
    and back. Voxels come in any order, each in a latent voxel.
    """
    place, found = find_places(decoded.coords, latents, BRICK_SIZE)
    assert found.all(), "a decoded voxel lies in no latent voxel"
    values = decoded.feats.new_full((len(latents) * BRICK_VOXELS,), torch.nan, dtype=torch.float32)
    values[place] = decoded.feats[:, 0].float()
    return extract_from_bricks(
        latents.coords[:, 1:].cpu().numpy(), values.cpu().numpy(), resolution=resolution, device=str(values.device)
    )
