"""Submanifold 3^3 convolution on the children of voxels, every child having the features of its parent.

The 27 voxels that a child reads lie in 8 parents: itself, or its neighbours on the child's side. So this is a product
of 8 parents with kernels that are sums of the 27, other ones for each octant: a third of the arithmetic, no features of
children, and no search for neighbours among them. Values and gradients are those of subdividing, then convolving.
"""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..operators import operator
from .conv import COLUMN_ELEMENTS, ROWS_PER_PRODUCT, Convolution, Products, SubMConv3d, sum_dtype, sum_of_products
from .neighbours import NUM_OFFSETS, pad_absent
from .tensor import NUM_CHILDREN, SparseTensor, Subdivision, neighbour_table

NUM_TAPS = 8  # parents that a child reads
# [octant, tap]: where in its own parent's 3^3 neighbourhood each parent lies that a child reads.
_BITS = torch.cartesian_prod(*[torch.arange(2)] * 3)
PARENT_OFFSETS = (_BITS[:, None] + _BITS) @ torch.tensor([9, 3, 1])
# By octant bit, tap and kernel element of one axis, whether the tap sums up that element. A lower child (bit 0) finds
# its lower neighbour in another parent, itself and its upper neighbour in its own; an upper child the other way round.
_SUMMED = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


@cache
def _summed_kernels(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "64 27"]:
    """What makes the 64 summed kernels of the 27. Moved once: the CPU waits while something is moved to the GPU."""
    summed = torch.einsum("axi,byj,czk->abcxyzijk", _SUMMED, _SUMMED, _SUMMED)
    return summed.reshape(NUM_CHILDREN * NUM_TAPS, NUM_OFFSETS).to(device, dtype)


class ChildConv3d(SubMConv3d):
    """A SubMConv3d, its parameters too, that takes the parents' features for the children's."""

    def forward(self, x: SparseTensor, step: Subdivision) -> SparseTensor:  # type: ignore[override]
        """`x` holds the parents, which are leading rows of a grid; the result is on step.fine."""
        with torch.autocast(x.feats.device.type, enabled=False):
            summed = _summed_kernels(self.weight.device, self.weight.dtype) @ self.weight.flatten(1, 3)
        tables = neighbour_table(x.grid.whole), step.children
        feats = Convolution.apply(_PRODUCTS, x.feats, summed, self.bias, len(step.fine), *tables)
        return SparseTensor.on(step.fine, feats)


@operator(
    "(Tensor feats, Tensor summed, Tensor bias, int num_outputs, Tensor neighbours, Tensor children) -> Tensor",
    cuda=".kernels.conv",
)
def convolve_children(
    feats: Float[Tensor, "num_parents in_channels"],
    summed: Float[Tensor, "out_channels 64 in_channels"],
    bias: Float[Tensor, " out_channels"],
    num_outputs: int,
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
) -> Float[Tensor, "num_outputs out_channels"]:
    """Parents are the leading rows of the neighbour table; its others count as absent."""
    output = feats.new_empty(num_outputs, len(summed))
    padded = pad_absent(feats, neighbours)
    for octant, kernel in enumerate(summed.unflatten(1, (NUM_CHILDREN, NUM_TAPS)).unbind(1)):
        for parents in _present(children[octant], NUM_TAPS * feats.shape[1]):
            columns = _read_parents(padded, neighbours, octant, parents)
            output[children[octant, parents].long()] = torch.addmm(bias.to(feats.dtype), columns, kernel.flatten(1).T)
    return output


@operator(
    "(Tensor grad_output, Tensor summed, int num_parents, Tensor neighbours, Tensor children) -> Tensor",
    cuda=".kernels.conv",
)
def convolve_children_input_gradient(
    grad_output: Float[Tensor, "num_outputs out_channels"],
    summed: Float[Tensor, "out_channels 64 in_channels"],
    num_parents: int,
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
) -> Float[Tensor, "num_parents in_channels"]:
    """What a child read from a parent at some offset, that parent finds with the mirrored one."""
    total = grad_output.new_zeros(num_parents, summed.shape[2])
    readers = neighbours.flip(0)[:, :num_parents] + 1
    for octant, kernel in enumerate(summed.unflatten(1, (NUM_CHILDREN, NUM_TAPS)).unbind(1)):
        present = (children[octant] >= 0).nonzero()[:, 0]
        given = grad_output.new_zeros(1 + len(present), NUM_TAPS * total.shape[1])  # the first row is for none
        torch.mm(grad_output.index_select(0, children[octant, present]), kernel.flatten(1), out=given[1:])
        row = torch.zeros(1 + neighbours.shape[1], dtype=torch.int32)
        row[1 + present] = torch.arange(1, len(given), dtype=torch.int32)
        for tap, reader in enumerate(readers[PARENT_OFFSETS[octant]]):
            places = row.index_select(0, reader) * NUM_TAPS + tap
            total += given.view(-1, total.shape[1]).index_select(0, places)
    return total


@operator("(Tensor feats, Tensor grad_output, Tensor neighbours, Tensor children) -> Tensor", cuda=".kernels.conv")
def convolve_children_kernel_gradient(
    feats: Float[Tensor, "num_parents in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
) -> Float[Tensor, "out_channels 64 in_channels"]:
    """Added up in float32 or more."""
    shape = (NUM_CHILDREN, grad_output.shape[1], NUM_TAPS * feats.shape[1])
    total = torch.zeros(shape, dtype=sum_dtype(feats.dtype))
    padded = pad_absent(feats, neighbours)
    for octant in range(NUM_CHILDREN):
        for parents in _present(children[octant], NUM_TAPS * feats.shape[1]):
            grads = grad_output.index_select(0, children[octant, parents])
            total[octant] += sum_of_products(grads, _read_parents(padded, neighbours, octant, parents))
    return total.transpose(0, 1).reshape(shape[1], NUM_CHILDREN * NUM_TAPS, -1)


_PRODUCTS = Products(convolve_children, convolve_children_input_gradient, convolve_children_kernel_gradient)


def _present(children: Int[Tensor, " num_parents"], width: int) -> tuple[Int[Tensor, " num_rows"], ...]:
    """Parents that have this child, in blocks of bounded memory."""
    return (children >= 0).nonzero()[:, 0].split(max(ROWS_PER_PRODUCT, COLUMN_ELEMENTS // width))


def _read_parents(
    padded: Float[Tensor, "num_rows_plus_1 channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    octant: int,
    parents: Int[Tensor, " num_read"],
) -> Float[Tensor, "num_read 8*channels"]:
    """The features of the parents that a child in this octant reads, side by side; absent ones are zeros."""
    rows = neighbours.T[parents[:, None], PARENT_OFFSETS[octant]].flatten() + 1
    return padded.index_select(0, rows).view(len(parents), -1)
