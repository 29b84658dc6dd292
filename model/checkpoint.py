"""VAE weights in and out: the published layout, spconv's, and ours, all read without executing anything.

| layout    | convolutions                                          | 1x1x1                              |
| published | `….conv.kernel` [27, in, out], x fastest, then y, z   | `….conv.kernel` [in, out]          |
| spconv    | `….conv.weight` [out, kx, ky, kz, in]                 | `….conv.weight` [out, 1, 1, 1, in] |
| ours      | `….weight` [out, kx, ky, kz, in]                      | `….weight` [out, in]               |

In files: a state_dict, alone or under the key "vae", as .safetensors or as torch.save writes it.
"""

import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import is_zipfile

import torch
from torch import Tensor

from .errors import reading
from .files import write_whole
from .hub import WEIGHT_SUFFIXES, local_path
from .sparse import SubMConv3d
from .tensors import CheckpointError, digest_of_tensors, read_tensors, write_tensors
from .vae import HEAD_CHANNELS, SparseSDFVAE, VAEConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MAX_CHANNELS, MAX_BLOCKS = 16384, 256  # far beyond any network of this kind
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FETCH = "fetch it again"
ALIGNMENT = 64  # bytes: what torch's allocator gives, and its vectorised kernels are fastest and reproducible on

Layout = Literal["published", "spconv"]
State = dict[str, Tensor]


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
    file: Path
    keys: list[ImportedKey]
    ignored: dict[str, str]  # part of the file, and why it is not used
    codebooks: list[Tensor]  # [num_codes, dim] of each level where the file is of a tokenizer, else none


def load_vae(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SparseSDFVAE:
    """The VAE of a checkpoint in any known layout, ready for inference.

    `path` is a file, a folder that holds one, or hf://owner/name[@revision]/path on the Hugging Face hub. Raises
    CheckpointError with the file and key where something is missing, unknown, misshapen or not finite.
    """
    return import_checkpoint(path).vae.to(device=device, dtype=dtype).eval()


def save_vae(vae: SparseSDFVAE, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Our layout: a folder of safetensors and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(vae, directory / WEIGHTS_FILE, dtype=dtype)
    write_whole(directory / CONFIG_FILE, json.dumps(asdict(vae.config), indent=2) + "\n")


def save_weights(module: torch.nn.Module, path: Path, *, dtype: torch.dtype) -> str:
    """Returns the digest of their values in float32, which is how they are read again."""
    stored = {key: value.detach().to("cpu", dtype) for key, value in module.state_dict().items()}
    write_tensors(path, stored)
    return digest_of_tensors({key: value.float() for key, value in stored.items()})


def export_vae(vae: SparseSDFVAE, path: Path, *, layout: Layout) -> None:
    """Weights for users of the original network or of its port to spconv, in float32.

    A .safetensors file holds the state_dict; any other is what torch.save makes of {"vae": state_dict}, as published.
    """
    convolutions = {
        name
        for name, module in vae.named_modules()
        if isinstance(module, SubMConv3d) or name.endswith("skip_connection")
    }
    state = {}
    for key, value in vae.state_dict().items():
        target, tensor = key, value.detach().to("cpu", torch.float32)
        if key.rsplit(".", 1)[0] in convolutions:
            target, tensor = _of_convolution(key, tensor, layout)
        state[target] = tensor.contiguous()
    if path.suffix == ".safetensors":
        write_tensors(path, state)
    else:
        buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError of its own
        torch.save({"vae": state}, buffer)
        write_whole(path, buffer.getvalue())


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where torch would have put it; safetensors packs its own end to end."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def import_checkpoint(path: str | Path) -> Import:
    """As load_vae, with an account of every key."""
    file = _weights_file(local_path(path))
    state, ignored, codebooks = _read_state(file)
    vae = _empty_vae(state, file)
    keys, renamed = [], {}
    for source in list(state):
        target, converted, transformation = _to_our_layout(source, state.pop(source).float(), file)
        converted = aligned(converted.contiguous())
        renamed[target] = converted
        if not torch.isfinite(converted).all():
            raise CheckpointError(f"{file}: {source} holds NaN or infinity; the file is damaged, fetch it again")
        keys.append(ImportedKey(source, target, tuple(converted.shape), transformation, float(converted.norm())))
    vae.load_state_dict(renamed, assign=True)
    return Import(vae, file, keys, ignored, codebooks)


def _empty_vae(state: State, file: Path) -> SparseSDFVAE:
    """The network that these weights are of, without any: names and shapes are looked at, and no value is."""
    shapes: State = {}
    for source, tensor in state.items():
        target, shape, _ = _to_our_layout(source, torch.empty(tensor.shape, device="meta"), file)
        if target in shapes:
            raise CheckpointError(f"{file}: {source} and another key both mean {target}; remove one of them")
        shapes[target] = shape
    config = read_architecture(shapes, file)
    with torch.device("meta"):
        vae = SparseSDFVAE(config)
    check_keys(shapes, vae, file)
    return vae


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    files = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        found = ", ".join(files) or "none"
        raise CheckpointError(f"{path}: expected {WEIGHTS_FILE} or one file of weights, found {found}; name the file")
    return path / files[0]


def _read_state(file: Path) -> tuple[State, dict[str, str], list[Tensor]]:
    """The VAE's tensors, what else there is and why it is ignored, and the codes of each level of a tokenizer."""
    if not file.is_file():
        raise CheckpointError(
            f"{file}: no such checkpoint; name a file or folder of VAE weights, in a stage by import_vae.checkpoint"
        )
    if file.suffix == ".safetensors":
        content: Any = read_tensors(file, remedy=FETCH, ours=False).tensors
    else:
        content = _unpickled(file)
    ignored = {}
    if isinstance(content, dict) and isinstance(content.get("vae"), dict):
        others = (key if isinstance(key, str) else type(key).__name__ for key in content if key != "vae")
        ignored = dict.fromkeys(others, "not part of the VAE")
        content = content["vae"]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f"{file}: expected a state_dict, or one under the key 'vae', got {type(content).__name__}"
        )
    _check_storage(content, file)
    levels = sorted((key for key in content if key.startswith("quantizer.")), key=lambda key: (len(key), key))
    codebooks = [content[key].float() for key in levels]
    if codebooks:
        content = {key.removeprefix("vae."): value for key, value in content.items() if key.startswith("vae.")}
    return dict(content), ignored, codebooks


def _unpickled(file: Path) -> Any:
    with reading(file, FETCH, kind=CheckpointError):
        if not is_zipfile(file):
            raise ValueError("no zip archive, which torch.save writes")
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_storage(content: dict[str, Any], file: Path) -> None:
    """Raise CheckpointError unless each value is a plain tensor of floats that are there, in the file, one by one."""
    room = file.stat().st_size
    for key, value in content.items():
        if type(value) not in (Tensor, torch.nn.Parameter):
            what = f"{type(value).__name__} at {key}"
            raise CheckpointError(f"{file}: expected a state_dict, or one under the key 'vae', got {what}")
        if value.dtype not in DTYPES:
            raise CheckpointError(f"{file}: {key} is {value.dtype}; expected float32, float16 or bfloat16 weights")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{file}: {key} is {value.layout} on {value.device.type}; expected dense weights")
        room -= value.numel() * value.element_size()
        if room < 0:
            raise CheckpointError(f"{file}: {key} has more values, {value.numel()}, than the file holds; {FETCH}")


def _to_our_layout(key: str, tensor: Tensor, file: Path) -> tuple[str, Tensor, str]:
    """Name and tensor in our layout, and what was done in words."""
    target = re.sub(r"\.conv\.(kernel|weight)$", ".weight", re.sub(r"\.conv\.bias$", ".bias", key))
    if key.endswith(".conv.kernel") and tensor.ndim == 3 and len(tensor) == 27:
        _, num_in, num_out = tensor.shape
        kernel = tensor.reshape(3, 3, 3, num_in, num_out).permute(4, 2, 1, 0, 3)
        return target, kernel, "[zyx, in, out] to [out, x, y, z, in]"
    if key.endswith(".conv.kernel") and tensor.ndim == 2:
        return target, tensor.T, "[in, out] to [out, in]"
    if key.endswith(".conv.weight") and tensor.ndim == 5 and tensor.shape[1:4] == (1, 1, 1):
        return target, tensor.flatten(1), "[out, 1, 1, 1, in] to [out, in]"
    if key.endswith(".conv.kernel"):
        raise CheckpointError(f"{file}: {key} has shape {list(tensor.shape)}; expected [27, in, out] or [in, out]")
    return target, tensor, "as it is"


def _of_convolution(key: str, tensor: Tensor, layout: Layout) -> tuple[str, Tensor]:
    """Name and tensor of one of our convolutions' parameters in another layout: the inverse of _to_our_layout."""
    stem, leaf = key.rsplit(".", 1)
    if leaf == "bias":
        return f"{stem}.conv.bias", tensor
    if layout == "spconv":
        return f"{stem}.conv.weight", tensor if tensor.ndim == 5 else tensor[:, None, None, None]
    if tensor.ndim == 5:
        return f"{stem}.conv.kernel", tensor.permute(3, 2, 1, 4, 0).flatten(0, 2)
    return f"{stem}.conv.kernel", tensor.T


def read_architecture(state: State, file: Path, *, prefix: str = "") -> VAEConfig:
    """Of a VAE whose keys begin so, from names and shapes. Raises CheckpointError where it is none."""
    key = f"{prefix}decoder.input_layer.weight"
    if key not in state or state[key].ndim != 2:
        raise CheckpointError(f"{file}: no {key}; this is not a sparse-SDF VAE")
    model_channels, latent_channels = state[key].shape
    if model_channels % HEAD_CHANNELS or not 0 < model_channels <= MAX_CHANNELS:
        raise CheckpointError(
            f"{file}: {key} has {model_channels} channels; expected a multiple of {HEAD_CHANNELS} up to {MAX_CHANNELS}"
        )
    block = re.compile(re.escape(prefix) + r"decoder\.blocks\.(\d+)\.")
    num_blocks = len({match[1] for name in state if (match := block.match(name))})
    if not 0 < latent_channels <= MAX_CHANNELS or not 0 < num_blocks <= MAX_BLOCKS:
        raise CheckpointError(
            f"{file}: {latent_channels} latent channels and {num_blocks} blocks of the decoder; expected 1 to "
            f"{MAX_CHANNELS} and 1 to {MAX_BLOCKS}"
        )
    return VAEConfig(model_channels, num_blocks, latent_channels)


def check_keys(state: State, network: torch.nn.Module, file: Path) -> None:
    """Raise CheckpointError unless the names and shapes are those of the network."""
    expected = network.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(f"{file}: {missing[0]} is missing ({len(missing)} keys in all)")
    if unknown := sorted(state.keys() - expected.keys()):
        raise CheckpointError(f"{file}: {unknown[0]} is unknown ({len(unknown)} keys in all)")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise CheckpointError(f"{file}: {key} has shape {list(state[key].shape)}, expected {list(value.shape)}")
