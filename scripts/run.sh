#!/usr/bin/env bash
# Runs one protocol of one method. Called by scripts/<method>/<protocol>.sh, which are all alike.
#
#   scripts/<method>/base2new_train.sh DATASET SEED [KEY VALUE ...]   train on base, test on base
#   scripts/<method>/base2new_test.sh  DATASET SEED [KEY VALUE ...]   test that model on new
#   scripts/<method>/fewshot.sh DATASET SHOTS [SEED ...] [KEY VALUE ...]   seeds 1 2 3 by default
#
# From the environment:
#   DATA     folder that holds the data sets (default: data/); docs/datasets.md has their layout,
#            docs/own_images.md that of your own images
#   OUTPUT   results (default: output/)
#   SHOTS    images per class of base2new (default: 16)
#   CFG      another file of configs/trainers/<Trainer>/, without .yaml
#   TAG      names the results of KEY VALUE pairs (default: the pairs; empty: no folder of their own)
#   PYTHON   interpreter (default: that of the active environment, else .venv, set up if need be)
#   DRY_RUN  1: print the commands and run nothing
#
# A finished run is skipped; an unfinished one resumes from its last checkpoint.
set -euo pipefail

embedded="digits shapes" # data sets that come with the repository

fail() {
    echo "error: $*" >&2
    exit 2
}

[ $# -ge 2 ] || fail "usage: run.sh METHOD PROTOCOL ARGUMENTS"
method=$1 protocol=$2
shift 2

# Relative folders of the caller mean those where the caller is.
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
[ -z "${DATA:-}" ] || DATA=$(absolute "$DATA")
output=output
[ -z "${OUTPUT:-}" ] || output=$(absolute "$OUTPUT")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=/dev/null
source "scripts/$method/settings.sh" # sets TRAINER and TRAINS, defines config_for

usage() {
    case $protocol in
    fewshot) fail "usage: scripts/$method/fewshot.sh DATASET SHOTS [SEED ...] [KEY VALUE ...]" ;;
    *) fail "usage: scripts/$method/$protocol.sh DATASET SEED [KEY VALUE ...]" ;;
    esac
}

positive() { # NAME VALUE
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a whole number from 1 on, not '$2'"
}

[ $# -ge 2 ] || usage
dataset=$1
shift
seeds=()
case $protocol in
base2new_train | base2new_test)
    shots=${SHOTS:-16}
    positive SHOTS "$shots"
    [[ $1 =~ ^[0-9]+$ ]] || fail "SEED must be a whole number from 0 on, not '$1'"
    seeds=("$1")
    shift
    ;;
fewshot)
    shots=$1
    positive SHOTS "$shots"
    shift
    while [[ ${1:-} =~ ^[0-9]+$ ]]; do
        seeds+=("$1")
        shift
    done
    [ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)
    ;;
*) fail "unknown protocol $protocol" ;;
esac
opts=("$@")
[ $((${#opts[@]} % 2)) -eq 0 ] || fail "a key has no value in: ${opts[*]}"

[ -f "configs/datasets/$dataset.yaml" ] ||
    fail "no data set $dataset; there are: $(cd configs/datasets && echo *.yaml)"
is_embedded=no
case " $embedded " in *" $dataset "*) is_embedded=yes ;; esac
DATA=${DATA:-data}

if [ -n "${CFG:-}" ]; then
    cfg=$CFG
elif [ $is_embedded = yes ]; then
    cfg=tiny
else
    cfg=$(config_for "$protocol" "$dataset" "$shots")
fi
config_file=configs/trainers/$TRAINER/$cfg.yaml
[ -f "$config_file" ] ||
    fail "no file $config_file; there are: $(cd "configs/trainers/$TRAINER" && echo *.yaml)"

# Other settings must not pass for the results of the shipped ones: a folder of their own.
label=$cfg
if [ -n "${TAG+set}" ]; then
    label=$cfg${TAG:+-$TAG}
elif [ ${#opts[@]} -gt 0 ]; then
    for ((i = 0; i < ${#opts[@]}; i += 2)); do
        label+="-${opts[i]}=${opts[i + 1]}"
    done
    label=${label//[^A-Za-z0-9._=,+-]/_}
    [ ${#label} -le 200 ] || fail "too many KEY VALUE pairs to name a folder: set TAG=<short name>"
fi

# The embedded backbone is too small to gain from threads, and loses much where cores are busy.
[ "$cfg" != tiny ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

max_epoch() { # of this run: the last OPTIM.MAX_EPOCH of the pairs, else that of the config
    local epoch
    epoch=$(awk '/^[^ #]/ { optim = /^OPTIM:/ } optim && $1 == "MAX_EPOCH:" { print $2 }' \
        "$config_file")
    for ((i = 0; i < ${#opts[@]}; i += 2)); do
        [ "${opts[i]}" != OPTIM.MAX_EPOCH ] || epoch=${opts[i + 1]}
    done
    [[ $epoch =~ ^[0-9]+$ ]] || fail "$config_file has no OPTIM.MAX_EPOCH to load"
    echo "$epoch"
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo python
    else
        [ "${DRY_RUN:-0}" = 1 ] || bash scripts/setup.sh >&2
        echo .venv/bin/python
    fi
}

# Whether the last start of a run finished: it logged a result, after the end of the training if it
# trains, and not before the file given was written. parse_test_res.py goes by the same rule.
finished() { # FOLDER trains|tests [FILE]
    local log root newest="" gate='Finish(ed)? training'
    for log in "$1"/log.txt*; do
        [ ! -f "$log" ] || newest=$log
    done
    [ -n "$newest" ] || return 1
    # imagefolder.yaml leaves it to DATA whose images are meant; others have a name of their own
    if [ "$dataset" = imagefolder ]; then
        root=$(sed -n 's/^root: //p' "$newest" | tail -n 1)
        [ "$root" = "$DATA" ] || fail "$1 has results of $root, not of $DATA: copy" \
            "configs/datasets/imagefolder.yaml to a name for these images (docs/own_images.md)"
    fi
    [ -z "${3:-}" ] || [ "$newest" -nt "$3" ] || return 1
    [ "$2" = trains ] || gate='=> result'
    awk -v gate="^[ \t]*($gate)[ \t]*\$" '
        /^[ \t]*\*\* Arguments \*\*[ \t]*$/ { ended = found = 0 }
        $0 ~ gate { ended = 1 }
        ended && /^[ \t]*\* accuracy: [0-9.]+%/ { found = 1 }
        END { exit !found }' "$newest"
}

# Runs train.py unless its output folder is finished.
launch() { # SEED FOLDER trains|tests WEIGHTS [ARGUMENT ...]
    local seed=$1 folder=$2 kind=$3 weights=$4
    shift 4
    local command=(
        "$python" train.py --root "$DATA" --seed "$seed" --trainer "$TRAINER"
        --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "$config_file"
        --output-dir "$folder" "$@" ${opts[@]+"${opts[@]}"}
    )
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${command[@]}" | sed 's/ $//'
        echo
    elif finished "$folder" "$kind" "$weights"; then
        echo "finished already: $folder"
    else
        "${command[@]}"
    fi
}

python=$(find_python)
kind=trains eval_only=()
[ "$TRAINS" = yes ] || kind=tests eval_only=(--eval-only)

for seed in "${seeds[@]}"; do
    tail=$dataset/shots_$shots/$TRAINER/$label/seed$seed
    base=$output/base2new/train_base/$tail
    case $protocol in
    base2new_train)
        launch "$seed" "$base" $kind "" ${eval_only[@]+"${eval_only[@]}"} \
            DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base
        ;;
    base2new_test)
        load=() weights=""
        if [ "$TRAINS" = yes ]; then
            epoch=$(max_epoch)
            load=(--model-dir "$base" --load-epoch "$epoch")
            if [ "${DRY_RUN:-0}" != 1 ]; then
                finished "$base" trains || fail "no finished training in $base:" \
                    "first run scripts/$method/base2new_train.sh with the same arguments"
                weights=$(find "$base" -name "model.pth.tar-$epoch" -print -quit)
            fi
        fi
        launch "$seed" "$output/base2new/test_new/$tail" tests "$weights" --eval-only \
            ${load[@]+"${load[@]}"} DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new
        ;;
    fewshot)
        launch "$seed" "$output/$dataset/$TRAINER/${label}_${shots}shots/seed$seed" $kind "" \
            ${eval_only[@]+"${eval_only[@]}"} DATASET.NUM_SHOTS "$shots"
        ;;
    esac
done
