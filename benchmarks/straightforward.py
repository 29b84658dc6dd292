"""Pieces of the network as a straightforward port to spconv has them, to be put in place of this project's.

For benchmarks/training_step.py, which takes them out again one by one. Parameters keep their names and values.
"""

from collections.abc import Callable
from functools import partial

from spconv.pytorch import SparseConvTensor
from spconv.pytorch import SubMConv3d as SpconvSubMConv3d
from torch.nn import functional as F

from model.sparse import ChildConv3d, GroupNormSiLU, SparseTensor, Subdivision, SubMConv3d
from model.sparse.tensor import pool_mean
from model.vae import SparseSDFVAE


def spconv_convolutions(vae: SparseSDFVAE, *, share_rulebooks: bool) -> None:
    """spconv's own module in place of every convolution; a rulebook for each, or one for each grid."""
    for module in vae.modules():
        if isinstance(module, SubMConv3d):
            theirs = SpconvSubMConv3d(module.weight.shape[4], module.weight.shape[0], 3, bias=True, indice_key="grid")
            theirs.weight, theirs.bias = module.weight, module.bias
            call = partial(_spconv, [theirs], share_rulebooks)
            module.forward = partial(_on_children, call) if isinstance(module, ChildConv3d) else call


def _spconv(
    theirs: list[SpconvSubMConv3d], share: bool, x: SparseTensor, num_outputs: int | None = None
) -> SparseTensor:
    assert num_outputs in (None, len(x.grid))
    rulebook = x.grid.__dict__.setdefault("rulebook", {}) if share else {}
    shape = [x.grid.extent] * 3
    result = theirs[0](SparseConvTensor(x.feats, x.coords, shape, x.grid.num_shapes, indice_dict=rulebook))
    return x.with_feats(result.features)


def explicit_children(vae: SparseSDFVAE) -> None:
    """Children made with their parents' features, then convolved as any other voxels."""
    for module in vae.modules():
        if isinstance(module, ChildConv3d):
            module.forward = partial(_on_children, partial(SubMConv3d.forward, module))


def _on_children(convolve: Callable[[SparseTensor], SparseTensor], x: SparseTensor, step: Subdivision) -> SparseTensor:
    return convolve(SparseTensor.on(step.fine, x.feats.repeat_interleave(8, 0)))


def plain_norms(vae: SparseSDFVAE) -> None:
    """Torch's group norm of one shape, SiLU and pooling one after the other, the norm in float32."""
    for module in vae.modules():
        if isinstance(module, GroupNormSiLU):
            module.forward = partial(_norm, module)
            module.forward_pooled = partial(_norm_pooled, module)


def _norm(module: GroupNormSiLU, x: SparseTensor) -> SparseTensor:
    assert x.grid.num_shapes == 1
    normed = F.group_norm(x.feats.float().T[None], module.num_groups, module.weight, module.bias, module.eps)[0].T
    return x.with_feats(F.silu(normed.to(x.feats.dtype)))


def _norm_pooled(module: GroupNormSiLU, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
    return pool_mean(_norm(module, x)), pool_mean(x)
