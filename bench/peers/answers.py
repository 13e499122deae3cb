"""How a peer talks to the benchmark: it says "ready", then answers every line of input with the CPU seconds of one call."""

import os
import sys
import time
from collections.abc import Callable

# Native code of some peers prints to standard output, which belongs to the answers: it goes to standard error.
_answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(call: Callable[..., object]) -> None:
    """Calls `call` with the integers of every line and answers with the CPU time of the process that it took."""
    print("ready", file=_answers)
    for line in sys.stdin:
        numbers = [int(word) for word in line.split()]
        begin = time.process_time()
        call(*numbers)
        print(time.process_time() - begin, file=_answers)
