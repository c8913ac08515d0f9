"""A progress bar over a consumer, by tqdm or rich, whichever is asked for.

    python progress.py
    python progress.py rich --unknown

A consumer is an iterable whose length nobody knows, so say it: `total=`. Without it tqdm shows a
count and a rate, and rich that something moves. The bar ends where the loop ends: when the queue
is done, or by the exception that says why it is not (`ProducerFailed`).
"""

import argparse
import hashlib
from collections.abc import Iterable
from multiprocessing import Process

from iterable_queue import Consumer, IterableQueue, Producer


def hash_all(digests: Producer[str], names: range) -> None:
    with digests:
        for name in names:
            digests.put(hashlib.sha256(str(name).encode()).hexdigest())


def with_tqdm(digests: Consumer[str], total: int | None) -> Iterable[str]:
    from tqdm import tqdm

    return tqdm(digests, total=total, desc="hashing", unit="name")


def with_rich(digests: Consumer[str], total: int | None) -> Iterable[str]:
    from rich.console import Console
    from rich.progress import track

    return track(digests, "hashing", total=total, console=Console(stderr=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="?", choices=("tqdm", "rich"), default="tqdm")
    parser.add_argument("--unknown", action="store_true", help="don't say how many there will be")
    options = parser.parse_args()
    parts = [range(1_000), range(1_000, 2_000)]
    total = None if options.unknown else sum(map(len, parts))
    with IterableQueue[str]() as iq:
        workers = [Process(target=hash_all, args=(iq.get_producer(), part)) for part in parts]
        for worker in workers:
            worker.start()
    bar = with_tqdm if options.library == "tqdm" else with_rich
    with iq.get_consumer() as digests:
        different = len(set(bar(digests, total)))
    for worker in workers:
        worker.join()
    print(different, "digests")


if __name__ == "__main__":
    main()
