#!/usr/bin/env bash
# Makes .venv if there is none and installs the pinned packages; ends in a second when all is there already.
#   bash ci/setup.sh            PYTHON=python3.12 bash ci/setup.sh   (another interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(cat requirements.txt requirements-nodeps.txt pyproject.toml | sha256sum | cut -d' ' -f1)
stamp=.venv/segrepro-installed
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted $PWD" ]; then
  exit 0
fi

python=${PYTHON:-python3}
"$python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 13):
    sys.exit(f"error: Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}: name one with PYTHON=python3.11 bash ci/setup.sh")
PY

echo "setting up .venv: about 3 minutes and 7 GB the first time"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet --requirement requirements.txt
$pip install --quiet --no-deps --requirement requirements-nodeps.txt
$pip install --quiet --no-deps --no-build-isolation --editable .
# results/site is tested in Debian's Chromium, where it may be installed; elsewhere those tests say why they are skipped.
if ! command -v chromium > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing chromium for the tests of the results page"
  export DEBIAN_FRONTEND=noninteractive
  (timeout 120 apt-get update && timeout 300 apt-get install -y --no-install-recommends chromium fonts-dejavu-core) \
    > /dev/null 2>&1 || echo "chromium cannot be installed here: the tests of the results page will be skipped"
fi
echo "$wanted $PWD" > "$stamp"
