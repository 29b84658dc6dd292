"""The stage as it is run: weights of any layout in, a report out; a bad file leaves nothing behind."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml

from model.checkpoint import export_vae, load_vae
from model.cli import main as shape_tokenizer
from model.errors import InputError
from model.vae import SparseSDFVAE, VAEConfig
from tasks.fetch_vae import fetch_vae
from tasks.import_vae import import_vae
from tasks.run import Settings, load_settings, paths, run_stage
from tasks.run.settings import FetchVae
from tests.model.test_hub import COMMIT, cache, put_vae  # noqa: F401  # the fixture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path):
    with chdir(tmp_path):
        yield tmp_path


def settings(checkpoint: str, *, dim: object = "auto") -> Settings:
    shipped = load_settings(ROOT / "params.yaml")
    return shipped.model_copy(
        update={
            "import_vae": shipped.import_vae.model_copy(update={"checkpoint": checkpoint}),
            "codebook": shipped.codebook.model_copy(update={"dim": dim}),
        }
    )


def random_vae(latent_channels: int = 4) -> SparseSDFVAE:
    torch.manual_seed(0)
    return SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=latent_channels))


@pytest.mark.parametrize("layout", ["published", "spconv"])
@pytest.mark.parametrize("latent_channels", [4, 12])
def test_a_checkpoint_of_any_width_needs_no_edit_but_its_path(project, capsys, layout, latent_channels):
    vae = random_vae(latent_channels)
    export_vae(vae, Path("weights.ckpt"), layout=layout)
    import_vae(settings("weights.ckpt"))
    for got, expected in zip(load_vae(paths.VAE).parameters(), vae.parameters(), strict=True):
        assert torch.equal(got, expected)
    figures = json.loads((paths.METRICS / "import_vae.json").read_text())
    assert figures["latent_channels"] == latent_channels
    assert figures["num_parameters"] == sum(parameter.numel() for parameter in vae.parameters())


def test_the_report_accounts_for_every_key(project, capsys):
    vae = random_vae()
    export_vae(vae, Path("weights.ckpt"), layout="published")
    content = torch.load("weights.ckpt", weights_only=True)
    torch.save(content | {"dit": {"blocks.0.weight": torch.zeros(2)}}, "weights.ckpt")
    import_vae(settings("weights.ckpt"))
    report = json.loads((paths.VAE / "import_report.json").read_text())
    assert [key["target"] for key in report["keys"]] == list(vae.state_dict())
    assert report["ignored"] == {"dit": "not part of the VAE"}
    lines = capsys.readouterr().out.splitlines()
    kernel = next(line for line in lines if "downsample.0.out_layers.0.conv.kernel" in line)
    assert kernel.split()[:3] == [
        "encoder.downsample.0.out_layers.0.conv.kernel",
        "encoder.downsample.0.out_layers.0.weight",
        "8x3x3x3x4",
    ]
    assert "[zyx, in, out] to [out, x, y, z, in]" in kernel
    assert "ignored: dit (not part of the VAE)" in lines
    assert "all-zero layers: encoder.out_layer.weight" in lines


def test_a_contradiction_names_both_keys(project):
    export_vae(random_vae(), Path("weights.ckpt"), layout="published")
    with pytest.raises(
        InputError, match=r"import_vae\.checkpoint \(weights\.ckpt\) has 4 latent .* codebook\.dim is 64"
    ):
        import_vae(settings("weights.ckpt", dim=64))
    assert not paths.VAE.exists()


def fetched(source: str, sha256: str | None) -> None:
    shipped = settings(str(paths.FETCHED))
    fetch_vae(shipped.model_copy(update={"fetch_vae": FetchVae(source=source, sha256=sha256)}))


def test_weights_from_the_hub_are_imported_from_where_they_were_fetched_to(project, cache):  # noqa: F811
    vae = put_vae(cache, "vae")
    file = cache / "models--someone--shapes" / "snapshots" / COMMIT / "vae" / "model.safetensors"
    fetched(f"hf://someone/shapes@{COMMIT}/vae/model.safetensors", hashlib.sha256(file.read_bytes()).hexdigest())
    shutil.rmtree(cache / "models--someone--shapes")
    import_vae(settings(str(paths.FETCHED)))
    assert load_vae(paths.VAE).decoder.input_layer.weight.equal(vae.decoder.input_layer.weight)


@pytest.mark.parametrize(
    ("revision", "file", "sha256", "message"),
    [
        (
            "",
            "/model.safetensors",
            "0" * 64,
            rf"may be another file tomorrow; .* commit {COMMIT}, sha256 [0-9a-f]{{64}}",
        ),
        ("@main", "/model.safetensors", "0" * 64, rf"may be another file tomorrow; .* commit {COMMIT}, sha256"),
        (f"@{COMMIT}", "/model.safetensors", None, r"with fetch_vae\.sha256 null may be another file tomorrow"),
        (
            f"@{COMMIT}",
            "/model.safetensors",
            "0" * 64,
            r"^sha256 of .* is [0-9a-f]{64}; expected fetch_vae.sha256 0{64}",
        ),
        ("", "", "0" * 64, r"vae is a folder; name the file of weights in it"),
    ],
)
def test_weights_that_may_change_are_not_fetched(project, cache, revision, file, sha256, message):  # noqa: F811
    put_vae(cache, "vae")
    with pytest.raises(InputError, match=message):
        fetched(f"hf://someone/shapes{revision}/vae{file}", sha256)
    assert not paths.FETCHED.exists()


def test_export_writes_what_the_import_reads(project, capsys):
    export_vae(random_vae(), Path("weights.ckpt"), layout="published")
    import_vae(settings("weights.ckpt"))
    with pytest.raises(SystemExit, match="0"):
        shape_tokenizer(["export-vae", str(paths.VAE), "out/again.ckpt"])
    assert "the VAE of artifacts/vae in the published layout" in capsys.readouterr().out
    before, after = (torch.load(file, weights_only=True)["vae"] for file in ("weights.ckpt", "out/again.ckpt"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(SystemExit, match=r"shape-tokenizer: nowhere\.ckpt: no such checkpoint"):
        shape_tokenizer(["export-vae", "nowhere.ckpt", "out/never.ckpt"])
    assert not Path("out/never.ckpt").exists()


# --- bad files, through the command line -----------------------------------------------------------------------------


def truncated(file: Path) -> None:
    export_vae(random_vae(), file, layout="published")
    file.write_bytes(file.read_bytes()[:5000])


def zip_of_something_else(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "no weights in here")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickle_with_code(file: Path) -> None:
    torch.save({"vae": {}, "extra": Payload()}, file)


def text_to_image(file: Path) -> None:
    keys = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"]
    torch.save({"state_dict": {key: torch.zeros(4, 4, 3, 3) for key in keys}}, file)


def bare_text_to_image(file: Path) -> None:
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}, file)


def with_nan(file: Path) -> None:
    vae = random_vae()
    vae.decoder.out_layer.weight.data[0, 0] = float("nan")
    export_vae(vae, file, layout="published")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated, "can't be read"),
        (zip_of_something_else, "can't be read"),
        (pickle_with_code, "can't be read"),
        (text_to_image, "expected a state_dict, or one under the key 'vae'"),
        (bare_text_to_image, "no decoder.input_layer.weight; this is not a sparse-SDF VAE"),
        (with_nan, "decoder.out_layer.weight holds NaN or infinity"),
    ],
)
def test_a_bad_file_ends_the_stage_with_one_sentence(project: Path, make: Callable, reason: str):
    make(Path("bad.ckpt"))
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["import_vae"]["checkpoint"] = "bad.ckpt"
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as ended:
        run_stage("import_vae", import_vae)
    sentence = ended.value.code  # of a text Python makes exit code 1 and a line on stderr
    assert isinstance(sentence, str)
    assert "\n" not in sentence
    assert sentence.startswith("import_vae: bad.ckpt")
    assert reason in sentence
    assert not Path("artifacts/vae").exists()
    assert not Path("metrics").exists()
    assert not Path("executed").exists()
