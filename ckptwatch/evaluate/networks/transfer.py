"""Images on their way to the device: once per batch, however many networks look at it."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Copies by original; they go with it. One worker has one device, and its networks are asked one after the other.
_copies = WeakTensorKeyDictionary()


def resolved(device: str) -> torch.device:
    """The device with its index, as tensors on it tell it."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def upload(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device: themselves where they are there, else a copy that all networks share.

    From pinned memory, so the copy goes on while the CPU prepares what comes next. A tensor that was changed in place
    since is copied again.
    """
    if images.device == device:
        return images
    state = (device, None if images.is_inference() else images._version)
    if images not in _copies or _copies[images][0] != state:
        pinned = images.pin_memory() if device.type == "cuda" and images.device.type == "cpu" else images
        _copies[images] = state, pinned.to(device, non_blocking=True)
    return _copies[images][1]
