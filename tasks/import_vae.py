"""Bring VAE weights of any known layout into ours, with an account of every key."""

import json
from dataclasses import asdict

from model.checkpoint import Import, import_checkpoint, save_vae
from model.errors import InputError, printable
from model.files import whole_directory, write_whole
from tasks.data import save_codebooks
from tasks.run import Settings, paths, run_stage, write_metrics


def import_vae(settings: Settings) -> None:
    source = settings.import_vae.checkpoint
    imported = import_checkpoint(source)
    latent_channels = imported.vae.config.latent_channels
    if settings.codebook.dim not in ("auto", latent_channels):
        raise InputError(
            f"the VAE of import_vae.checkpoint ({source}) has {latent_channels} latent channels but codebook.dim is "
            f"{settings.codebook.dim}; set codebook.dim: auto in params.yaml"
        )
    zero_layers = all_zero_layers(imported)
    with whole_directory(paths.VAE) as directory:
        save_vae(imported.vae, directory)
        report = {"keys": [asdict(key) for key in imported.keys], "ignored": imported.ignored}
        write_whole(directory / "import_report.json", json.dumps(report, indent=2) + "\n")
        if imported.codebooks:
            save_codebooks(imported.codebooks, directory)
    figures = {
        **asdict(imported.vae.config),
        "num_parameters": sum(parameter.numel() for parameter in imported.vae.parameters()),
        "num_keys": len(imported.keys),
        "num_all_zero_weights": len(zero_layers),
    }
    write_metrics("import_vae", figures)
    print(report_table(imported))
    for part, reason in imported.ignored.items():
        print(printable(f"ignored: {part} ({reason})"))
    print(f"all-zero layers: {', '.join(zero_layers) or 'none'}")
    if imported.codebooks:
        sizes = ", ".join(str(len(codes)) for codes in imported.codebooks)
        print(f"codes of a tokenizer, {sizes}: stage1 starts from them where stage1.init is imported")
    where = printable(imported.file)
    print(f"imported {figures['num_parameters']} parameters under {figures['num_keys']} keys from {where}")


def report_table(imported: Import) -> str:
    """One line a key: what it was called, what it is called here, its shape, what was done to it, its norm."""
    rows = [("from", "to", "shape", "transformation", "norm")] + [
        (printable(key.source), key.target, "x".join(map(str, key.shape)), key.transformation, f"{key.norm:.4g}")
        for key in imported.keys
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def all_zero_layers(imported: Import) -> list[str]:
    """Weights that are exactly 0 throughout, as in layers that were initialised so and never trained."""
    return [key.target for key in imported.keys if key.norm == 0 and key.target.endswith("weight")]


if __name__ == "__main__":
    run_stage("import_vae", import_vae)
