import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import Logger
from typing import Any, Final, Generic, TypeVar

__all__ = [
    "SUBDEBUG",
    "SUBWARNING",
    "Finalize",
    "ForkAwareLocal",
    "ForkAwareThreadLock",
    "close_all_fds_except",
    "debug",
    "get_logger",
    "get_temp_dir",
    "info",
    "is_exiting",
    "log_to_stderr",
    "register_after_fork",
    "sub_debug",
    "sub_warning",
]

_T = TypeVar("_T")

NOTSET: Final = 0
SUBDEBUG: Final = 5
DEBUG: Final = 10
INFO: Final = 20
SUBWARNING: Final = 25
LOGGER_NAME: Final[str]
DEFAULT_LOGGING_FORMAT: Final[str]

def sub_debug(msg: object, *args: object) -> None: ...
def debug(msg: object, *args: object) -> None: ...
def info(msg: object, *args: object) -> None: ...
def sub_warning(msg: object, *args: object) -> None: ...
def get_logger() -> Logger: ...
def log_to_stderr(level: int | str | None = None) -> Logger: ...
def get_temp_dir() -> str: ...
def register_after_fork(obj: _T, func: Callable[[_T], object]) -> None: ...
def is_exiting() -> bool: ...
def close_all_fds_except(fds: Iterable[int]) -> None: ...

class Finalize(Generic[_T]):
    def __init__(
        self,
        obj: object,
        callback: Callable[..., _T],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        exitpriority: int | None = None,
    ) -> None: ...
    def cancel(self) -> None: ...
    def still_active(self) -> bool: ...

class ForkAwareThreadLock:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

class ForkAwareLocal(threading.local): ...
