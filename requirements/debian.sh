#!/usr/bin/env bash
# Install the Debian packages of debian.txt that are missing. `make slurm-up` and CI call this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

mapfile -t packages < <(grep -v '^#' requirements/debian.txt)
type -P dpkg-query apt-get >/dev/null ||
    fail "not Debian or Ubuntu. Install by hand: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

sudo=()
[[ $EUID == 0 ]] || sudo=(sudo -n)
echo "setup: installing ${missing[*]} (requirements/debian.txt)"
# Wait for another apt that is running. Start no service (RUNLEVEL): the scripts that need a daemon start it.
apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300)
for attempt in 1 2 3; do
    "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null && exit 0
    sleep "$attempt"
done
fail "could not install ${missing[*]}. Run: sudo apt-get install ${missing[*]}"
