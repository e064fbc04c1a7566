"""An evaluation of our own beside FID and IS: does a picture show the class it was made for?"""

from pathlib import Path

import torch
from pictures import CLASSES

from ckptwatch.demo.features import LOGITS_LAYER, NAME, ShapesExtractor

NETWORK = Path(__file__).parent / "networks" / "features.pt"


def class_accuracy(images) -> dict[str, float]:
    """`class_accuracy`, which can be ranked by, and `worst_class`, that of the class recognised least often; both 0 … 1.

    `images` iterates over uint8 (n, 3, H, W) tensors in the order of the samples; sample i is of class i modulo 24.
    """
    network = ShapesExtractor(NAME, [LOGITS_LAYER], feature_extractor_weights_path=NETWORK)
    with torch.no_grad():
        seen = torch.cat([network(batch)[0].argmax(dim=1) for batch in images])
    label = torch.arange(len(seen)) % CLASSES
    right = (seen == label).double()
    each = [float(right[label == number].mean()) for number in range(CLASSES)]
    return {"class_accuracy": float(right.mean()), "worst_class": min(each)}
