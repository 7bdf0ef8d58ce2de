#!/usr/bin/env bash
# Make .venv hold exactly what data.txt, train.txt, tools.txt and dev.txt pin, and the project itself (editable). `make setup` calls
# this before every target; when nothing has changed it takes milliseconds.
#
# .venv/.pins holds a digest of all that decides what .venv contains. It is written last: without it .venv is
# unfinished, or somebody else's, and is made anew; with another digest the difference is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=(requirements/{data,train,tools,dev}.txt)
digest="$(cat "${pins[@]}" pyproject.toml requirements/setup.sh <(readlink -m .venv) | sha256sum)"

up_to_date() { [[ -x .venv/bin/python && "$(cat .venv/.pins 2>/dev/null)" == "$digest" ]]; }

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# A candidate is tried, not trusted: a pyenv shim may exist and fail, Debian's python3 may lack venv.
find_python() {
    local candidates=() candidate
    mapfile -t candidates < <(
        uv python find --system 3.12 2>/dev/null
        compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.12*/bin/python"
        printf '%s\n' python3.12 python3 python
    )
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.12 that can make a virtual environment; tried: ${candidates[*]}." \
        "Install one: 'uv python install 3.12', 'pyenv install 3.12', or 'apt-get install python3.12-venv'."
}

if up_to_date; then exit 0; fi
exec {lock}<requirements && flock "$lock" # a second make waits for the first
if up_to_date; then exit 0; fi

[[ ! -L .venv ]] || fail ".venv is a link to $(readlink -m .venv), which does not hold the pins: 'make setup' there."
[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "the pins are those of Linux x86_64, this is $(uname -sm)."

if [[ ! -f .venv/.pins || ! -x .venv/bin/python ]] || ! grep -qsF "$(readlink -m .venv)" .venv/pyvenv.cfg; then
    rm -rf .venv # also one that was moved: its scripts name the place where it was made
    python="$(find_python)"
    echo "setup: making .venv with $("$python" -c 'import sys; print(sys.executable)')"
    "$python" -m venv .venv
fi
rm -f .venv/.pins
unset PYTHONDONTWRITEBYTECODE # without .pyc files every call of dvc takes twice as long

if ! uv="$(command -v uv)"; then
    uv="$PWD/.venv/bin/uv"
    [[ -x "$uv" ]] || .venv/bin/python -m pip install --quiet --no-deps "$(grep '^uv==' requirements/dev.txt)"
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" # seconds; single packages have several hundred MB
echo "setup: installing $(cat "${pins[@]}" | wc -l) packages (about 3 GB to download where they are not cached)"
"$uv" pip sync --quiet --python .venv/bin/python --build-constraints requirements/tools.txt "${pins[@]}"
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
.venv/bin/python -c 'import torch, transformers, mlflow, dvc.commands.repro, dvc.repo.reproduce, dvc.repo.experiments, sft' ||
    fail ".venv is installed but does not work: see above. 'rm -r .venv' and 'make setup' begin anew."

echo "$digest" >.venv/.pins
echo "setup: done"
