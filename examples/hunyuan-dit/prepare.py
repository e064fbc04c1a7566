"""Makes what config.yaml names and a real project would already have: originals and the networks behind the metrics.

    originals/000000.png …    what a perfect model would make of line i and seed i       LPIPS, comparisons
    reference/000000.png …    other driving scenes                                       FID
    networks/features.pt      a classifier of driving scenes, in place of Inception      FID, Inception Score
    networks/clip/            a small open_clip model of scenes and captions             CLIP score
    networks/lpips.pt         AlexNet trunk and heads                                    LPIPS

Takes half a minute, nothing is downloaded. With the standard networks of these metrics leave `networks` out of config.yaml.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from dit import left_open_of, noise_of
from driving import Driving, described, draw, render
from PIL import Image

from ckptwatch.demo.clip import train_clip, write_clip
from ckptwatch.demo.features import train_features
from ckptwatch.demo.perceptual import train_perceptual

HERE = Path(__file__).parent
REFERENCES = 512
LEARNT_FROM = 3000


def main() -> int:
    torch.set_num_threads(1)  # the weights depend on it, and two gain little on networks this small
    torch.manual_seed(0)
    (HERE / "runs").mkdir(exist_ok=True)
    prompts = [line for line in (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    noise = torch.stack([noise_of(seed) for seed in range(len(prompts))])
    write(HERE / "originals", described(prompts, left_open_of(noise).numpy()))
    write(HERE / "reference", draw(np.random.default_rng(2_000_000), REFERENCES))
    rng = np.random.default_rng(3_000_000)
    drawn = draw(rng, LEARNT_FROM)
    pictures = torch.from_numpy(render(drawn)).permute(0, 3, 1, 2)
    networks = HERE / "networks"
    networks.mkdir(exist_ok=True)
    torch.save(train_features(pictures, drawn, rng=rng), networks / "features.pt")
    print("networks/features.pt", flush=True)
    write_clip(networks / "clip", train_clip(pictures, drawn, rng=rng))
    print("networks/clip", flush=True)
    torch.save(train_perceptual(pictures, drawn, rng=rng), networks / "lpips.pt")
    print("networks/lpips.pt", flush=True)
    return 0


def write(directory: Path, drawn: Driving) -> None:
    directory.mkdir(exist_ok=True)
    for index, picture in enumerate(render(drawn)):
        Image.fromarray(picture).save(directory / f"{index:06d}.png")
    print(f"{directory.name}: {len(drawn)} pictures", flush=True)


if __name__ == "__main__":
    sys.exit(main())
