"""The seam: locks that only C takes, semaphores of tokens, conditions that lose no sleeper."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from iterable_queue._runtime import (
    SLICE_S,
    Condition,
    LocalErrors,
    ThreadRuntime,
    TokenQueue,
    guard,
    is_lock_busy,
)
from iterable_queue._seams import Semaphore
from tests.conftest import wait_until


class Tokens:
    """A semaphore that only counts, and logs what it is asked in *log*, with *head*."""

    def __init__(self, head: list[int]) -> None:
        self.given = 0
        self.head = head
        self.log: list[tuple[str, int]] = []
        self.waits: list[tuple[bool, float | None]] = []

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        self.waits.append((block, timeout))
        if not self.given:
            return False
        self.given -= 1
        return True

    def release(self) -> None:
        self.log.append(("release", self.head[0]))
        self.given += 1


def made() -> tuple[list[int], Tokens, Condition]:
    head = [0]
    tokens = Tokens(head)
    return head, tokens, Condition(head, 0, tokens)


# Conditions


def test_who_is_about_to_sleep_counts() -> None:
    head, _, condition = made()
    condition.announce()
    condition.announce()
    assert head == [2]


def test_notify_gives_a_token_before_it_uncounts() -> None:
    """Interrupted in between, it leaves a token too many, never a sleeper whom nobody counts."""
    head, tokens, condition = made()
    head[0] = 3
    condition.notify(2)
    assert tokens.log == [("release", 3), ("release", 2)]
    assert head == [1]
    assert tokens.given == 2


@pytest.mark.parametrize(("waiting", "n", "woken"), [(0, 1, 0), (1, 1, 1), (2, 5, 2), (5, 2, 2)])
def test_notify_wakes_at_most_those_who_wait(waiting: int, n: int, woken: int) -> None:
    head, tokens, condition = made()
    head[0] = waiting
    condition.notify(n)
    assert tokens.given == woken
    assert head == [waiting - woken]


def test_notify_wakes_one() -> None:
    head, tokens, condition = made()
    head[0] = 3
    condition.notify()
    assert (head, tokens.given) == ([2], 1)


def test_notify_all_wakes_all() -> None:
    head, tokens, condition = made()
    head[0] = 4
    condition.notify_all()
    assert (head, tokens.given) == ([0], 4)


def test_who_leaves_without_a_token_is_uncounted() -> None:
    head, tokens, condition = made()
    condition.announce()
    condition.announce()
    for left in (1, 0):
        condition.retract()
        assert head == [left]
    assert tokens.waits == []


def test_who_leaves_as_a_token_was_given_takes_that() -> None:
    """Without waiting for it: another may have been faster."""
    head, tokens, condition = made()
    condition.announce()
    condition.notify()
    condition.retract()
    assert (head, tokens.given) == ([0], 0)
    assert tokens.waits == [(False, None)]
    condition.retract()
    assert (head, tokens.given) == ([0], 0)


@pytest.mark.parametrize(("timeout", "longest"), [(0.1, 0.1), (SLICE_S, SLICE_S), (9.0, SLICE_S)])
def test_nobody_sleeps_longer_than_a_slice(timeout: float, longest: float) -> None:
    _, tokens, condition = made()
    assert not condition.sleep(timeout)
    tokens.given = 1
    assert condition.sleep(timeout)
    assert tokens.waits == [(True, longest)] * 2


@pytest.mark.parametrize("seed", range(10))
def test_no_sleeper_is_ever_without_a_count_or_a_token(seed: int) -> None:
    """The invariant, over random histories: some sleepers are killed, some interrupted."""
    dice = random.Random(seed)
    head, tokens, condition = made()
    asleep = 0
    for _ in range(500):
        move = dice.random()
        if move < 0.4:
            condition.announce()
            asleep += 1
        elif move < 0.6:
            condition.notify(dice.randrange(4))
        elif move < 0.62:
            condition.notify_all()
        elif asleep:
            asleep -= 1
            if move < 0.95 and not (dice.random() < 0.7 and condition.sleep(0)):
                condition.retract()  # else it was killed, with or without a token
        assert head[0] >= 0
        assert head[0] + tokens.given >= asleep
    condition.notify_all()
    assert tokens.given >= asleep


# Coroutines among the sleepers


class Bell:
    """Counts tokens, as long as there is anybody whom they could wake."""

    def __init__(self) -> None:
        self.counted = 0
        self.given = 0
        self.log: list[int] = []
        self.is_dead = False

    def waiting(self) -> int:
        return self.counted

    def ring(self, n: int) -> int:
        self.log.append(n)
        if self.is_dead:
            self.counted = 0
            return 0
        self.given += n
        self.counted -= n
        return n


def mixed(threads: int, coroutines: int) -> tuple[list[int], Tokens, Bell, Condition]:
    head, tokens, condition = made()
    bell = condition.bell = Bell()
    head[0] = threads + coroutines
    bell.counted = coroutines
    return head, tokens, bell, condition


@pytest.mark.parametrize(
    ("threads", "coroutines", "n", "to_threads", "to_coroutines"),
    [
        (2, 0, 1, 1, 0),
        (0, 2, 1, 0, 1),
        (0, 2, 9, 0, 2),
        (2, 2, 3, 1, 2),
        (1, 3, 4, 1, 3),
        (3, 1, 4, 3, 1),
        (5, 1, 4, 3, 1),
        (1, 5, 4, 1, 3),
    ],
)
def test_both_kinds_of_sleepers_are_woken(
    threads: int, coroutines: int, n: int, to_threads: int, to_coroutines: int
) -> None:
    head, tokens, bell, condition = mixed(threads, coroutines)
    condition.notify(n)
    assert (tokens.given, bell.given) == (to_threads, to_coroutines)
    assert bell.counted == coroutines - to_coroutines
    assert head == [threads + coroutines - to_threads - to_coroutines]


def test_they_are_woken_by_turns() -> None:
    _, tokens, bell, condition = mixed(3, 3)
    given: list[tuple[int, int]] = []
    for _ in range(6):
        condition.notify()
        given.append((tokens.given, bell.given))
    assert given == [(0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]


def test_threads_are_woken_where_no_loop_lives() -> None:
    head, tokens, bell, condition = mixed(2, 3)
    bell.is_dead = True
    condition.notify()
    assert (tokens.given, bell.counted, head) == (1, 0, [1])
    condition.notify()
    assert (tokens.given, head, bell.log) == (2, [0], [1])


def test_who_leaves_takes_back_what_is_its_own() -> None:
    """A thread for which there is a token does not uncount a coroutine."""
    head, tokens, bell, condition = mixed(1, 1)
    condition._loops_turn = False
    condition.notify()
    assert (tokens.given, bell.given, head) == (1, 0, [1])
    condition.retract()
    assert (tokens.given, head) == (0, [1])
    bell.counted = 0
    condition.retract_coroutine()
    assert head == [0]
    condition.retract_coroutine()
    assert head == [0]


@pytest.mark.parametrize("seed", range(10))
def test_neither_kind_of_sleeper_is_ever_without_a_count_or_a_token(seed: int) -> None:
    dice = random.Random(seed)
    head, tokens, bell, condition = mixed(0, 0)
    threads = coroutines = 0
    for _ in range(500):
        move = dice.random()
        if move < 0.2:
            condition.announce()
            threads += 1
        elif move < 0.4:
            condition.announce()
            bell.counted += 1
            coroutines += 1
        elif move < 0.6:
            condition.notify(dice.randrange(4))
        elif move < 0.62:
            condition.notify_all()
        elif move < 0.8 and threads:
            threads -= 1
            if not (dice.random() < 0.7 and condition.sleep(0)) and dice.random() < 0.9:
                condition.retract()
        elif coroutines:
            coroutines -= 1
            if bell.given and dice.random() < 0.7:
                bell.given -= 1
            elif bell.counted and dice.random() < 0.9:
                bell.counted -= 1
                condition.retract_coroutine()
            elif bell.given:
                bell.given -= 1
        assert head[0] - bell.counted + tokens.given >= threads
        assert bell.counted + bell.given >= coroutines
        assert head[0] >= bell.counted >= 0
    condition.notify_all()
    assert tokens.given >= threads
    assert bell.given >= coroutines


def test_tokens_wake_threads() -> None:
    tokens: Semaphore = TokenQueue()
    assert tokens.acquire(False) is False
    assert tokens.acquire(True, 0.001) is False
    tokens.release()
    tokens.release()
    assert tokens.acquire(False)
    assert tokens.acquire(True, 0.0)
    woken = threading.Event()

    def sleep() -> None:
        assert tokens.acquire()
        woken.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    tokens.release()
    assert woken.wait(20)
    sleeper.join()


def test_no_token_is_lost_among_threads() -> None:
    tokens: Semaphore = TokenQueue()
    taken = [0] * 4

    def take(n: int) -> None:
        while taken[n] < 5_000 and tokens.acquire(True, 20):
            taken[n] += 1

    def give() -> None:
        for _ in range(5_000):
            tokens.release()

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=give) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert taken == [5_000] * 4
    assert not tokens.acquire(False)


# Locks


class Log:
    """What is called, in which order."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = iter(answers)
        self.calls: list[tuple[Any, ...]] = []

    def acquire(self, *args: object) -> bool:
        self.calls.append(("acquire", *args))
        return next(self.answers)

    def release(self, *args: Any) -> None:
        self.calls.append(("release", args[0]))


@pytest.mark.parametrize("args", [(), (True, 0.25), (False,)])
def test_a_guard_takes_and_lets_go(args: tuple[object, ...]) -> None:
    log = Log([True, True])
    lock = guard(log.acquire, log.release, *args)
    for _ in range(2):
        with lock:
            log.calls.append(("inside",))
    assert log.calls == [("acquire", *args), ("inside",), ("release", None)] * 2


def test_a_guard_lets_go_after_an_error() -> None:
    log = Log([True])
    with pytest.raises(ZeroDivisionError), guard(log.acquire, log.release):
        raise ZeroDivisionError
    assert log.calls == [("acquire",), ("release", ZeroDivisionError)]


def test_a_guard_that_can_not_be_had() -> None:
    """The block doesn't run, nothing is let go, and the next try is a try again."""
    log = Log([False, False, True])
    lock = guard(log.acquire, log.release, False)
    for _ in range(2):
        with pytest.raises(KeyError) as told, lock:
            pytest.fail("inside")
        assert told.value.args == (False,)
        assert is_lock_busy(told.value)
    assert log.calls == [("acquire", False)] * 2
    with lock:
        pass
    assert log.calls[2:] == [("acquire", False), ("release", None)]


def test_a_guard_whose_acquire_raises() -> None:
    def acquire() -> bool:
        raise KeyboardInterrupt

    log = Log([])
    with pytest.raises(KeyboardInterrupt), guard(acquire, log.release):
        pytest.fail("inside")
    assert log.calls == []


def test_other_key_errors_are_no_busy_locks() -> None:
    """Neither those of other keys, nor one that comes out of the block."""
    log = Log([True] * 9)
    lock = guard(log.acquire, log.release)

    def fail(error: KeyError) -> None:
        raise error

    for error in (KeyError(True), KeyError(), KeyError("False"), KeyError(False)):
        assert not is_lock_busy(error), "never raised"
        with pytest.raises(KeyError) as told, lock:
            fail(error)
        assert not is_lock_busy(told.value)
    with pytest.raises(KeyError) as told:
        raise KeyError(True)
    assert not is_lock_busy(told.value)


def test_taking_the_lock_runs_no_bytecode() -> None:
    """Else a signal handler that raises could leave it held."""
    runtime = ThreadRuntime(1, (0, 0, 0))
    for lock in (runtime.lock, runtime.trylock):
        for name in ("__enter__", "__exit__"):
            assert not hasattr(getattr(type(lock), name), "__code__")


# Threads


def test_the_lock_of_threads() -> None:
    runtime = ThreadRuntime(4, (0, 1, 2))
    assert runtime.lock_within(0.001) is runtime.lock
    inside, go, tried = threading.Event(), threading.Event(), list[bool]()

    def hold() -> None:
        with runtime.lock:
            inside.set()
            go.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(20)
        with pytest.raises(KeyError) as told, runtime.trylock:
            tried.append(True)
        assert is_lock_busy(told.value)
        assert tried == []
    finally:
        go.set()
        holder.join()
    with runtime.trylock, runtime.lock, runtime.trylock:
        tried.append(True)  # by the same thread, it may be taken again
    assert tried == [True]


def test_the_conditions_of_threads_count_in_their_cells() -> None:
    runtime = ThreadRuntime(8, (3, 5, 7))
    assert list(runtime.head) == [0] * 8
    runtime.items.announce()
    runtime.room.announce()
    runtime.room.announce()
    runtime.end.announce()
    assert list(runtime.head) == [0, 0, 0, 1, 0, 2, 0, 1]
    runtime.room.notify()
    assert runtime.room.sleep(0)
    assert not runtime.items.sleep(0)
    assert not runtime.end.sleep(0)


def test_the_cells_of_threads_grow_and_keep_what_they_hold() -> None:
    runtime = ThreadRuntime(1, (0, 0, 0))
    cells = runtime.cells(4)
    assert list(cells) == [0] * 4
    cells[3] = 7
    assert list(runtime.cells(2)) == [0, 0, 0, 7]
    assert list(runtime.cells(6)) == [0, 0, 0, 7, 0, 0]
    assert runtime.cells(6) is cells


def test_the_clock_is_monotonic_and_in_nanoseconds() -> None:
    runtime = ThreadRuntime(1, (0, 0, 0))
    before = time.monotonic_ns()
    now = runtime.now()
    assert before <= now <= time.monotonic_ns()


def test_a_sleeper_is_woken_by_notify() -> None:
    runtime = ThreadRuntime(3, (0, 1, 2))
    woken = list[bool]()
    runtime.items.announce()

    def sleep() -> None:
        while not runtime.items.sleep(10):
            pass
        woken.append(True)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    runtime.items.notify()
    wait_until(lambda: woken, "the sleeper's waking")
    sleeper.join()
    assert runtime.head[0] == 0


def test_the_errors_of_threads_are_kept_as_they_are() -> None:
    errors = LocalErrors()
    assert (errors.count(), errors.failures(), errors.reason()) == (0, (), None)
    first, second, why = ValueError(1), KeyError(2), OSError(3)
    assert errors.pack(first) is first
    errors.add_failure(first)
    errors.add_failure(second)
    errors.set_reason(why)
    assert errors.count() == 2
    assert errors.failures() == (first, second)
    assert errors.reason() is why
    errors.set_reason(second)
    assert errors.reason() is second
