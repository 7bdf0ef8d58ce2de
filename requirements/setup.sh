#!/usr/bin/env bash
# Create or update .venv: exactly the packages that data.txt, train.txt, tools.txt and dev.txt pin, and the project itself
# (editable). `make setup` runs this before every target; it takes milliseconds if nothing has changed.
#
# .venv/.pins is a digest of everything that determines .venv, written last. If it is missing, .venv is incomplete or not
# ours, and is created again; if it differs, the changed packages are installed.
#
#   setup.sh [full | none]    full: also gpu.txt, compiled here (`make setup GPU=full`); later calls keep it, none ends it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec >&2 # messages: `make ... JSON=1` prints facts on stdout
: "${HOME:=$(unset HOME && echo ~)}" && export HOME # cron and systemd do not set it

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

gpu="${1:-$([[ -e .venv/.gpu ]] && echo full || echo none)}"
[[ "$gpu" == full || "$gpu" == none ]] || fail "GPU=$gpu: expected GPU=full (with packages for GPUs only) or GPU=none"
pins=(requirements/{data,train,tools,dev}.txt)
gpu_pins=()
[[ "$gpu" == none ]] || gpu_pins=(requirements/gpu.txt)
digest="$(cat "${pins[@]}" "${gpu_pins[@]}" pyproject.toml requirements/{setup.sh,pip_settings.py} <(readlink -m .venv) | sha256sum)"

up_to_date() { [[ -x .venv/bin/python && "$(cat .venv/.pins 2>/dev/null)" == "$digest" ]]; }

# Try each candidate: a pyenv shim may exist and fail, Debian's python3 may lack venv.
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
    fail "no Python 3.12 that can create a virtual environment. Tried: ${candidates[*]}." \
        "Install one: 'uv python install 3.12', 'pyenv install 3.12', or 'apt-get install python3.12-venv'."
}

# DVC and lineage need a commit. A folder from "Download ZIP" has none.
check_repository() {
    local message
    type -P git >/dev/null || fail "git: not found. Install it, for example: apt-get install git"
    if ! message="$(git rev-parse --git-dir 2>&1)"; then
        [[ "$message" == *"not a git repository"* ]] || fail "$message"
        fail "$PWD: not a git repository, perhaps a ZIP download. Clone the repository instead, or run here:" \
            "    git init && git add -A && git commit -m 'Downloaded'"
    fi
    git rev-parse --verify --quiet HEAD >/dev/null || fail "$PWD: the git repository has no commit. Run:" \
        "    git add -A && git commit -m 'Downloaded'"
}

# What compiling gpu.txt needs, all of it in one message, before anything is installed.
check_compilers() {
    local missing=() cuda nvcc
    cuda="$(sed -n 's/^nvidia-cuda-runtime==\([0-9]*\).*/\1/p' requirements/train.txt)" # that of the pinned torch
    if [[ -n "${CUDA_HOME:-}" ]]; then
        nvcc="$(type -P "$CUDA_HOME/bin/nvcc" || true)"
    else
        nvcc="$(type -P nvcc || type -P /usr/local/cuda/bin/nvcc || true)"
    fi
    if [[ -z "$nvcc" ]]; then
        missing+=("nvcc of CUDA $cuda (CUDA_HOME=${CUDA_HOME:-not set})")
    elif ! "$nvcc" --version | grep -q "release $cuda\."; then
        missing+=("nvcc of CUDA $cuda, found $nvcc of $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')")
    fi
    type -P "${CXX:-g++}" >/dev/null || missing+=("a C++ compiler (CXX=${CXX:-g++})")
    ((!${#missing[@]})) || fail "make setup GPU=full compiles packages, which needs: $(printf '%s; ' "${missing[@]}")" \
        "install that, or train in a container that has the packages: docs/gpu-machine.md"
}

check_repository
if up_to_date; then exit 0; fi
[[ "$gpu" == none ]] || check_compilers
[[ -w . && -w requirements ]] || fail "$PWD: you cannot write here, and .venv must be created or updated. Copy the project."
exec {lock}<requirements
flock "$lock" || echo "setup: this file system has no locks: do not run make twice at once" # a second make waits here
if up_to_date; then exit 0; fi

[[ ! -L .venv ]] || fail ".venv is a link to $(readlink -m .venv), which has other packages. Run 'make setup' there."
[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "this is $(uname -sm). The pinned packages are for Linux x86_64."

if [[ ! -f .venv/.pins || ! -x .venv/bin/python ]] || ! grep -qsF "$(readlink -m .venv)" .venv/pyvenv.cfg; then
    rm -rf .venv # also if it was moved: its scripts contain the old path
    python="$(find_python)"
    echo "setup: creating .venv with $("$python" -c 'import sys; print(sys.executable)')"
    "$python" -m venv .venv
fi
rm -f .venv/.pins .venv/.gpu
unset PYTHONDONTWRITEBYTECODE # without .pyc files every dvc command takes twice as long

if ! uv="$(command -v uv)"; then
    uv="$PWD/.venv/bin/uv"
    [[ -x "$uv" ]] || .venv/bin/python -m pip install --quiet --no-deps "$(grep '^uv==' requirements/dev.txt)"
fi
mapfile -d '' -t settings < <(.venv/bin/python requirements/pip_settings.py)
if ((${#settings[@]})); then
    echo "setup: uv uses the settings of pip: ${settings[*]%%=*}" # names only: an address can hold a password
    export "${settings[@]}"
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" # seconds; some packages have several hundred MB
echo "setup: installing $(cat "${pins[@]}" | wc -l) packages (about 3 GB to download if they are not cached)"
"$uv" pip sync --quiet --python .venv/bin/python --build-constraints requirements/tools.txt "${pins[@]}"
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
if [[ "$gpu" == full ]]; then
    echo "setup: compiling the packages of requirements/gpu.txt for this machine's GPUs (up to an hour)"
    "$uv" pip install --python .venv/bin/python --no-deps --no-build-isolation --requirement requirements/gpu.txt
    touch .venv/.gpu
fi
# What activation does: the stages of `.venv/bin/dvc repro` find this python first, whatever PATH has.
cat >.venv/lib/python3.12/site-packages/nano3_sft_path.pth <<'PTH'
import os, sys; _bin, _path = os.path.join(sys.prefix, "bin"), os.environ.get("PATH", os.defpath); os.environ["PATH"] = _path if _path.split(os.pathsep)[0] == _bin else _bin + os.pathsep + _path
PTH
.venv/bin/python -c 'import torch, transformers, mlflow, dvc.commands.repro, dvc.repo.reproduce, dvc.repo.experiments, sft' ||
    fail ".venv is installed but does not work, see above. Create it again: rm -r .venv && make setup"

echo "$digest" >.venv/.pins
echo "setup: done"
