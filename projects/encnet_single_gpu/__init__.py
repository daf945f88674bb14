"""Twelve segmentation networks in PyTorch for one GPU: EncNet, PSPNet and the rest of the list, on ADE20K."""

from common.machine.cpu import configure_cpu

# PyTorch reads its CPU settings when it is imported, so they are set before any module of this package imports it.
configure_cpu()
