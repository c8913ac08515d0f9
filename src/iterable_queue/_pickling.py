"""How items cross to other processes, and which processes are being started meanwhile."""

from __future__ import annotations

import copyreg
import io
import marshal
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

from iterable_queue._channel import PICKLED

MARSHALLED: Final[frozenset[type]] = frozenset((int, float, bool, type(None), str))
"""Types of which `marshal` makes bytes in half the time that `pickle` takes."""

PACKAGES: Final = ("multiprocessing", "multiprocess", "billiard")
"""Packages that start processes in multiprocessing's way."""


def plain_types(package: str) -> frozenset[type]:
    """The types for which `marshal.dumps` may be called instead of what `pickling` returns."""
    return MARSHALLED if issubclass(_pickler(package), pickle.Pickler) else frozenset()


def _pickler(package: str) -> Any:
    pickler: Any = None
    parts = package.split(".")
    for name in (package, parts[0]):
        module = sys.modules.get(f"{name}.reduction")
        pickler = pickler or getattr(module, "ForkingPickler", None)
    if pickler is None:
        from multiprocessing.reduction import ForkingPickler

        pickler = ForkingPickler
    return pickler


def pickling(package: str) -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """How items are pickled and unpickled: as *package* pickles what it sends to processes."""
    pickler = _pickler(package)
    unpickle = getattr(pickler, "loads", pickle.loads)
    if not issubclass(pickler, pickle.Pickler):
        return lambda item: bytes(pickler.dumps(item)), unpickle

    def loads(data: bytes) -> Any:
        return unpickle(data) if data[0] == PICKLED else marshal.loads(data)

    return _reusing(pickler), loads


def _reusing(pickler: Any) -> Callable[[Any], bytes]:
    """`dumps` by the C pickler *pickler*, which is made anew only for a call inside a call."""
    spare: list[tuple[Any, io.BytesIO]] = []
    dumps = pickle.dumps
    protocol = pickle.HIGHEST_PROTOCOL
    reducers = 0

    def dump(item: Any) -> bytes:
        # No reducer is ever asked for these.
        if type(item) in MARSHALLED:
            return marshal.dumps(item)
        if type(item) is bytes:
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
