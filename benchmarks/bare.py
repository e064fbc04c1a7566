"""The peer of `limit`: forward passes of the same networks over images that are in memory already, and nothing else.

A process of its own, `python -m benchmarks.bare SCENE IMAGES DEVICE`: it tries for each network which batch size and memory
layout is fastest and says so; then for each line on standard input it runs all of them once and answers with the seconds of
each, by the clock and of all CPUs, as JSON.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.scene import CLIP, Scene

BATCHES = (16, 32)
BATCHES_ON_GPU = (32, 64, 256)
SAMPLE = 32  # images for a trial; all of them on a GPU

Pass = Callable[[slice], Any]


def main(place: str, images: str, device: str) -> None:
    scene = Scene(place=Path(place), images=int(images), checkpoints=0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as in the worker
    with torch.inference_mode():
        passes = {name: fastest(make, scene.images, device) for name, make in networks(scene, device).items()}
        answer({name: described for name, (_, described) in passes.items()})
        for _ in sys.stdin:
            answer({name: clocked(run, device) for name, (run, _) in passes.items()})


def answer(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def networks(scene: Scene, device: str) -> dict[str, Callable[[bool], Pass]]:
    """By name what makes a pass over a slice of the images, with channels last or not."""
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in sorted(scene.generated(0).glob("*.png"))]))
    originals = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in sorted(scene.reference.glob("*.png"))]))
    pixels, originals = (x.permute(0, 3, 1, 2).contiguous().to(device) for x in (pixels, originals))
    return {
        "Inception": partial(inception, scene, pixels, device, False),
        "Inception, batch norm folded": partial(inception, scene, pixels, device, True),
        "CLIP": partial(clip, scene, pixels, device),
        "LPIPS": partial(perceptual, pixels, originals, device),
        "LPIPS, originals known": partial(half_perceptual, pixels, originals, device),
    }


def inception(scene: Scene, pixels: Tensor, device: str, folded: bool, last: bool) -> Pass:
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(scene.inception),
    )
    for module in network.modules() if folded else ():
        if isinstance(module, BasicConv2d):
            module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    network = laid_out(network, device, last)
    return lambda part: network(pixels[part])


def clip(scene: Scene, pixels: Tensor, device: str, last: bool) -> Pass:
    import open_clip

    network = laid_out(open_clip.create_model(CLIP, pretrained=str(scene.clip)), device, last).eval()
    small = torch.nn.functional.interpolate(pixels.float() / 127.5 - 1, 224, mode="bilinear")
    return lambda part: network.encode_image(small[part], normalize=True)


def perceptual(pixels: Tensor, originals: Tensor, device: str, last: bool) -> Pass:
    network = laid_out(lpips_network(), device, last)
    images, others = pixels.float() / 127.5 - 1, originals.float() / 127.5 - 1
    return lambda part: network(images[part], others[part])


def half_perceptual(pixels: Tensor, originals: Tensor, device: str, last: bool) -> Pass:
    """Nothing but the trunk, and that on the generated images alone: the least that can be."""
    network = laid_out(lpips_network(), device, last)
    images = pixels.float() / 127.5 - 1
    return lambda part: network.net(network.scaling_layer(images[part]))


def lpips_network() -> Any:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net="alex", verbose=False)


def laid_out(network: nn.Module, device: str, last: bool) -> Any:
    return network.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


def fastest(make: Callable[[bool], Pass], count: int, device: str) -> tuple[Callable[[], None], str]:
    """The quickest way found over all images, and its words."""
    found = []
    for last in (False, True):
        over = make(last)
        for batch in BATCHES if device == "cpu" else BATCHES_ON_GPU:
            trial = partial(through, over, min(count, SAMPLE) if device == "cpu" else count, batch)
            trial()
            found.append((min(timed(trial, device) for _ in range(2)), last, batch))
        del over
    _, last, batch = min(found)
    words = f"{'channels last' if last else 'contiguous'}, batches of {batch}"
    return partial(through, make(last), count, batch), words


def through(over: Pass, count: int, batch: int) -> None:
    for begin in range(0, count, batch):
        over(slice(begin, min(begin + batch, count)))


def timed(work: Callable[[], Any], device: str) -> float:
    synchronise(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begin


def clocked(work: Callable[[], Any], device: str) -> tuple[float, float]:
    before = time.process_time()
    wall = timed(work, device)
    return wall, time.process_time() - before


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
