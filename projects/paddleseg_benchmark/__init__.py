"""PaddleSeg's model zoo measured: precision, memory layout, graph mode and batch size, beside its peers."""

import contextlib
import io
import os
import warnings

from common.machine.cpu import configure_cpu

# Paddle reads its CPU settings when it is imported, so they are set here, before any module of this package imports it.
configure_cpu()
# Errors only: building and running a graph logs several lines of internal information.
os.environ.setdefault("GLOG_minloglevel", "2")
# Its import prints a warning about any OMP_NUM_THREADS above 1 (meant for builds with OpenBLAS) and one about ccache.
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import paddle  # noqa: F401
warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
warnings.filterwarnings("ignore", message="(?s).*softmax_with_cross_entropy")
