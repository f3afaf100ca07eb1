#!/usr/bin/env bash
# Runs a script of the CoOp, MaPLe and PromptSRC repositories by its name and with its arguments.
# Called by scripts/<folder>/<upstream's name>.sh, which are all alike; --help, and
# scripts/upstream.py, say the rest.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start scripts/upstream.py "$caller" "$@"
