"""Eleven segmentation papers in PyTorch, eight data sets and your own: training, evaluation, demo and export."""

from common.machine.cpu import configure_cpu

# PyTorch reads its CPU settings when it is imported, so they are set before any module of this package imports it.
configure_cpu()
