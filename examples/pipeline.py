"""Three stages, each a pool of processes, with as little waiting between two of them as you like.

    lines --> [texts, at most 8] --> parsers --> [numbers, at most 8] --> this process

The last stage is the slow one. A bounded queue makes `put` wait for room, so its pace goes back
through the stages to the first: memory stays small, however many lines there are.
"""

import time
from multiprocessing import Process

from iterable_queue import Consumer, IterableQueue, Producer

MOST = 8
"""Items that may wait between two stages."""


def read(texts: Producer[str], first: int) -> None:
    with texts:
        for n in range(first, first + 100):
            texts.put(f"line {n}")


def parse(texts: Consumer[str], numbers: Producer[int]) -> None:
    with texts, numbers:
        for text in texts:
            numbers.put(int(text.removeprefix("line ")))


def main() -> None:
    with IterableQueue[str](MOST) as texts, IterableQueue[int](MOST) as numbers:
        stages = [Process(target=read, args=(texts.get_producer(), 100 * i)) for i in range(2)]
        stages += [
            Process(target=parse, args=(texts.get_consumer(), numbers.get_producer()))
            for _ in range(2)
        ]
        for stage in stages:
            stage.start()
        results = numbers.get_consumer()
    total = 0
    with results:
        for n in results:
            time.sleep(0.001)  # work
            total += n
    for stage in stages:
        stage.join()
    most = max(iq.statistics().highest_queued for iq in (texts, numbers))
    print(f"sum: {total}; never more than {MOST} waiting: {most <= MOST}")


if __name__ == "__main__":
    main()
