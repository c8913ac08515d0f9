"""How items cross to other processes, and which processes are being started meanwhile."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

PACKAGES: Final = ("multiprocessing", "multiprocess", "billiard")
"""Packages that start processes in multiprocessing's way."""


def pickling(package: str) -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """How items are pickled and unpickled: as *package* pickles what it sends to processes."""
    pickler: Any = None
    parts = package.split(".")
    for name in (package, parts[0]):
        module = sys.modules.get(f"{name}.reduction")
        pickler = pickler or getattr(module, "ForkingPickler", None)
    if pickler is None:
        from multiprocessing.reduction import ForkingPickler

        pickler = ForkingPickler
    loads = getattr(pickler, "loads", pickle.loads)
    if not issubclass(pickler, pickle.Pickler):
        return lambda item: bytes(pickler.dumps(item)), loads
    return _reusing(pickler), loads


def _reusing(pickler: Any) -> Callable[[Any], bytes]:
    """`dumps` by the C pickler *pickler*, which is made anew only for a call inside a call."""
    spare: list[tuple[Any, io.BytesIO]] = []
    plain = {int, str, bytes, float, bool, type(None)}
    dumps = pickle.dumps
    protocol = pickle.HIGHEST_PROTOCOL
    reducers = 0

    def dump(item: Any) -> bytes:
        if type(item) in plain:  # no reducer is ever asked for these
            return dumps(item, protocol)
        nonlocal reducers
        if reducers != (reducers := len(pickler._extra_reducers) + len(copyreg.dispatch_table)):
            spare.clear()  # those that are made copied the reducers of then
        if spare:
            engine, buffer = spare.pop()
        else:
            buffer = io.BytesIO()
            engine = pickler(buffer, protocol)
        engine.dump(item)
        payload = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        engine.clear_memo()
        spare.append((engine, buffer))
        return payload

    return dump


def spawning_popen() -> Any:
    """The Popen object of the process that is being started in this thread by spawn, or None."""
    for name in PACKAGES:
        module = sys.modules.get(f"{name}.context")
        if module is not None:
            popen = module.get_spawning_popen()
            if popen is not None:
                return popen
    return None
