#!/usr/bin/env bash
# Install lm-eval and what it needs beside .venv: the packages of lm-eval.txt, into .lm-eval. `make setup-lm-eval` runs this.
#
#   setup_lm_eval.sh [FOLDER]    default: .lm-eval, which the eval stage uses; .venv stays as it is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${1:-.lm-eval}"
if cmp --quiet requirements/lm-eval.txt "$folder/lm-eval.txt"; then exit 0; fi
mapfile -d '' -t settings < <(.venv/bin/python requirements/pip_settings.py)
rm -rf "$folder" # packages of other versions
env "${settings[@]}" .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --target "$folder" \
    --build-constraints requirements/tools.txt --requirement requirements/lm-eval.txt
cp requirements/lm-eval.txt "$folder/" # last: the stage takes the folder for complete
