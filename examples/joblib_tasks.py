"""Producers and consumers as tasks of joblib's `Parallel`: one endpoint for each task.

All of them go into one call, since it returns when its last task has ended. There is one process
for each, and each task travels by itself (`batch_size=1`).
"""

from joblib import Parallel, delayed

from iterable_queue import Consumer, IterableQueue, Producer


def produce(out: Producer[int], start: int) -> int:
    with out:
        for n in range(start, start + 10):
            out.put(n)
    return 0


def consume(numbers: Consumer[int]) -> int:
    with numbers:
        return sum(n * n for n in numbers)


def main() -> None:
    with IterableQueue[int](maxsize=8) as iq:
        tasks = [delayed(produce)(iq.get_producer(), 10 * i) for i in range(2)]
        tasks.append(delayed(consume)(iq.get_consumer()))
    # Here the queue is closed: no endpoints but these will be made.
    parallel = Parallel(n_jobs=3, batch_size=1, pre_dispatch="all")
    print("sum of squares:", sum(parallel(tasks)))


if __name__ == "__main__":
    main()
