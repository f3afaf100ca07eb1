#!/usr/bin/env bash
# Runs a whole protocol of one or more methods over data sets and seeds, with one progress bar.
#
#   [PROTOCOL=base2new|base2new_all|fewshot|xd|dg] scripts/all.sh METHOD [DATASETS] [SEEDS] [KEY VALUE ...]
#
# scripts/all.py, which this starts in the environment of the project, documents the rest.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start scripts/all.py "$@"
