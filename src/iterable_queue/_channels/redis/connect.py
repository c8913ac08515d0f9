"""How a process comes to its part in a queue: `connect`, by a name, and `attach`, by a pickle.

It has one part in each queue, however many of its endpoints it holds: one connection for calls, one
thread that listens, and one client whose death the server notes.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from iterable_queue import _forks
from iterable_queue._channels.redis.core import ANY, RedisCore
from iterable_queue._channels.redis.settings import Address, Options, Settings
from iterable_queue._core import unpickled
from iterable_queue._errors import ChannelBroken

_attached: weakref.WeakValueDictionary[tuple[str, str], RedisCore] = weakref.WeakValueDictionary()
"""By server and name: one part in a queue for each process, however many endpoints it holds."""


def _place(settings: Settings) -> tuple[str, str]:
    source = settings.source
    return (source if isinstance(source, str) else f"function {source!r}", settings.name)


def connect(
    settings: Settings, options: Options, site: str, *, create: bool
) -> tuple[RedisCore, bool]:
    """Take part in the queue of that name, and whether this has made it."""
    place = _place(settings)
    core = _attached.get(place)
    if core is not None and core.can_go_on():
        try:
            core.check_here()  # in a forked child, to join by itself is a transition of its own
            core.transact(core.join_again, settings, options)
            return core, False
        except ChannelBroken:
            if core.can_go_on():
                raise
            # It was taken for dead, or the queue is another one by now: once more, from the start.
    core = RedisCore(settings, options, "" if create else ANY, site)
    try:
        with core.runtime.lock:
            core.ledger.transact(core.join, handle=True)
    except BaseException:
        core.abandon()
        raise
    _attached[place] = core
    return core, core.made


def attach(
    address: Address, kind: int, number: int, generation: int, heir: int, duplicate: Any
) -> object:
    """Unpickle an endpoint or a queue: take part, and take the endpoint. Never raises."""
    fd = None if duplicate is None else duplicate.detach()
    return unpickled(partial(_attach, address, heir, fd), "", kind, number, number, generation)


def _attach(address: Address, heir: int, fd: int | None) -> RedisCore:
    with _forks.still():
        place = _place(address.settings)
        core = _attached.get(place)
        if core is None or not core.can_go_on() or core.address.id != address.id:
            core = RedisCore(address.settings, Options(), address.id, "")
            _attached[place] = core
        if fd is not None:
            core.adopt(heir, fd)
    core.register()
    return core
