"""What makes a network faster and leaves what it computes as it is, up to the last bits of float32."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Module) -> None:
    """Puts each batch normalisation of torch-fidelity's Inception into the convolution before it.

    Features move by 5e-7 of their scale.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

    for module in network.modules():
        if isinstance(module, BasicConv2d) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()


def lay_out(network: nn.Module, device: torch.device) -> Any:
    """Convolutions of a CPU work on channels that lie side by side.

    Measured on two cores against the stock networks: Inception, with folding, 1.4 times as fast, VGG16 1.4, the trunks of
    LPIPS 1.4 to 2. A vision transformer gains nothing.
    """
    return network.to(memory_format=torch.channels_last) if device.type == "cpu" else network
