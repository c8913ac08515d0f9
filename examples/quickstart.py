"""Three producers, five consumers, one queue: every consumer's loop ends when all is done."""

from multiprocessing import Process

from iterable_queue import Consumer, IterableQueue, Producer


def produce(out: Producer[int], start: int) -> None:
    with out:  # closes on the way out; an exception is reported to the consumers
        for n in range(start, start + 10):
            out.put(n)


def consume(numbers: Consumer[int]) -> None:
    for n in numbers:  # ends when every producer has closed and nothing is left
        print(n)


if __name__ == "__main__":
    with IterableQueue[int]() as iq:  # leaving the block: no further producers will be made
        workers = [Process(target=produce, args=(iq.get_producer(), 10 * i)) for i in range(3)]
        workers += [Process(target=consume, args=(iq.get_consumer(),)) for _ in range(5)]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join()
