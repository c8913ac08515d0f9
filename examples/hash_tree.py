#!/usr/bin/env python3
"""SHA-256 of every regular file below a directory, in the format of ``sha256sum``.

    python examples/hash_tree.py DIR > hashes.txt
    sha256sum --check --quiet hashes.txt

Three queues and two pools of processes; data flows from left to right:

    DIR --> [directories] --> walkers --> [files] --> hashers --> [records] --> this process
                  ^             |  |                                  ^
                  +- subfolders-+  +-------- problems, counts --------+

A walker is a `Worker`: it takes a directory and puts the subdirectories back on the same queue,
which is therefore done exactly when none is left and nobody is in the middle of one. No sentinel
is sent and no worker counted: each loop below ends by itself, one stage after the other.

The lines, sorted, are those of ``find DIR -type f -print0 | xargs -0r sha256sum``, sorted:
symbolic links are not followed, and fifos, sockets and devices are left out (and counted).
"""

import argparse
import contextlib
import errno
import hashlib
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, NoReturn, TextIO, TypeVarTuple

from iterable_queue import Consumer, IterableQueue, IterableQueueError, Producer, Worker

if TYPE_CHECKING:
    from tqdm import tqdm

BACKLOG = 1_000
"""Items that may wait between two stages, so that memory stays small on any tree."""

GRACE_S = 2.0
"""How long the processes may take to end by themselves before they are terminated."""

COMPLETE, UNREADABLE, INCOMPLETE, INTERRUPTED, PIPE_CLOSED = 0, 1, 3, 130, 141
"""Exit statuses; 2 is argparse's own, for wrong usage."""


# What the workers report ----------------------------------------------------------------------


class Hashed(NamedTuple):
    """A file: its path as the system has it, hexadecimal digest, size in bytes."""

    path: bytes
    digest: str
    size: int


class Walked(NamedTuple):
    """How much of a directory is not hashed: symbolic links; fifos, sockets and devices."""

    links: int
    dangling: int
    specials: int


class Problem(NamedTuple):
    """Something that deserves a line on stderr; `unreadable` if content is missing for it."""

    path: bytes
    text: str
    unreadable: bool


Record = Hashed | Walked | Problem
Kind = Literal["file", "directory", "link", "dangling link", "special"]
FileId = tuple[int, int]  # device and inode
Ts = TypeVarTuple("Ts")


# The workers ----------------------------------------------------------------------------------


def walk(directories: Worker[bytes], files: Producer[bytes], records: Producer[Record]) -> None:
    """List directories for as long as there are any."""
    with directories, files, records:
        for directory in directories:
            entries, problems = list_directory(directory)
            counts = Counter[Kind]()
            for path, kind in entries:
                counts[kind] += 1
                if kind == "file":
                    files.put(path)
                elif kind == "directory":
                    directories.put(path)
                elif kind == "dangling link":
                    problems.append(Problem(path, "Dangling symbolic link", unreadable=False))
            records.put_many(problems)
            dangling = counts["dangling link"]
            records.put(Walked(counts["link"] + dangling, dangling, counts["special"]))


def hash_files(files: Consumer[bytes], records: Producer[Record], output: FileId) -> None:
    """Hash files for as long as there are any."""
    with files, records:
        for path in files:
            records.put(hash_file(path, output))


def list_directory(directory: bytes) -> tuple[list[tuple[bytes, Kind]], list[Problem]]:
    """What is in a directory, and what could not be found out about it."""
    entries: list[tuple[bytes, Kind]] = []
    problems: list[Problem] = []
    try:
        with os.scandir(directory) as listing:
            for entry in listing:
                try:
                    entries.append((entry.path, kind_of(entry)))
                except OSError as error:
                    problems.append(unreadable(entry.path, error))
    except OSError as error:
        problems.append(unreadable(directory, error))
    return entries, problems


def kind_of(entry: os.DirEntry[bytes]) -> Kind:
    if entry.is_symlink():
        return "dangling link" if leads_nowhere(entry.path) else "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "special"


def leads_nowhere(link: bytes) -> bool:
    try:
        os.stat(link)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def hash_file(path: bytes, output: FileId) -> Record:
    """Hash one file, unless it is the `output` that all this is being written to."""
    try:
        # The path may have become something else since it was listed: neither follow a link
        # nor wait for a fifo's other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return Problem(path, "Not a regular file", unreadable=True)
            if (status.st_dev, status.st_ino) == output:
                return Problem(path, "Is the output, so not hashed", unreadable=False)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Hashed(path, digest, file.tell())
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Problem(path, "Symbolic link, not followed", unreadable=True)
        return unreadable(path, error)


def unreadable(path: bytes, error: OSError) -> Problem:
    return Problem(path, error.strerror or str(error), unreadable=True)


# The process at the end -----------------------------------------------------------------------


class Summary:
    """Counts of what was seen, filled from the records."""

    def __init__(self) -> None:
        self.files = self.size = self.directories = self.unreadable = 0
        self.links = self.dangling = self.specials = 0
        self.started = time.monotonic()

    def add(self, record: Record) -> None:
        if isinstance(record, Hashed):
            self.files += 1
            self.size += record.size
        elif isinstance(record, Walked):
            self.directories += 1
            self.links += record.links
            self.dangling += record.dangling
            self.specials += record.specials
        else:
            self.unreadable += record.unreadable

    def __str__(self) -> str:
        return (
            f"files hashed: {self.files:,} ({self.size / 1e6:,.1f} MB); "
            f"directories: {self.directories:,}; unreadable: {self.unreadable:,}; "
            f"symbolic links: {self.links:,} (dangling: {self.dangling:,}); "
            f"fifos, sockets and devices: {self.specials:,}; "
            f"seconds: {time.monotonic() - self.started:.1f}"
        )


class Display:
    """Messages on stderr and, if that is a terminal, progress: tqdm's bar, or one line without it.

    The bar's end moves away while directories are still being listed.
    """

    INTERVAL_S = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._due = 0.0
        self._bar: tqdm[NoReturn] | None = None
        self._has_tqdm = True
        """As far as is known: it is imported when it is needed, and in this process alone."""

    def starting(self) -> None:
        if self._live:
            self._write("\rstarting\x1b[K")

    def progress(self, hashed: int, waiting: Callable[[], int]) -> None:
        """Show progress; `waiting` is only called when it is time for something new."""
        if not self._live or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self.INTERVAL_S
        if self._bar is None and self._has_tqdm:
            self._open_bar()
        if self._bar is None:
            self._write(f"\r{hashed:,} hashed, {waiting():,} waiting\x1b[K")
        else:
            self._bar.total = hashed + waiting()
            self._bar.n = hashed
            self._bar.refresh()

    def _open_bar(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self._has_tqdm = False
            return
        cls: Any = tqdm
        cls.monitor_interval = 0  # no thread
        cls.set_lock(threading.RLock())  # nobody draws but this process
        self._write("\r\x1b[K")
        self._bar = tqdm(file=self._stream, unit=" files", leave=False)

    def message(self, text: str) -> None:
        clear = "\r\x1b[K" if self._live else ""
        self._write(f"{clear}hash_tree: {text}\n")
        self._due = 0.0

    def close(self) -> None:
        """Wipe the bar away, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def sha256sum_line(record: Hashed) -> bytes:
    """A line as GNU coreutils writes it: a leading backslash says that the name is escaped."""
    name = record.path
    for raw, escape in ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        name = name.replace(raw, escape)
    mark = b"" if name == record.path else b"\\"
    return b"%s%s  %s\n" % (mark, record.digest.encode(), name)


def for_people(path: bytes) -> str:
    """A path for a message: control characters and undecodable bytes shown as escapes."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)


def explained(error: BaseException) -> str:
    """The error's text; if the cause is a mistake in a worker's code, its traceback too."""
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None or isinstance(cause, IterableQueueError):
        return text
    return f"{text}\n{''.join(traceback.format_exception(cause))}".rstrip()


@contextlib.contextmanager
def opened_output(name: str | None) -> Generator[BinaryIO]:
    """Standard output or the file `name`, which gets that name only once it is complete."""
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif os.path.exists(name) and not os.path.isfile(name):  # /dev/stdout, a fifo
        with open(name, "wb") as out:
            yield out
    else:
        target = os.path.realpath(name)
        with open(target + ".partial", "wb") as out:
            yield out
        os.replace(target + ".partial", target)


@contextlib.contextmanager
def hidden_from_ctrl_c() -> Generator[None]:
    """Processes started in this block never see Ctrl-C: this one does, after it, and stops them.

    They inherit the signal mask, so there is no moment at which they are not yet protected.
    """
    resource_tracker.ensure_running()  # starting it unblocks SIGINT: do that before, not between
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(stage: Callable[[*Ts], None], *args: *Ts) -> BaseProcess:
    process = multiprocessing.Process(target=quietly, args=(stage, *args), daemon=True)
    process.start()
    return process


def quietly(stage: Callable[[*Ts], None], *args: *Ts) -> None:
    """Run one stage in a process of its own.

    Why it failed has travelled along the queues, by ``with producer:``, to the process at their
    end, which says so once. Tracebacks from all the workers on top would only bury that.
    """
    try:
        stage(*args)
    except Exception:
        sys.exit(1)


def end(processes: Sequence[BaseProcess]) -> None:
    """Join all; those that take too long, in the middle of a large file, by force."""
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        deadline = time.monotonic() + GRACE_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                stop(process)
    for process in processes:
        process.join()


def hash_tree(
    root: bytes,
    out: BinaryIO,
    display: Display,
    *,
    walkers: int,
    hashers: int,
    recording: str | None = None,
) -> Summary:
    """Write a line for each file below `root`; raise whatever kept the result from being whole."""
    summary = Summary()
    display.starting()
    status = os.fstat(out.fileno())
    own_output = (status.st_dev, status.st_ino)
    processes: list[BaseProcess] = []
    try:
        with (
            IterableQueue[bytes]() as directories,
            IterableQueue[bytes](BACKLOG) as files,
            IterableQueue[Record](BACKLOG) as records,
            records.get_consumer() as results,
        ):
            start = directories if os.path.isdir(root) and not os.path.islink(root) else files
            with start.get_producer() as producer:
                producer.put(root)
            with hidden_from_ctrl_c():
                # From right to left: whoever puts finds somebody there who takes.
                for _ in range(hashers):
                    hasher_ends = files.get_consumer(), records.get_producer()
                    processes.append(started(hash_files, *hasher_ends, own_output))
                for _ in range(walkers):
                    walker_ends = files.get_producer(), records.get_producer()
                    processes.append(started(walk, directories.get_worker(), *walker_ends))
            for queue in (directories, files, records):
                queue.close()  # all endpoints are made; now the loops can come to an end
            with files.record(recording) if recording else contextlib.nullcontext():
                for record in results:
                    summary.add(record)
                    if isinstance(record, Hashed):
                        out.write(sha256sum_line(record))
                    elif isinstance(record, Problem):
                        display.message(f"{for_people(record.path)}: {record.text}")
                    display.progress(summary.files, files.qsize)
        for process in processes:
            process.join()
            if process.exitcode:
                raise ChildProcessError(f"{process.name} ended with status {process.exitcode}")
    finally:
        # If an exception has brought us here, the ``with`` has cancelled the queues for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        display.close()
        end(processes)
    return summary


def main() -> int:
    options = parsed()
    if options.start_method is not None:
        multiprocessing.set_start_method(options.start_method)
    display = Display(sys.stderr)
    try:
        with opened_output(options.output) as out:
            summary = hash_tree(
                os.fsencode(options.directory),
                out,
                display,
                walkers=options.walkers,
                hashers=options.hashers,
                recording=options.record,
            )
    except KeyboardInterrupt:
        display.message("interrupted: the result is INCOMPLETE")
        return INTERRUPTED
    except BrokenPipeError:
        finish_stdout()
        return PIPE_CLOSED
    except (IterableQueueError, OSError, EOFError) as error:  # EOFError: no fork server any more
        finish_stdout()
        display.message(f"the result is INCOMPLETE\n{explained(error)}")
        return INCOMPLETE
    display.message(str(summary))
    return UNREADABLE if summary.unreadable else COMPLETE


def finish_stdout() -> None:
    """Write what is still buffered, or keep the interpreter from stumbling over it at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write the SHA-256 of each regular file below DIR as sha256sum does.",
        epilog="Exit status: 0 complete; 1 complete but for what could not be read, which is "
        "named on stderr; 2 wrong usage; 3 INCOMPLETE, because something broke; "
        "130 interrupted; 141 the reader of the output has gone.",
    )
    parser.add_argument("directory", metavar="DIR", help="kept as it is, like find does")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="instead of standard output; called FILE.partial until it is complete",
    )
    parser.add_argument("--walkers", type=at_least_one, default=2, metavar="N")
    parser.add_argument(
        "--hashers", type=at_least_one, default=multiprocessing.cpu_count(), metavar="N"
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="write there what the queue of files does, for `python -m iterable_queue plot FILE`",
    )
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    return parser.parse_args()


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
