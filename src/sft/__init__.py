"""nano3-sft: chat data to a fine-tuned, evaluated and registered model, in six stages."""

import os
import signal
import sys
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """End this process for a signal that comes before there is anything to clean up."""
    os.write(2, f"error: ended by {signal.Signals(number).name}. Nothing was begun.\n".encode())
    os._exit(128 + number)


if sys.argv[:1] == ["-m"]:  # Python looks for a program of this package, and imports for seconds; then see sft.cli
    for _number in STOPPING:
        if signal.getsignal(_number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores one
            signal.signal(_number, end_at_once)
