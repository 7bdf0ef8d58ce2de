"""Compare training speed: Megatron-Bridge as the train stage runs it, against a plain transformers loop.

    PYTHONPATH=src:. python -m bench.peers.training [--steps 6] [--rounds 5]    where `dvc repro pack` has run

Both train models/base in fp32 on the same packs of data/packed, with one thread per core, clipped AdamW and samples
separated by position. Each measure runs in its own process, the two sides in turn. Prints tokens per second after the
first two steps, peak memory, and the ratio.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

BASE, PACKED = Path("models/base"), Path("data/packed")
WARM_UP_STEPS = 2


def run_bridge(steps: int) -> list[tuple[int, float]]:
    """Train with sft.training.bridge; return (tokens, seconds) of each step."""
    from sft.files import read_json
    from sft.params.check import read
    from sft.params.training import TrainParams
    from sft.training import bridge

    sections = read().training.model_dump()
    sections["train"]["train_iters"] = steps
    sections["validation"]["eval_iters"] = 0
    sections["scheduler"]["lr_warmup_iters"] = 1
    sections["checkpoint"]["save_interval"] = 10_000
    steps_done = []
    start = Path("runs/bench/base").absolute()
    bridge.import_base(base=BASE.absolute(), checkpoint=start)
    with tempfile.TemporaryDirectory() as folder:
        bridge.train(
            base=BASE.absolute(),
            start=start,
            packed=PACKED.absolute(),
            run=Path(folder),
            params=TrainParams.model_validate(sections),
            pack_size=read_json(PACKED / "metadata.json")["pack_size"],
            on_step=lambda step: steps_done.append((step.tokens, step.seconds)),
            on_validation=lambda *values: None,
        )
    return steps_done


def run_transformers(steps: int) -> list[tuple[int, float]]:
    """Train with a hand-written transformers loop; return (tokens, seconds) of each step."""
    import torch
    from transformers import AutoModelForCausalLM

    from sft.parquet import read_rows

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
    steps_done = []
    for pack, _ in zip(read_rows(PACKED / "training"), range(steps), strict=False):
        began = time.perf_counter()
        ids = torch.tensor([pack["input_ids"]])
        edges = [*pack["seq_start_id"], ids.shape[1]]
        positions = torch.cat([torch.arange(end - start) for start, end in pairwise(edges)])[None]
        trained = torch.tensor(pack["loss_mask"], dtype=torch.bool)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        targets = ids[0].roll(-1)
        loss = torch.nn.functional.cross_entropy(logits[trained], targets[trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps_done.append((ids.shape[1], time.perf_counter() - began))
    return steps_done


SIDES = {"bridge": run_bridge, "transformers": run_transformers}


def main() -> None:
    """Run both sides in turn and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        steps = SIDES[args.side](args.steps)[WARM_UP_STEPS:]
        speed = sum(tokens for tokens, _ in steps) / sum(seconds for _, seconds in steps)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"tokens_per_second": speed, "gib": memory}))
        return
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    memory = dict.fromkeys(SIDES, 0.0)
    for number in range(args.rounds):
        for side in SIDES:
            command = [sys.executable, "-m", "bench.peers.training", "--side", side, "--steps", str(args.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            speeds[side].append(result["tokens_per_second"])
            memory[side] = max(memory[side], result["gib"])
            print(f"round {number + 1} {side}: {result['tokens_per_second']:.0f} tokens/s, {result['gib']:.1f} GiB")
    for side in SIDES:
        low, high = min(speeds[side]), max(speeds[side])
        print(
            f"{side:14} {statistics.median(speeds[side]):6.0f} tokens/s [{low:.0f} .. {high:.0f}]  "
            f"peak {memory[side]:.1f} GiB"
        )
    ratios = [ours / theirs for ours, theirs in zip(speeds["bridge"], speeds["transformers"], strict=True)]
    print(f"bridge / transformers: {statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
