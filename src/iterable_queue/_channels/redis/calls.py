"""What is sent to the server: scripts by name, and the bytes of a command and of what comes back.

A call is packed here, and once: where its connection breaks, the same bytes are sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

from iterable_queue._channels.redis import scripts

QUIET: Final = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n"
"""Before a command: it is not answered."""


class Script:
    """A script, and how to call it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def packed(self, key: bytes, args: Iterable[bytes], *, whole: bool = False) -> bytes:
        """The command, by the script's digest, or with all of its text."""
        body = [b"$1\r\n1\r\n$%d\r\n%b\r\n" % (len(key), key)]
        count = 4
        for arg in args:
            body.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
            count += 1
        if whole:
            start = b"*%d\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (count, len(self.text), self.text)
        else:
            start = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % (count, self.sha)
        return start + b"".join(body)


JOIN = Script("join", scripts.JOIN)
HEIR = Script("heir", scripts.HEIR)
ADOPT = Script("adopt", scripts.ADOPT)
OPEN = Script("open", scripts.OPEN)
TAKE_OVER = Script("take over", scripts.TAKE_OVER)
SEND = Script("send", scripts.SEND)
MARK = Script("mark", scripts.MARK)
ASSIGN = Script("assign", scripts.ASSIGN)
ADRIFT = Script("adrift", scripts.ADRIFT)
PUT = Script("put", scripts.PUT)
TAKE = Script("take", scripts.TAKE)
CUT = Script("cut", scripts.CUT)
KEEP = Script("keep", scripts.KEEP)
CLOSE = Script("close", scripts.CLOSE)
SHUT = Script("close", scripts.SHUT)
CANCEL = Script("cancel", scripts.CANCEL)
WAITS = Script("join", scripts.WAITS)
AGAIN = Script("again", scripts.AGAIN)
BEAT = Script("heartbeat", scripts.BEAT)
DEAD = Script("dead", scripts.DEAD)
BYE = Script("leave", scripts.BYE)
SHOWN = Script("shown", scripts.SHOWN)
BLOCKED = Script("blocked", scripts.BLOCKED)
SIZE = Script("size", scripts.SIZE)
VIEW = Script("view", scripts.VIEW)
LOOK = Script("look", scripts.LOOK)
ERRORS = Script("errors", scripts.ERRORS)


def as_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
