"""Stage 1 on real shapes: the codebook learns, the network does not change by a bit."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from model.checkpoint import load_vae, save_vae
from model.errors import InputError
from model.quantizer import ResidualQuantizer, TrainedCodebook, codebook_statistics, lloyd_pass, normalised_error
from model.sparse import find_rows, from_arrays, transform_coords
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE, save_vqvae
from tasks import stage1 as module
from tasks.data import CODEBOOK_FILE, choose_views, draw_vectors, encode_views, latents, latents_file, read_vectors
from tasks.encode import encode
from tasks.import_vae import import_vae
from tasks.run import Settings, paths
from tasks.shards import open_shards
from tasks.stage1 import stage1
from tests.tasks.conftest import forget_training


class Watch:
    """Looks on while stage 1 runs: the network it loads, the gradients that arrive, and what it hands to the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.networks: list[SparseSDFVAE] = []
        self.trained: list[torch.nn.Module] = []
        self.num_gradients: dict[str, int] = {}
        load, train = module.load_vae, module.train

        def load_and_remember(*args, **kwargs):
            self.networks.append(load(*args, **kwargs))
            return self.networks[-1]

        def watch_and_train(model, groups, *args, **kwargs):
            self.trained.append(model)
            for name, parameter in model.named_parameters():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._count(name))
            train(model, groups, *args, **kwargs)

        monkeypatch.setattr(module, "load_vae", load_and_remember)
        monkeypatch.setattr(module, "train", watch_and_train)

    def _count(self, name: str) -> None:
        self.num_gradients[name] = self.num_gradients.get(name, 0) + 1


def codebook() -> torch.Tensor:
    return load_file(CODEBOOK_FILE)["level1"]


def metrics() -> dict:
    return json.loads((paths.METRICS / "stage1.json").read_text())


def history() -> pd.DataFrame:
    return pd.read_csv(paths.METRICS / "stage1_history.tsv", sep="\t")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- where the codes begin ----------------------------------------------------------------------------------------


def from_tokenizer(settings: Settings, *codebooks: torch.Tensor) -> Settings:
    """Stage 1 is to begin with the codes of a tokenizer that import_vae is given: the project's VAE and these."""
    vqvae = VQVAE(load_vae(paths.VAE), ResidualQuantizer.of(codebooks))
    save_vqvae(vqvae, Path("tokenizer"), dtype=torch.float16)
    changes = {
        "import_vae": settings.import_vae.model_copy(update={"checkpoint": "tokenizer"}),
        "stage1": settings.stage1.model_copy(update={"init": "imported", "steps": 5}),
    }
    settings = settings.model_copy(update=changes)
    import_vae(settings)
    return settings


def test_the_codes_of_a_tokenizer_are_where_its_fine_tuning_begins(small_project: Path, small_settings: Settings):
    codes = (codebook() + 0.05).half().float()
    stage1(from_tokenizer(small_settings, codes))
    heldout = read_vectors(paths.LATENTS, "val", max_per_view=None, seed=0)
    expected = normalised_error(heldout, ResidualQuantizer.of([codes]), reference=heldout)
    assert metrics()["heldout_error_start"] == pytest.approx(expected, rel=1e-6)
    assert metrics()["heldout_error"] < expected


def test_codes_of_other_sizes_or_none_are_no_start(small_project: Path, small_settings: Settings):
    settings = from_tokenizer(small_settings, codebook()[:8])
    with pytest.raises(InputError, match=r"levels of \[8\] codes but codebook asks for \[16\]; set .*num_codes: \[8\]"):
        stage1(settings)
    save_vae(load_vae(paths.VAE), Path("vae"))
    import_vae(settings.model_copy(update={"import_vae": settings.import_vae.model_copy(update={"checkpoint": "vae"})}))
    with pytest.raises(InputError, match=r"stage1\.init is imported but import_vae\.checkpoint holds no codes"):
        stage1(settings)


# --- frozen means frozen ---------------------------------------------------------------------------------------------


def test_the_network_is_bit_identical_and_only_the_codebook_has_gradients(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    before, files = load_vae(paths.VAE).state_dict(), content(paths.VAE)
    watch = Watch(monkeypatch)
    stage1(small_settings)
    (vae,) = watch.networks
    assert vae.state_dict().keys() == before.keys()
    for key, value in vae.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert content(paths.VAE) == files
    assert not vae.training
    for name, parameter in vae.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name
    assert watch.num_gradients == {"levels.0.codebook": small_settings.stage1.steps}


def test_a_network_that_changed_would_be_noticed(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    watch = Watch(monkeypatch)
    validate = module.validate

    def meddle(*args, **kwargs):
        watch.networks[0].decoder.out_layer.bias.data += 1e-6
        return validate(*args, **kwargs)

    monkeypatch.setattr(module, "validate", meddle)
    with pytest.raises(AssertionError, match=r"stage 1 changed the network.*decoder\.out_layer\.bias"):
        stage1(small_settings)


# --- what it leaves --------------------------------------------------------------------------------------------------


def test_the_codebook_is_the_better_of_the_two_on_held_out_shapes(small_project: Path, small_settings: Settings):
    figures = metrics()
    heldout = read_vectors(paths.LATENTS, "val", max_per_view=None, seed=0)
    assert codebook().shape == (small_settings.codebook.num_codes, small_settings.codebook.dim)
    assert figures["heldout_error"] == min(figures["heldout_error_start"], figures["heldout_error_trained"])
    assert figures["heldout_error"] == pytest.approx(
        normalised_error(heldout, ResidualQuantizer.of([codebook()]), reference=heldout), rel=1e-4
    )
    use = codebook_statistics(lloyd_pass(heldout, codebook()).counts)
    assert figures["heldout"]["level1"]["usage"] == use.usage
    assert figures["heldout"]["level1"]["perplexity"] == pytest.approx(use.perplexity)
    assert 0 < figures["train_error"] < 1


def test_the_history_has_what_a_person_watches(small_project: Path, small_settings: Settings):
    table = history()
    assert table.step.tolist() == [5, 10, 15, 20]
    assert {"loss", "vq_loss", "commitment_loss", "codebook_usage", "perplexity", "val_l1"} < set(table.columns)
    assert {"lr", "grad_norm"} < set(table.columns)
    assert table.step[table.val_l1.notna()].tolist() == [10, 20]
    assert table.codebook_usage.between(0, 1).all()
    assert table.perplexity.between(1, small_settings.codebook.num_codes).all()
    assert table.vq_loss.tolist() == pytest.approx(table.commitment_loss.tolist())


def test_a_rerun_of_what_has_ended_writes_the_same_without_training(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """As where a kill came before DVC's record: DVC has removed the outputs, and the last state is there."""
    expected, figures, table = codebook(), metrics(), history()
    stage1(small_settings)
    assert torch.equal(codebook(), expected)
    (folder,) = (paths.RESUME / "stage1").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["finished", "start1.pt", "state.pt"]
    shutil.rmtree(CODEBOOK_FILE.parent)
    shutil.rmtree(paths.METRICS)
    monkeypatch.setattr(module, "kmeans", lambda *_, **__: pytest.fail("it starts from nothing"))
    monkeypatch.setattr(module.CodebookSteps, "losses", lambda *_: pytest.fail("it trains"))
    stage1(small_settings)
    assert torch.equal(codebook(), expected)
    assert metrics() == figures
    pd.testing.assert_frame_equal(history(), table)


def test_a_killed_run_gives_the_same_codes(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """The figures hold the error of the trained codes, whichever are kept."""
    expected, figures = codebook(), metrics()
    CODEBOOK_FILE.unlink()
    calls, rolling_use = [], TrainedCodebook.rolling_use

    def die_at_step_13(codebook: TrainedCodebook):
        calls.append(1)
        if len(calls) == 13:
            raise ConnectionAbortedError  # nothing in the stage knows it
        return rolling_use(codebook)

    with monkeypatch.context() as patched:
        patched.setattr(TrainedCodebook, "rolling_use", die_at_step_13)
        with pytest.raises(ConnectionAbortedError):
            stage1(small_settings)
    assert not CODEBOOK_FILE.exists()
    assert list(paths.RESUME.glob("stage1/*/state.pt"))
    stage1(small_settings)
    assert torch.equal(codebook(), expected)
    assert metrics() == figures


# --- ways to begin and to go on --------------------------------------------------------------------------------------


def with_stage1(settings: Settings, **changes) -> Settings:
    """Keys of stage1, or of codebook."""
    shared = {key: changes.pop(key) for key in ("update", "ema_decay", "revive_below") if key in changes}
    sections = {"stage1": settings.stage1.model_copy(update=changes)}
    return settings.model_copy(update=sections | {"codebook": settings.codebook.model_copy(update=shared)})


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("init", ["kmeans", "data", "uniform"])
def test_each_init_and_update_leaves_a_codebook_and_its_history(
    small_project: Path, small_settings: Settings, init: str, update: str
):
    """The steps end no worse than they began on what they minimise, by AdamW or by averages."""
    stage1(with_stage1(small_settings, init=init, update=update, lr=0.01, ema_decay=0.8))
    table = history()
    assert table.revived_codes.notna().all()
    assert (table.lr > 0).all() == (update == "gradient")
    assert table.vq_loss.iloc[-1] < table.vq_loss.iloc[0] * (1.02 if init == "kmeans" else 1)
    assert codebook().isfinite().all()
    assert metrics()["heldout_error"] <= metrics()["heldout_error_start"]


def test_codes_of_a_wrong_init_are_revived_but_not_in_the_last_fifth(small_project: Path, small_settings: Settings):
    """uniform(+-1/K) around 0 leaves almost all codes unused; revival brings them to the latents."""
    changes = {"init": "uniform", "update": "ema", "ema_decay": 0.7, "log_every": 1, "save_every": 1}
    stage1(with_stage1(small_settings, **changes, revive_below=0.0))
    without = metrics()["heldout_error"]
    assert not history().revived_codes.any()
    stage1(with_stage1(small_settings, **changes, revive_below=0.1))
    assert history().revived_codes.sum() > 0
    assert not history().revived_codes[16:].any()
    assert metrics()["heldout_error"] < 0.9 * without


def test_a_killed_run_with_averages_gives_the_same_codes(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """The averages are part of the saved state."""
    wanted = with_stage1(small_settings, init="uniform", update="ema", ema_decay=0.8)
    stage1(wanted)
    forget_training()
    expected = codebook()
    calls, rolling_use = [], TrainedCodebook.rolling_use

    def die_at_step_13(codebook: TrainedCodebook):
        calls.append(1)
        if len(calls) == 13:
            raise ConnectionAbortedError
        return rolling_use(codebook)

    with monkeypatch.context() as patched:
        patched.setattr(TrainedCodebook, "rolling_use", die_at_step_13)
        with pytest.raises(ConnectionAbortedError):
            stage1(wanted)
    stage1(wanted)
    assert torch.equal(codebook(), expected)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_latents_of_an_encoder_without_weights_are_refused_before_any_training(
    small_project: Path, small_settings: Settings
):
    before = content(paths.LATENTS)
    save_vae(SparseSDFVAE(VAEConfig(64, 1, 8)), paths.VAE)  # its last encoder layer is initialised with zeros
    with pytest.raises(InputError, match=r"every latent is exactly 0.*zero-initialised.*import_vae\.checkpoint"):
        encode(small_settings)
    assert content(paths.LATENTS) == before  # and no half of new ones


def test_more_codes_than_distinct_latents_are_refused(small_project: Path, small_settings: Settings):
    section = small_settings.codebook.model_copy(update={"num_codes": 10_000})
    with pytest.raises(InputError, match=r"distinct latent vectors for 10000 codes; set codebook\.num_codes lower"):
        stage1(small_settings.model_copy(update={"codebook": section}))


# --- latents ---------------------------------------------------------------------------------------------------------


def test_latents_are_the_posterior_means_of_every_view(small_project: Path, small_settings: Settings):
    rows = pq.read_table(latents_file(paths.LATENTS, "val")).to_pylist()
    shards, vae = open_shards(paths.SDF), load_vae(paths.VAE)
    views = choose_views(shards.names("val"), small_settings.encode.heldout_symmetries)
    assert views[0].symmetry == 0
    assert [(row["name"], row["symmetry"]) for row in rows] == [tuple(view) for view in views]
    for view, row in zip(views, rows, strict=True):
        sdf = shards.read(view.name)
        moved = transform_coords(sdf.coords, view.symmetry, resolution=sdf.resolution)
        with torch.no_grad():
            mean = vae.encode(from_arrays(moved, sdf.sdf, extent=sdf.resolution)).mean
        coords = torch.tensor(row["coords"], dtype=torch.int32).view(-1, 3)
        found, known = find_rows(F.pad(coords, (1, 0)), mean.grid)
        assert known.all()
        assert len(coords) == len(mean.grid)
        torch.testing.assert_close(torch.tensor(row["mean"]).view(len(coords), -1), mean.feats[found])


def test_views_encoded_several_at_a_time_have_the_latents_of_one_at_a_time(small_project: Path):
    shards, vae = open_shards(paths.SDF), load_vae(paths.VAE)
    views = choose_views(shards.names("train"), 2)
    alone = list(encode_views(vae, shards, views, batch_voxels=1))
    together = list(encode_views(vae, shards, views, batch_voxels=3 * int(shards.index.num_voxels.max())))
    assert [latents[:2] for latents in together] == [tuple(view) for view in views]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.coords, other.coords)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-6)


def test_big_shapes_are_capped(small_project: Path):
    everything = read_vectors(paths.LATENTS, "train", max_per_view=None, seed=0)
    capped = read_vectors(paths.LATENTS, "train", max_per_view=5, seed=0)
    assert len(capped) == 5 * 5 * 2  # shapes, symmetries
    known = {tuple(row) for row in everything.tolist()}
    assert all(tuple(row) in known for row in capped.tolist())
    assert torch.equal(read_vectors(paths.LATENTS, "train", max_per_view=5, seed=0), capped)
    assert not torch.equal(read_vectors(paths.LATENTS, "train", max_per_view=5, seed=1), capped)


def test_more_latents_than_memory_has_room_for_are_drawn_evenly(
    small_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    everything = read_vectors(paths.LATENTS, "train", max_per_view=None, seed=0)
    assert "drawn at random" not in capsys.readouterr().out
    monkeypatch.setattr(latents, "MAX_VECTORS", most := len(everything) // 3)
    fewer = read_vectors(paths.LATENTS, "train", max_per_view=None, seed=0)
    assert most / 3 < len(fewer) <= most
    assert f"{len(fewer)} of {len(everything)} latents, drawn at random" in capsys.readouterr().out
    rows = {tuple(row): place for place, row in enumerate(everything.tolist())}
    places = [rows[tuple(row)] for row in fewer.tolist()]
    assert min(places) < most / 2 < len(everything) - most / 2 < max(places)  # from the first views and from the last


# --- its figures -----------------------------------------------------------------------------------------------------


def test_batches_follow_from_seed_and_step(small_settings: Settings):
    vectors = torch.arange(1000.0)[:, None]
    whole = [batch.vectors for batch in islice(draw_vectors(vectors, small_settings.stage1, 0), 6)]
    later = [batch.vectors for batch in islice(draw_vectors(vectors, small_settings.stage1, 4), 2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))
    assert not torch.equal(whole[0], whole[1])
    other_seed = small_settings.stage1.model_copy(update={"seed": 1})
    assert not torch.equal(next(draw_vectors(vectors, other_seed, 0)).vectors, whole[0])


def test_one_code_at_the_mean_has_a_normalised_error_of_one():
    vectors = torch.randn(500, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 100
    mean, each = ResidualQuantizer.of([vectors.mean(0, keepdim=True)]), ResidualQuantizer.of([vectors])
    assert normalised_error(vectors, mean, reference=vectors) == pytest.approx(1, rel=1e-4)
    assert normalised_error(vectors, each, reference=vectors) == 0


def test_only_the_vq_term_trains_the_codes():
    """With a frozen encoder, commitment and reconstruction have no gradient for them."""
    quantizer = ResidualQuantizer([4, 3], 2)
    quantized = quantizer(torch.randn(10, 2))
    assert quantized.vq_loss.requires_grad
    assert not quantized.commitment_loss.requires_grad
    assert not quantized.z_q.requires_grad
