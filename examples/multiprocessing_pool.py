"""Producers and consumers as tasks of a `multiprocessing.Pool`: one endpoint for each task.

`chunksize=1`, since the tasks of a chunk travel together: all of their endpoints would belong to
the one process that runs them one after another. And as many processes as there are tasks that
wait for each other.
"""

from multiprocessing import Pool

from iterable_queue import Consumer, IterableQueue, Producer


def produce(out: Producer[int], start: int) -> None:
    with out:
        for n in range(start, start + 10):
            out.put(n)


def consume(numbers: Consumer[int]) -> int:
    with numbers:
        return sum(n * n for n in numbers)


def main() -> None:
    with Pool(5) as pool:
        with IterableQueue[int](maxsize=8) as iq:
            consumers = [iq.get_consumer() for _ in range(2)]
            producers = [(iq.get_producer(), 10 * i) for i in range(3)]
            sums = pool.map_async(consume, consumers, chunksize=1)
            sources = pool.starmap_async(produce, producers, chunksize=1)
        sources.get()  # raises what a task has raised
        print("sum of squares:", sum(sums.get()))


if __name__ == "__main__":
    main()
