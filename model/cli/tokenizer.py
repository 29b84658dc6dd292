"""--tokenizer and --device."""

import torch

from ..device import pick_device
from ..errors import InputError
from ..tokenizer import ShapeTokenizer


def load_tokenizer(source: str | None, device_name: str | None) -> ShapeTokenizer:
    """The one saved there, or else the one that comes with the library, on that device or on the GPU where there is
    one. Raises InputError where either can't be used."""
    try:
        device = torch.device(device_name) if device_name else pick_device()
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {device_name}; expected cpu or cuda; correct it")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device is {device_name} but there is no such GPU that torch can use; leave it out")
    return ShapeTokenizer.from_pretrained(source, device=device)
