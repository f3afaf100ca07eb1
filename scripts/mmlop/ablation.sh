#!/usr/bin/env bash
# Runs the ablation of MMLoP's paper on one data set; scripts/ablation.py documents it.
#
#   bash scripts/mmlop/ablation.sh DATASET SEED [steps|rank|length|depth|logits|all] [KEY VALUE ...]
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
start scripts/ablation.py mmlop "$@"
