#!/usr/bin/env bash
# Runs a whole protocol of one or more methods over data sets and seeds, with one progress bar.
#
#   [PROTOCOL=base2new|base2new_all|fewshot|xd|dg] scripts/all.sh METHOD [DATASETS] [SEEDS] [KEY VALUE ...]
#
# scripts/all.py, which this starts in the environment of the project, documents the rest.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# as for DATA and OUTPUT, a relative path is the caller's
_before=
for _word in "$@"; do
    shift
    case $_word in --cluster=[!/]*) _word=--cluster=$caller/${_word#--cluster=} ;; esac
    case $_before,$_word in
    --cluster, | --cluster,/* | --cluster,-*) ;;
    --cluster,*) _word=$caller/$_word ;;
    esac
    set -- "$@" "$_word"
    _before=$_word
done
start scripts/all.py "$@"
