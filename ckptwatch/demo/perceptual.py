"""An LPIPS for the demo: an AlexNet trunk acquainted with the scenes, and the heads that ship with lpips."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptwatch.demo import scenes

_BATCH = 32
_STEPS = 16


def train_perceptual(
    pictures: Tensor, drawn: scenes.Scenes, *, rng: np.random.Generator,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Tensor]:
    """State dict for `lpips.LPIPS(net="alex", pnet_rand=True, model_path=…)`: trunk and heads.

    He initialisation already gives usable distances at this depth; a short classification of `pictures`
    (n, 3, 64, 64) uint8 makes the trunk respond to what the scenes differ in.
    """
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision by an old signature
        metric = lpips.LPIPS(net="alex", pnet_rand=True, pnet_tune=True, verbose=False)
    for layer in metric.net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    head = nn.Linear(256, scenes.CLASSES)
    optimizer = torch.optim.Adam([*metric.net.parameters(), *head.parameters()], lr=3e-4)
    label = torch.from_numpy(drawn.classes)
    for step in range(_STEPS):
        rows = torch.from_numpy(rng.integers(len(pictures), size=_BATCH))
        last = metric.net(metric.scaling_layer(pictures[rows].float() / 127.5 - 1))[-1]
        loss = functional.cross_entropy(head(last.amax(dim=(2, 3))), label[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(metric.net.parameters(), 1.0)
        optimizer.step()
        if on_progress:
            on_progress((step + 1) / _STEPS)
    return metric.state_dict()
