"""Two processes with a part of the vectors each make the codebook that one process makes of all."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.distributed import all_reduce_mean, all_reduce_sum, average_gradients, global_mean, num_ranks, own_part, rank
from model.quantizer import TrainedCodebook, kmeans
from model.quantizer import lloyd as kmeans_module
from model.sparse import SparseTensor
from model.vae import kl_divergence
from model.vae.network import Posterior
from tests.model.quantizer.test_codebook_training import generator
from tests.processes import fork_server

SIZE, BATCH, STEPS = 40, 64, 30


def data() -> torch.Tensor:
    return torch.randn(1001, 6, generator=generator()) + 3


def scenario(update: str) -> dict[str, torch.Tensor]:
    """k-means with empty codes to move, then steps with dead codes to revive; in every third, one process is empty."""
    vectors = data()
    codes = kmeans(vectors, SIZE, iterations=6, generator=generator())
    codes[-8:] = 1000 + torch.randn(8, 6, generator=generator(1))
    part = own_part(vectors)
    moved = kmeans_module._update(
        codes, part, kmeans_module.lloyd_pass(part, codes), own_part(torch.rand(1001, generator=generator(2)).double())
    )
    codebook = TrainedCodebook([codes, codes[:5] / 9], update=update, decay=0.9, revive_below=0.2)
    parameters = list(codebook.codebooks)
    optimizer = torch.optim.AdamW(parameters, lr=0.01 if update == "gradient" else 0.0, weight_decay=0.0)
    losses, revived = [], []
    for step in range(STEPS):
        rows = torch.randint(1001, (1 if step % 3 == 0 else BATCH,), generator=generator(100 + step))
        draws = torch.rand(len(rows), generator=generator(step), dtype=torch.float64)
        quantized = codebook(vectors[own_part(rows)])
        quantized.vq_loss.backward()
        average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
        revived.append(codebook.end_step(step + 1, STEPS, draws=own_part(draws), optimizer=optimizer))
        losses.append(all_reduce_mean(quantized.vq_loss.detach()))
    trained = torch.cat([codes.detach() for codes in codebook.codebooks])
    return {
        "kmeans": codes, "moved": moved, "trained": trained,
        "losses": torch.stack(losses), "revived": torch.stack(revived),
    }  # fmt: skip


def means() -> dict[str, torch.Tensor]:
    """Of seven values, of which the first process has five where there are two; and of none."""
    own = slice(None) if num_ranks() == 1 else slice(5) if rank() == 0 else slice(5, None)
    coords = torch.cartesian_prod(torch.arange(1), torch.arange(7), torch.arange(1), torch.arange(1)).int()[own]
    values = torch.arange(7.0)[own]
    posterior = Posterior(*(SparseTensor(coords, part[:, None]) for part in (values, values / 3)))
    return {
        "some": all_reduce_mean(global_mean(values)),
        "kl": all_reduce_mean(kl_divergence(posterior)),
        "none": all_reduce_mean(global_mean(values[:0])),
    }


def whole_and_nothing(rows: torch.Tensor) -> torch.Tensor:
    return rows if rank() == 0 else rows[:0]


def process(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    for update in ("gradient", "ema"):
        torch.save(scenario(update), folder / f"{update}{number}.pt")
    torch.save(means(), folder / f"means{number}.pt")
    kmeans_module.own_part = whole_and_nothing
    torch.save(kmeans(data(), SIZE, iterations=6, generator=generator()), folder / f"uneven{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave."""
    folder = tmp_path_factory.mktemp("processes")
    fork_server()
    mp.start_processes(process, (folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_two_processes_agree_with_each_other_and_with_one(folder: Path, update: str):
    first, second = (torch.load(folder / f"{update}{number}.pt") for number in range(2))
    alone = scenario(update)
    assert alone["revived"].sum() >= 8
    assert not torch.equal(alone["moved"][-8:], alone["kmeans"][-8:])
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_a_mean_is_over_what_all_processes_have(folder: Path):
    assert means()["none"] == 0
    for number in range(2):
        found = torch.load(folder / f"means{number}.pt")
        assert found["none"] == 0
        assert found["some"] == 3
        torch.testing.assert_close(found["kl"], means()["kl"])


def test_a_process_without_vectors_changes_nothing(folder: Path):
    alone = kmeans(data(), SIZE, iterations=6, generator=generator())
    for name in ("uneven0", "uneven1"):
        torch.testing.assert_close(torch.load(folder / f"{name}.pt"), alone, atol=1e-6, rtol=0)


def test_one_process_is_all_of_it():
    rows = torch.arange(5.0, requires_grad=True)
    assert (rank(), num_ranks()) == (0, 1)
    assert torch.equal(own_part(rows), rows)
    assert all_reduce_sum(torch.tensor(3)) == 3
    assert global_mean(rows) == 2
