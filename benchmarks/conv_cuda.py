"""How fast and how exact is one 3^3 submanifold convolution in float16 on a GPU, ours beside spconv's module?

    .venv/bin/python -m benchmarks.conv_cuda [--json FILE]        (on a machine with a GPU; about a minute)

The voxels are the published network's levels on a sphere shell: radius 0.4 R, half-width 2 voxels. Times are medians
of CUDA events after warm-up. Errors are relative L2 against float64 on 4000 of the voxels.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch import SubMConv3d as SpconvSubMConv3d
from torch import Tensor, nn

from benchmarks import command_line, conditions, timed, write_json
from model.sparse import Grid, SparseTensor, SubMConv3d, neighbour_table

LEVELS = [(512, 32, 32), (256, 128, 64), (256, 64, 64), (128, 128, 128), (64, 512, 128), (64, 512, 512)]
REPEATS = 10
DEVICE = torch.device("cuda")


def shell(resolution: int) -> Grid:
    centres = torch.arange(resolution, device="cuda") + 0.5 - resolution / 2
    radius = (centres[:, None, None] ** 2 + centres[None, :, None] ** 2 + centres**2).sqrt()
    coords = ((radius - 0.4 * resolution).abs() < 2).nonzero().int()
    return Grid(nn.functional.pad(coords, (1, 0)), num_shapes=1, extent=resolution)


def milliseconds(work: Callable[[], object]) -> float:
    return round(timed(work, DEVICE, REPEATS), 3)


def error(got: Tensor, expected: Tensor) -> float:
    return float(f"{(got.double() - expected).norm() / expected.norm():.1e}")


def measure(resolution: int, in_channels: int, out_channels: int) -> dict[str, Any]:
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


def main() -> None:
    options = command_line(__doc__, "conv_cuda.json").parse_args()
    torch.manual_seed(0)
    rows = []
    for level in LEVELS:
        rows.append(measure(*level))
        print(json.dumps(rows[-1]), flush=True)
    write_json(options.json, conditions(DEVICE) | {"dtype": "float16", "levels": rows})


if __name__ == "__main__":
    main()
