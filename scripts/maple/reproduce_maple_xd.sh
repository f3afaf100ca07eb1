#!/usr/bin/env bash
# Passes its folder and its file name, both upstream's, on to upstream.sh, which documents all.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../upstream.sh" "$(basename "$here")" "$(basename "${BASH_SOURCE[0]}" .sh)" "$@"
