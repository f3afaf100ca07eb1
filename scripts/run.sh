#!/usr/bin/env bash
# Runs one protocol of one method. Called by scripts/<method>/<protocol>.sh, which are all alike.
#
#   scripts/<method>/base2new_train.sh DATASET SEED   train on base, test on base
#   scripts/<method>/base2new_test.sh  DATASET SEED   test that model on new
#   scripts/<method>/fewshot.sh DATASET SHOTS [SEED ...]   all classes; seeds 1 2 3 by default
#   scripts/<method>/xd_train.sh [DATASET] SEED       train on the source data set, all classes
#   scripts/<method>/xd_test.sh  DATASET SEED         test that model on another data set
#   scripts/<method>/dg_test.sh [DATASET] SEED        test it on ImageNet's variants, or one of them
#
# A SEED may be a list with commas, 1,2,3: its seeds are trained together, in one process that runs
# the frozen CLIP once for all of them (docs/performance.md), and tested one by one.
#
# After these, all take KEY VALUE pairs of the config, and before the pairs all but fewshot.sh
# MAX_EPOCH alone, a number. docs/protocols.md has the output folders.
#
# From the environment:
#   DATA     folder that holds the data sets (default: data/); docs/datasets.md has their layout,
#            docs/own_images.md that of your own images
#   OUTPUT   results (default: output/)
#   SHOTS    images per class of all but fewshot.sh (default: 16); all for every training image,
#            as SHOTS of fewshot.sh may be
#   SOURCE   data set that xd_*.sh and dg_test.sh train on (default: imagenet)
#   CFG      another file of configs/trainers/<Trainer>/, without .yaml, or upstream's name of it
#   TAG      names the results of KEY VALUE pairs (default: the pairs; empty: no folder of their own)
#   WEIGHTS  test the published weights in this folder, not a training of one's own; layout:
#            base/seed<s> for base2new_test.sh (base is then tested as well), <k>shot/seed<s> for
#            fewshot.sh, seed<s> for xd_test.sh and dg_test.sh
#   SUBFOLDER  one more level of the folders of fewshot.sh and xd_*.sh, after <cfg>_<k>shots
#   PYTHON   interpreter (default: that of the active environment, else .venv, set up if need be)
#   DRY_RUN  1: print the commands and run nothing
#
# A finished run is skipped; an unfinished one resumes from its last checkpoint. Both have to agree in
# all settings but those of how it is computed and what it prints (dassl/config/runtime.py), which make
# no folder of their own either. TRAIN.EXTEND True lets a run go on to a larger OPTIM.MAX_EPOCH.
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

! asks_for_help "$@" || { help_of scripts/run.sh && exit; }
[ $# -ge 2 ] || fail "usage: run.sh METHOD PROTOCOL ARGUMENTS"
method=$1 protocol=$2
shift 2

embedded="digits shapes" # data sets that come with the repository
variants="imagenetv2 imagenet_sketch imagenet_a imagenet_r"
number='^[0-9]+$'
list='^[0-9]+(,[0-9]+)*$' # seeds
DATA=${DATA:-data}
output=${OUTPUT:-output}
source=${SOURCE:-imagenet}

TINY=tiny # config for the embedded data sets
# shellcheck source=/dev/null
source "scripts/$method/settings.sh" # sets TRAINER and TRAINS, defines config_for

words="DATASET SEED [MAX_EPOCH]"
case $protocol in
fewshot) words="DATASET SHOTS [SEED ...]" ;;
xd_train | dg_test) words="[DATASET] SEED [MAX_EPOCH]" ;;
esac
usage="usage: scripts/$method/$protocol.sh $words [KEY VALUE ...]"
! asks_for_help "$@" || { printf '%s\n\n' "$usage" && help_of scripts/run.sh && exit; }

positive() { # NAME VALUE
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a whole number from 1 on, not '$2'"
}

shots_given() { # VALUE
    [ "$1" = all ] || [[ $1 =~ ^[1-9][0-9]*$ ]] ||
        fail "SHOTS must be a whole number from 1 on, or all for every training image, not '$1'"
}

effective() { # ARGUMENT ...: what the config code makes of a call
    local python
    python=$(DRY_RUN=0 find_python) # a dry run takes an interpreter, too
    "$python" scripts/effective.py "$@"
}

there_are() { # NAME FOLDER: the YAML files of a folder, and the nearest of them if there is one
    local names python
    names=$(cd "$2" && echo *.yaml)
    python=$(DRY_RUN=1 find_python)
    # shellcheck disable=SC2086  # a list becomes words
    echo "there are: $names$("$python" scripts/effective.py nearest "$1" ${names//.yaml/} 2>/dev/null)"
}

among() { # WORD LIST
    case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

# --- arguments ------------------------------------------------------------------------------------

case $protocol in # where the data set may be left out
xd_train) [[ ! ${1:-} =~ $list ]] || set -- "$source" "$@" ;;
dg_test) [[ ! ${1:-} =~ $list ]] || set -- "$variants" "$@" ;;
esac
[ $# -ge 2 ] || fail "$usage"
datasets=$1
shift
seeds=() epochs=""
case $protocol in
base2new_train | base2new_test | xd_train | xd_test | dg_test | zeroshot)
    shots=${SHOTS:-16}
    shots_given "$shots"
    [[ $1 =~ $list ]] ||
        fail "SEED must be a whole number from 0 on, or several with commas, not '$1'"
    seeds=("$1")
    shift
    if [[ ${1:-} =~ $number ]]; then
        epochs=$1
        positive MAX_EPOCH "$epochs"
        shift
    fi
    ;;
fewshot)
    shots=$1
    shots_given "$shots"
    shift
    while [[ ${1:-} =~ $list ]]; do
        seeds+=("$1")
        shift
    done
    [ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)
    ;;
*) fail "unknown protocol $protocol" ;;
esac
opts=("$@")
for ((i = 0; i < ${#opts[@]}; i += 2)); do
    [[ ${opts[i]} != *=* ]] || fail "${opts[i]}: write key and value as two words," \
        "${opts[i]%%=*} ${opts[i]#*=}"
    case ${opts[i]} in # these make the folder and the row of a table
    DATASET.NUM_SHOTS) fail "${opts[i]} is set by SHOTS (fewshot.sh: by its second argument)" ;;
    DATASET.SUBSAMPLE_CLASSES) fail "${opts[i]} is set by the protocol" ;;
    esac
done
[ $((${#opts[@]} % 2)) -eq 0 ] || fail "a key has no value in: ${opts[*]}"

case $protocol in
base2new_*) [ -z "${SUBFOLDER:-}" ] || fail "SUBFOLDER is not for base2new" ;;
xd_train)
    [ "$datasets" = "$source" ] || [ -z "${SOURCE:-}" ] ||
        fail "SOURCE is $SOURCE, but $datasets is to be trained on"
    source=$datasets
    ;;
dg_test)
    for dataset in $datasets; do
        among "$dataset" "$variants" ||
            fail "$dataset is none of ImageNet's variants ($variants): use xd_test.sh"
    done
    ;;
zeroshot) [ "$TRAINS" = no ] || fail "zeroshot is not for $method, which is trained" ;;
esac
case $protocol in
xd_test | dg_test) trained_on=$source ;;
*) trained_on=$datasets ;;
esac
for dataset in $datasets "$trained_on"; do
    [ -f "configs/datasets/$dataset.yaml" ] ||
        fail "no data set $dataset; $(there_are "$dataset" configs/datasets)"
done
[ -d "$DATA" ] || [ "$DATA" = data ] || [ "${DRY_RUN:-0}" = 1 ] ||
    fail "DATA is $DATA, which is no folder: correct it, or create it"
if [ -n "${WEIGHTS:-}" ]; then
    case $protocol/$TRAINS in
    *_train/* | */no) fail "WEIGHTS is for testing what a method trained" ;;
    esac
fi

# --- config ---------------------------------------------------------------------------------------

if [ -n "${CFG:-}" ]; then
    cfg=${CFG#"configs/trainers/$TRAINER/"}
    cfg=${cfg%.yaml}
    # where a name stands for several files, settings.sh says which
    ! declare -F variant_of >/dev/null || cfg=$(variant_of "$cfg" "$trained_on" "$shots")
elif among "$trained_on" "$embedded"; then
    cfg=$TINY
else
    cfg=$(config_for "$protocol" "$trained_on" "$shots")
fi
if [ ! -f "configs/trainers/$TRAINER/$cfg.yaml" ]; then
    ours=$(awk -v trainer="$TRAINER:" -v name="$cfg:" '
        /^[^ #]/ { inside = $1 == trainer }
        inside && $1 == name { print $2 }' configs/aliases.yaml)
    if [ -n "$ours" ]; then
        echo "note: $cfg is upstream's name of $ours" >&2
        cfg=$ours
    fi
fi
config_file=configs/trainers/$TRAINER/$cfg.yaml
[ -f "$config_file" ] ||
    fail "no file $config_file; $(there_are "$cfg" "configs/trainers/$TRAINER")"

# What only the config code knows: the epoch to load, and which pairs make another setting.
[ -z "$epochs" ] || opts=(OPTIM.MAX_EPOCH "$epochs" ${opts[@]+"${opts[@]}"})
settings=()
case ${#opts[@]}/$TRAINS/$protocol/${WEIGHTS:-} in
0/no/* | 0/*/*_train/ | 0/*/fewshot/) ;;
*)
    plan=$(effective plan "configs/datasets/$trained_on.yaml,$config_file" ${opts[@]+"${opts[@]}"})
    while IFS= read -r word; do
        settings+=("$word")
    done <<<"$plan"
    # The file's own number is no other setting.
    if [ "$epochs" = "${settings[0]}" ]; then
        opts=("${opts[@]:2}")
        settings=("${settings[@]:0:2}" "${settings[@]:4}")
    fi
    max_epoch=${settings[1]}
    settings=("${settings[@]:2}")
    ;;
esac

# Other settings must not pass for the results of the shipped ones: a folder of their own.
label=$cfg
if [ -n "${TAG+set}" ]; then
    label=$cfg${TAG:+-$TAG}
elif [ ${#settings[@]} -gt 0 ]; then
    for ((i = 0; i < ${#settings[@]}; i += 2)); do
        label+="-${settings[i]}=${settings[i + 1]}"
    done
    label=${label//[^A-Za-z0-9._=,+-]/_}
    [ ${#label} -le 200 ] || fail "too many KEY VALUE pairs to name a folder: set TAG=<short name>"
fi

# The embedded backbone is too small to gain from threads, and loses much where cores are busy.
case $cfg in tiny*) export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ;; esac

# --- runs -----------------------------------------------------------------------------------------

# Whether the last start of a run finished: it logged a result, after the end of the training if it
# trains (or that there is nothing to test on), and not before the weights it tests were written, nor
# of others. parse_test_res.py goes by the same rule. Leaves its newest log in $log.
finished() { # FOLDER trains|tests [WEIGHTS MODEL_DIR]
    local one root gate='Finish(ed)? training'
    log=""
    for one in "$1"/log.txt*; do
        [ ! -f "$one" ] || log=$one
    done
    [ -n "$log" ] || return 1
    # imagefolder.yaml leaves it to DATA whose images are meant; others have a name of their own
    if [ "$dataset" = imagefolder ]; then
        root=$(sed -n 's/^root: //p' "$log" | tail -n 1)
        [ "$root" = "$DATA" ] || fail "$1 has results of $root, not of $DATA: copy" \
            "configs/datasets/imagefolder.yaml to a name for these images (docs/own_images.md)"
    fi
    [ -z "${3:-}" ] || [ "$log" -nt "$3" ] || return 1
    [ "$2" = trains ] || gate='=> result'
    # The output folder may have been moved since: what counts of MODEL_DIR is where it is in there.
    awk -v gate="^[ \t]*($gate)[ \t]*\$" -v model="${4:-}" '
        /^[ \t]*\*\* Arguments \*\*[ \t]*$/ { ended = found = other = 0 }
        model && /^model_dir: / { other = substr($0, length($0) - length(model) + 1) != model }
        $0 ~ gate { ended = 1 }
        ended && /^[ \t]*(\* accuracy: [0-9.]+%|Not tested: )/ { found = 1 }
        END { exit !found || other }' "$log"
}

# What the finished run of $log is to one with these pairs: same, other or more, with the reason.
verdict() { # FOLDER DATASET [KEY VALUE ...]
    local folder=$1 files=configs/datasets/$2.yaml,$config_file
    shift 2
    found=$(effective finished "$log" "$files" "$@" ${opts[@]+"${opts[@]}"}) || exit 2
    [[ $found != other* ]] || fail "$folder holds a finished run with ${found#other }"
}

# Whether nothing is left to do; says so.
done_before() { # FOLDER trains|tests WEIGHTS MODEL_DIR [KEY VALUE ...]
    finished "${@:1:4}" || return 1
    verdict "$1" "$dataset" "${@:5}"
    [[ $found != more* ]] || return 1
    echo "finished already: $1${found#same}"
}

# What to say where SOURCE may have been forgotten: data sets that there are trainings on.
of_source() { # PROTOCOL_THAT_TRAINS
    local folder found=""
    [ "$1" = xd_train ] && [ -z "${SOURCE:-}" ] || return 0
    for folder in "$output"/*/"$TRAINER"; do
        [ ! -f "configs/datasets/$(basename "${folder%/*}").yaml" ] ||
            found+=" $(basename "${folder%/*}")"
    done
    echo "; SOURCE is not set, so that it is imagenet${found:+ (there are trainings on:$found)}"
}

# Makes the next launch test the weights in a folder.
load=() weights="" model=""
load_from() { # FOLDER PROTOCOL_THAT_TRAINS [KEY VALUE ...]
    local dataset=$trained_on
    load=(--model-dir "$1" --load-epoch "$max_epoch")
    weights="" model=${1#"$output"}
    [ "${DRY_RUN:-0}" != 1 ] || return 0
    if [ -z "${WEIGHTS:-}" ]; then
        finished "$1" trains || fail "no finished training in $1:" \
            "first run scripts/$method/$2.sh with the same settings$(of_source "$2")"
        verdict "$1" "$trained_on" "${@:3}"
    fi
    [ ! -d "$1" ] || weights=$(find -L "$1" -name "model.pth.tar-$max_epoch" -print -quit)
    [ -n "$weights" ] || [ -z "${WEIGHTS:-}" ] ||
        fail "no model.pth.tar-$max_epoch below $1: WEIGHTS must name the folder above it"
}

# Runs train.py unless its output folder is finished.
launch() { # SEED FOLDER trains|tests [ARGUMENT ...]
    local seed=$1 folder=$2 kind=$3 option=--seed one left=""
    shift 3
    if [[ $seed = *,* ]]; then # of seeds to train together those that are not finished
        for one in ${seed//,/ }; do
            [ "${DRY_RUN:-0}" != 1 ] && done_before "${folder%/*}/seed$one" "$kind" "" "" "$@" ||
                left+=,$one
        done
        [ -n "$left" ] || return 0
        seed=${left#,} option=--seeds folder="${folder%/*}/seed{seed}"
    fi
    local command=(
        "$python" train.py --root "$DATA" $option "$seed" --trainer "$TRAINER"
        --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "$config_file"
        --output-dir "$folder"
    )
    [ "$kind" = trains ] || command+=(--eval-only)
    command+=(${load[@]+"${load[@]}"} "$@" ${opts[@]+"${opts[@]}"})
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${command[@]}" | sed 's/ $//'
        echo
    elif ! done_before "$folder" "$kind" "$weights" "$model" "$@"; then
        "${command[@]}"
    fi
}

python=$(find_python)
kind=trains
if [ "$TRAINS" != yes ]; then
    kind=tests
    case $protocol in *_train) echo "note: $TRAINER has nothing to train; it is tested" >&2 ;; esac
fi
run=$TRAINER/${label}_${shots}shots${SUBFOLDER:+/$SUBFOLDER}
few="DATASET.NUM_SHOTS ${shots/all/-1}"

case $kind/$protocol/${WEIGHTS:-} in
trains/*_train/ | trains/fewshot/) ;;
# shellcheck disable=SC2206  # a list becomes words
*) seeds=(${seeds[@]//,/ }) ;; # only training has something to share
esac

# shellcheck disable=SC2086  # $few is two words
for seed in "${seeds[@]}"; do
    for dataset in $datasets; do
        tail=$dataset/shots_$shots/$TRAINER/$label/seed$seed
        base=$output/base2new/train_base/$tail
        case $protocol in
        base2new_train) launch "$seed" "$base" $kind $few DATASET.SUBSAMPLE_CLASSES base ;;
        base2new_test)
            if [ -n "${WEIGHTS:-}" ]; then
                load_from "$WEIGHTS/base/seed$seed"
                launch "$seed" "$output/base2new/test_base/$tail" tests $few \
                    DATASET.SUBSAMPLE_CLASSES base
            elif [ "$TRAINS" = yes ]; then
                load_from "$base" base2new_train $few DATASET.SUBSAMPLE_CLASSES base
            fi
            launch "$seed" "$output/base2new/test_new/$tail" tests $few \
                DATASET.SUBSAMPLE_CLASSES new
            ;;
        fewshot)
            if [ -n "${WEIGHTS:-}" ]; then
                load_from "$WEIGHTS/${shots}shot/seed$seed"
                launch "$seed" "$output/few_shot/$dataset/$run/seed$seed" tests $few
            else
                launch "$seed" "$output/$dataset/$run/seed$seed" $kind $few
            fi
            ;;
        xd_train) launch "$seed" "$output/$dataset/$run/seed$seed" $kind $few ;;
        xd_test | dg_test)
            if [ -n "${WEIGHTS:-}" ]; then
                load_from "$WEIGHTS/seed$seed"
            elif [ "$TRAINS" = yes ]; then
                load_from "$output/$source/$run/seed$seed" xd_train $few
            fi
            folder=$run/$dataset
            [ "$source" = imagenet ] || folder=$run/from_$source/$dataset
            launch "$seed" "$output/evaluation/$folder/seed$seed" tests
            ;;
        zeroshot) launch "$seed" "$output/$TRAINER/$label/$dataset" tests ;;
        esac
    done
done
