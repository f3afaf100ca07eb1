# shellcheck shell=bash
# Sourced by the scripts of this folder: moves to the repository's root, with the folders that the
# environment names relative to the caller's made absolute.

fail() {
    echo "error: $*" >&2
    exit 2
}

help_of() { # FILE: its opening comment
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

asks_for_help() { # ARGUMENT ...
    case ${1:-} in -h | --help) return 0 ;; *) return 1 ;; esac
}

for _name in DATA OUTPUT WEIGHTS; do
    case ${!_name:-} in
    '' | /*) ;;
    *) export "$_name=$PWD/${!_name}" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() { # the interpreter: PYTHON, that of the active environment, else .venv, set up if need be
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo python
    else
        [ "${DRY_RUN:-0}" = 1 ] || bash scripts/setup.sh >&2
        echo .venv/bin/python
    fi
}
