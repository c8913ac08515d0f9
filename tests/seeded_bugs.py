"""Bugs to be put into the shipped code, one at a time, to see that exploring finds them.

Each says which text of which file becomes what, and how it is found fastest. `copy_with` makes a
copy of the package that has one of them, and `seek_in` explores a copy, in a process of its own;
nothing here touches the package itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import iterable_queue
from tests.seek import Sought

PACKAGE = Path(iterable_queue.__file__).parent
ROOT = Path(__file__).parent.parent
LEDGER, ENDPOINTS, CORE, RUNTIME = "_ledger.py", "_endpoints.py", "_core.py", "_runtime.py"
THREADS = "_channels/threads.py"


class Bug(NamedTuple):
    """One change of the shipped code.

    Attributes:
        name: what is wrong.
        file: in the package. old: its text there, which it has once. new: what it becomes.
        model: the one of `tests.models` that finds it in the fewest schedules.
        strategy: by which (see `tests.seek`).
    """

    name: str
    file: str
    old: str
    new: str
    model: str
    strategy: str = "exhaustive"


def copy_with(bug: Bug, folder: Path) -> None:
    """A copy of the package in *folder*, with the bug. (Its byte code is copied as well.)"""
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    path = folder / PACKAGE.name / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, f"{bug.name}: {text.count(bug.old)} times in {bug.file}"
    path.write_text(text.replace(bug.old, bug.new))


def environment(folder: Path) -> dict[str, str]:
    """For a process that imports the copy in *folder*, which is nothing to be measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**kept, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def seek_in(
    folder: Path, model: str, strategy: str, schedules: int, seeds: list[int], timeout_s: float
) -> list[Sought]:
    """`seek` with each seed, by the copy of the package in *folder*."""
    command = [sys.executable, "-m", "tests.seek", model, strategy, str(schedules)]
    run = subprocess.run(
        [*command, *map(str, seeds)],
        env=environment(folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [Sought(*json.loads(line)) for line in run.stdout.splitlines()]


BUGS = [
    # Wake-ups
    Bug(
        "put wakes nobody",
        LEDGER,
        """            if head[WAIT_ITEM]:
                self.items.notify()
            return True""",
        """            return True""",
        "2x1",
    ),
    Bug(
        "take makes room and wakes nobody",
        LEDGER,
        """            if head[WAIT_ROOM]:
                self.room.notify(len(pending))
            return True""",
        """            return True""",
        "2x1 maxsize 1",
    ),
    Bug(
        "take, in its short way, makes room and wakes nobody",
        LEDGER,
        """                    channel.stash[:] = ()
                    if head[WAIT_ROOM]:
                        self.room.notify()
                    return True""",
        """                    channel.stash[:] = ()
                    return True""",
        "2x1 maxsize 1",
    ),
    Bug(
        "get_many makes room for two and wakes one",
        RUNTIME,
        """            self._semaphore.release()
            if self._head[self._index] > 0:
                self._head[self._index] -= 1""",
        """            self._head[self._index] -= 1
        self._semaphore.release()""",
        "batches",
    ),
    Bug(
        "the end wakes one consumer: notify for notify_all",
        LEDGER,
        "def _wake_everybody(self) -> None:\n        self.items.notify_all()",
        "def _wake_everybody(self) -> None:\n        self.items.notify()",
        "threads, cancelled get",
    ),
    Bug(
        "the end wakes one producer: notify for notify_all",
        LEDGER,
        "        self.room.notify_all()\n        self.end.notify_all()",
        "        self.room.notify()\n        self.end.notify_all()",
        "threads, cancelled put",
    ),
    Bug(
        "the end wakes no caller of join",
        LEDGER,
        "        self.room.notify_all()\n        self.end.notify_all()",
        "        self.room.notify_all()",
        "cancelled join",
    ),
    Bug(
        "nobody is woken when the queue is drained",
        LEDGER,
        """                if self.drained():
                    self._wake_everybody()""",
        """                self.drained()""",
        "closing",
    ),
    Bug(
        "cancel wakes nobody",
        LEDGER,
        "        self._drop_all()\n        self._wake_everybody()",
        "        self._drop_all()",
        "cancelled get",
    ),
    Bug(
        "a consumer that finds nothing finishes its last item and tells nobody",
        LEDGER,
        """            if not hand.held:
                if finishes:
                    self.settle()
                return False""",
        """            if not hand.held:
                return False""",
        "threads, working",
    ),
    Bug(
        "a put without the lock wakes nobody",
        ENDPOINTS,
        """                if head[WAIT_ITEM]:
                    self._core.transact(self._ledger.items.notify)
                return""",
        """                return""",
        "threads 2x1",
    ),
    Bug(
        "a get without the lock makes room and wakes nobody",
        ENDPOINTS,
        """            if self._head[WAIT_ROOM]:
                self._core.transact(self._ledger.room.notify)
            item = pending[0]""",
        """            item = pending[0]""",
        "threads 2x1 maxsize 1",
    ),
    Bug(
        "one who waits is not announced",
        RUNTIME,
        "        self._head[self._index] += 1",
        "        pass",
        "2x1",
    ),
    Bug(
        "one who waits is announced, but looks no second time",
        CORE,
        "                    return self.ledger.channel.recheck() and attempt()",
        "                    return False",
        "threads 2x1",
        "random",
    ),
    Bug(
        "one who waits is announced outside the lock",
        CORE,
        """                if not waiting.announced:
                    waiting.announce()
                    # Again: what was put without the lock looked for waiters too early.
                    return self.ledger.channel.recheck() and attempt()
                return False""",
        """            if not waiting.announced:
                waiting.announce()
            return False""",
        "threads 2x1",
    ),
    Bug(
        "one whose time is up takes a wake-up that was for another",
        RUNTIME,
        """        if self._head[self._index] > in_loops:
            self._head[self._index] -= 1
        else:
            self._semaphore.acquire(False)""",
        """        if not self._semaphore.acquire(False):
            self._head[self._index] -= 1""",
        "timed out",
        "random",
    ),
    Bug(
        "a time-out begins again with each wake-up",
        CORE,
        """                if condition.sleep(left):
                    waiting.announced = False""",
        """                if condition.sleep(left):
                    waiting.announced = False
                    deadline = deadline and self.runtime.monotonic() + left""",
        "timed",
    ),
    # The end
    Bug(
        "Done while producers are open",
        LEDGER,
        "if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY] or self.channel.size():",
        "if not head[STATE] & CLOSED or head[BUSY] or self.channel.size():",
        "2x1",
    ),
    Bug(
        "Done while workers are busy",
        LEDGER,
        "if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY] or self.channel.size():",
        "if not head[STATE] & CLOSED or head[PRODUCERS] or self.channel.size():",
        "workers",
    ),
    Bug(
        "Done while items are left",
        LEDGER,
        "if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY] or self.channel.size():",
        "if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY]:",
        "closing",
    ),
    Bug(
        "Done before the queue is closed",
        LEDGER,
        "if not head[STATE] & CLOSED or head[PRODUCERS] or head[BUSY] or self.channel.size():",
        "if head[PRODUCERS] or head[BUSY] or self.channel.size():",
        "late producer",
    ),
    Bug(
        "join returns while items are in hand",
        LEDGER,
        "        return self.drained() and self.in_hand() == 0",
        "        return self.drained()",
        "closing",
    ),
    Bug(
        "a worker that has not asked yet is not busy",
        LEDGER,
        """            cells[base + FLAGS] = UNASKED
            head[WORKERS] += 1
            head[BUSY] += 1""",
        """            head[WORKERS] += 1""",
        "starting",
    ),
    Bug(
        "a worker stays busy with what it has finished",
        LEDGER,
        "            head[BUSY] -= busy\n            cells[base + FLAGS] = flags & ~UNASKED",
        "            cells[base + FLAGS] = flags & ~UNASKED",
        "workers",
    ),
    Bug(
        "a worker that goes leaves its item counted as busy",
        LEDGER,
        "            head[WORKERS] -= 1\n            head[BUSY] -= busy",
        "            head[WORKERS] -= 1",
        "worker closes",
    ),
    Bug(
        "abandoned: never",
        LEDGER,
        """                head[STATE] = state | ABANDONED
                self._wake_everybody()""",
        """                pass""",
        "abandoned",
    ),
    Bug(
        "abandoned before there ever was a consumer",
        LEDGER,
        "alone = head[EVER] and not head[CONSUMERS] and not head[WORKERS]",
        "alone = not head[CONSUMERS] and not head[WORKERS]",
        "late consumer",
    ),
    Bug(
        "abandoned for good, though nothing was left",
        LEDGER,
        "                head[STATE] = state & ~ABANDONED\n",
        "",
        "nothing left",
    ),
    # Counts
    Bug(
        "room for one more than maxsize",
        LEDGER,
        "elif self._maxsize and self.channel.size() >= self._maxsize:",
        "elif self._maxsize and self.channel.size() > self._maxsize:",
        "2x1 maxsize 1",
    ),
    Bug(
        "a close counts, though another thread has closed",
        LEDGER,
        """        if not self.is_open(slot, number):
            return False
        head, cells = self.head, self.cells
        base = slot * SLOT_SIZE
        kind = cells[base + KIND]
        if slot in self.hands:""",
        """        head, cells = self.head, self.cells
        base = slot * SLOT_SIZE
        kind = cells[base + KIND] or PRODUCER
        if slot in self.hands:""",
        "threads, closed twice",
    ),
    Bug(
        "what a thread counted by itself is counted again each time",
        LEDGER,
        "                hand.seen = (taken, in_hand)\n",
        "",
        "threads, observed",
    ),
    Bug(
        "a take is counted twice",
        LEDGER,
        "                taken += 1\n                head[TAKEN] = taken\n",
        "                taken += 2\n                head[TAKEN] = taken\n",
        "2x1",
    ),
    Bug(
        "cancel drops items and does not count them",
        LEDGER,
        "        head[DROPPED] += queued\n        self.channel.clear()",
        "        self.channel.clear()\n        head[DROPPED] += self.channel.size()",
        "cancelled put",
    ),
    Bug(
        "what an interrupted get took is not given back",
        ENDPOINTS,
        "                self._ledger.give_back(self.slot, hand)\n",
        "                pass\n",
        "threads, interrupted",
    ),
    # Deaths
    Bug(
        "a killed producer counts as one that has closed",
        CORE,
        "if view.kind == PRODUCER or cut_short:",
        "if cut_short:",
        "killed producer",
    ),
    Bug(
        "what a killed consumer had in hand is not counted as lost",
        LEDGER,
        "            (LOST, self.head[LOST] + count),\n",
        "",
        "killed consumer",
    ),
    Bug(
        "a killed worker's item is forgotten, and nobody is told",
        CORE,
        "                cut_short = cut_short or view.kind == WORKER\n",
        "                pass\n",
        "killed worker",
    ),
    Bug(
        "Done while a consumer that may be killed has an item in hand",
        LEDGER,
        "        return not head[REDELIVER] or self.in_hand(fold=fold) == 0",
        "        return True",
        "killed consumer, redelivery",
    ),
    Bug(
        "TAKEN is stored before the item is in hand",
        LEDGER,
        """                cells[base + HAD] = cells[base + IN_HAND]
                cells[base + AT] = taken + 1""",
        """                head[TAKEN] = taken + 1
                cells[base + HAD] = cells[base + IN_HAND]
                cells[base + AT] = taken + 1""",
        "killed consumer, redelivery, inside",
    ),
    Bug(
        "a death inside the lock: a take that never happened stays in hand",
        LEDGER,
        """            if cells[base + AT] > head[TAKEN]:
                cells[base + IN_HAND] = cells[base + HAD]
                cells[base + AT] = 0
""",
        "",
        "killed consumer, inside",
    ),
    Bug(
        "a death inside the lock: open endpoints are not counted again",
        LEDGER,
        "        head[PRODUCERS], head[CONSUMERS], head[WORKERS] = opened.values()\n",
        "",
        "killed producer, inside",
    ),
    Bug(
        "a death inside the lock: busy workers are not counted again",
        LEDGER,
        "        head[BUSY] = busy\n        if head[EVER]",
        "        if head[EVER]",
        "killed worker, inside",
    ),
    Bug(
        "an item that was read, but not taken, is not counted as queued",
        THREADS,
        "return self._size() + (len(self.stash) if self._at == self._head[TAKEN] else 0)",
        "return self._size()",
        "killed consumer, inside",
    ),
]
"""What is seeded."""
