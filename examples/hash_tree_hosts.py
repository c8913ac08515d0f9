"""SHA-256 of every file below a directory, by processes on several machines.

On the machine that has the list of files, and on any number of machines that can read them:

    python examples/hash_tree_hosts.py redis://server:6379/0 list DIRECTORY
    python examples/hash_tree_hosts.py redis://server:6379/0 hash [--processes N]

The first prints what `sha256sum` prints, sorted by path. Start it first: whoever makes a queue
counts as one of its producers until the queue is closed, and must live until then. The others may
be started at any time while it runs, and may be killed: what one had in hand goes to another. One
that comes too late says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from multiprocessing import Process
from threading import Thread

from iterable_queue import Consumer, IterableQueue, Producer, ProducerFailed, QueueClosed

Result = tuple[str, str]


def paths_on(server: str, *, create: bool) -> IterableQueue[str]:
    return IterableQueue[str].connect(
        server, name="hash-tree-paths", maxsize=1000, redeliver=True, create=create
    )


def results_on(server: str, *, create: bool) -> IterableQueue[Result]:
    return IterableQueue[Result].connect(
        server, name="hash-tree-results", maxsize=1000, create=create
    )


def files_below(directory: str) -> Iterator[str]:
    for folder, _, names in os.walk(directory):
        for name in names:
            yield os.path.join(folder, name)


def put_paths(out: Producer[str], directory: str) -> None:
    with out:
        for path in files_below(directory):
            out.put(path)


def close_when_done(paths: IterableQueue[str], results: IterableQueue[Result]) -> None:
    """A path is finished when its result was put: then no further results will come."""
    try:
        paths.join()
    except Exception as error:
        results.cancel(error)
    else:
        results.close()


def print_sums(server: str, directory: str) -> None:
    results = results_on(server, create=True)
    with paths_on(server, create=True) as paths:
        lister = Process(target=put_paths, args=(paths.get_producer(), directory))
        lister.start()
    closing = Thread(target=close_when_done, args=(paths, results))
    closing.start()
    found: dict[str, str] = {}
    try:
        for digest, path in results.get_consumer():
            found[path] = digest
    except ProducerFailed as error:
        print(f"others have done its work: {error}", file=sys.stderr)
    closing.join()
    lister.join()
    for path, digest in sorted(found.items()):
        print(f"{digest}  {path}")


def hash_files(source: Consumer[str], out: Producer[Result]) -> None:
    with source, out:
        for path in source:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            out.put((digest, path))


def start_hashing(server: str, number: int) -> int:
    """Returns the exit status: 1 if one of the processes has failed or was killed."""
    try:
        # A queue of their own would be one to which nobody puts: they would wait for ever.
        paths, results = paths_on(server, create=False), results_on(server, create=False)
        processes = [
            Process(target=hash_files, args=(paths.get_consumer(), results.get_producer()))
            for _ in range(number)
        ]
    except QueueClosed as error:
        print(f"nothing to do: {error}", file=sys.stderr)
        return 0
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return int(any(process.exitcode for process in processes))


def main() -> int:
    parser = argparse.ArgumentParser(description="SHA-256 of many files, on several machines.")
    parser.add_argument("server", help="a URL, such as redis://host:6379/0")
    parser.add_argument("part", choices=("list", "hash"))
    parser.add_argument("directory", nargs="?", default=".")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.part == "hash":
        return start_hashing(options.server, options.processes)
    print_sums(options.server, options.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
