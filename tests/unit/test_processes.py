from types import SimpleNamespace

import joblib
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
