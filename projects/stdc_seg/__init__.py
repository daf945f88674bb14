"""STDC-Seg in PaddlePaddle: STDC1/STDC2 backbones, detail loss, training, evaluation and export."""

from common.cpu import configure_cpu

# Paddle reads its CPU settings when it is imported, so they are set here, before any module of this package imports it.
configure_cpu()
