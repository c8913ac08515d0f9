"""Which queues this user has on this machine."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from iterable_queue import _directory
from iterable_queue._look import Look, NotThere, OtherLayout


class Found(NamedTuple):
    """A directory that is a queue's.

    Attributes:
        path: the directory.
        pid: of the process that made it.
        status: `live`, `left over` (all its processes were killed), `being made`, `other version`.
        look: what there is to be seen of a live one.
        why: why there is nothing to be seen of another.
    """

    path: str
    pid: int
    status: str
    look: Look | None
    why: str = ""


def find() -> list[Found]:
    """The queues of this user, oldest first. What is others', or no queue, is passed over."""
    found = [each for path in _paths() if (each := _found(path)) is not None]
    return sorted(found, key=lambda each: each.look.made_at if each.look else 0.0)


def left_overs() -> list[str]:
    """The directories of queues of this user all of whose processes were killed."""
    return [path for path in _paths() if _is_mine(path) and _directory.is_left(path)]


def _paths() -> list[str]:
    paths: list[str] = []
    for place in _directory.places():
        try:
            paths += _directory.directories(place)
        except OSError:
            pass  # may not be looked at
    return paths


def _is_mine(path: str) -> bool:
    try:
        status = os.lstat(path)
        _directory.maker_of(path)
    except (OSError, ValueError, IndexError):
        return False
    return status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)


def _found(path: str) -> Found | None:
    if not _is_mine(path):
        return None
    pid = _directory.maker_of(path)
    try:
        if _directory.is_left(path):
            return Found(path, pid, "left over", None, "all its processes were killed")
        return Found(path, pid, "live", Look(path))
    except OtherLayout as error:
        return Found(path, pid, "other version", None, str(error))
    except NotThere as error:
        if os.path.exists(f"{path}/cells"):
            return Found(path, pid, "being made", None, str(error))
    except OSError:
        pass
    return None  # it has gone meanwhile
