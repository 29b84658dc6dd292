"""evaluate measures the product: its last row is the mesh that ShapeTokenizer gives."""

import dataclasses

import numpy as np
import trimesh

from tasks.reconstructions import Reconstructor
from tests.shapes import ring_and_box
from tests.small_tokenizer import small_tokenizer


def test_the_row_of_stage_2_is_what_the_tokenizer_decodes():
    tokenizer = small_tokenizer()
    codebook = tokenizer.vqvae.quantizer.codebook.detach()
    for mesh in (ring_and_box().apply_scale(2.0).apply_translation([1, 2, 3]), trimesh.creation.cone(0.6, 1.2)):
        *_, row = Reconstructor(tokenizer.vqvae.vae, codebook, tokenizer).rows(tokenizer.voxelize(mesh))
        tokens = tokenizer.encode(mesh)
        decoded = tokenizer.decode(dataclasses.replace(tokens, center=np.zeros(3), scale=1.0))
        assert (row.row, row.num_tokens) == ("stage2", len(tokens))
        assert len(decoded.faces) > 1000
        np.testing.assert_array_equal(decoded.faces, row.mesh.faces)
        np.testing.assert_array_equal(decoded.vertices, row.mesh.vertices)
