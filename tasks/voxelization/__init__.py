"""What voxelize is made of: one file to one shape in scratch, splits, and what is said about the whole.

Imports no torch, for its many processes.
"""

from tasks.voxelization.jobs import Outcome, forget_all_but, shape_in_scratch, surface_of, voxelize_all
from tasks.voxelization.splits import split_of, splits_brought
from tasks.voxelization.summary import check_share, check_splits, metrics_of, print_summary
