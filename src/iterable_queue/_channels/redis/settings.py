"""How a process takes part in a queue on a server, what that is to be like, and where it is.

Plain values, and none of them a connection: an `Address` goes with each pickle of an endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from iterable_queue._core import check_callable, check_options, check_seconds

MOST_EXPIRY_S: Final = 86_400
"""More than a day between two heartbeats would be none."""
MOST_S: Final = 31_536_000
"""A year: longer than anybody waits, and short enough for every clock and counter on the way."""


class Settings(NamedTuple):
    """How a process takes part: what `IterableQueue.connect` was given.

    Attributes:
        source: the server's URL, or a function that returns a client.
        name: of the queue.
        serializer: two functions, to bytes and back; None: pickle.
        key: that signs; None: nothing is signed.
        expiry_s, retry_s, keep_s: see `IterableQueue.connect`.
    """

    source: str | Callable[[], Any]
    name: str
    serializer: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None
    key: bytes | None
    expiry_s: float
    retry_s: float
    keep_s: float

    @property
    def format(self) -> str:
        """How items travel, in a word: all who take part must agree on it."""
        how = "pickle" if self.serializer is None else "custom"
        return f"{how}+signed" if self.key is not None else how

    def is_read_like(self, other: Settings) -> bool:
        """Whether items are made and read by the same functions, as far as that can be told."""
        if self.serializer is None or other.serializer is None:
            return self.serializer is other.serializer
        return all(map(_is_same, self.serializer, other.serializer))


def _is_same(function: Callable[..., Any], other: Callable[..., Any]) -> bool:
    if function == other:
        return True
    # A lambda, say, that is made anew by each call of what has it.
    code = getattr(function, "__code__", None)
    return code is not None and code == getattr(other, "__code__", None)


class Options(NamedTuple):
    """What the queue is to be like; "" leaves it to whoever made it."""

    maxsize: str = ""
    cancel: str = ""
    deliveries: str = ""


class Address(NamedTuple):
    """What another process needs to find the queue: as secret as the URL and the key are."""

    settings: Settings
    id: str


def check(
    server: object,
    name: object,
    *,
    maxsize: int | None,
    on_failure: object,
    redeliver: bool | None,
    max_deliveries: int | None,
    serializer: Any,
    sign: object,
    expiry_s: float,
    retry_s: float,
    keep_s: float,
    create: object,
) -> tuple[Settings, Options]:
    """What `IterableQueue.connect` was given. Raises TypeError or ValueError, by the name."""
    if not isinstance(server, str) and not callable(server):
        raise TypeError(
            "server must be a URL, or a function that returns a client, "
            f"not a {type(server).__name__}"
        )
    deliveries = check_options(
        0 if maxsize is None else maxsize,
        "raise" if on_failure is None else on_failure,
        redeliver if redeliver is not None else max_deliveries is not None,
        max_deliveries,
    )
    if not isinstance(create, bool):
        raise TypeError(f"create must be True or False, not {create!r}")
    key = _key_of(sign)
    _check_serializer(serializer)
    _check_times(expiry_s, retry_s, keep_s)
    source: Any = server
    settings = Settings(source, _checked(name), serializer, key, expiry_s, retry_s, keep_s)
    options = Options(
        "" if maxsize is None else str(max(maxsize, 0)),
        "" if on_failure is None else str(int(on_failure == "cancel")),
        "" if redeliver is None and max_deliveries is None else str(deliveries),
    )
    return settings, options


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, not {name!r}")
    # Braces mark the part of a key by which a cluster deals them out. The others would make lines
    # of a log or a table out of one.
    if not 1 <= len(name) <= 200 or set(name) & set("{}") or not name.isprintable():
        raise ValueError(
            f"name must have 1 to 200 characters that can be printed, and no braces, not {name!r}"
        )
    return name


def _check_serializer(serializer: Any) -> None:
    if serializer is None:
        return
    functions = cast("tuple[object, ...]", serializer)
    if not isinstance(serializer, tuple) or len(functions) != 2:
        raise TypeError(f"serializer must be two functions, (dumps, loads), not {functions!r}")
    for function in functions:
        check_callable(function, "serializer")


def _key_of(sign: object) -> bytes | None:
    if sign is None:
        return None
    if not isinstance(sign, (str, bytes)):
        raise TypeError(f"sign must be a text or bytes, not {sign!r}")
    if not sign:
        raise ValueError("sign must not be empty: an empty key is none")
    return sign.encode() if isinstance(sign, str) else sign


def _check_times(expiry_s: float, retry_s: float, keep_s: float) -> None:
    for value, what, least, most in (
        (expiry_s, "expiry_s", 0.3, MOST_EXPIRY_S),
        (retry_s, "retry_s", 0, MOST_S),
        (keep_s, "keep_s", 0, MOST_S),
    ):
        check_seconds(value, what)
        if not least <= value <= most:
            raise ValueError(f"{what} must be {least} to {most:,} seconds, not {value!r}")
    if not keep_s > expiry_s:
        raise ValueError(f"keep_s must be more than expiry_s={expiry_s:g}, not {keep_s!r}")
