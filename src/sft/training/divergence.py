"""Divergence: a loss that is no number, or a spike, ends a training with one message that names the packs of the step.

Bridge's own checks raise in the middle of a step, on one rank, and name a rank, a device and a number. Its settings
are used (params: bridge.rerun_state_machine); its checks are turned off, because these look at the whole step, on every
rank alike, before a checkpoint is saved. The last checkpoint is thus from before the divergence.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

HISTORY = 20
"""Steps whose mean loss a spike is compared with; there is no spike before as many."""
SHOWN_PACKS = 4
SHOWN_CONVERSATIONS = 6  # of each pack


class Watch:
    """Looks at each step's loss and norm of the gradient, and keeps how its packs begin."""

    def __init__(self, settings: Any, earlier: Iterable[float] = ()) -> None:
        """Take over from Bridge: read its RerunStateMachineConfig, and turn its checks off.

        `earlier`: losses of the steps before a resume, so that it ends where an unbroken run does.
        """
        self._finite = bool(settings.check_for_nan_in_loss)
        self._factor = float(settings.spiky_loss_factor) if settings.check_for_spiky_loss else math.inf
        settings.check_for_nan_in_loss = settings.check_for_spiky_loss = False
        self._recent: deque[float] = deque(maxlen=HISTORY)
        self._largest = 0.0
        self._seen: list[npt.NDArray[np.int32]] = []
        for loss in earlier:
            self._add(loss)

    def begin_step(self) -> None:
        """Forget the packs of the step before."""
        self._seen.clear()

    def see(self, batch: dict[str, Any]) -> None:
        """Keep the token ids of the first sample of each pack: tokens (packs, T), cu_seqlens_q (packs, samples + 1)."""
        for tokens, ends in zip(batch["tokens"], batch["cu_seqlens_q"], strict=True):
            self._seen.append(tokens[: int(ends[1])].numpy().astype(np.int32))

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """Return what is wrong with a step, None: nothing."""
        if self._finite and not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"the loss is {loss:.4g} and the norm of the gradient {grad_norm:.4g}"
        if len(self._recent) == HISTORY:
            mean = sum(self._recent) / HISTORY
            if loss > self._factor * mean and loss > self._largest:
                return (
                    f"the loss is {loss:.4g}, more than {self._factor:g} times its mean over the last {HISTORY} steps, "
                    f"{mean:.4g}, and more than in any step before"
                )
        self._add(loss)
        return None

    def _add(self, loss: float) -> None:
        self._recent.append(loss)
        self._largest = max(self._largest, loss)

    def seen(self) -> list[npt.NDArray[np.int32]]:
        """Return how the packs begin that this rank saw in the step."""
        return self._seen


def find_packs(packed: Path, seen: Sequence[npt.NDArray[np.int32]]) -> list[str]:
    """Return a line for each pack of training/ that begins like one that was seen; reads all, so only for a failure.

    `packed`: folder with training/*.parquet. Bridge gives each sample without its last token.
    """
    wanted = {tokens.tobytes() for tokens in seen}
    lengths = {len(tokens) for tokens in seen}
    found, number = [], 0
    for shard in sorted((packed / "training").glob("*.parquet")):
        for rows in pq.ParquetFile(shard).iter_batches(batch_size=256):
            for row in range(rows.num_rows):
                ids, starts = (rows[name][row].values.to_numpy() for name in ("input_ids", "seq_start_id"))
                first = ids[: starts[1] if len(starts) > 1 else None].astype(np.int32)
                if any(first[:length].tobytes() in wanted for length in lengths if length <= len(first)):
                    found.append(_describe(number, rows, row))
                number += 1
    return found


def message(step: int, fault: str, packs: Sequence[str], saved: int | None) -> str:
    """Return the one message of a training that ended by a divergence; `saved`: step of the last checkpoint."""
    more = f"\n  and {len(packs) - SHOWN_PACKS} more" if len(packs) > SHOWN_PACKS else ""
    listed = "".join(f"\n  {line}" for line in packs[:SHOWN_PACKS]) + more
    kept = "There is no checkpoint." if saved is None else f"The last checkpoint is of step {saved}, before it."
    return (
        f"step {step}: {fault}. {kept} The packs of this step:{listed or ' not found'}\n"
        "Look at them (make show PACK=<number>), then lower optimizer.lr or optimizer.clip_grad, or raise "
        "scheduler.lr_warmup_iters. The same params would end at the same step again. To train on in spite of it: "
        "bridge.rerun_state_machine.check_for_spiky_loss: false (a spike), .check_for_nan_in_loss: false (no number)."
    )


def _describe(number: int, rows: Any, row: int) -> str:
    if "conversation_id" not in rows.schema.names:
        return f"pack {number}"
    names = dict.fromkeys(zip(rows["source"][row].as_py(), rows["conversation_id"][row].as_py(), strict=True))
    shown = ", ".join(f"{source} {identity[:12]}" for source, identity in list(names)[:SHOWN_CONVERSATIONS])
    return f"pack {number}: {shown}" + (
        f" and {len(names) - SHOWN_CONVERSATIONS} more" if len(names) > SHOWN_CONVERSATIONS else ""
    )
