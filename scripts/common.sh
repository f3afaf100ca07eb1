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

caller=$PWD
for _name in DATA OUTPUT WEIGHTS CLUSTER; do
    case ${!_name:-} in
    '' | /*) ;;
    *) export "$_name=$caller/${!_name}" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Goes on with a Python file, by the interpreter PYTHON, that of the active environment, or else
# .venv, which is set up if need be; not for help, which any interpreter can give.
start() { # FILE ARGUMENT ...
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=.venv/bin/python
        if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
            PYTHON=python
        else
            case " $* " in
            *" -h "* | *" --help "*) [ -x "$PYTHON" ] || PYTHON=python3 ;;
            *) bash scripts/setup.sh >&2 ;;
            esac
        fi
    fi
    export PYTHON
    exec "$PYTHON" "$@"
}
