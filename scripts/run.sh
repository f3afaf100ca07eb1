#!/usr/bin/env bash
# Runs one protocol of one method: run.sh METHOD PROTOCOL ARGUMENTS. Called by
# scripts/<method>/<protocol>.sh, which are all alike; --help, and scripts/run.py, say the rest.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start scripts/run.py "$@"
