"""PyTorch networks into PaddlePaddle and back, accepted only with numeric proof."""

import contextlib
import io
import warnings

from common.machine.cpu import configure_cpu

# Both frameworks read their CPU settings when they are imported, so they are set here, before any module imports them.
configure_cpu()
# Paddle's import warns about any OMP_NUM_THREADS above 1 (meant for builds with OpenBLAS) and about ccache.
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import paddle  # noqa: F401
