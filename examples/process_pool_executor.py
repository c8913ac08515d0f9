"""Producers and consumers as tasks of a `ProcessPoolExecutor`: one endpoint for each task.

An endpoint travels as an argument of its task and belongs to the process that gets it. There must
be as many processes as there are tasks that wait for each other, or a consumer could keep the last
free process from the producer that it waits for.
"""

from concurrent.futures import ProcessPoolExecutor

from iterable_queue import Consumer, IterableQueue, Producer


def produce(out: Producer[int], start: int) -> None:
    with out:  # a task that fails here fails in `result()` too, and its consumers are told
        for n in range(start, start + 10):
            out.put(n)


def consume(numbers: Consumer[int]) -> int:
    with numbers:
        return sum(n * n for n in numbers)


def main() -> None:
    # Left from right to left: first no further producers, then the executor waits for its tasks.
    with ProcessPoolExecutor(max_workers=5) as pool, IterableQueue[int](maxsize=8) as iq:
        sums = [pool.submit(consume, iq.get_consumer()) for _ in range(2)]
        sources = [pool.submit(produce, iq.get_producer(), 10 * i) for i in range(3)]
    for source in sources:
        source.result()
    print("sum of squares:", sum(each.result() for each in sums))


if __name__ == "__main__":
    main()
