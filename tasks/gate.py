"""Decide on held-out shapes whether the codebook is good enough to train the whole network with."""

from model.files import whole_directory, write_whole
from model.plots import draw_codebook
from tasks.data import load_codebooks, read_vectors
from tasks.judging import Remedies, judge, lloyd_passes, refuse_failed, verdict
from tasks.run import Settings, paths, run_stage, write_metrics

OF_STAGE1 = Remedies(
    unused="set stage1.init: kmeans, raise stage1.kmeans_iterations or encode.train_symmetries, add meshes, or lower "
    "codebook.num_codes",
    one_takes_all="look for empty or constant latents, set stage1.init: kmeans, or raise stage1.kmeans_iterations",
    no_carry_over="the codes do not carry over to unseen shapes; add meshes or symmetries, or lower codebook.num_codes",
    duplicates="lower codebook.num_codes, or add meshes",
)


def gate(settings: Settings) -> None:
    """Write metrics/gate.json always, the pass token only when every figure is good enough."""
    paths.PASS_TOKEN.unlink(missing_ok=True)
    seen, heldout = (read_vectors(paths.LATENTS, split, max_per_view=None, seed=0) for split in ("train", "val"))
    codebooks = load_codebooks()
    of_seen, of_heldout = (lloyd_passes(codebooks, vectors) for vectors in (seen, heldout))
    checks = judge(settings.gate, "gate", codebooks, OF_STAGE1, seen=of_seen, heldout=of_heldout)
    with whole_directory(paths.CODEBOOK_PLOTS) as directory:
        for name, content in draw_codebook(heldout, of_heldout[0].indices, codebooks[0]).items():
            write_whole(directory / name, content)
    write_metrics("gate", verdict(checks))
    refuse_failed(checks, "the codebook")
    # Constant, so that a threshold that still passes retrains nothing downstream.
    write_whole(paths.PASS_TOKEN, "The codebook passed the gate; metrics/gate.json has the figures.\n")


if __name__ == "__main__":
    run_stage("gate", gate)
