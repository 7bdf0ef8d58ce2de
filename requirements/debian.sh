#!/usr/bin/env bash
# Install the Debian packages of debian.txt that are missing; nothing where none is. `make slurm-up` and CI call this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

mapfile -t packages < <(grep -v '^#' requirements/debian.txt)
type -P dpkg-query apt-get >/dev/null ||
    fail "this is no Debian or Ubuntu: install by hand what is called there ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

sudo=()
[[ $EUID == 0 ]] || sudo=(sudo -n)
echo "setup: installing ${missing[*]} (requirements/debian.txt)"
# Another apt may be at work: waited for. No service is started (RUNLEVEL): daemons are started by whoever needs them.
apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300)
for attempt in 1 2 3; do
    "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null && exit 0
    sleep "$attempt"
done
fail "could not install ${missing[*]}. Install them: sudo apt-get install ${missing[*]}"
