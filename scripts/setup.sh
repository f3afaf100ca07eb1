#!/usr/bin/env bash
# Makes .venv ready: `setup.sh` for running, `setup.sh deploy` for bundles and the service as well,
# `setup.sh dev` for the tests. `setup.sh lowest` makes .venv-lowest, for the tests, with the lowest
# versions that the requirements files allow.
# What is there already stays; packages are installed when their requirements file changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv files=(requirements.txt) options=()
case ${1:-} in
'') ;;
deploy) files+=(requirements-deploy.txt) ;;
dev)
    files+=(requirements-{slurm,deploy,trackers,dev}.txt)
    # Half a minute is saved: what the tests import is compiled then, unless Python may not keep it.
    if [ -z "${PYTHONDONTWRITEBYTECODE:-}" ]; then
        options=(--no-compile)
    fi
    ;;
lowest) venv=.venv-lowest files+=(requirements-{slurm,deploy,trackers,dev}.txt) ;;
*)
    echo "error: setup.sh takes deploy, dev, lowest or nothing, not '$1'" >&2
    exit 2
    ;;
esac

# Two set-ups at once take turns.
if command -v flock >/dev/null; then
    exec 9<scripts/setup.sh
    flock 9
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    for python in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            break
        fi
        python=""
    done
    if [ -z "$python" ]; then
        echo "error: Python 3.10 or newer is needed; found $(python3 --version 2>&1 || true)" >&2
        exit 2
    fi
    echo "Creating $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        echo "error: $python cannot create $venv: does its venv module need installing" \
            "(on Debian and Ubuntu: apt install python3-venv)?" >&2
        exit 2
    fi
fi

install() { # FILE
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    if [ "$venv" = .venv ]; then
        "${pip[@]}" ${options[@]+"${options[@]}"} -r "$1"
    else # by uv, which can take the lowest versions; those without a wheel for this Python do not count
        "${pip[@]}" "uv>=0.5,<1"
        # the system's certificates, as pip takes them; older versions of uv know the second name
        UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 "$venv/bin/python" -m uv pip install \
            --python "$venv/bin/python" --upgrade \
            --resolution lowest-direct --only-binary :all: -r "$1"
    fi
}

for file in "${files[@]}"; do
    # The copy of the file in the environment tells what has been installed.
    if ! cmp -s "$file" "$venv/$file"; then
        echo "Installing $file"
        install "$file"
        cp "$file" "$venv/$file"
    fi
done
