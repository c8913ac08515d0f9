# What the examples use of joblib, which has no annotations of its own.

from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_Call: TypeAlias = tuple[Callable[..., _R], tuple[Any, ...], dict[str, Any]]

def delayed(function: Callable[_P, _R]) -> Callable[_P, _Call[_R]]: ...

class Parallel:
    def __init__(
        self,
        n_jobs: int | None = None,
        *,
        batch_size: int | Literal["auto"] = "auto",
        pre_dispatch: int | str = "2 * n_jobs",
    ) -> None: ...
    def __call__(self, iterable: Iterable[_Call[_R]]) -> list[_R]: ...
