"""Independent calls on all cores, in joblib's processes. Each imports torch, so memory bounds their number too."""

import joblib
import psutil

PROCESS_BYTES = 2**30  # what one takes, imports and its share of the data


def count(tasks: int) -> int:
    """Processes for ``tasks`` calls: at most one for each, for each core and for each free GiB."""
    return max(1, min(tasks, joblib.cpu_count(), int(psutil.virtual_memory().available // PROCESS_BYTES)))


def parallel(tasks: int) -> joblib.Parallel:
    """joblib's loop over ``tasks`` delayed calls of this project; results come one by one, in the order of the calls.

    Large arrays are mapped, not copied. The processes are not those of scikit-learn's searches (whose ``mmap_mode``
    differs), which have no torch yet: loky would take that import for a memory leak, and start them anew.
    """
    return joblib.Parallel(count(tasks), return_as="generator", mmap_mode="c")
