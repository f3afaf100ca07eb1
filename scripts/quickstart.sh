#!/usr/bin/env bash
# From nothing to the table: sets up .venv, runs base-to-new of three methods on the embedded data
# sets with three seeds, prints base, new and their harmonic mean. Finished runs are kept, so a
# second call only prints.
#
# From the environment: JOBS, how many runs at once (default: the number of cores, at most 8);
# OUTPUT and DATA as in run.sh.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

absolute() { case $1 in /*) echo "$1" ;; *) echo "$start/$1" ;; esac; }
DATA=$(absolute "${DATA:-$PWD/data}")
OUTPUT=$(absolute "${OUTPUT:-$PWD/output}")
export DATA OUTPUT
unset CFG TAG SHOTS DRY_RUN # settings of single runs would change what is compared here

bash scripts/setup.sh
export PYTHON=.venv/bin/python

cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}
# The models are too small to gain from threads: every core gets a run of its own.
[ "$jobs" = 1 ] || export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

logs=$OUTPUT/quickstart
mkdir -p "$logs"
export logs

one() { # METHOD DATASET SEED: train on base, then test on new
    local log=$logs/$1-$2-seed$3.txt began=$SECONDS
    if bash "scripts/$1/base2new_train.sh" "$2" "$3" >"$log" 2>&1 &&
        bash "scripts/$1/base2new_test.sh" "$2" "$3" >>"$log" 2>&1; then
        echo "done: $1 on $2, seed $3 ($((SECONDS - began)) s)"
    else
        { # 255 makes xargs start nothing more
            echo "error: $1 on $2, seed $3 failed; the end of $log:"
            tail -n 25 "$log"
        } >&2
        return 255
    fi
}
export -f one

run() { xargs -P "$jobs" -L 1 bash -c 'one "$@"' _; }

datasets="digits shapes"
# Zero-shot first: it also writes the images of the data sets.
for dataset in $datasets; do
    echo "zsclip $dataset 1"
done | run
# The longest runs first, so that no core is left waiting at the end.
for method in mmlop coop zsclip; do
    for dataset in shapes digits; do
        for seed in 1 2 3; do
            echo "$method $dataset $seed"
        done
    done
done | grep -v '^zsclip .* 1$' | run

"$PYTHON" parse_test_res.py --output "$OUTPUT"
