#!/usr/bin/env bash
# Passes its folder (the method) and its file name (the protocol) on to run.sh, which documents all.
here=$(cd "$(dirname "$0")" && pwd)
exec bash "$here/../run.sh" "$(basename "$here")" "$(basename "$0" .sh)" "$@"
