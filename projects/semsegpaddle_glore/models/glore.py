"""GloRe's decode head: pixels projected to a few nodes, graph convolution between them, and back.

Reference: Chen et al., "Graph-Based Global Reasoning Networks", CVPR 2019 (arXiv 1811.12814), section 3; the authors'
code, facebookresearch/GloRe network/global_reasoning_unit.py, for the order of operations and the last BN's epsilon.
"""

from __future__ import annotations

from semsegpaddle_glore.models.layers import ConvBNReLU, conv2d

import paddle
import paddle.nn.functional as F
from paddle import nn

CHANNELS = 512
NUM_STATES = 128
NUM_NODES = 64


class GloReHead(nn.Layer):
    """A 3x3 convolution to 512 channels, the GloRe unit, the classifier. (B, in, h, w) -> {"logits": (B, C, h, w)}.

    Deviation: SemSegPaddle's first convolution is 1x1 on Cityscapes and 3x3 elsewhere, PaddleSeg's always 1x1. With
    ResNet-50, 19 classes and the auxiliary head the network has 35 506 278 parameters, PaddleSeg's (model_facts.csv)
    8 369 120 fewer: 8 388 608 in that convolution, less 19 232 more in the first layers of its ResNet50_vd and 256
    biases before a batch normalisation. The unit alone has the 185 600 of the authors'.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, CHANNELS)
        self.unit = GloReUnit(CHANNELS, NUM_STATES, NUM_NODES)
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv2d(CHANNELS, num_classes, 1, bias=True, init="fan_in")

    def forward(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the logits at the feature's size."""
        return {"logits": self.classifier(self.dropout(self.unit(self.reduce(feature))))}


class GloReUnit(nn.Layer):
    """Global reasoning unit. (B, in, h, w) -> (B, in, h, w).

    Deviation: node states are means over pixels (the authors' `normalize`, which they advise where input sizes vary;
    windows, scales and crops do here). SemSegPaddle and PaddleSeg sum instead.
    """

    def __init__(self, in_channels: int, num_states: int, num_nodes: int):
        super().__init__()
        self.projection = GraphProjection(in_channels, num_states, num_nodes)
        self.graph = GraphConvolution(num_states, num_nodes)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns x plus what the nodes have to say about it."""
        nodes, assignment = self.projection.project(x)
        return self.projection.restore(self.graph(nodes), assignment, x)


class GraphProjection(nn.Layer):
    """From pixels to nodes and back by one learned assignment of pixels to nodes (section 3.2 and 3.4 of the paper).

    The batch normalisation behind it starts at weight 0, so a unit around it starts as the identity: a comment in the
    authors' code asks for it, though their initialisation and the ports have 1.
    """

    def __init__(self, in_channels: int, num_states: int, num_nodes: int):
        super().__init__()
        self.conv_state = conv2d(in_channels, num_states, 1, bias=True, init="fan_in")
        self.conv_assign = conv2d(in_channels, num_nodes, 1, bias=True, init="fan_in")
        self.conv_extend = conv2d(num_states, in_channels, 1)
        zero = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))
        self.bn = nn.BatchNorm2D(in_channels, momentum=0.9, epsilon=1e-4, weight_attr=zero)

    def project(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(B, in, h, w) -> nodes (B, num_nodes, num_states), assignment (B, num_nodes, h * w)."""
        states = self.conv_state(x).flatten(2)  # (B, num_states, h * w)
        assignment = self.conv_assign(x).flatten(2)  # (B, num_nodes, h * w)
        # A mean over pixels, with half of the division on each side: float16 (AMP) holds no sum over all of them.
        root = paddle.full([1], states.shape[2], states.dtype).sqrt()
        return paddle.matmul(assignment / root, states / root, transpose_y=True), assignment

    def restore(self, nodes: paddle.Tensor, assignment: paddle.Tensor, x: paddle.Tensor) -> paddle.Tensor:
        """The nodes' states back at the pixels, added to x. Returns (B, in, h, w)."""
        states = paddle.matmul(nodes, assignment, transpose_x=True)  # (B, num_states, h * w)
        states = states.reshape([-1, nodes.shape[2], x.shape[2], x.shape[3]])  # (B, num_states, h, w)
        return x + self.bn(self.conv_extend(states))


class GraphConvolution(nn.Layer):
    """Reasoning between nodes (section 3.3): mixed along edges, added to themselves, ReLU, then mixed along states.

    Shapes: (B, num_nodes, num_states) -> the same. The edges are learned and the same for every image.

    This is the authors' order, states(relu(edges(x) + x)). SemSegPaddle's dygraph port has relu(states(edges(x) - x)),
    PaddleSeg relu(states(edges(x) + x)).
    """

    def __init__(self, num_states: int, num_nodes: int):
        super().__init__()
        self.edges = nn.Linear(num_nodes, num_nodes)
        self.states = nn.Linear(num_states, num_states, bias_attr=False)

    def forward(self, nodes: paddle.Tensor) -> paddle.Tensor:
        """Returns the evolved nodes."""
        mixed = self.edges(nodes.transpose([0, 2, 1])).transpose([0, 2, 1])  # (B, num_nodes, num_states)
        return self.states(F.relu(mixed + nodes))
