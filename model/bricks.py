"""The number that all rooms share: voxels near a surface are kept in bricks, and the VAE turns a brick into a latent.

The shards' format and the tokens rest on it, and the kernels in model.sdf are written for it.
"""

BRICK_SIZE = 8  # voxels a side
BRICK_VOXELS = BRICK_SIZE**3
