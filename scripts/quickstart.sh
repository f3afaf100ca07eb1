#!/usr/bin/env bash
# From nothing to the table: sets up .venv, runs base-to-new of three methods on the embedded data
# sets with three seeds, prints base, new and their harmonic mean. Finished runs are kept, so a
# second call only prints.
#
#   bash scripts/quickstart.sh
#
# From the environment: JOBS, how many runs at a time (default: the number of cores, at most 8);
# OUTPUT, folder for the results (default: output/); PYTHON, an interpreter that has the packages, as
# in a container (default: that of .venv).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
! asks_for_help "$@" || { help_of scripts/quickstart.sh && exit; }
[ $# -eq 0 ] || fail "quickstart.sh takes no arguments, not '$*': see --help"
export OUTPUT=${OUTPUT:-$PWD/output}
# Settings of other runs would change what is compared here.
unset TOGETHER PROTOCOL DATA SHOTS SOURCE CFG TAG WEIGHTS SUBFOLDER DRY_RUN EXECUTOR CLUSTER RETRIES

if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
export PYTHON

# nproc obeys what is meant for the threads of a run
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}

echo "Base-to-new of zsclip, coop and mmlop on digits and letters, seeds 1 2 3, $jobs at a time"
# Zero-shot first: these two also write the images of the data sets.
JOBS=$jobs bash scripts/all.sh zsclip "digits letters" 1
# The longest runs first, so that no core is left waiting at the end.
JOBS=$jobs TOGETHER=1 bash scripts/all.sh "mmlop coop zsclip" "letters digits"

echo "Took $SECONDS s"
"$PYTHON" parse_test_res.py --output "$OUTPUT"
