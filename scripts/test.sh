#!/usr/bin/env bash
# Lints, type-checks and tests everything in .venv; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh dev
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# One thread each: the models of the tests are too small for more.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
