"""The channel for processes: records in segment files, whatever happens between two stores."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from iterable_queue import ChannelBroken
from iterable_queue._cells import BROKEN, DROPPED, HEAD_SIZE, STATE, TAKEN
from iterable_queue._channel import EMPTY
from iterable_queue._channels.processes import (
    APPENDED,
    END,
    FIRST_SIZE,
    HEAD,
    LARGEST_SIZE,
    OFFSET_BITS,
    OFFSET_MASK,
    RECORD_HEADER,
    REWIND,
    SPARE,
    TAIL,
    SpoolChannel,
    reserve,
)


class Interrupted(BaseException):
    """What a signal handler raises."""


class Head(list[int]):
    """The ledger's head, whose nth store from now on raises, before it is made."""

    def __init__(self) -> None:
        super().__init__([0] * HEAD_SIZE)
        self.left: int | None = None

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.left = None
                raise Interrupted
        super().__setitem__(index, value)


class Spool:
    """Channels of some processes over one head and one directory, with what should be on them."""

    def __init__(self, path: Path, views: int = 1) -> None:
        self.path = path
        self.head = Head()
        self.channels = [SpoolChannel(self.head, str(path)) for _ in range(views)]
        self.expected: deque[tuple[bytes, int]] = deque()

    def append(self, payload: bytes, tag: int = 7, view: int = 0) -> None:
        self.channels[view].append(payload, tag)
        self.expected.append((payload, tag))

    def commit(self) -> None:
        """What the ledger does once it has what `peek` returned."""
        self.head[TAKEN] += 1

    def take(self, view: int = 0) -> None:
        """Take one record and check that it is the right one."""
        assert self.channels[view].peek() == self.expected[0]
        self.commit()
        self.expected.popleft()

    def check(self) -> None:
        assert {channel.size() for channel in self.channels} == {len(self.expected)}

    def drain(self, view: int = 0) -> None:
        while self.expected:
            self.take(view)
        assert self.channels[view].peek() is EMPTY
        self.check()

    def tail(self) -> tuple[int, int]:
        """Number of the segment and offset in it of the next record to write."""
        position = self.head[TAIL + (self.head[APPENDED] & 1)]
        return position >> OFFSET_BITS, position & OFFSET_MASK

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in self.path.iterdir()}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def filling(spool: Spool, leave: int = 0) -> bytes:
    """A payload whose record leaves *leave* bytes of the first segment."""
    return bytes(FIRST_SIZE - spool.tail()[1] - RECORD_HEADER - leave)


def test_an_empty_spool(spool: Spool) -> None:
    channel = spool.channels[0]
    assert not channel.atomic
    assert channel.size() == 0
    assert channel.peek() is EMPTY
    assert channel.pull_into([]) is None
    assert spool.files() == {}


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000])
def test_a_record_is_kept_as_it_is(spool: Spool, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    spool.append(payload, 1 << 50)
    spool.append(b"behind", -3)
    # Whole cells, and nothing beyond them.
    assert spool.tail() == (0, 2 * RECORD_HEADER + (length + 7) // 8 * 8 + 8)
    spool.check()
    spool.drain()


class Racing(Head):
    """Another process appends and takes a record while this one looks at the counts."""

    races = 0

    def __getitem__(self, index: Any) -> Any:
        value = cast("Any", list[int].__getitem__(self, index))
        if index == APPENDED and self.races:
            self.races -= 1
            for cell in (APPENDED, TAKEN):
                self[cell] = list[int].__getitem__(self, cell) + 1
        return value


def test_the_size_is_of_one_moment(spool: Spool) -> None:
    """It may be asked for without the lock."""
    head = Racing()
    channel = SpoolChannel(head, str(spool.path))
    channel.append(b"a", 1)
    head.races = 3
    assert channel.size() == 1
    assert head.races == 0


def test_looking_takes_nothing(spool: Spool) -> None:
    spool.append(b"a")
    spool.append(b"b")
    channel = spool.channels[0]
    assert channel.peek() == channel.peek() == (b"a", 7)
    assert channel.size() == 2
    spool.drain()


def test_unwrap_undoes_peek(spool: Spool) -> None:
    spool.append(b"a", 5)
    channel = spool.channels[0]
    payload, tag = channel.unwrap(channel.peek())
    spool.commit()
    spool.expected.clear()
    spool.append(payload, tag)
    spool.drain()


@pytest.mark.parametrize("leave", [0, 8, 16, 24, 32, 40])
def test_a_segment_is_filled_to_its_end(spool: Spool, leave: int) -> None:
    """The next record, of 32 bytes, begins a segment exactly when it has no room."""
    spool.append(filling(spool, leave))
    assert spool.tail() == (0, FIRST_SIZE - leave)
    spool.append(bytes(range(16)))
    assert spool.tail() == ((0, FIRST_SIZE - leave + 32) if leave >= 32 else (1, 32))
    if 0 < leave < 32:
        writer = spool.channels[0]
        at_end = writer._open(0).cells[(FIRST_SIZE - leave) >> 3]
        assert at_end == END
    spool.append(b"and on")
    spool.drain()


def test_a_record_larger_than_a_segment_gets_one_of_its_size(spool: Spool) -> None:
    spool.append(b"small")
    large = random.Random(1).randbytes(LARGEST_SIZE + 5)
    spool.append(large)
    spool.append(b"behind")
    size = spool.files()["s1"]
    assert LARGEST_SIZE < len(large) + RECORD_HEADER <= size < len(large) + 2 * 4096
    assert size % 4096 == 0
    spool.drain()
    # One of that size is not kept.
    assert set(spool.files()) <= {"s1", "s2", "spare"}
    assert all(size <= LARGEST_SIZE for name, size in spool.files().items() if name != "s1")


def test_an_oversized_segment_is_removed_when_it_is_drained(spool: Spool) -> None:
    spool.append(bytes(LARGEST_SIZE + 1))
    spool.append(bytes(LARGEST_SIZE + 1))
    spool.append(b"last")
    spool.drain()
    # The empty first segment is the spare, the oversized one before the last has gone.
    assert "s1" not in spool.files()
    assert spool.files()["spare"] == FIRST_SIZE == spool.head[SPARE]


def test_no_oversized_segment_becomes_the_spare(spool: Spool) -> None:
    """Not even where there is no other."""
    spool.append(filling(spool))
    spool.append(bytes(LARGEST_SIZE))
    spool.take()
    spool.channels[0].peek()
    assert spool.head[SPARE] == FIRST_SIZE
    spool.append(bytes(5000))
    assert spool.tail()[0] == 2
    assert spool.head[SPARE] == 0
    spool.take()
    spool.take()
    assert spool.files() == {"s2": FIRST_SIZE}


@pytest.mark.parametrize(("more", "pages"), [(-8, 0), (0, 0), (8, 1), (4096, 1)])
def test_an_oversized_segment_has_no_page_too_many(spool: Spool, more: int, pages: int) -> None:
    spool.append(filling(spool))
    size = 2 * LARGEST_SIZE
    spool.append(bytes(size - RECORD_HEADER + more))
    assert spool.files()["s1"] == size + 4096 * pages
    spool.drain()


def test_a_mapped_segment_has_one_descriptor(spool: Spool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    other = SpoolChannel(spool.head, str(spool.path))
    spool.append(filling(spool))
    assert len(os.listdir("/proc/self/fd")) == before + 1, "made"
    other.peek()
    assert len(os.listdir("/proc/self/fd")) == before + 2, "opened"
    spool.append(b"next")
    spool.drain()
    assert len(os.listdir("/proc/self/fd")) == before + 2, "the old ones are gone"


@pytest.mark.parametrize("gone", ["s1", "everything"])
def test_files_that_somebody_else_removed(spool: Spool, gone: str) -> None:
    spool.append(filling(spool))
    spool.append(b"in the second segment")
    spool.take()
    for file in spool.path.iterdir():
        if gone in (file.name, "everything"):
            file.unlink()
    other = SpoolChannel(spool.head, str(spool.path))
    with pytest.raises(ChannelBroken, match="removed by somebody else"):
        other.append(b"more", 1)
    assert spool.head[STATE] == BROKEN


def test_a_directory_that_somebody_else_removed(spool: Spool) -> None:
    spool.append(filling(spool))
    for file in spool.path.iterdir():
        file.unlink()
    spool.path.rmdir()
    with pytest.raises(ChannelBroken, match="removed by somebody else"):
        spool.append(b"in a segment that can't be made")
    assert spool.head[STATE] == BROKEN
    spool.drain()


def test_segments_grow_up_to_a_limit(spool: Spool) -> None:
    sizes = set[int]()
    payload = bytes(FIRST_SIZE // 2)
    for _ in range(700):
        spool.append(payload)
    sizes.update(spool.files().values())
    assert min(sizes) == FIRST_SIZE
    assert max(sizes) == LARGEST_SIZE
    assert sizes == {FIRST_SIZE << n for n in range(7)}
    spool.drain()


def test_drained_segments_are_used_again(spool: Spool) -> None:
    """However much goes through, there are never more files than what is queued needs."""
    payload = bytes(10_000)
    for _ in range(3):
        spool.append(payload)
    for _ in range(400):
        spool.append(payload)
        spool.take()
        assert len(spool.files()) <= 4
    assert spool.tail()[0] > 4, "went through some segments"
    spool.drain()


def test_the_spare_is_used_if_it_is_large_enough(spool: Spool) -> None:
    spool.append(filling(spool))
    spool.append(b"in the second")
    spool.take()
    spool.take()
    assert spool.files() == {"spare": FIRST_SIZE, "s1": 2 * FIRST_SIZE}
    assert spool.head[SPARE] == FIRST_SIZE
    spool.append(bytes(2 * FIRST_SIZE))  # the spare is too small for this
    assert spool.files()["spare"] == FIRST_SIZE
    assert spool.files()["s2"] > 2 * FIRST_SIZE
    inode = (spool.path / "spare").stat().st_ino
    room = spool.files()["s2"] - spool.tail()[1]
    spool.append(bytes(room - RECORD_HEADER))
    spool.append(bytes(FIRST_SIZE - RECORD_HEADER))  # and exactly large enough for this
    assert (spool.path / "s3").stat().st_ino == inode
    assert spool.head[SPARE] == 0
    assert "spare" not in spool.files()
    spool.drain()


def test_only_one_spare_is_kept(spool: Spool) -> None:
    for _ in range(4):
        spool.append(bytes(FIRST_SIZE))
    spool.append(b"last")
    spool.drain()
    files = spool.files()
    assert set(files) == {"spare", f"s{spool.tail()[0]}"}


def test_an_empty_queue_begins_its_segment_anew(spool: Spool) -> None:
    record = RECORD_HEADER + 1000
    while spool.tail()[1] <= REWIND:
        spool.append(bytes(1000))
        spool.take()
    assert spool.tail()[1] > REWIND
    spool.append(bytes(1000))
    assert spool.tail() == (0, record)
    assert spool.head[HEAD + (spool.head[TAKEN] & 1)] == 0
    spool.drain()


def test_it_does_so_not_before_it_is_worth_it(spool: Spool) -> None:
    spool.append(bytes(REWIND - RECORD_HEADER))
    spool.take()
    assert spool.tail() == (0, REWIND)
    spool.append(b"")
    assert spool.tail() == (0, REWIND + RECORD_HEADER)
    spool.take()
    spool.append(b"")
    assert spool.tail() == (0, RECORD_HEADER)
    spool.drain()


def test_it_does_so_not_while_something_is_left(spool: Spool) -> None:
    spool.append(bytes(REWIND))
    spool.append(b"left")
    spool.take()
    offset = spool.tail()[1]
    spool.append(b"more")
    assert spool.tail()[1] > offset
    spool.drain()


def test_it_does_so_after_a_cancel_too(spool: Spool) -> None:
    """What was dropped counts as gone."""
    spool.append(bytes(REWIND))
    spool.append(b"dropped")
    spool.head[DROPPED] += 2
    spool.channels[0].clear()
    spool.expected.clear()
    spool.append(b"")
    assert spool.tail() == (0, RECORD_HEADER)
    spool.drain()


def test_a_queue_that_is_emptied_each_time_needs_one_segment(spool: Spool) -> None:
    for n in range(1000):
        spool.append(bytes(n % 900))
        spool.take()
    assert spool.files() == {"s0": FIRST_SIZE}


def test_clear_removes_all_but_the_last_segment(spool: Spool) -> None:
    for _ in range(5):
        spool.append(bytes(FIRST_SIZE))
    spool.take()
    last = f"s{spool.tail()[0]}"
    spool.head[DROPPED] += 4
    spool.channels[0].clear()
    assert spool.channels[0].peek() is EMPTY
    assert set(spool.files()) - {"spare"} == {last}
    spool.channels[0].clear()  # files that are gone do no harm


def test_files_are_private(spool: Spool) -> None:
    spool.append(b"")
    assert [file.stat().st_mode & 0o777 for file in spool.path.iterdir()] == [0o600]


def test_symlinks_are_not_followed(spool: Spool, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "s0"
    elsewhere.write_bytes(bytes(FIRST_SIZE))
    (spool.path / "s0").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        spool.append(b"secret")
    assert elsewhere.read_bytes() == bytes(FIRST_SIZE)


@pytest.mark.parametrize("seed", range(6))
def test_several_processes_at_random(tmp_path: Path, seed: int) -> None:
    """Views that attach at any time see the same queue."""
    dice = random.Random(seed)
    spool = Spool(tmp_path, views=3)
    sizes = (0, 1, 8, 100, 5000, FIRST_SIZE - RECORD_HEADER, FIRST_SIZE, 200_000)
    for tag in range(600):
        view = dice.randrange(3)
        if dice.random() < 0.02:
            spool.channels[view] = SpoolChannel(spool.head, str(tmp_path))
        if dice.random() < (0.6 if len(spool.expected) < 40 else 0.3):
            spool.append(dice.randbytes(dice.choice(sizes)), tag, view)
        elif spool.expected:
            spool.take(view)
        else:
            assert spool.channels[view].peek() is EMPTY
        spool.check()
    spool.drain()
    assert set(spool.files()) <= {"spare", *(f"s{n}" for n in range(spool.tail()[0] + 1))}
    assert len(spool.files()) <= 2


# Interrupted between two stores


def near_the_end(spool: Spool) -> None:
    """Some records, and room for one of 32 bytes but for none of 40 in the first segment."""
    spool.append(b"first")
    spool.append(filling(spool, 32))


def over_the_end(spool: Spool) -> None:
    """Only the first segment's last record is left to take, and there is a next segment."""
    near_the_end(spool)
    spool.append(bytes(100))
    spool.append(bytes(200))
    for _ in range(2):
        spool.take(len(spool.channels) - 1)  # which has the first segment open from now on


def with_a_spare(spool: Spool) -> None:
    over_the_end(spool)
    spool.take()
    assert spool.head[SPARE]
    spool.append(bytes(2 * FIRST_SIZE - spool.tail()[1] - RECORD_HEADER))


def worth_rewinding(spool: Spool) -> None:
    spool.append(bytes(REWIND))
    spool.take()


SITUATIONS = (near_the_end, over_the_end, with_a_spare, worth_rewinding)


def carry_on(spool: Spool, record: tuple[bytes, int]) -> None:
    """Everybody still puts and takes what is right, small and large, over some segments."""
    views = itertools.cycle(range(len(spool.channels)))
    for length in (3, 16, 100, 30_000, 30_000, 30_000, 8, FIRST_SIZE, 0, 30_000):
        spool.append(bytes([length % 251]) * length, record[1] + 1, next(views))
        spool.check()
    while len(spool.expected) > 2:
        spool.take(next(views))
    for length in (50_000, 70_000, 16):
        spool.append(bytes([length % 249]) * length, record[1] + 2, next(views))
    spool.drain(next(views))


@pytest.mark.parametrize("length", [16, 17, 30_000, FIRST_SIZE])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_append_is_interrupted_before_any_store(
    tmp_path: Path, situation: Callable[[Spool], None], length: int
) -> None:
    """Then it has not happened, for the one that was interrupted and for the others."""
    for store in itertools.count(1):
        path = tmp_path / str(store)
        path.mkdir()
        spool = Spool(path, views=2)
        situation(spool)
        spool.check()
        spool.head.left = store
        record = (b"x" * length, 9)
        try:
            spool.channels[1].append(*record)
        except Interrupted:
            spool.check()
            carry_on(spool, record)
        else:
            assert store > 2, "two stores at least"
            spool.head.left = None
            spool.expected.append(record)
            carry_on(spool, record)
            return


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("situation", [near_the_end, over_the_end, with_a_spare])
def test_a_take_is_interrupted_before_any_store(
    tmp_path: Path, situation: Callable[[Spool], None], survives: bool
) -> None:
    """Until the store to TAKEN nothing was taken, and the next one to look sees it all."""
    for store in itertools.count(1):
        path = tmp_path / str(store)
        path.mkdir()
        spool = Spool(path, views=2)
        situation(spool)
        spool.append(b"z" * 40, 3)
        spool.head.left = store
        try:
            spool.channels[1].peek()
            spool.head[TAKEN] += 1
        except Interrupted:
            pass
        else:
            assert store > 1
            return
        spool.check()
        if not survives:
            spool.channels[1] = SpoolChannel(spool.head, str(path))
        carry_on(spool, (b"", 4))


def test_another_process_puts_where_an_interrupted_one_would_have(tmp_path: Path) -> None:
    """The segment that an interrupted append began is begun again by whoever comes first."""
    spool = Spool(tmp_path, views=2)
    near_the_end(spool)
    spool.head.left = 2  # the store to APPENDED
    with pytest.raises(Interrupted):
        spool.channels[1].append(bytes(100), 1)
    spool.head.left = None
    spool.append(b"a" * 100, 1, view=0)
    spool.append(b"b" * 100, 2, view=1)
    spool.append(b"c" * 100, 3, view=0)
    spool.drain(0)


def test_left_overs_of_an_interrupted_append_are_replaced(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / "new").write_bytes(b"left")
    (tmp_path / "s1").write_bytes(b"left as well")
    spool.append(filling(spool))
    spool.append(b"second segment")
    assert spool.files() == {"s0": FIRST_SIZE, "s1": 2 * FIRST_SIZE}
    spool.drain()


# No room


def refuse(*args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("situation", [near_the_end, worth_rewinding])
def test_no_room_for_a_segment(
    tmp_path: Path, situation: Callable[[Spool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put raises, nothing is half done, and the queue goes on once there is room."""
    spool = Spool(tmp_path, views=2)
    situation(spool)
    before, files = list(spool.head), spool.files()
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        for view in (0, 1, 0):
            with pytest.raises(OSError, match="No space left"):
                spool.channels[view].append(bytes(FIRST_SIZE), 1)
    assert spool.head[APPENDED] == before[APPENDED]
    assert spool.files() == files
    spool.check()
    spool.append(b"small, where there still is room")
    carry_on(spool, (b"", 1))


def test_no_room_for_the_first_segment(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(OSError, match="No space left"):
            spool.append(b"a")
    assert spool.files() == {}
    spool.append(b"a")
    spool.drain()


SMALL_FILES = """
import resource, signal
from iterable_queue import IterableQueue

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
iq = IterableQueue()
out, source = iq.get_producer(), iq.get_consumer()
out.put(b"before")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        out.put(bytes(1 << 18))
    except OSError as error:
        print(type(error).__name__, error.errno)
out.put(b"between")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.put(bytes(1 << 18))
out.close()
iq.close()
print([len(item) for item in source], iq.join(5))
"""


def test_a_limit_of_the_size_of_files() -> None:
    """The system's own refusal: OSError in `put`, and the queue goes on."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    run = subprocess.run(
        [sys.executable, "-c", SMALL_FILES],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["OSError 27"] * 3 + ["[6, 7, 262144] True"]
    assert run.returncode == 0, signal.strsignal(-run.returncode)


def test_reserving_where_the_system_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `posix_fallocate` files at least get their size."""
    monkeypatch.delattr("os.posix_fallocate")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        reserve(fd, 12345)
        assert os.fstat(fd).st_size == 12345
    finally:
        os.close(fd)
