"""Samplers for tests of `sampler.python`: images that show which seed and prompt they were made from."""

import os
import sys

import torch

from tests.parity.toy_pictures import pixels


def picture(seed: int, prompt: str, side: int = 40, label: int | None = None) -> torch.Tensor:
    """uint8 (3, side, side) that depends on seed, prompt and label alone."""
    return torch.from_numpy(pixels(seed, prompt, side, label)).permute(2, 0, 1).contiguous()


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
        labels = batch.labels or (None,) * len(batch)
        side = batch.image_size or self.side
        return torch.stack([picture(s, p, side, k) for s, p, k in zip(batch.seeds, batch.prompts, labels, strict=True)])


class Trained(Toy):
    """A model whose images show its weights: those of `checkpoint` with weights {variant: {"w": (3,)}}."""

    def load(self, checkpoint, variant):
        super().load(checkpoint, variant)
        self.shift = torch.load(checkpoint, weights_only=True)[variant]["w"].to(torch.uint8)[:, None, None]

    def sample(self, batch):
        return super().sample(batch) + self.shift


class OneNoise(Trained):
    """The commonest mistake: the noise of a batch comes from one generator, seeded by its first image."""

    def sample(self, batch):
        noise = torch.Generator().manual_seed(batch.seeds[0])
        return torch.rand(len(batch), 3, self.side, self.side, generator=noise)


class GoesOn(Trained):
    """Another: random numbers go on from one batch to the next."""

    def __init__(self, device):
        super().__init__(device)
        self.noise = torch.Generator().manual_seed(0)

    def sample(self, batch):
        return torch.rand(len(batch), 3, self.side, self.side, generator=self.noise)


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

    def growing_in_halves(self, images, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
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
