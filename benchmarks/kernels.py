"""How fast and how exact are our kernels, for nearest codes and for convolutions, beside others?

    .venv/bin/python -m benchmarks.kernels nearest_codes [--json FILE]                (on a GPU about a minute)
    PYTHONPATH=peers .venv/bin/python -m benchmarks.kernels nearest_codes --peers     (vector-quantize-pytorch too)
    .venv/bin/python -m benchmarks.kernels conv_cuda [--json FILE]                    (on a GPU only; about a minute)

nearest_codes, beside torch.cdist and others: 1 M vectors of dim 64 and 8192 codes on a GPU, 20 000 and 1024 on a CPU.
Indices are checked first, on distributions that are hard for float32: one that is further than a millionth from the
float64 minimum, or that the kernel gave without doubt where float64 has another, is a fault and the exit code 1. What
does not fit into memory is timed on half of the vectors, or a quarter, and so on, and its row says on how many. `tiles`
are other ways to cut the kernel's work. The folder peers is made as codebook.py has it.

conv_cuda: one 3^3 submanifold convolution in float16 beside spconv's module. The voxels are the published network's
levels on a sphere shell: radius 0.4 R, half-width 2 voxels. Errors are relative L2 against float64 on 4000 of them.

Times are medians between CUDA events after a run that does not count; on a CPU of the clock.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch import SubMConv3d as SpconvSubMConv3d
from torch import Tensor, nn

from benchmarks import add_json, add_peers, check_peers, command_line, conditions, timed, wait, watch_memory, write_json
from model.quantizer.quantizer import Nearest, nearest_by_blocks, nearest_codes
from model.sparse import Grid, SparseTensor, SubMConv3d, neighbour_table

NUM, SIZE, DIM = {"cuda": 1_000_000, "cpu": 20_000}, {"cuda": 8192, "cpu": 1024}, 64
TOLERANCE = 1e-6  # of the squared distance
FLOAT16_TFLOPS = {"H100": 989, "H200": 989}  # of NVIDIA's data sheets (SXM), dense, with float32 sums
PRODUCTS = 3  # that the kernel takes for one in float32
TILES = [  # rows, codes, num_warps, num_stages
    (128, 64, 8, 3),
    (128, 64, 8, 2),
    (64, 64, 4, 3),
    (64, 64, 4, 2),
    (128, 128, 8, 2),
    (256, 64, 16, 3),
]

LEVELS = [(512, 32, 32), (256, 128, 64), (256, 64, 64), (128, 128, 128), (64, 512, 128), (64, 512, 512)]

Assign = Callable[[Tensor, Tensor], Tensor]  # vectors and codes to indices


# --- nearest codes ---------------------------------------------------------------------------------------------------


def distributions(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, vectors and codes."""
    generator = torch.Generator(device).manual_seed(0)
    num, size = NUM[device.type] // 5, SIZE[device.type]
    randn = partial(torch.randn, generator=generator, device=device)

    def rows_of(vectors: Tensor) -> Tensor:
        return vectors[torch.randint(len(vectors), (size,), generator=generator, device=device)]

    yield "randn", randn(num, DIM), randn(size, DIM)
    yield "offset of 10 sigma", 10 + randn(num, DIM), 10 + randn(size, DIM)
    far = randn(num, DIM) + 100 * (torch.arange(num, device=device) % 2)[:, None]
    yield "clusters 100 sigma apart", far, rows_of(far)
    repeats = randn(num, DIM)
    repeats[: 3 * num // 10] = repeats[0]
    yield "30 % exact repeats, codes among them", repeats, rows_of(repeats)
    vectors = randn(num, DIM)
    near = vectors[: size // 2]
    one, two = nn.functional.normalize(randn(2, len(near), DIM), dim=2)
    yield "ties within a millionth", vectors, torch.cat([near + one, near + two * (1 + 1e-6 * randn(len(near), 1))])
    narrow = randn(num, DIM) * 0.7 ** torch.arange(DIM, device=device)
    yield "variance in few directions", narrow, rows_of(narrow)
    for dim in (1, 3, 16, 100, 128, 200, 256):
        yield f"{dim} channels", randn(num // 10, dim), randn(1000, dim)


def check(vectors: Tensor, codes: Tensor) -> dict:
    """How far from the float64 minimum the indices are, and how many vectors float32 leaves to float64."""
    indices = nearest_codes(vectors, codes)
    first = float32_way(vectors.device)(vectors, codes, codes.mean(0))
    origin = codes.double().mean(0)
    exact = codes.double() - origin
    other, wrong, worst = 0, 0, 0.0
    for rows in torch.arange(len(vectors), device=vectors.device).split(4096):
        x = vectors[rows].double() - origin
        best = torch.addmm(exact.square().sum(1) / 2, x, exact.T, alpha=-1).argmin(1)
        least, chosen, undoubted = (
            (x - exact[index]).square().sum(1) for index in (best, indices[rows], first.indices[rows])
        )
        other += int((indices[rows] != best).sum())
        wrong += int(((undoubted > least) & ~first.doubtful[rows]).sum())
        worst = max(worst, float(((chosen - least) / least.clamp(min=1e-300)).max()))
    return {
        "num_vectors": len(vectors),
        "size": len(codes),
        "dim": codes.shape[1],
        "doubtful_share": float(first.doubtful.double().mean()),
        "wrong_without_doubt": wrong,
        "other_index_than_float64": other,
        "worst_relative_excess": worst,
    }


def float32_way(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Nearest]:
    """What nearest_codes begins with."""
    if device.type == "cpu":
        return nearest_by_blocks
    from model.quantizer.kernel import nearest_by_kernel

    return nearest_by_kernel


def measure(assign: Assign, vectors: Tensor, codes: Tensor) -> dict:
    """Time and memory, on as many vectors as fit."""
    num = len(vectors)
    while True:
        part = vectors[:num]
        try:
            assign(part, codes)
            peak = watch_memory(vectors.device)
            assign(part, codes)
            wait(vectors.device)
            memory = peak()
            ms = timed(partial(assign, part, codes), vectors.device, 7)
            return {"num_vectors": num, "ms": ms, "ms_for_all": ms * len(vectors) / num, "extra_memory_mb": memory}
        except torch.OutOfMemoryError:
            num //= 2
        torch.cuda.empty_cache()


def cdist_in_blocks(vectors: Tensor, codes: Tensor) -> Tensor:
    """As much memory at a time as nearest_codes may take where there is no kernel."""
    return torch.cat([torch.cdist(part, codes).argmin(1) for part in vectors.split(2**24 // len(codes))])


def peers(codes: Tensor) -> dict[str, Assign]:
    """vector-quantize-pytorch's whole forward without training, and its distances and argmax alone."""
    from vector_quantize_pytorch import VectorQuantize
    from vector_quantize_pytorch.vector_quantize_pytorch import cdist

    peer = VectorQuantize(codes.shape[1], len(codes)).to(codes.device).eval()
    peer.codebook = codes

    @torch.no_grad()
    def forward(vectors: Tensor, _: Tensor) -> Tensor:
        return peer(vectors[None])[1][0]

    return {
        "vector-quantize-pytorch, its distances and argmax": lambda vectors, codes: (
            -cdist(vectors[None], codes[None])
        ).argmax(2)[0],
        "vector-quantize-pytorch, its forward": forward,
    }


def measure_ways(vectors: Tensor, codes: Tensor, *, with_peers: bool) -> dict[str, dict]:
    origin = codes.mean(0)
    ways: dict[str, Assign] = {
        "nearest_codes": nearest_codes,
        "torch.cdist and argmin": lambda vectors, codes: torch.cdist(vectors, codes).argmin(1),
        "torch.cdist and argmin, in blocks": cdist_in_blocks,
    }
    if vectors.is_cuda:
        ways["nearest_codes without its kernel"] = lambda vectors, codes: nearest_by_blocks(vectors, codes, origin)[0]
    ways |= peers(codes) if with_peers else {}
    figures = {}
    for name, assign in ways.items():
        figures[name] = measure(assign, vectors, codes)
        print(name, figures[name], flush=True)
    ours = figures["nearest_codes"]
    for row in figures.values():
        row["times_ours"] = row["ms_for_all"] / ours["ms_for_all"]
    gpu = torch.cuda.get_device_name() if vectors.is_cuda else ""
    limit = next((limit for model, limit in FLOAT16_TFLOPS.items() if model in gpu), None)
    if limit:
        ours["tflops_float16"] = PRODUCTS * 2 * vectors.numel() * len(codes) / ours["ms"] / 1e9
        ours["share_of_float16_limit"] = ours["tflops_float16"] / limit
    return figures


def measure_tiles(vectors: Tensor, codes: Tensor) -> list[dict]:
    """The kernel alone, cut in other ways; each has to give what the chosen one gives, where both have no doubt."""
    from triton.runtime.errors import OutOfResources

    from model.quantizer.kernel import Tile, nearest_by_kernel

    origin = codes.mean(0)
    chosen = nearest_by_kernel(vectors, codes, origin)
    rows = []
    for tile in (Tile(*tile) for tile in TILES):
        row = tile._asdict()
        try:
            found = nearest_by_kernel(vectors, codes, origin, tile)
            clear = ~(chosen.doubtful | found.doubtful)
            row["other_index"] = int((found.indices != chosen.indices)[clear].sum())
            row["ms"] = timed(partial(nearest_by_kernel, vectors, codes, origin, tile), vectors.device, 7)
        except OutOfResources as error:
            row["error"] = str(error)
        rows.append(row)
        print(row, flush=True)
    return rows


def measure_nearest_codes(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(1)
    vectors, codes = (
        torch.randn(num, DIM, generator=generator, device=device) for num in (NUM[device.type], SIZE[device.type])
    )
    result = conditions(device) | {"num_vectors": len(vectors), "size": len(codes), "dim": DIM}

    def add(name: str, part: object) -> None:
        result[name] = part
        write_json(options.json, result)

    checks = {}
    for name, *hard in distributions(device):
        checks[name] = check(*hard)
        print(name, checks[name], flush=True)
    add("checks", checks)
    tiles = measure_tiles(vectors, codes) if device.type == "cuda" else []
    add("tiles", tiles)
    add("ways", measure_ways(vectors, codes, with_peers=options.peers))
    faults = [name for name, row in checks.items() if row["wrong_without_doubt"]]
    faults += [name for name, row in checks.items() if row["worst_relative_excess"] > TOLERANCE]
    faults += [str(row) for row in tiles if row.get("other_index")]
    if faults:
        sys.exit(f"wrong indices: {', '.join(faults)}")


# --- convolutions ----------------------------------------------------------------------------------------------------


def shell(resolution: int) -> Grid:
    centres = torch.arange(resolution, device="cuda") + 0.5 - resolution / 2
    radius = (centres[:, None, None] ** 2 + centres[None, :, None] ** 2 + centres**2).sqrt()
    coords = ((radius - 0.4 * resolution).abs() < 2).nonzero().int()
    return Grid(nn.functional.pad(coords, (1, 0)), num_shapes=1, extent=resolution)


def milliseconds(work: Callable[[], object]) -> float:
    return round(timed(work, torch.device("cuda"), 10), 3)


def error(got: Tensor, expected: Tensor) -> float:
    return float(f"{(got.double() - expected).norm() / expected.norm():.1e}")


def measure_level(resolution: int, in_channels: int, out_channels: int) -> dict[str, Any]:
    grid = shell(resolution)
    neighbours = neighbour_table(grid)
    feats = torch.randn(len(grid), in_channels, device="cuda").half().requires_grad_()
    upstream = torch.randn(len(grid), out_channels, device="cuda").half()
    ours = SubMConv3d(in_channels, out_channels).cuda().half()
    theirs = SpconvSubMConv3d(in_channels, out_channels, 3, bias=True, indice_key="level").cuda().half()
    theirs.load_state_dict(ours.state_dict())
    known = theirs(SparseConvTensor(feats, grid.coords, [resolution] * 3, 1)).indice_dict  # the rulebook, made once

    def run_ours() -> Tensor:
        return ours(SparseTensor.on(grid, feats)).feats

    def run_theirs() -> Tensor:
        return theirs(SparseConvTensor(feats, grid.coords, [resolution] * 3, 1, indice_dict=known)).features

    sample = torch.randperm(len(grid), device="cuda")[:4000]
    absent = torch.where(neighbours[:, sample] < 0, len(grid), neighbours[:, sample]).T.flatten().long()
    columns = torch.cat([feats.detach(), feats.new_zeros(1, in_channels)]).double()[absent].view(len(sample), -1)
    expected = columns @ ours.weight.detach().double().flatten(1).T
    row: dict[str, Any] = {"voxels": len(grid), "in_channels": in_channels, "out_channels": out_channels}

    def run_both_ways(run: Callable[[], Tensor], weight: Tensor) -> None:
        torch.autograd.grad(run(), [feats, weight], upstream)

    for label, run, weight in (("ours", run_ours, ours.weight), ("spconv", run_theirs, theirs.weight)):
        row[label] = {
            "forward_ms": milliseconds(run),
            "forward_backward_ms": milliseconds(partial(run_both_ways, run, weight)),
            "relative_error": error(run().detach()[sample], expected),
        }
    return row


def measure_conv_cuda(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    rows = []
    for level in LEVELS:
        rows.append(measure_level(*level))
        print(json.dumps(rows[-1]), flush=True)
    write_json(options.json, conditions(torch.device("cuda")) | {"dtype": "float16", "levels": rows})


def main() -> None:
    parser = command_line(__doc__)
    kernels = parser.add_subparsers(required=True)
    for name, measure_kernel in (("nearest_codes", measure_nearest_codes), ("conv_cuda", measure_conv_cuda)):
        kernel = kernels.add_parser(name)
        kernel.set_defaults(measure=measure_kernel, peers=False)
        add_json(kernel, f"{name}.json")
        if measure_kernel is measure_nearest_codes:
            kernel.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
            add_peers(kernel)
    options = parser.parse_args()
    check_peers(parser, options)
    options.measure(options)


if __name__ == "__main__":
    main()
