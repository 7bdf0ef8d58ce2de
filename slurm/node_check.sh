#!/usr/bin/env bash
# Is this node fit to train? One line per check; ends with 1 on the first that fails, before a model is loaded.
# Called by the job's script on every node, inside the container where there is one; see there for the variables.
set -euo pipefail

fail() {
    echo "error: $(hostname): $*"
    exit 1
}

[[ -d "$SFT_RUN/code" ]] ||
    fail "$SFT_RUN is not there: the run's folder must be on a file system that all nodes share, and have mounted"

free=$(($(df --output=avail -k "$SFT_RUN" | tail -n 1) / 1000000))
((free >= SFT_FREE_GB)) || fail "$free GB free for $SFT_RUN, wanted $SFT_FREE_GB (profile: free_gb)"
echo "disk: $free GB free"

# The file system's clock is the one that all nodes see.
mark=$(mktemp "$SFT_RUN/logs/.clock-XXXXXX") || fail "cannot write to $SFT_RUN/logs"
skew=$(($(date +%s) - $(stat --format=%Y "$mark")))
rm -f "$mark"
((skew >= -60 && skew <= 60)) || fail "its clock and the file system's are $skew s apart"
echo "clock: $skew s off"

if ((SFT_GPUS_PER_NODE > 0)); then
    gpus=$(nvidia-smi --list-gpus | wc -l) || fail "nvidia-smi does not work"
    ((gpus >= SFT_GPUS_PER_NODE)) || fail "$gpus GPUs, wanted $SFT_GPUS_PER_NODE"
    busy=$(nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader | tr '\n' ';')
    [[ -z "$busy" ]] || fail "its GPUs are in use: $busy"
    echo "GPUs: $gpus, idle"
fi

# Versions decide the model, so they are part of the lineage key; what follows a + is the build (cpu, cu130).
"$SFT_PYTHON" - "$SFT_CODE/packages.txt" <<'PYTHON' || fail "its packages are not those of the lineage key"
import importlib.metadata, sys

wrong = 0
for line in open(sys.argv[1], encoding="utf-8"):
    name, _, wanted = line.strip().partition("==")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found.partition("+")[0] != wanted.partition("+")[0]:
        wrong = 1
        print(f"error: {name} is {found}, wanted {wanted}")
sys.exit(wrong)
PYTHON
echo "packages: as pinned"

# Nodes that cannot add numbers together would wait for each other until the time limit.
if ((SLURM_NNODES > 1)) && [[ -n "${MASTER_ADDR:-}" ]]; then
    RANK=$SLURM_NODEID WORLD_SIZE=$SLURM_NNODES timeout 300 "$SFT_PYTHON" - <<'PYTHON' || fail "no all-reduce across nodes"
import datetime, os, time, torch, torch.distributed as dist

on_gpu = int(os.environ["SFT_GPUS_PER_NODE"]) > 0
dist.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=60))
numbers = torch.full((1 << 20,), float(dist.get_rank() + 1), device="cuda:0" if on_gpu else "cpu")
dist.all_reduce(numbers)
start = time.perf_counter()
dist.all_reduce(numbers)
expected = dist.get_world_size() * (dist.get_world_size() + 1) / 2 * dist.get_world_size()
if not bool((numbers == expected).all()):
    raise SystemExit(f"error: the sum is {numbers[0].item()}, expected {expected}")
print(f"all-reduce: 4 MB over {dist.get_world_size()} nodes in {(time.perf_counter() - start) * 1000:.1f} ms")
dist.destroy_process_group()
PYTHON
fi
