"""Where cells may be shared without a lock, and the fence for it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from iterable_queue import _fence


def test_it_is_supported_where_it_was_tried() -> None:
    """So that what is skipped where it is not is never skipped there without a word."""
    here = (sys.implementation.name, sys.platform, os.uname().machine)
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    assert _fence.is_supported() == (here == ("cpython", "linux", "x86_64") and not free_threaded)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys, "implementation", SimpleNamespace(name="pypy")),
        (sys, "platform", "darwin"),
        (sys, "_is_gil_enabled", lambda: False),
        (os, "uname", lambda: SimpleNamespace(machine="aarch64")),
    ],
)
def test_it_is_not_supported_elsewhere(
    owner: object, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value, raising=False)
    assert not _fence.is_supported()


def test_a_fence_is_renewed_before_it_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fence, "_MOST", 10)
    fences = _fence.Fences()
    first = fences.full
    for _ in range(10):
        fences.renew()()
    assert fences.full == first
    fences.full()
    assert fences.renew() != first
