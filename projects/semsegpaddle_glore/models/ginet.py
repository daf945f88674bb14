"""GINet's decode head: a visual graph from the image, a semantic graph from class names, and their interaction.

Reference: Wu et al., "GINet: Graph Interaction Network for Scene Parsing", ECCV 2020 (arXiv 2009.06160): GI unit
and semantic context loss (SC-loss). Sizes (512 channels, 256 states, 84 nodes, a hidden layer of 128) and the order
of operations inside the unit are those of the port from the authors' house (PaddleSeg 2.8.0, models/ginet.py), whose
linguistic part is missing.
"""

from __future__ import annotations

from semsegpaddle_glore.models.glore import GraphConvolution, GraphProjection
from semsegpaddle_glore.models.layers import ConvBNReLU, conv2d

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

CHANNELS = 512
NUM_STATES = 256
NUM_NODES = 84
HIDDEN = 128


class GINetHead(nn.Layer):
    """A 3x3 convolution to 512 channels, the graph interaction unit, the classifier.

    Shapes: (B, in, h, w) -> {"logits": (B, C, h, w)}, and in training "presence": (B, C), logits for every class's
    being in the image, which the semantic context loss trains.

    Args:
        in_channels: Channels of the feature.
        num_classes: Number of classes.
        dropout: Probability of a dropped value before the classifier.
        word_embeddings: (num_classes, dim), a vector for every class name. A constant, but part of the state dict
            (`decode_head.word_embeddings`): a checkpoint is complete without the file that they came from.

    Deviation from PaddleSeg's port: word vectors instead of a frozen zero tensor (which makes every class the same);
    `presence` (one linear layer for all classes, our reading of the paper) and with it the SC-loss; no batch
    normalisation in the MLP over class names, whose few inputs are always the same; the unit starts as the identity, as
    GloRe's; no JPU between backbone and head. The layer normalisation in `presence` is ours: nothing else holds the
    scale of the nodes, which the batch normalisation on the way to the pixels takes off; without it the SC-loss rose to
    ten times that of guessing and shook the backbone.

    With ResNet-50, 19 classes, 300-dimensional vectors and the auxiliary head the network has 36 035 586 parameters.
    PaddleSeg's (model_facts.csv) has 19 754 783 more that learn: 19 735 552 in its JPU, 19 232 in the first layers of
    its ResNet50_vd, 768 in the MLP's batch normalisations, less 769 of `presence`.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float, word_embeddings: np.ndarray):
        super().__init__()
        self.register_buffer("word_embeddings", paddle.to_tensor(np.asarray(word_embeddings, np.float32)))
        self.reduce = ConvBNReLU(in_channels, CHANNELS)
        self.unit = GraphInteractionUnit(CHANNELS, num_classes, word_embeddings.shape[1])
        self.presence = nn.Sequential(nn.LayerNorm(NUM_STATES), nn.Linear(NUM_STATES, 1))
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv2d(CHANNELS, num_classes, 1, bias=True, init="fan_in")

    def forward(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the logits at the feature's size and, in training, the presence logits."""
        x, classes = self.unit(self.reduce(feature), self.word_embeddings)
        outputs = {"logits": self.classifier(self.dropout(x))}
        if self.training:
            outputs["presence"] = self.presence(classes).squeeze(2)  # (B, num_classes)
        return outputs


class GraphInteractionUnit(nn.Layer):
    """The GI unit: both graphs reason, then each takes from the other what resembles it.

    Semantic to visual: every visual node adds a mean over classes, weighted by similarity (softmax over classes) and a
    learned factor per node that starts at 0; the evolved nodes go back to the pixels. Visual to semantic: every class
    becomes a mean over visual nodes (softmax over nodes) plus itself times a learned factor that starts at 0; these are
    the image's own classes, which the SC-loss looks at. One similarity serves both directions.
    """

    def __init__(self, in_channels: int, num_classes: int, word_dim: int):
        super().__init__()
        self.projection = GraphProjection(in_channels, NUM_STATES, NUM_NODES)
        self.visual_graph = GraphConvolution(NUM_STATES, NUM_NODES)
        self.word_mlp = nn.Sequential(nn.Linear(word_dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, NUM_STATES), nn.ReLU())
        self.semantic_graph = GraphConvolution(NUM_STATES, num_classes)
        self.visual_key = nn.Linear(NUM_STATES, NUM_STATES // 2)
        self.semantic_key = nn.Linear(NUM_STATES, NUM_STATES // 2)
        self.visual_value = nn.Linear(NUM_STATES, NUM_STATES)
        self.semantic_value = nn.Linear(NUM_STATES, NUM_STATES)
        zero = nn.initializer.Constant(0.0)
        self.visual_factor = self.create_parameter([NUM_NODES, 1], default_initializer=zero)
        self.semantic_factor = self.create_parameter([num_classes, 1], default_initializer=zero)

    def forward(self, x: paddle.Tensor, word_embeddings: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(B, in, h, w), (num_classes, dim) -> (B, in, h, w), the image's classes (B, num_classes, 256)."""
        nodes, assignment = self.projection.project(x)
        visual = self.visual_graph(nodes)  # (B, N, 256)
        semantic = self.semantic_graph(self.word_mlp(word_embeddings).unsqueeze(0))  # (1, num_classes, 256)
        similarity = paddle.matmul(
            self.visual_key(visual), self.semantic_key(semantic), transpose_y=True
        )  # (B, N, num_classes)
        to_visual = paddle.matmul(F.softmax(similarity, axis=2), self.semantic_value(semantic))  # (B, N, 256)
        to_semantic = paddle.matmul(F.softmax(similarity, axis=1), self.visual_value(visual), transpose_x=True)
        evolved = visual + self.visual_factor * to_visual
        classes = to_semantic + self.semantic_factor * semantic  # (B, num_classes, 256)
        return self.projection.restore(evolved, assignment, x), classes
