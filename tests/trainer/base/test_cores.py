"""Cores that a run may use, and how many processes load images."""

from __future__ import annotations

import os

import pytest

from trainer.base import cgroup, cores


@pytest.mark.parametrize(
    ("affine", "quota", "expected"), [(8, None, 8), (64, 2.0, 2), (2, 8.0, 2), (4, 0.5, 1), (8, 2.5, 2)]
)
def test_cores_are_what_the_container_has(
    monkeypatch: pytest.MonkeyPatch, affine: int, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affine)), raising=False)
    monkeypatch.setattr(cgroup, "cpu_limit", lambda: quota)
    assert cores.available() == expected


@pytest.mark.parametrize(
    ("device", "have", "devices", "expected"),
    [
        ("cuda", 16, 1, 15),
        ("cuda", 64, 1, 16),
        ("cuda", 16, 4, 3),
        ("cuda", 1, 1, 1),
        ("mps", 10, 1, 9),
        ("cpu", 2, 1, 1),
        ("cpu", 32, 1, 4),
    ],
)
def test_the_cpu_loads_beside_a_gpu_and_trains_without_one(
    monkeypatch: pytest.MonkeyPatch, device: str, have: int, devices: int, expected: int
) -> None:
    monkeypatch.setattr(cores, "available", lambda: have)
    assert cores.workers(None, device, devices) == expected
    assert cores.workers(0, device, devices) == 0 and cores.workers(3, device, devices) == 3
