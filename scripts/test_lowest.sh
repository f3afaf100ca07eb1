#!/usr/bin/env bash
# As test.sh with the lowest versions that the requirements allow: setup.sh puts uv into .venv-lowest,
# and uv installs them there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh lowest
.venv-lowest/bin/python -m ruff check .
# No type check: types of packages differ by version, and test.sh checks against the newest.
# One thread each: the models of the tests are too small for more.
OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist worksteal "$@"
