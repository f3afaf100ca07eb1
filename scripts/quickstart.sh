#!/usr/bin/env bash
# From nothing to the table: sets up .venv, runs base-to-new of three methods on the embedded data
# sets with three seeds, prints base, new and their harmonic mean. Finished runs are kept, so a
# second call only prints.
#
# From the environment: JOBS, how many runs at once (default: the number of cores, at most 8);
# OUTPUT, folder for the results (default: output/).
set -euo pipefail
[ -z "${OUTPUT:-}" ] || case $OUTPUT in /*) ;; *) OUTPUT=$PWD/$OUTPUT ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OUTPUT=${OUTPUT:-$PWD/output}
unset DATA CFG TAG SHOTS DRY_RUN # settings of other runs would change what is compared here

bash scripts/setup.sh
export PYTHON=.venv/bin/python

cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((cores < 8 ? cores : 8))}
export logs=$OUTPUT/quickstart
mkdir -p "$logs"

one() { # METHOD DATASET SEED: train on base, then test on new
    local log=$logs/$1-$2-seed$3.txt
    if bash "scripts/$1/base2new_train.sh" "$2" "$3" >"$log" 2>&1 &&
        bash "scripts/$1/base2new_test.sh" "$2" "$3" >>"$log" 2>&1; then
        echo "done: $1 on $2, seed $3 ($SECONDS s)"
    else
        {
            echo "error: $1 on $2, seed $3 failed; the end of $log:"
            tail -n 25 "$log"
        } >&2
        return 255 # makes xargs start nothing more
    fi
}
export -f one
run() { xargs -P "$jobs" -L 1 bash -c 'one "$@"' _; }

echo "Base-to-new of zsclip, coop and mmlop on digits and shapes, seeds 1 2 3, $jobs runs at once"
# Zero-shot first: these two also write the images of the data sets.
printf 'zsclip %s 1\n' digits shapes | run
# The longest runs first, so that no core is left waiting at the end.
for method in mmlop coop zsclip; do
    for dataset in shapes digits; do
        for seed in 1 2 3; do
            [ "$method $seed" = "zsclip 1" ] || echo "$method $dataset $seed"
        done
    done
done | run

echo "Took $SECONDS s"
"$PYTHON" parse_test_res.py --output "$OUTPUT"
