#!/usr/bin/env bash
# Passes its folder and its file name, both upstream's, on to upstream.sh, which documents all.
here=$(cd "$(dirname "$0")" && pwd)
exec bash "$here/../upstream.sh" "$(basename "$here")" "$(basename "$0" .sh)" "$@"
