"""PyTorch backbones into PaddlePaddle and back, accepted only with numeric proof."""
