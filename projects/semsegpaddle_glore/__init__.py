"""Semantic segmentation in PaddlePaddle alone: five backbones, four decode heads, three data sets."""

import contextlib
import io
import warnings

from common.machine.cpu import configure_cpu

# Paddle reads its CPU settings when it is imported, so they are set here, before any module of this package imports it.
configure_cpu()
# Its import prints a warning about any OMP_NUM_THREADS above 1 (meant for builds with OpenBLAS) and one about ccache.
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import paddle  # noqa: F401
warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
