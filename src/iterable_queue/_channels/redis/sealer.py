"""What crosses the network: items and errors as bytes, signed where there is a key.

A signature is looked at before anything is unpickled: whoever can write to the server, but has not
the key, could otherwise have any code run here.
"""

from __future__ import annotations

import hmac
import json
import pickle
from collections.abc import Callable
from typing import Any, cast

from iterable_queue._channels.redis.calls import as_text
from iterable_queue._channels.redis.settings import Settings
from iterable_queue._errors import PackedError, ProducerFailed, pack_error, unpack_error


class BadSignature(ValueError):
    """What should have been signed was not, or with another key."""


class Sealer:
    """Items and errors as bytes, signed if there is a key.

    A signature covers the queue's name and the bytes, not who sent them or when: it shows that
    somebody with the key made this for a queue of this name.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = settings.key
        self._context = settings.name.encode() + b"\0"
        self._own = settings.serializer
        self.refused: Callable[[], object] = bool
        """Called when a signature is wrong or missing."""

    def dumps(self, item: Any) -> bytes:
        if self._own is None:
            data = pickle.dumps(item, 5)
        else:
            made = cast("object", self._own[0](item))
            if not isinstance(made, bytes):
                raise TypeError(f"serializer: its first function must return bytes, not {made!r}")
            data = made
        return data if self._key is None else self._seal(data)

    def loads(self, data: bytes) -> Any:
        if self._key is not None:
            data = self._open(data)
        return pickle.loads(data) if self._own is None else self._own[1](data)

    def _mac(self, data: bytes) -> bytes:
        assert self._key is not None
        return hmac.digest(self._key, self._context + data, "sha256")

    def _seal(self, data: bytes) -> bytes:
        return self._mac(data) + data

    def _open(self, data: bytes) -> bytes:
        if not hmac.compare_digest(data[:32], self._mac(data[32:])):
            self.refused()
            raise BadSignature(
                "its signature is wrong or missing: whoever put it does not have the key (sign=)"
            )
        return data[32:]

    def pack(self, error: BaseException) -> bytes:
        """An error, as it is kept on the server."""
        packed = pack_error(error)
        if self._own is None:
            kind, data = b"p", pickle.dumps(packed, 5)
        else:  # who chose another serializer than pickle has nothing unpickled
            kind, data = b"j", json.dumps([packed[1], packed[2]]).encode()
        return kind + (data if self._key is None else self._seal(data))

    def unpack(self, blob: bytes) -> BaseException:
        kind, data = blob[:1], blob[1:]
        if kind == b"t":  # a script's own words: see `told` there
            return ProducerFailed(as_text(data))
        try:
            if self._key is not None:
                data = self._open(data)
            packed: PackedError
            if kind == b"p" and self._own is None:
                packed = pickle.loads(data)
            else:
                text, trace = json.loads(data)
                packed = (None, text, trace)
            return unpack_error(packed)
        except Exception as error:
            return ProducerFailed(f"for a reason that can't be read here: {error!r}")
