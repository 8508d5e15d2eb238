"""Independent calls on all cores, in joblib's processes. Each imports torch, so memory bounds their number too."""

import sys

import joblib
import psutil
from joblib.externals.loky import process_executor

PROCESS_BYTES = 2**30  # what one takes, imports and its share of the data


def count(tasks: int, of_each: int = 0) -> int:
    """Processes for ``tasks`` calls: at most one for each and for each core, and as many as free memory holds.

    One takes a GiB and ``of_each`` bytes.
    """
    room = psutil.virtual_memory().available // (PROCESS_BYTES + of_each)
    return max(1, min(tasks, joblib.cpu_count(), int(room)))


def parallel(tasks: int, of_each: int = 0) -> joblib.Parallel:
    """joblib's loop over ``tasks`` delayed calls of this project; results come one by one, in the order of the calls.

    Large arrays are mapped, not copied. The processes are not those of scikit-learn's searches, whose ``mmap_mode``
    differs. They stay until nobody needs them, though loky would end one that holds 300 MB more after a call than after
    its first, as a leak: here that is an import of torch, or memory that glibc keeps for the next call (Makefile).
    """
    return joblib.Parallel(count(tasks, of_each), return_as="generator", mmap_mode="c", initializer=_stay)


def _stay() -> None:
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
