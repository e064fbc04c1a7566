"""What config.yaml compares with: statistics of real pictures, as one file in place of the pictures themselves.

    reference/000000.png …   1,024 pictures
    networks/features.pt     the network they are seen through, a small classifier in place of Inception; trained once
    stats.npz                mu (64,) and sigma (64, 64) of its features, float64

Statistics go with one network and one layer of it: those of another are refused, or are nonsense. For ImageNet JiT ships
such files of the 2,048 features of Inception.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from pictures import draw, render
from PIL import Image

from ckptwatch.demo.features import FEATURES_LAYER, NAME, ShapesExtractor, train_features

HERE = Path(__file__).parent
LEARNT_FROM = 3000
BATCH = 128


def main() -> int:
    parser = argparse.ArgumentParser(description="Make reference pictures, network and statistics.")
    parser.add_argument("--count", type=int, default=1024, help="reference pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the weights depend on it, and two gain little on a network this small
    for name in ("runs", "reference", "networks"):
        (HERE / name).mkdir(exist_ok=True)
    for index, picture in enumerate(render(draw(np.random.default_rng(2_000_000), args.count))):
        Image.fromarray(picture).save(HERE / "reference" / f"{index:06d}.png")
    network = HERE / "networks" / "features.pt"
    if not network.exists():
        torch.manual_seed(0)
        rng = np.random.default_rng(3_000_000)
        drawn = draw(rng, LEARNT_FROM)
        torch.save(train_features(torch.from_numpy(render(drawn)).permute(0, 3, 1, 2), drawn, rng=rng), network)
        print(network.relative_to(HERE), flush=True)
    features = features_of(sorted((HERE / "reference").glob("*.png")), network)
    np.savez(HERE / "stats.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    print(f"stats.npz: {features.shape[1]} features of {len(features)} pictures", flush=True)
    return 0


def features_of(files: list[Path], network: Path) -> np.ndarray:
    """(n, 64) float64: what the network sees in these pictures."""
    extractor = ShapesExtractor(NAME, [FEATURES_LAYER], feature_extractor_weights_path=network)
    found = []
    for start in range(0, len(files), BATCH):
        pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]])
        with torch.no_grad():
            found.append(extractor(torch.from_numpy(pictures).permute(0, 3, 1, 2))[0].double().numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main())
