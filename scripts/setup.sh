#!/usr/bin/env bash
# Makes .venv ready: `setup.sh` for running, `setup.sh dev` for the tests as well.
# What is there already stays; packages are installed when their requirements file changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Two set-ups at once take turns.
if command -v flock >/dev/null; then
    exec 9<scripts/setup.sh
    flock 9
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
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
    echo "Creating .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        echo "error: $python cannot create .venv: does its venv module need installing" \
            "(on Debian and Ubuntu: apt install python3-venv)?" >&2
        exit 2
    fi
fi

files=(requirements.txt)
[ "${1:-}" != dev ] || files+=(requirements-dev.txt)
for file in "${files[@]}"; do
    # The copy of the file in .venv tells what has been installed.
    if ! cmp -s "$file" ".venv/$file"; then
        echo "Installing $file"
        .venv/bin/python -m pip install --disable-pip-version-check -r "$file"
        cp "$file" ".venv/$file"
    fi
done
