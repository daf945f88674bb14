"""U-Net++: U-Nets of four depths, nested, each feature built from all of its level before it.

Reference: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018, section 3,
equation 1 and figure 1.
"""

from __future__ import annotations

from encnet_single_gpu.models.layers import init_he
from encnet_single_gpu.models.unet import Up, double_conv, halve

import torch
from torch import nn

CHANNELS = (32, 64, 128, 256, 512)
DEPTH = len(CHANNELS) - 1


class UNetPlusPlus(nn.Module):
    """U-Net++ with deep supervision: the four U-Nets within it each give logits.

    Node (i, j) at level i is a double convolution over the nodes (i, 0) to (i, j - 1) and node (i + 1, j - 1) enlarged.

    Shapes: see `models.build_model`. Logits are the mean of the four U-Nets' in evaluation (the paper's accurate mode);
    in training "logits" is the deepest's and "aux" are the three others'.

    Deviation: batch normalisation after each convolution, and the mean is of logits, not of probabilities.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.encoders = nn.ModuleList(
            double_conv(count, width) for count, width in zip((3, *CHANNELS), CHANNELS, strict=False)
        )
        self.ups, self.nodes = nn.ModuleDict(), nn.ModuleDict()
        for i, j in _inner_nodes():
            self.ups[f"{i}_{j}"] = Up(CHANNELS[i + 1], CHANNELS[i])
            self.nodes[f"{i}_{j}"] = double_conv((j + 1) * CHANNELS[i], CHANNELS[i])
        self.classifiers = nn.ModuleList(nn.Conv2d(CHANNELS[0], num_classes, 1) for _ in range(DEPTH))
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Returns logits, in training the dict of outputs."""
        levels = [[self.encoders[0](images)]]  # levels[i][j] is node (i, j): (B, CHANNELS[i], H / 2^i, W / 2^i)
        for encoder in self.encoders[1:]:
            levels.append([encoder(halve(levels[-1][0]))])
        for i, j in _inner_nodes():
            up = self.ups[f"{i}_{j}"](levels[i + 1][j - 1], levels[i][0].shape[2:])
            levels[i].append(self.nodes[f"{i}_{j}"](torch.cat([*levels[i], up], dim=1)))
        logits = [classifier(node) for classifier, node in zip(self.classifiers, levels[0][1:], strict=True)]
        if self.training:
            return {"logits": logits[-1], "aux": tuple(logits[:-1])}
        return torch.stack(logits).mean(0)  # (4, B, num_classes, H, W) -> (B, num_classes, H, W)


def _inner_nodes() -> list[tuple[int, int]]:
    """(i, j) for j from 1, each after those that it is built from."""
    return [(i, j) for j in range(1, DEPTH + 1) for i in range(DEPTH + 1 - j)]
