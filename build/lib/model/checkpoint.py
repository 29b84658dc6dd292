"""VAE weights in and out: the published layout, spconv's, and ours, all read without executing anything.

| layout    | convolutions                                          | 1x1x1                          |
| published | `….conv.kernel` [27, in, out], x fastest, then y, z   | `….conv.kernel` [in, out]      |
| spconv    | `….conv.weight` [out, kx, ky, kz, in]                 | `….conv.weight` [out, 1, 1, 1, in] |
| ours      | `….weight` [out, kx, ky, kz, in]                      | `….weight` [out, in]           |
"""

import json
import pickle
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.errors import InputError
from model.layers import HEAD_CHANNELS
from model.vae import SparseSDFVAE, VAEConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class CheckpointError(InputError):
    """A file of weights cannot be used; the message names file and key."""


@dataclass(frozen=True)
class ImportedKey:
    """One line of the import report."""

    source: str
    target: str
    shape: tuple[int, ...]
    transformation: str
    norm: float


class Import(NamedTuple):
    vae: SparseSDFVAE
    keys: list[ImportedKey]
    ignored: dict[str, str]  # part of the file, and why it is not used


def load_vae(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SparseSDFVAE:
    """The VAE of a checkpoint file or folder, in any known layout, ready for inference.

    Raises CheckpointError with the file and key where something is missing, unknown, misshapen or not finite.
    """
    return import_checkpoint(Path(path)).vae.to(device=device, dtype=dtype).eval()


def save_vae(vae: SparseSDFVAE, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Our layout: a folder of safetensors and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(vae, directory / WEIGHTS_FILE, dtype=dtype)
    (directory / CONFIG_FILE).write_text(json.dumps(asdict(vae.config), indent=2) + "\n")


def save_weights(module: torch.nn.Module, path: Path, *, dtype: torch.dtype) -> None:
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
    path.write_bytes(save(state))  # save_file reports a full disk as an error of its own kind


def import_checkpoint(path: Path) -> Import:
    """As load_vae, with an account of every key."""
    file = path / WEIGHTS_FILE if path.is_dir() else path
    state, ignored = _read_state(file)
    keys, renamed = [], {}
    for source, tensor in state.items():
        target, converted, transformation = _to_our_layout(source, tensor, file)
        if target in renamed:
            raise CheckpointError(f"{file}: {source} and another key both mean {target}; remove one of them")
        renamed[target] = converted
        norm = float(converted.norm())
        if not torch.isfinite(converted).all():
            raise CheckpointError(f"{file}: {source} holds NaN or infinity; the file is damaged, fetch it again")
        keys.append(ImportedKey(source, target, tuple(converted.shape), transformation, norm))
    config = _read_architecture(renamed, file)
    vae = SparseSDFVAE(config)
    _check_keys(renamed, vae, file)
    vae.load_state_dict(renamed)
    return Import(vae, keys, ignored)


def _read_state(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise CheckpointError(
            f"{file}: no such checkpoint; set import_vae.checkpoint to a file or folder of VAE weights"
        )
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{file}: not a readable checkpoint ({reason}); fetch it again") from error
    ignored = {}
    if isinstance(content, dict) and isinstance(content.get("vae"), dict):
        ignored = {key: "not part of the VAE" for key in content if key != "vae"}
        content = content["vae"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file}: expected a state_dict, or one under the key 'vae', got {type(content).__name__}"
        )
    return {key: value.float() for key, value in content.items()}, ignored


def _to_our_layout(key: str, tensor: Tensor, file: Path) -> tuple[str, Tensor, str]:
    """Name and tensor in our layout, and what was done in words."""
    target = re.sub(r"\.conv\.(kernel|weight)$", ".weight", re.sub(r"\.conv\.bias$", ".bias", key))
    if key.endswith(".conv.kernel") and tensor.ndim == 3 and len(tensor) == 27:
        _, num_in, num_out = tensor.shape
        kernel = tensor.reshape(3, 3, 3, num_in, num_out).permute(4, 2, 1, 0, 3)
        return target, kernel.contiguous(), "[zyx, in, out] to [out, x, y, z, in]"
    if key.endswith(".conv.kernel") and tensor.ndim == 2:
        return target, tensor.T.contiguous(), "[in, out] to [out, in]"
    if key.endswith(".conv.weight") and tensor.ndim == 5 and tensor.shape[1:4] == (1, 1, 1):
        return target, tensor.flatten(1), "[out, 1, 1, 1, in] to [out, in]"
    if key.endswith(".conv.kernel"):
        raise CheckpointError(f"{file}: {key} has shape {list(tensor.shape)}; expected [27, in, out] or [in, out]")
    return target, tensor, "as it is"


def _read_architecture(state: dict[str, Tensor], file: Path) -> VAEConfig:
    key = "decoder.input_layer.weight"
    if key not in state or state[key].ndim != 2:
        raise CheckpointError(f"{file}: no {key}; this is not a sparse-SDF VAE")
    model_channels, latent_channels = state[key].shape
    if model_channels % HEAD_CHANNELS:
        raise CheckpointError(f"{file}: {key} has {model_channels} channels; expected a multiple of {HEAD_CHANNELS}")
    blocks = {int(match[1]) for name in state if (match := re.match(r"decoder\.blocks\.(\d+)\.", name))}
    return VAEConfig(model_channels, len(blocks), latent_channels)


def _check_keys(state: dict[str, Tensor], vae: SparseSDFVAE, file: Path) -> None:
    expected = vae.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(f"{file}: {missing[0]} is missing ({len(missing)} keys in all)")
    if unknown := sorted(state.keys() - expected.keys()):
        raise CheckpointError(f"{file}: {unknown[0]} is unknown ({len(unknown)} keys in all)")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{file}: {key} has shape {list(state[key].shape)}, expected {list(value.shape)} for a VAE of "
                f"{vae.config.model_channels} channels"
            )
