"""The network's operations once more, in float64 NumPy, as the papers write them: loops over voxels."""

import numpy as np

Coords = list[tuple[int, int, int, int]]


def pool_mean(coords: Coords, feats: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Sum over the present children of each 2^3 cell, over one more than their number."""
    cells: dict[tuple[int, ...], list[np.ndarray]] = {}
    for (b, x, y, z), row in zip(coords, feats, strict=True):
        cells.setdefault((b, x // 2, y // 2, z // 2), []).append(row)
    return {cell: np.sum(rows, 0) / (len(rows) + 1) for cell, rows in cells.items()}


def group_norm(
    coords: Coords, feats: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, num_groups: int, eps: float
) -> np.ndarray:
    """Mean and variance of each shape's voxels and each group's channels together."""
    shapes = np.array([coord[0] for coord in coords])
    normed = np.empty_like(feats)
    for shape in set(shapes.tolist()):
        for group in np.split(np.arange(feats.shape[1]), num_groups):
            block = feats[np.ix_(shapes == shape, group)]
            normed[np.ix_(shapes == shape, group)] = (block - block.mean()) / np.sqrt(block.var() + eps)
    return normed * weight + bias


def window_of(coord: tuple[int, ...], *, size: int, shift: int) -> tuple[int, ...]:
    batch, *position = coord
    return (batch, *((p + shift) // size for p in position))


def window_attention(
    coords: Coords, qkv: np.ndarray, *, head_channels: int, window_size: int, shift: int
) -> np.ndarray:
    """softmax(q k / sqrt(d)) v, for each voxel and head, over the voxels of the same window. qkv is [N, 3 * C]."""
    windows = [window_of(coord, size=window_size, shift=shift) for coord in coords]
    num_voxels, channels = len(coords), qkv.shape[1] // 3
    q, k, v = qkv.reshape(num_voxels, 3, channels // head_channels, head_channels).transpose(1, 0, 2, 3)
    out = np.empty_like(q)
    for i in range(num_voxels):
        mates = [j for j in range(num_voxels) if windows[j] == windows[i]]
        for head in range(q.shape[1]):
            scores = k[mates, head] @ q[i, head] / np.sqrt(head_channels)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v[mates, head] / weights.sum()
    return out.reshape(num_voxels, channels)


def position_embedding(coords: Coords, channels: int) -> np.ndarray:
    num_frequencies = channels // 3 // 2
    rows = np.zeros((len(coords), channels))
    for row, (_, *position) in zip(rows, coords, strict=True):
        column = 0
        for p in position:
            for wave in (np.sin, np.cos):
                for k in range(num_frequencies):
                    row[column] = wave(p * 10000 ** (-k / num_frequencies))
                    column += 1
    return rows


def nearest_codes(z: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Brute force; argmin takes the lower index of a tie."""
    z, codebook = z.astype(np.float64), codebook.astype(np.float64)
    return np.array([np.square(codebook - row).sum(1).argmin() for row in z])
