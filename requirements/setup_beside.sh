#!/usr/bin/env bash
# Install pinned packages beside .venv, which stays as it is: `make setup-lm-eval` and the tests run this.
#
#   setup_beside.sh PINS FOLDER    setup_beside.sh requirements/lm-eval.txt .lm-eval
set -euo pipefail
pins="$(realpath "$1")" folder="$(realpath -m "$2")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if cmp --quiet "$pins" "$folder/${pins##*/}"; then exit 0; fi
mapfile -d '' -t settings < <(.venv/bin/python requirements/pip_settings.py)
rm -rf "$folder" # packages of other versions
env "${settings[@]}" .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --target "$folder" \
    --build-constraints requirements/tools.txt --requirement "$pins"
cp "$pins" "$folder/" # last: the folder is taken for complete
