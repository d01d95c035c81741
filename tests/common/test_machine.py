"""The machine's figures, also where a system lacks the call that gives them."""

import ctypes
import os
import resource
import sys
from types import SimpleNamespace

import pytest

from jaxgpt.common import files, machine


def test_cores_are_those_of_the_affinity_or_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.available_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.available_cores() == 1


def test_memory_without_sysconf(monkeypatch):
    assert machine.memory() > 2**20

    def installed(pointer):
        pointer._obj.value = 8 * 2**20  # KiB

    kernel32 = SimpleNamespace(GetPhysicallyInstalledSystemMemory=installed)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    assert machine.memory() == 8 * 2**30


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_memory() == 5000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory() == 5000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory() is None


def test_a_lock_is_held_by_one_and_released_with_its_file(tmp_path):
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        files.lock(one)
        with pytest.raises(BlockingIOError):
            files.lock(other)
        one.close()
        files.lock(other)


def test_a_lock_without_fcntl(tmp_path, monkeypatch):
    held = set()

    def locking(descriptor, mode, count):
        if held:
            raise PermissionError(13, "Permission denied")
        held.add((mode, count))

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (tmp_path / "lock").open("w") as file:
        files.lock(file)
        assert held == {(2, 1)}
        with pytest.raises(BlockingIOError):
            files.lock(file)
