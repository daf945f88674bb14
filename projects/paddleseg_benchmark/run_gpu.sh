#!/usr/bin/env bash
# The matrix on a GPU: bash projects/paddleseg_benchmark/run_gpu.sh [options of run_matrix.py]
# Takes the repository's .venv, or the interpreter that PYTHON names. Stopped at any moment, the same line resumes.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../../.venv/bin/python}"
if ! command -v "$python" > /dev/null; then
  echo "error: no interpreter $python: run ci/setup.sh, or set PYTHON" >&2
  exit 1
fi
sees='import paddle, sys; sys.exit(not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0))'
if ! "$python" -c "$sees" > /dev/null 2>&1; then
  echo "error: Paddle sees no GPU here: install paddlepaddle-gpu in place of paddlepaddle; doctor.py says what it sees" >&2
  exit 1
fi
exec "$python" "$here/run_matrix.py" --preset gpu "$@"
