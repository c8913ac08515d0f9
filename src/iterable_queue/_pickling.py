"""How items cross to other processes, and which processes are being started meanwhile."""

from __future__ import annotations

import copyreg
import io
import marshal
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from iterable_queue._channel import PICKLED, Parts

MARSHALLED: Final[frozenset[type]] = frozenset((int, float, bool, type(None), str))
"""Types of which `marshal` makes bytes in half the time that `pickle` takes."""

APART: Final = 0xFF
"""The second byte of what `put_together` makes, after PICKLED: no protocol has that number."""
APART_LEAST: Final = 1 << 16
"""Smaller buffers go with the pickle, in bytes: what is saved would be less than what it costs."""
ALIGNED: Final = 16
"""Buffers begin at multiples of so many bytes, as whatever `malloc` returns does."""

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
        if data[0] != PICKLED:
            return marshal.loads(data)
        if data[1] != APART:
            return unpickle(data)
        pickled, buffers = take_apart(data)
        return pickle.loads(pickled, buffers=buffers)

    return _reusing(pickler, apart=False), loads


def pickling_apart(package: str) -> Callable[[Any], bytes | Parts]:
    """The same `dumps` for who copies what it returns at once, and `loads` that.

    It may leave large buffers where they are, by protocol 5 (PEP 574).
    """
    pickler = _pickler(package)
    if not issubclass(pickler, pickle.Pickler):
        return pickling(package)[0]
    return _reusing(pickler, apart=True)


def _reusing(pickler: Any, *, apart: bool) -> Callable[[Any], Any]:
    """`dumps` by the C pickler *pickler*, which is made anew only for a call inside a call."""
    spare: list[tuple[Any, io.BytesIO, list[memoryview]]] = []
    dumps = pickle.dumps
    protocol = pickle.HIGHEST_PROTOCOL
    reducers = 0

    def dump(item: Any) -> bytes | Parts:
        # No reducer is ever asked for these.
        if type(item) in MARSHALLED:
            return marshal.dumps(item)
        if type(item) is bytes:
            return dumps(item, protocol)
        nonlocal reducers
        if reducers != (reducers := len(pickler._extra_reducers) + len(copyreg.dispatch_table)):
            spare.clear()  # those that are made copied the reducers of then
        if spare:
            engine, buffer, left = spare.pop()
        else:
            buffer = io.BytesIO()
            left = list[memoryview]()
            engine = pickler(buffer, protocol, True, *((_leaving(left),) if apart else ()))
        engine.dump(item)
        payload: bytes | Parts = buffer.getvalue()
        if left:
            payload = put_together(buffer.getvalue(), left)
            left.clear()
        buffer.seek(0)
        buffer.truncate()
        engine.clear_memo()
        spare.append((engine, buffer, left))
        return payload

    return dump


def _leaving(left: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """A pickler's `buffer_callback` that gathers what it leaves apart: buffers worth it."""

    def callback(buffer: pickle.PickleBuffer) -> bool:
        """True: it goes with the rest."""
        try:
            view = buffer.raw()
        except BufferError:
            return True  # it is in several pieces; the pickler says so
        if len(view) < APART_LEAST:
            return True
        left.append(view)
        return False

    return callback


def put_together(pickled: bytes, buffers: list[memoryview]) -> Parts:
    """One payload: a head, the pickle, and the buffers that it refers to, each aligned.

    The head has 8-byte integers: a mark that no pickle begins with, the number of buffers, the
    sizes of the pickle and of each buffer.
    """
    sizes = [len(pickled), *map(len, buffers)]
    head = struct.pack(f"=BB6xq{len(sizes)}q", PICKLED, APART, len(buffers), *sizes)
    at = len(head)
    parts: list[tuple[int, Any]] = [(0, head), (at, pickled)]
    at += len(pickled)
    for buffer in buffers:
        at = -(-at // ALIGNED) * ALIGNED
        parts.append((at, buffer))
        at += len(buffer)
    return Parts(at, parts)


def take_apart(data: Any) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers in what `put_together` has made; the buffers are not copied."""
    view = memoryview(data)
    (count,) = struct.unpack_from("=q", view, 8)
    size, *sizes = struct.unpack_from(f"={count + 1}q", view, 16)
    at = 24 + 8 * count
    pickled = view[at : at + size]
    at += size
    buffers: list[memoryview] = []
    for size in sizes:
        at = -(-at // ALIGNED) * ALIGNED
        buffers.append(view[at : at + size])
        at += size
    return pickled, buffers


def spawning_popen() -> Any:
    """The Popen object of the process that is being started in this thread by spawn, or None."""
    for name in PACKAGES:
        module = sys.modules.get(f"{name}.context")
        if module is not None:
            popen = module.get_spawning_popen()
            if popen is not None:
                return popen
    return None
