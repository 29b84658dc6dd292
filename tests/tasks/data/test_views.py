"""The thread that encodes ahead on a GPU: here with another one for the device."""

import threading
from collections.abc import Iterator

import pytest
import torch

from tasks.data.views import _one_ahead

DEVICE = torch.device("cuda", 3)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[threading.Thread, torch.device]]:
    """Which threads took which device for theirs."""
    found: list[tuple[threading.Thread, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append((threading.current_thread(), device)))
    return found


def test_each_item_is_made_by_one_thread_on_the_device_while_the_one_before_is_used(
    chosen: list[tuple[threading.Thread, torch.device]],
):
    makers: list[threading.Thread] = []
    begun = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(begun):
            makers.append(threading.current_thread())
            event.set()
            yield number

    for number in _one_ahead(items(), DEVICE):
        assert number == 3 or begun[number + 1].wait(60)  # nobody has asked for the next one yet
    assert number == 3
    assert chosen == [(makers[0], DEVICE)]
    assert set(makers) == {makers[0]} != {threading.current_thread()}


@pytest.mark.usefixtures("chosen")
def test_what_fails_in_the_thread_fails_where_its_item_is_asked_for():
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("every latent is 0")

    ahead = _one_ahead(items(), DEVICE)
    assert next(ahead) == 0
    with pytest.raises(ValueError, match="every latent is 0"):
        next(ahead)


@pytest.mark.usefixtures("chosen")
def test_the_thread_ends_with_the_use_of_its_items():
    before = threading.active_count()
    ahead = _one_ahead(iter(range(9)), DEVICE)
    assert next(ahead) == 0
    del ahead
    assert threading.active_count() == before
