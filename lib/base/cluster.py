"""Several workers: Ray actors on this machine or on a cluster, each with its own model or kernel.

Ray is an extra that ``make sweep`` and ``WORKERS=n`` install. The environment says how many and where: ``WORKERS``
(default 1), ``CLUSTER`` (local | auto | an address such as ray://host:10001), ``GPUS`` for each worker. On a cluster
the project and its ``.venv`` lie at the same path on every machine.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lib.base.files import ROOT, cause

LOCAL = "local"
RESTARTS = 3  # of a worker that died, for one item

Work = Callable[[Any], Any]


def workers(default: int = 1) -> int:
    """``WORKERS`` of the environment.

    Raises:
        ValueError: not a positive whole number.
    """
    text = os.environ.get("WORKERS") or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"WORKERS={text!r} must be a whole number of at least 1")
    return int(text)


def gpus() -> float:
    """``GPUS`` of the environment for each worker; by default 1 if torch sees a GPU here.

    Raises:
        ValueError: not a number.
    """
    import torch

    text = os.environ.get("GPUS") or str(int(torch.cuda.is_available()))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"GPUS={text!r} must be a number, such as 1 or 0.5") from None


def is_local() -> bool:
    """Whether ``CLUSTER`` of the environment is this machine."""
    return (os.environ.get("CLUSTER") or LOCAL) == LOCAL


def start(n: int) -> None:
    """Connect to ``CLUSTER`` of the environment, or begin a local one with ``n`` workers; once per process.

    Raises:
        ValueError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "several workers need Ray, an extra: pip install -r requirements-sweep.lock "
            "(make sweep and make reproduce WORKERS=2 do it)"
        ) from error
    if ray.is_initialized():
        return
    cluster = os.environ.get("CLUSTER") or LOCAL
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # What matters is raised here as well.
    cores = os.cpu_count() or 1
    where = {"num_cpus": max(n, cores), "include_dashboard": False} if is_local() else {"address": cluster}
    # Each of joblib's processes imports everything, so the workers share the cores among them.
    variables = {"PYTHONPATH": str(ROOT), "WORKERS": "1", "LOKY_MAX_CPU_COUNT": str(max(1, cores // n))}
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": variables})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"the cluster {cluster!r} cannot be reached ({cause(error)}); CLUSTER is local, auto, or an address"
        ) from error


class Pool:
    """``n`` workers, each of which makes its own ``work`` (a function of one item) once and keeps it.

    A worker that dies is begun again, and repeats the item that it had. There are fewer if the cluster has no room for
    ``n`` now.

    Raises:
        ValueError: no Ray, no cluster, or no room for a single worker.
    """

    def __init__(self, make_work: Callable[[], Work], n: int, cpus: int = 1, gpus: float = 0):
        start(n)
        import ray

        resources = {"CPU": 0, "GPU": 0} | ray.cluster_resources()
        room = min(int(resources[name] / need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need)
        if room < 1:
            raise ValueError(
                f"a worker takes {cpus} CPU and {gpus:g} GPU, the cluster has {resources['CPU']:g} and "
                f"{resources['GPU']:g}; set GPUS, such as GPUS=0"
            )
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=RESTARTS)(_Worker)
        self.shared = ray.put(make_work)  # held here, so that a worker can be begun again
        self.actors = [actor.remote(self.shared) for _ in range(min(n, room))]

    def each(self, take: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
        """(item, its result or exception) in the order in which they are done.

        ``take`` gives the next item that may begin, None if there is none now.
        """
        import ray

        idle, busy = list(self.actors), {}
        while True:
            while idle and (item := take()) is not None:
                worker = idle.pop()
                busy[worker.do.remote(item)] = item, worker
            if not busy:
                return
            for done in ray.wait(list(busy))[0]:
                item, worker = busy.pop(done)
                idle.append(worker)
                yield item, _result(done)

    def close(self) -> None:
        """End the workers, whatever they do."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


class _Worker:
    def __init__(self, make_work: Callable[[], Work]):
        self.work = make_work()

    def do(self, item: Any) -> Any:
        """The work on one item."""
        return self.work(item)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return ValueError(f"a worker died {RESTARTS + 1} times at it ({type(error).__name__}); is memory short?")


def each(work: Work, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, ``work(item)``) from :func:`workers`, in the order in which they are done; the first exception ends it."""
    n, waiting = workers(), iter(items)
    pool = Pool(lambda: work, n, max(1, (os.cpu_count() or 1) // n), gpus())
    try:
        for item, result in pool.each(lambda: next(waiting, None)):
            if isinstance(result, Exception):
                raise result
            yield item, result
    finally:
        pool.close()
