"""Short names of arrays on a device, for the signatures of kernels."""

from ..warp import wp

Ints = wp.array[wp.int32]
Flags = wp.array[wp.int8]  # 0 or 1, as whether a voxel is inside
Bytes = wp.array[wp.uint8]
Floats = wp.array[wp.float32]
Vectors = wp.array[wp.vec3]  # float32
Points = wp.array[wp.vec3d]  # float64, in voxels
Cells = wp.array[wp.vec3i]  # places of voxels or bricks in the grid, or corners of faces
Seen = wp.array[wp.vec4]  # for each node of a tree, see winding.py: its centre, and a distance squared
