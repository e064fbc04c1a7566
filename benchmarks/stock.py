"""The peer of `evaluation`: what one would write to score a directory of images, with the libraries as they come.

One process per checkpoint, `python -m benchmarks.stock GENERATED REFERENCE INCEPTION CLIP PROMPTS DEVICE [CACHE]`. With
CACHE, torch-fidelity keeps what it computed of the reference, by name. Prints the scores as JSON.
"""

import json
import sys
import warnings
from pathlib import Path

import lpips
import numpy as np
import open_clip
import torch
import torch_fidelity
from PIL import Image

BATCH = 32


def main(generated: str, reference: str, inception: str, clip: str, prompts: str, device: str, cache: str = "") -> None:
    pairs = [sorted(Path(directory).glob("*.png")) for directory in (generated, reference)]
    texts = Path(prompts).read_text().splitlines()
    scores = fidelity(generated, reference, inception, device, len(pairs[0]), cache)
    with torch.inference_mode():
        scores["lpips"] = perceptual(*pairs, device)
        scores["clip_score"] = similarity(pairs[0], texts, clip, device)
    print(json.dumps(scores))


def fidelity(generated: str, reference: str, inception: str, device: str, count: int, cache: str) -> dict[str, float]:
    keep = {"cache": True, "cache_root": cache, "input2_cache_name": "reference"} if cache else {"cache": False}
    found = torch_fidelity.calculate_metrics(
        input1=generated, input2=reference, cuda=device != "cpu", isc=True, fid=True, kid=True, verbose=False,
        isc_splits=max(1, min(10, count // 10)), kid_subset_size=min(1000, count),
        feature_extractor_weights_path=inception, **keep,
    )
    return {"fid": found["frechet_inception_distance"], "inception_score": found["inception_score_mean"],
            "kid": found["kernel_inception_distance_mean"]}


def perceptual(images: list[Path], originals: list[Path], device: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", verbose=False).to(device)

    def read(files: list[Path]) -> torch.Tensor:
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1

    found = [network(read(images[i:i + BATCH]), read(originals[i:i + BATCH])) for i in range(0, len(images), BATCH)]
    return float(torch.cat([f.flatten() for f in found]).mean())


def similarity(images: list[Path], texts: list[str], weights: str, device: str) -> float:
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights, device=device)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    model.eval()
    found = []
    for i in range(0, len(images), BATCH):
        batch = torch.stack([preprocess(Image.open(file)) for file in images[i:i + BATCH]]).to(device)
        seen = model.encode_image(batch, normalize=True)
        read = model.encode_text(tokenizer(texts[i:i + BATCH]).to(device), normalize=True)
        found.append((seen * read).sum(dim=1))
    return float(torch.cat(found).clamp(min=0).mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
