"""Data for PyTorch from a pool of processes: an `IterableDataset` that reads a queue.

It holds the queue, not a consumer: each worker of a `DataLoader` has a copy of the dataset, and
makes a consumer of its own when iteration begins. So every sample goes to exactly one of them,
however unequal they are in speed; and a worker that stops early closes its consumer.

Where torch is not installed, stand-ins show the same class at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import Process
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from iterable_queue import IterableQueue, Producer

T = TypeVar("T")
B = TypeVar("B")
Sample = tuple[float, int]  # a feature and its label


class StandIn(Generic[T]):
    """What is used of `torch.utils.data.IterableDataset`."""


def loaded_here(
    dataset: Iterable[T], batch_size: int, num_workers: int, collate_fn: Callable[[list[T]], B]
) -> Iterator[B]:
    """What is used of `torch.utils.data.DataLoader`, in this process."""
    samples = iter(dataset)
    while batch := list(islice(samples, batch_size)):
        yield collate_fn(batch)


if TYPE_CHECKING:
    IterableDataset = StandIn
    DataLoader: Any = loaded_here
else:
    try:
        from torch.utils.data import DataLoader, IterableDataset
    except ImportError:
        IterableDataset, DataLoader = StandIn, loaded_here


class QueueDataset(IterableDataset[T]):
    """The items of *iq*, each for one of those who iterate over it."""

    def __init__(self, iq: IterableQueue[T]) -> None:
        super().__init__()
        self._iq = iq

    def __iter__(self) -> Iterator[T]:
        with self._iq.get_consumer() as consumer:
            yield from consumer


def read(out: Producer[Sample], start: int) -> None:
    """What reads and decodes files in a real program."""
    with out:
        out.put_many((n / 2, n) for n in range(start, start + 50))


def main() -> None:
    with IterableQueue[Sample](maxsize=64) as iq:
        readers = [Process(target=read, args=(iq.get_producer(), 50 * i)) for i in range(2)]
        for reader in readers:
            reader.start()
    labels: list[int] = []
    # Without `collate_fn`, torch makes two tensors of a batch.
    for batch in DataLoader(QueueDataset(iq), batch_size=8, num_workers=2, collate_fn=list):
        labels += [label for _, label in batch]
    for reader in readers:
        reader.join()
    print(len(labels), "samples, each of them once:", sorted(labels) == list(range(100)))


if __name__ == "__main__":
    main()
