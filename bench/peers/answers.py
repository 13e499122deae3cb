"""How a peer talks to the benchmark: it says "ready", then answers every line of input with the seconds of one call."""

import os
import sys
import time
from collections.abc import Callable

# Native code of some peers prints to standard output, which belongs to the answers: it goes to standard error.
_answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def answer(call: Callable[..., object], clock: Callable[[], float] = time.perf_counter) -> None:
    """Calls `call` with the integers of every line and answers with the seconds that it took by `clock`."""
    print("ready", file=_answers)
    for line in sys.stdin:
        numbers = [int(word) for word in line.split()]
        begin = clock()
        call(*numbers)
        print(clock() - begin, file=_answers)
