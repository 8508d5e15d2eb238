"""Independent calls on all cores, in joblib's processes. Each imports torch, so memory bounds their number too."""

import joblib
import psutil

PROCESS_BYTES = 2**30  # what one takes, imports and its share of the data


def count(tasks: int, of_each: int = 0) -> int:
    """Processes for ``tasks`` calls: at most one for each and for each core, and as many as free memory holds.

    One takes a GiB and ``of_each`` bytes.
    """
    room = psutil.virtual_memory().available // (PROCESS_BYTES + of_each)
    return max(1, min(tasks, joblib.cpu_count(), int(room)))


def parallel(tasks: int, of_each: int = 0) -> joblib.Parallel:
    """joblib's loop over ``tasks`` delayed calls of this project; results come one by one, in the order of the calls.

    Large arrays are mapped, not copied. The processes are not those of scikit-learn's searches (whose ``mmap_mode``
    differs), which have no torch yet: loky would take that import for a memory leak, and start them anew.
    """
    return joblib.Parallel(count(tasks, of_each), return_as="generator", mmap_mode="c")
