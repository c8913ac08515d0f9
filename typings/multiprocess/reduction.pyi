import pickle
import socket
from collections.abc import Callable
from typing import Any, Final

from _typeshed import HasFileno, SupportsWrite

__all__ = [
    "DupFd",
    "ForkingPickler",
    "dump",
    "recv_handle",
    "recvfds",
    "register",
    "send_handle",
    "sendfds",
]

ACKNOWLEDGE: Final[bool]
HAVE_SEND_HANDLE: Final[bool]

# dill's own `loads`, keywords included.
def _loads(str: bytes | memoryview, ignore: bool | None = None, **kwds: Any) -> Any: ...

# At run time a subclass of dill's pickler, itself one of the standard library's Python-level one.
class ForkingPickler(pickle._Pickler):
    def __init__(self, *args: Any, **kwds: Any) -> None: ...
    @classmethod
    def register(cls, type: type, reduce: Callable[[Any], str | tuple[Any, ...]]) -> None: ...
    @classmethod
    def dumps(
        cls, obj: object, protocol: int | None = None, *args: Any, **kwds: Any
    ) -> memoryview: ...
    loads = _loads

register = ForkingPickler.register

def dump(
    obj: object, file: SupportsWrite[bytes], protocol: int | None = None, *args: Any, **kwds: Any
) -> None: ...
def sendfds(sock: socket.socket, fds: list[int]) -> None: ...
def recvfds(sock: socket.socket, size: int) -> list[int]: ...
def send_handle(conn: HasFileno, handle: int, destination_pid: int | None) -> None: ...
def recv_handle(conn: HasFileno) -> int: ...

# Any: what it returns depends on whether a process is being started.
def DupFd(fd: int) -> Any: ...
