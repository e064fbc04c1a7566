"""Samplers for tests of `sampler.python`: images that show which seed and prompt they were made from."""

import os
import sys

import torch

from tests.parity.toy_pictures import pixels


def picture(seed: int, prompt: str, side: int = 40) -> torch.Tensor:
    """uint8 (3, side, side) that depends on seed and prompt alone."""
    return torch.from_numpy(pixels(seed, prompt, side)).permute(2, 0, 1).contiguous()


class Toy:
    """A model that behaves. `made` and `loaded` tell how often."""

    made = 0

    def __init__(self, device, side=40):
        type(self).made += 1
        self.side = side
        self.loaded = []
        self.sizes = []

    def load(self, checkpoint, variant):
        self.loaded.append((checkpoint.name, variant))

    def sample(self, batch):
        self.sizes.append(len(batch))
        return torch.stack([picture(s, p, self.side) for s, p in zip(batch.seeds, batch.prompts, strict=True)])


class Misbehaving(Toy):
    """Does what `how` says."""

    def __init__(self, device, how):
        super().__init__(device)
        self.how = how

    def load(self, checkpoint, variant):
        if self.how == "load":
            raise RuntimeError("missing key: decoder.weight")

    def sample(self, batch):
        images = super().sample(batch)
        print(f"sampling {list(batch.indices)}")
        return getattr(self, self.how)(images, batch)

    def raises(self, images, batch):
        raise ValueError("bad timestep")

    def exits(self, images, batch):
        sys.exit(5)

    def aborts(self, images, batch):
        os.abort()

    def nan(self, images, batch):
        images = images.float() / 255
        images[-1, 0, 0, 0] = float("nan")
        return images

    def infinite(self, images, batch):
        return images.half() / 255 + float("inf")

    def floats(self, images, batch):
        return images.float() / 255

    def minus_one(self, images, batch):
        return images.float() / 127.5 - 1

    def channels_last(self, images, batch):
        return images.permute(0, 2, 3, 1)

    def too_few(self, images, batch):
        return images[:-1]

    def integers(self, images, batch):
        return images.long()

    def array(self, images, batch):
        return images.numpy()

    def growing(self, images, batch):
        return images[..., : 20 + batch.indices[0]]

    def memory(self, images, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def small_batches_only(self, images, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images


class NoSample:
    def __init__(self, device):
        pass

    def load(self, checkpoint, variant):
        pass


NOT_CALLABLE = 3


def broken_factory(device):
    raise OSError("no such config")


# ---- custom metrics ----


def mean_level(images):
    total = sum(float(batch.double().mean()) * len(batch) for batch in images)
    assert images.count == len(images.prompts) == sum(len(b) for b in images)  # it can be gone through again
    return total / images.count


def two_numbers(images):
    return {"first": 1, "second": torch.tensor(2.5)}


def raises(images):
    raise KeyError("sharpness")


def not_a_number(images):
    return float("nan")


def text(images):
    return "good"
