#!/usr/bin/env bash
# The script names and arguments of the CoOp, MaPLe and PromptSRC repositories, as calls of run.sh.
# Called by scripts/<folder>/<upstream's name>.sh, which are all alike.
#
#   *_maple, *_ivlp, *_lp, *_vpt   base2new_train, base2new_test, xd_train, xd_test, as in run.sh
#   reproduce*.sh DATASET SEED WEIGHTSPATH      test published weights on base and new classes
#   reproduce*_xd.sh DATASET SEED WEIGHTSPATH   test published weights on another data set
#   promptsrc/few_shot.sh DATASET SHOTS         as fewshot.sh
#   promptsrc/reproduce_few_shot.sh DATASET SHOTS WEIGHTSPATH   test published weights
#   coop/main.sh DATASET CFG CTP NCTX SHOTS CSC   few-shot training, seeds 1 2 3
#   coop/eval.sh DATASET CFG                    test main.sh's 16-shot ImageNet models, seeds 1 2 3
#   coop/zeroshot.sh, zsclip/zeroshot.sh DATASET CFG   zero-shot CLIP, all classes
#
# docs/protocols.md says in what these differ from upstream's.
set -euo pipefail
run=$(dirname "${BASH_SOURCE[0]}")/run.sh

folder=$1 script=$2
shift 2
case ${1:-} in
-h | --help)
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"
    printf '\nThey read the same from the environment as run.sh, which says of itself:\n\n'
    exec bash "$run" --help
    ;;
esac
method=$folder
[ "$folder" != independent-vlp ] || method=ivlp # language-prompting has settings of its own
words=$#
empty=no
for word in "$@"; do
    [ -n "$word" ] || empty=yes
done

takes() { # NAME ... [more]: check the arguments
    local names="$*"
    local count=$#
    [ "${!#}" != more ] || { names="${names% more} [KEY VALUE ...]" && count=$((count - 1)); }
    if [ $empty = yes ] || [ $words -lt $count ] ||
        { [ $words -gt $count ] && [ "${!#}" != more ]; }; then
        echo "error: usage: scripts/$folder/$script.sh $names" >&2
        exit 2
    fi
}

protocol=$script
for suffix in maple ivlp lp vpt; do
    protocol=${protocol/_$suffix/}
done
case $protocol in
base2new_train | base2new_test | xd_train | xd_test) exec bash "$run" "$method" "$protocol" "$@" ;;
few_shot) exec bash "$run" "$method" fewshot "$@" ;;
reproduce | reproduce_base2novel_setting)
    takes DATASET SEED WEIGHTSPATH more
    WEIGHTS=$3 exec bash "$run" "$method" base2new_test "$1" "$2" "${@:4}"
    ;;
reproduce_xd)
    takes DATASET SEED WEIGHTSPATH more
    WEIGHTS=$3 exec bash "$run" "$method" xd_test "$1" "$2" "${@:4}"
    ;;
reproduce_few_shot)
    takes DATASET SHOTS WEIGHTSPATH more
    WEIGHTS=$3 exec bash "$run" "$method" fewshot "$1" "$2" "${@:4}"
    ;;
zeroshot)
    takes DATASET CFG
    CFG=$2 exec bash "$run" zsclip zeroshot "$1" 1 # a seed makes no difference
    ;;
main)
    takes DATASET CFG CTP NCTX SHOTS CSC
    dataset=$1 ctp=$3 n_ctx=$4 shots=$5 csc=$6
    ;;
eval)
    takes DATASET CFG
    dataset=$1 ctp=end n_ctx=16 shots=16 csc=False
    ;;
*)
    echo "error: no script $folder/$script.sh" >&2
    exit 2
    ;;
esac

# main.sh and eval.sh: the folder says the three settings, so the pairs need not.
export CFG=$2 TAG=${TAG-} SUBFOLDER=nctx${n_ctx}_csc${csc}_ctp$ctp
pairs=(TRAINER.COOP.N_CTX "$n_ctx" TRAINER.COOP.CSC "$csc" TRAINER.COOP.CLASS_TOKEN_POSITION "$ctp")
if [ "$script" = main ]; then
    exec bash "$run" coop fewshot "$dataset" "$shots" "${pairs[@]}"
fi
for seed in 1 2 3; do
    SHOTS=$shots bash "$run" coop xd_test "$dataset" "$seed" "${pairs[@]}"
done
