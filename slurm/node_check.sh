#!/usr/bin/env bash
# Check that this node can train, before a model is loaded: one line per check, exit status 1 at the first that fails.
# The job's script runs it on every node, inside the container if there is one. Variables: see train.sbatch.
set -euo pipefail

fail() {
    echo "error: $(hostname): $*"
    exit 1
}

[[ -d "$SFT_RUN/code" ]] ||
    fail "$SFT_RUN: not found. Put the project on a file system that all nodes share and have mounted"

free=$(($(df --output=avail -k "$SFT_RUN" | tail -n 1) / 1000000))
((free >= SFT_MIN_FREE_GB)) || fail "$free GB free for $SFT_RUN, expected $SFT_MIN_FREE_GB (min_free_gb)"
echo "disk: $free GB free"

# Compare the clock of this node with that of the shared file system.
mark=$(mktemp "$SFT_RUN/logs/.clock-XXXXXX") || fail "cannot write to $SFT_RUN/logs"
skew=$(($(date +%s) - $(stat --format=%Y "$mark")))
rm -f "$mark"
((skew >= -60 && skew <= 60)) || fail "the clocks of the node and of the file system differ by $skew s"
echo "clock: differs by $skew s"

if ((SFT_GPUS_PER_NODE > 0)); then
    gpus=$(nvidia-smi --list-gpus | wc -l) || fail "nvidia-smi does not work"
    ((gpus >= SFT_GPUS_PER_NODE)) || fail "$gpus GPUs, expected $SFT_GPUS_PER_NODE"
    # The server of MPS holds a little memory on every GPU that it serves.
    busy=$(nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv,noheader |
        sed '/nvidia-cuda-mps-server/d' | tr '\n' ';')
    [[ -z "$busy" ]] || fail "GPUs in use: $busy"
    echo "GPUs: $gpus, idle"
fi

# Package versions are part of the lineage key; `packages` of the cluster file says whether others are accepted.
PYTHONPATH=$SFT_CODE/src "$SFT_PYTHON" -m sft.cluster.node_packages || fail "packages"

# Nodes that cannot run a collective would wait for each other until the time limit.
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
