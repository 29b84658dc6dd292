"""Weights in every layout give the same network; every fault of a file is named."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import ALIGNMENT, CheckpointError, export_vae, import_checkpoint, load_vae, save_vae
from model.quantizer import ResidualQuantizer
from model.sparse import SparseTensor
from model.tokenizer import ShapeTokenizer
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE
from tests.shapes import random_tensor, relative_error

State = dict[str, torch.Tensor]
CONFIG = VAEConfig(model_channels=64, num_blocks=2, latent_channels=4)
FIRST_KERNEL = "encoder.downsample.0.out_layers.0.conv.kernel"
SKIP_KERNEL = "encoder.downsample.0.skip_connection.conv.kernel"


@pytest.fixture(scope="module")
def vae() -> SparseSDFVAE:
    """Random everywhere, biases and norms included, so that nothing can be left out unnoticed."""
    torch.manual_seed(0)
    vae = SparseSDFVAE(CONFIG)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vae.eval()


def published(vae: SparseSDFVAE) -> State:
    """The published names, and kernels [27, in, out] whose first axis runs over offsets with x fastest."""
    state: State = {}
    for key, value in vae.state_dict().items():
        stem, leaf = key.rsplit(".", 1)
        is_skip = ".skip_connection" in key
        if value.ndim == 5:
            offsets = [value[:, x, y, z].T for z in range(3) for y in range(3) for x in range(3)]
            state[f"{stem}.conv.kernel"] = torch.stack(offsets)
        elif is_skip and leaf == "weight":
            state[f"{stem}.conv.kernel"] = value.T.contiguous()
        elif is_skip or (leaf == "bias" and vae.state_dict()[f"{stem}.weight"].ndim == 5):
            state[f"{stem}.conv.bias"] = value
        else:
            state[key] = value
    return state


def spconv_layout(vae: SparseSDFVAE) -> State:
    state: State = {}
    for key, value in published(vae).items():
        if key.endswith(".conv.kernel"):
            weight = vae.state_dict()[key.replace(".conv.kernel", ".weight")]
            state[key.replace("kernel", "weight")] = weight if weight.ndim == 5 else weight[:, None, None, None]
        else:
            state[key] = value
    return state


def outputs(vae: SparseSDFVAE) -> tuple[torch.Tensor, torch.Tensor]:
    x = random_tensor(1, num_shapes=2, extent=16, share=0.1, seed=3)
    with torch.no_grad():
        posterior = vae.encode(x)
        return torch.cat([posterior.mean.feats, posterior.logvar.feats]), vae.decode(posterior.mean).feats


def assert_same_function(imported: SparseSDFVAE, vae: SparseSDFVAE) -> None:
    assert imported.config == vae.config
    for got, expected in zip(outputs(imported), outputs(vae), strict=True):
        assert torch.equal(got, expected)


# --- layouts ---------------------------------------------------------------------------------------------------------


WRITERS: dict[str, Callable[[SparseSDFVAE, Path], object]] = {
    "published.ckpt": lambda vae, file: torch.save({"vae": published(vae), "dit": {"a.weight": torch.zeros(2)}}, file),
    "bare.pt": lambda vae, file: torch.save(published(vae), file),
    "published.safetensors": lambda vae, file: save_file(published(vae), file),
    "spconv.ckpt": lambda vae, file: torch.save({"vae": spconv_layout(vae)}, file),
    "ours": save_vae,
}


def written(vae: SparseSDFVAE, file: Path) -> Path:
    WRITERS[file.name](vae, file)
    return file


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_gives_the_same_network(vae: SparseSDFVAE, tmp_path: Path, name: str):
    file = written(vae, tmp_path / name)
    assert_same_function(load_vae(file), vae)
    if file.is_dir():
        assert_same_function(load_vae(file / "model.safetensors"), vae)


def test_a_loaded_network_is_ready_for_inference(vae: SparseSDFVAE, tmp_path: Path):
    loaded = load_vae(written(vae, tmp_path / "ours"), dtype=torch.float64)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


def test_half_precision_on_disk_is_near(vae: SparseSDFVAE, tmp_path: Path):
    save_vae(vae, tmp_path / "half", dtype=torch.float16)
    for got, expected in zip(load_vae(tmp_path / "half").parameters(), vae.parameters(), strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected) < 1e-3


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("layout", ["published", "spconv"])
def test_export_and_import_are_inverse_to_the_bit(vae: SparseSDFVAE, tmp_path: Path, layout: str, suffix: str):
    """There and back from either side; what is written is what the tables above say, written out independently."""
    exported = tmp_path / f"exported{suffix}"
    export_vae(vae, exported, layout=layout)
    assert_equal_states(load_vae(exported).state_dict(), vae.state_dict())
    written = load_file(exported) if suffix == ".safetensors" else torch.load(exported, weights_only=True)["vae"]
    assert_equal_states(written, {"published": published, "spconv": spconv_layout}[layout](vae))


def test_a_wrong_axis_order_would_not_pass_for_the_right_one(vae: SparseSDFVAE, tmp_path: Path):
    export_vae(vae, tmp_path / "vae.safetensors", layout="published")
    state = load_file(tmp_path / "vae.safetensors")
    kernel = state[FIRST_KERNEL]
    state[FIRST_KERNEL] = kernel.view(3, 3, 3, *kernel.shape[1:]).transpose(0, 2).reshape(kernel.shape).contiguous()
    save_file(state, tmp_path / "z_fastest.safetensors")
    with pytest.raises(AssertionError):
        assert_equal_states(load_vae(tmp_path / "z_fastest.safetensors").state_dict(), vae.state_dict())


def assert_equal_states(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value), key


def test_a_folder_may_hold_one_file_of_weights_under_any_name(vae: SparseSDFVAE, tmp_path: Path):
    written(vae, tmp_path / "published.ckpt")
    assert_same_function(load_vae(tmp_path), vae)
    written(vae, tmp_path / "spconv.ckpt")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or one file of weights, found published"):
        load_vae(tmp_path)


def test_a_tokenizer_holds_a_vae(vae: SparseSDFVAE, tmp_path: Path):
    tokenizer = ShapeTokenizer(
        VQVAE(vae, ResidualQuantizer.of([torch.randn(size, 4) for size in range(16, 27)])),
        resolution=32,
        truncation_voxels=2.0,
        mode="solid",
        max_bad_flip_ratio=0.03,
    )
    tokenizer.save_pretrained(tmp_path)
    imported = import_checkpoint(tmp_path)
    assert_same_function(imported.vae, vae)
    assert imported.ignored == {}
    assert len(imported.codebooks) == 11
    assert all(map(torch.equal, imported.codebooks, tokenizer.vqvae.quantizer.codebooks))


def test_saved_weights_can_be_read_by_those_who_read_other_files(vae: SparseSDFVAE, tmp_path: Path):
    save_vae(vae, tmp_path)
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_half_precision_files_become_float32(vae: SparseSDFVAE, tmp_path: Path):
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({"vae": {key: value.to(dtype) for key, value in published(vae).items()}}, tmp_path / "half.ckpt")
        assert {p.dtype for p in load_vae(tmp_path / "half.ckpt").parameters()} == {torch.float32}


def test_weights_of_a_packed_file_lie_where_torch_would_put_them(vae: SparseSDFVAE, tmp_path: Path):
    save_file(published(vae), tmp_path / "packed.safetensors")
    packed = load_file(tmp_path / "packed.safetensors")
    assert any(tensor.data_ptr() % ALIGNMENT for tensor in packed.values())  # else there is nothing to see here
    assert all(p.data_ptr() % ALIGNMENT == 0 for p in load_vae(tmp_path / "packed.safetensors").parameters())


def test_weights_take_memory_once(tmp_path: Path):
    """A file of 75 MB; the stage may take 2.5 times a file of 150, the interpreter and its libraries included."""
    torch.save({"vae": published(SparseSDFVAE(VAEConfig(512, 1, 8)))}, tmp_path / "large.ckpt")
    program = f"""
import resource
from pathlib import Path
from model.checkpoint import import_checkpoint, save_vae
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
save_vae(import_checkpoint(Path({str(tmp_path / "large.ckpt")!r})).vae, Path({str(tmp_path / "ours")!r}))
print(peak() - before)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(finished.stdout) < 1.5 * (tmp_path / "large.ckpt").stat().st_size


def test_another_order_of_the_offsets_is_another_network(vae: SparseSDFVAE, tmp_path: Path):
    """What the order x, y, z of the flat kernel index means can be seen in the output: z fastest would be wrong."""
    state = published(vae)
    for key, value in state.items():
        if key.endswith("kernel") and value.ndim == 3:
            state[key] = value.view(3, 3, 3, *value.shape[1:]).permute(2, 1, 0, 3, 4).reshape(value.shape)
    torch.save({"vae": state}, tmp_path / "z_fastest.ckpt")
    for got, expected in zip(outputs(load_vae(tmp_path / "z_fastest.ckpt")), outputs(vae), strict=True):
        assert relative_error(got, expected) > 1e-2


def test_offset_one_of_the_published_kernel_is_one_step_along_x(vae: SparseSDFVAE, tmp_path: Path):
    """Index 13 is the voxel itself, 14 the neighbour at +x, 16 at +y, 22 at +z."""
    state = published(vae)
    layer = load_vae(written(vae, tmp_path / "published.ckpt")).encoder.downsample[0].out_layers["0"]
    kernel, bias = state[FIRST_KERNEL], state[FIRST_KERNEL.replace("kernel", "bias")]
    for axis, index in ((0, 14), (1, 16), (2, 22)):
        coords = torch.full((2, 4), 5, dtype=torch.int32)
        coords[:, 0] = 0
        coords[1, 1 + axis] += 1
        feats = torch.randn(2, kernel.shape[1])
        expected = feats[0] @ kernel[13] + feats[1] @ kernel[index] + bias
        torch.testing.assert_close(layer(SparseTensor(coords, feats)).feats[0], expected)


def test_architecture_is_read_off_the_shapes(tmp_path: Path):
    config = VAEConfig(model_channels=128, num_blocks=3, latent_channels=6)
    save_vae(SparseSDFVAE(config), tmp_path / "vae")
    assert import_checkpoint(tmp_path / "vae" / "model.safetensors").vae.config == config


def test_every_key_is_accounted_for(vae: SparseSDFVAE, tmp_path: Path):
    imported = import_checkpoint(written(vae, tmp_path / "published.ckpt"))
    assert {key.source for key in imported.keys} == published(vae).keys()
    assert {key.target for key in imported.keys} == vae.state_dict().keys()
    assert imported.ignored == {"dit": "not part of the VAE"}
    norms = {key.target: key.norm for key in imported.keys}
    for target, value in vae.state_dict().items():
        assert norms[target] == pytest.approx(value.norm().item(), rel=1e-5)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_two_keys_for_one_weight_are_refused(vae: SparseSDFVAE, tmp_path: Path):
    state = published(vae)
    state["encoder.downsample.0.out_layers.0.weight"] = vae.state_dict()["encoder.downsample.0.out_layers.0.weight"]
    torch.save(state, tmp_path / "twice.ckpt")
    with pytest.raises(CheckpointError, match=r"twice\.ckpt: .*encoder\.downsample\.0\.out_layers\.0\.weight"):
        load_vae(tmp_path / "twice.ckpt")


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_pickle_is_refused_and_not_executed(vae: SparseSDFVAE, tmp_path: Path, monkeypatch, plain: bool):
    monkeypatch.chdir(tmp_path)
    if plain:
        Path("evil.ckpt").write_bytes(pickle.dumps(Payload()))
    else:
        torch.save({"vae": published(vae), "extra": Payload()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt can't be read"):
        load_vae("evil.ckpt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["published.ckpt", "published.safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(vae: SparseSDFVAE, tmp_path: Path, name: str, share: float):
    file = written(vae, tmp_path / name)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"{file.name} can't be read") as refused:
        load_vae(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such checkpoint; name .* by import_vae\.checkpoint"):
        load_vae(tmp_path / "nowhere.ckpt")


def test_a_file_of_something_else(tmp_path: Path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: expected a state_dict"):
        load_vae(tmp_path / "list.pt")


def test_messages_are_one_line(tmp_path: Path):
    (tmp_path / "noise.pt").write_bytes(b"noise\n" * 100)
    with pytest.raises(CheckpointError) as raised:
        load_vae(tmp_path / "noise.pt")
    assert "\n" not in str(raised.value)


# --- faulty and hostile files ----------------------------------------------------------------------------------------


def drop(key: str) -> Callable[[State], State]:
    return lambda state: {other: value for other, value in state.items() if other != key}


def put(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    """The state with another value at the key."""
    return lambda state: state | {key: value(state.get(key, state[FIRST_KERNEL]))}


def with_one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return spoil


def renamed(old: str, new: object) -> Callable[[State], dict]:
    return lambda state: {(new if key == old else key): value for key, value in state.items()}


def many_blocks(state: State) -> State:
    return state | {f"decoder.blocks.{block}.mlp.mlp.2.bias": torch.zeros(0) for block in range(3000)}


IN_LAYER, BIAS = "decoder.input_layer.weight", "decoder.out_layer.bias"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop(FIRST_KERNEL), r"encoder\.downsample\.0\.out_layers\.0\.weight is missing"),
        (drop("decoder.blocks.1.mlp.mlp.2.bias"), r"decoder\.blocks\.1\.mlp\.mlp\.2\.bias is missing"),
        (drop("decoder.input_layer.weight"), r"decoder\.input_layer\.weight; this is not a sparse-SDF VAE"),
        (put("encoder.surplus.weight", lambda t: t), r"encoder\.surplus\.weight is unknown"),
        (put(FIRST_KERNEL, lambda t: t[:, :1]), r"0\.weight has shape \[8, 3, 3, 3, 1\], expected \[8, 3, 3, 3, 4\]"),
        (put(FIRST_KERNEL, lambda t: t[:26]), r"0\.conv\.kernel has shape \[26, 4, 8\]; expected \[27, in, out\]"),
        (put(SKIP_KERNEL, lambda t: t.T.clone()), r"skip_connection\.weight has shape \[4, 8\], expected \[8, 4\]"),
        (put(FIRST_KERNEL, with_one(float("nan"))), r"out_layers\.0\.conv\.kernel holds NaN or infinity"),
        (put("decoder.out_layer.weight", with_one(float("inf"))), r"decoder\.out_layer\.weight holds NaN or infinity"),
        (put("decoder.input_layer.weight", lambda t: t[:63]), r"has 63 channels; expected a multiple of 64"),
        (
            put("decoder.out_layer.bias", lambda t: t.long()),
            r"decoder\.out_layer\.bias is torch\.int64; expected float32",
        ),
        (
            put(BIAS, lambda t: t[:1].expand(2**40)),
            r"out_layer\.bias has more values, 1099511627776, than the file",
        ),
        (put(FIRST_KERNEL, lambda t: torch.zeros(1).expand(27, 2**20, 2**20)), r"conv\.kernel has more values"),
        (
            put(BIAS, lambda t: torch.empty(1, device="meta")),
            r"out_layer\.bias is torch\.strided on meta; expected",
        ),
        (put(BIAS, lambda t: torch.empty(2**45, device="meta")), r"out_layer\.bias is torch\.strided on meta"),
        (put(BIAS, lambda t: t.to_sparse()), r"out_layer\.bias is torch\.sparse_coo on cpu; expected dense"),
        (put(FIRST_KERNEL, lambda t: t[0].to_sparse_csr()), r"conv\.kernel is torch\.sparse_csr on cpu"),
        (put(BIAS, lambda t: t.to(torch.float8_e5m2)), r"out_layer\.bias is torch\.float8_e5m2; expected float32"),
        (put(BIAS, lambda t: t.to(torch.complex64)), r"out_layer\.bias is torch\.complex64; expected float32"),
        (put(BIAS, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), r"bias is torch\.qint8"),
        (put(BIAS, lambda t: {"more": t}), r"expected a state_dict, .*, got dict at decoder\.out_layer\.bias"),
        (put(IN_LAYER, lambda t: t[:, :0].clone()), r"0 latent channels and 2 blocks"),
        (put(IN_LAYER, lambda t: t[:0].clone()), r"has 0 channels; expected a multiple of 64"),
        (put(IN_LAYER, lambda t: torch.zeros(())), r"no decoder\.input_layer\.weight"),
        (put(FIRST_KERNEL, lambda t: t[:, :0].clone()), r"has shape \[8, 3, 3, 3, 0\], expected"),
        (renamed(BIAS, 7), r"expected a state_dict"),
        (renamed(BIAS, ("a", 1)), r"expected a state_dict"),
        (renamed(BIAS, "decoder.blocks." + "9" * 5000 + ".x"), r"is missing"),
        (many_blocks, r"3000 blocks of the decoder; expected .* 1 to 256"),
        (lambda state: {}, r"no decoder\.input_layer\.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_a_faulty_or_hostile_file_is_refused_by_key_before_its_values_are_used(
    vae: SparseSDFVAE, tmp_path: Path, spoil: Callable, message: str
):
    torch.save({"vae": spoil(published(vae))}, tmp_path / "faulty.ckpt")
    started = time.process_time()
    with pytest.raises(CheckpointError, match=rf"faulty\.ckpt: .*{message}") as refused:
        load_vae(tmp_path / "faulty.ckpt")
    assert "\n" not in str(refused.value)
    assert time.process_time() - started < 1


def test_our_own_file_is_refused_when_it_is_not_as_written(vae: SparseSDFVAE, tmp_path: Path):
    save_vae(vae, tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the last bit of a weight: finite, and another
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content is not what its digest says"):
        load_vae(tmp_path)
