import os
import sys
import time
from types import SimpleNamespace

import joblib
import numpy as np
import psutil
import pytest

from lib.base import processes

GIB = 2**30


@pytest.mark.parametrize(
    ("tasks", "cores", "free", "expected"),
    [(5, 8, 64, 5), (50, 8, 64, 8), (50, 8, 3.5, 3), (50, 8, 0.5, 1), (0, 8, 64, 1)],
)
def test_tasks_cores_and_free_memory_bound_the_processes(monkeypatch, tasks, cores, free, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    assert processes.count(tasks) == expected


def test_what_each_call_takes_bounds_them_too(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    assert [processes.count(64, of_each) for of_each in (0, 9 * GIB, 200 * GIB)] == [64, 10, 1]


def held(n_bytes):
    """The process's number, after it has taken memory that it keeps."""
    sys.held = np.ones(n_bytes, dtype=np.uint8)
    time.sleep(1.1)  # loky looks once a second
    return os.getpid()


def test_a_process_that_keeps_memory_stays(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda *_: 2)  # of one, joblib makes no process
    calls = [joblib.delayed(held)(n) for n in [1, 1, *[400 * 10**6] * 4]]
    numbers = list(processes.parallel(len(calls))(calls))
    assert os.getpid() not in numbers and len(set(numbers)) <= 2
