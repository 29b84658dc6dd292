"""Warp starts without a word, and hides no other."""

import ctypes
import subprocess
import sys

import pytest

VOXELIZE = """
import trimesh
from model.sdf import voxelize
box = trimesh.creation.box()
print(len(voxelize(box.vertices, box.faces, resolution=16, truncation_voxels=2.0).coords) > 0)
"""
SPEAKING = """
import os, sys, warp
start = warp.init
def init():
    os.write(2, b"Warp CUDA error: a real one\\n")
    print("from Python", file=sys.stderr)
    start()
warp.init = init
import model.warp
print("after", file=sys.stderr)
"""


def stderr_of(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stderr


def driver_exists() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return False


def test_nothing_is_said_about_the_machine():
    assert stderr_of(VOXELIZE) == ""


@pytest.mark.skipif(driver_exists(), reason="with a driver Warp starts when it is first used, and is not listened to")
def test_what_else_is_written_meanwhile_is_passed_on_in_its_order():
    assert stderr_of(SPEAKING) == "Warp CUDA error: a real one\nfrom Python\nafter\n"
