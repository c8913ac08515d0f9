"""One queue for processes: its directory, and one process's part in it.

A queue is a private directory, in shared memory where there is some:

    cells    the ledger's cells: the head, then the slots; grows
    s0, s1   segments of items, and `spare` (see `_channels.processes`)
    p<slot>  locked by the process in that slot for as long as it lives (`_liveness`)
    l<n>     locked by a process and by the children that it forked since, which may hold copies of
             endpoints that nobody had taken then
    h<slot>  with `redeliver=True`, what the consumer in that slot has in hand
    errors   failures, `reason`: why it was cancelled

and four semaphores of the context's kind, named after it. Everything is found by name, so that a
queue and its endpoints can travel by any road that pickles.

The lock is a semaphore, which has no owner: a process that dies inside takes it with it. HOLDER
names who is inside; who can't get the lock within a slice looks whether that process lives, and if
not, the queue is broken, for everybody and by name.

Whose endpoint is it?
---------------------
An endpoint is taken by the first process that unpickles it, uses it, or is started with it. Under
fork that is known before the child runs: the hook before the fork finds the process's arguments.
Under spawn and forkserver the endpoint is pickled while the process is launched, and the lock that
shows that the child lives is made then and handed to it as an open file. So a child that dies
before it ran a line of Python has an owner's mark and a free lock, like any other dead process.

An endpoint that nobody has taken, and whose maker's copy is gone, is adrift. It stays open while
somebody lives who may hold a copy: the process that pickled it, or a child forked since (they hold
`l<n>` together). Then it has failed.
"""

from __future__ import annotations

import atexit
import errno
import io
import mmap
import os
import pickle
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from iterable_queue import _forks
from iterable_queue import _ledger as ledger_
from iterable_queue._channels.processes import SpoolChannel, reserve
from iterable_queue._core import Core, thread_core
from iterable_queue._errors import (
    ChannelBroken,
    EndpointElsewhere,
    WouldDeadlock,
    pack_error,
    unpack_error,
)
from iterable_queue._ledger import (
    BROKEN,
    CONSUMER,
    DROPPED_COPY,
    FLAGS,
    FORKED,
    HEAD_SIZE,
    HOLDER,
    LINEAGE,
    MAX_DELIVERIES,
    NUMBER,
    PROCESS,
    PRODUCER,
    QUEUE,
    ROAD,
    SENT,
    SLOT_SIZE,
    STATE,
    USED,
    WORKER,
    Ledger,
    SlotView,
)
from iterable_queue._liveness import hold, how_it_ended, is_held
from iterable_queue._runtime import SLICE_S, Condition, guard, is_lock_busy

if TYPE_CHECKING:
    from iterable_queue._endpoints import Endpoint
    from iterable_queue._protocols import Context
    from iterable_queue._runtime import Cells, ErrorStore, Lock

REMOVED: Final = 31
"""A cell of the head: 1 once the directory is being removed."""
LINEAGES: Final = 30
"""A cell of the head: the last number given to a lock that children inherit."""
FIRST_SLOTS: Final = 126
"""Slots in a new file: with the head they fill eight pages."""
RECURSIVE, COUNTING = 0, 1
"""Kinds of SemLock. The lock is recursive so that a release by one who lacks it changes nothing."""
PATIENCE: Final = (0.001, 0.01, 0.05, SLICE_S)
"""How long the lock is waited for at a time by calls with a time-out, in seconds."""
SPINS: Final = 15
"""How often a call without a time-out tries a busy lock again before it sleeps for it: about as
long as another process is inside, which is a fraction of what a sleep costs both."""
LOOK_S: Final = 0.8
"""How often a process that waits looks who has died, in seconds."""
SUSPICION_S: Final = 1.2
"""How long the lock must be out of reach, with nobody's name on it, before a dead process that
took part is taken to have died between taking the lock and writing its name."""

SemLock = Any
"""The C type behind the context's locks; each multiprocessing-like package may have its own."""


class Address(NamedTuple):
    """What another process needs to find the queue."""

    path: str
    token: str
    semlock: type[SemLock]
    package: str
    """The multiprocessing-like package whose pickler and exit hooks are used."""


class SharedErrors:
    """Failures, and the reason for a cancel, as files."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def pack(self, error: BaseException) -> bytes:
        return pickle.dumps(pack_error(error))

    def add_failure(self, packed: object) -> None:
        assert isinstance(packed, bytes)
        with open(f"{self._path}/errors", "ab", opener=_private) as file:
            file.write(len(packed).to_bytes(8, "little") + packed)

    def failures(self) -> tuple[BaseException, ...]:
        found: list[BaseException] = []
        try:
            with open(f"{self._path}/errors", "rb") as file:
                while size := file.read(8):
                    packed = file.read(int.from_bytes(size, "little"))
                    found.append(unpack_error(pickle.loads(packed)))
        except FileNotFoundError:
            pass
        return tuple(found)

    def set_reason(self, packed: object) -> None:
        assert isinstance(packed, bytes)
        name = f"{self._path}/reason"
        with open(f"{name}.{os.getpid()}", "wb", opener=_private) as file:
            file.write(packed)
        os.replace(f"{name}.{os.getpid()}", name)

    def reason(self) -> BaseException | None:
        try:
            with open(f"{self._path}/reason", "rb") as file:
                return unpack_error(pickle.loads(file.read()))
        except FileNotFoundError:
            return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


class SharedRuntime:
    """Cells in a mapped file, and the context's semaphores, opened by name."""

    now = staticmethod(time.monotonic_ns)

    def __init__(self, address: Address) -> None:
        self._path = f"{address.path}/cells"
        self._count = 0
        view = self._map()
        self.head: Cells = view[:HEAD_SIZE]
        rebuild = address.semlock._rebuild
        most = address.semlock.SEM_VALUE_MAX
        names = semaphore_names(address.token)
        self._lock = rebuild(0, RECURSIVE, 1, names[0])
        self._semaphores = [rebuild(0, COUNTING, most, name) for name in names[1:]]
        acquire, release = self._lock.acquire, self._lock.__exit__
        self._guards = [guard(acquire, release, True, seconds) for seconds in PATIENCE]
        self.lock: Lock = self._guards[-1]
        self.trylock: Lock = guard(acquire, release, False)
        waiters = (ledger_.WAIT_ITEM, ledger_.WAIT_ROOM, ledger_.WAIT_END)
        self.items, self.room, self.end = (
            Condition(self.head, index, semaphore)
            for index, semaphore in zip(waiters, self._semaphores, strict=True)
        )
        self.errors: ErrorStore = SharedErrors(address.path)

    def _map(self) -> Any:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            view = memoryview(mmap.mmap(fd, 0)).cast("q")
        finally:
            os.close(fd)
        self._view = view[HEAD_SIZE:]
        return view

    def cells(self, count: int) -> Cells:
        if len(self._view) < count:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.fstat(fd).st_size
                needed = (HEAD_SIZE + count) * 8
                if size < needed:
                    reserve(fd, max(needed, 2 * size))
            finally:
                os.close(fd)
            self._map()
        return cast("Cells", self._view)

    def lock_within(self, timeout_s: float) -> Lock:
        best = self._guards[0]
        for seconds, lock in zip(PATIENCE, self._guards, strict=True):
            if seconds <= timeout_s:
                best = lock
        return best

    def after_fork_in_child(self) -> None:
        """A thread of the parent may have held the lock, and counted that in these objects."""
        self._lock._after_fork()
        for semaphore in self._semaphores:
            semaphore._after_fork()


def semaphore_names(token: str) -> tuple[str, str, str, str]:
    """The names of the lock, and of the three conditions' semaphores."""
    return f"/iq-{token}-l", f"/iq-{token}-i", f"/iq-{token}-r", f"/iq-{token}-e"


class SharedCore(Core):
    """One process's part in a queue.

    Attributes:
        address: where the queue is.
    """

    spins = SPINS

    def __init__(self, address: Address) -> None:
        runtime = SharedRuntime(address)
        channel = SpoolChannel(runtime.head, address.path)
        super().__init__(runtime, Ledger(runtime, channel))
        self.address = address
        self._shared_runtime = runtime
        self._life = -1
        """Descriptor of the lock that shows that this process lives."""
        self._heir: tuple[int, int] | None = None
        """During a fork: the child's slot, and the descriptor of its lock."""
        self._launching: dict[int, _Launch] = {}
        """By id of the Popen object: processes being started."""
        self._lineages: dict[int, int] = {}
        """Descriptors of the locks that forked children inherit, by number; the first one stands
        for the queue itself."""
        self._old_lineages: set[int] = set()
        """Numbers of those closed here, whose files may go once nobody else holds them."""
        self._inherited: list[int] = []
        """Descriptors of such locks that this process got from its parent."""
        self._leases: dict[int, int] = {}
        """Descriptors of lease files, by slot."""
        self._left = False
        self._looked_at = 0.0
        self._busy_since = 0.0
        self._busy_at = 0.0
        if runtime.head[ledger_.REDELIVER]:
            self.ledger.lease = self.write_lease
        self.dumps, self.loads = pickling(address.package)
        _install_exit_hooks(address.package)

    # -- the lock --------------------------------------------------------------------------------

    def lock_was_busy(self, error: KeyError) -> None:
        if not is_lock_busy(error):
            raise error
        head = self.ledger.head
        if head[STATE] & BROKEN:
            raise self.ledger.refusal()
        self.ledger.cells = self.runtime.cells(head[ledger_.SLOTS] * SLOT_SIZE)
        now = time.monotonic()
        holder = head[HOLDER]
        if holder:
            self._busy_since = now
            if holder == self.ledger.me or self.is_alive(holder) or head[HOLDER] != holder:
                return
            self._break(
                f"process {self.pid_of(holder)} died inside the queue's lock and took it along"
            )
        if now - self._busy_at > 2 * SLICE_S:
            self._busy_since = now
        self._busy_at = now
        if now - self._busy_since > SUSPICION_S:
            dead = [v for v in self.ledger.views(PROCESS) if not self.is_alive(v.slot)]
            if dead and not head[HOLDER]:
                self._break(
                    f"process {dead[0].number} died as it took the queue's lock, and took it along"
                )

    def _break(self, why: str) -> None:
        text = (
            f"{why}. On a channel over multiprocessing's semaphores such a lock can't be had back; "
            "make a new queue"
        )
        self.ledger.mark_broken(self.runtime.errors.pack(ChannelBroken(text)))
        raise self.ledger.refusal()

    # -- taking part -----------------------------------------------------------------------------

    def check_here(self) -> None:
        if self._left:
            raise ChannelBroken(
                f"process {os.getpid()} is ending and has left the queue; close endpoints before"
            )

    def register(self) -> None:
        if not self.ledger.me:
            self.transact(self._register)

    def _register(self) -> None:
        if self.ledger.head[REMOVED]:
            raise ChannelBroken("the queue is gone: every process that took part in it has ended")
        self.ledger.me = self.ledger.open_process(os.getpid(), self._hold_life)

    def _hold_life(self, slot: int) -> None:
        self._life = hold(self._name("p", slot))

    def _name(self, kind: str, number: int) -> str:
        return f"{self.address.path}/{kind}{number}"

    def is_alive(self, process: int) -> bool:
        return process == self.ledger.me or is_held(self._name("p", process))

    def adopt(self, slot: int, fd: int) -> None:
        """This process was started with a slot made for it, and inherited the lock."""
        if self.ledger.me:
            if self.ledger.me != slot:  # it took part already, by another road
                os.close(fd)
            return
        os.set_inheritable(fd, False)
        self._life = fd
        self.ledger.me = slot
        self.ledger.cells[slot * SLOT_SIZE + NUMBER] = os.getpid()

    # -- seeing who has died ---------------------------------------------------------------------

    def look(self) -> None:
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            dead = [v.slot for v in self.ledger.views(PROCESS) if not self.is_alive(v.slot)]
            self.transact(self._look, dead)
        else:
            self.transact(self.ledger.settle)

    def look_now_and_then(self) -> None:
        self.look()

    def _look(self, suspects: list[int]) -> None:
        for slot in suspects:
            # Again, under the lock: the slot may have been given to a new process since.
            if self.ledger.cells[slot * SLOT_SIZE] == PROCESS and not self.is_alive(slot):
                self._bury_process(self.ledger.view(slot))
        for view in self.ledger.views(PRODUCER, CONSUMER, WORKER):
            if not view.owner and not self._may_be_held(view):
                self.end(
                    view,
                    "was never taken: every process that could have held it has ended, or dropped "
                    "it",
                )
        self.ledger.settle()

    def _may_be_held(self, view: SlotView) -> bool:
        """Whether somebody lives who may hold an untaken endpoint."""
        return bool(
            (view.maker and not view.flags & DROPPED_COPY)
            or (view.flags & SENT and view.road and self.is_alive(view.road))
            or (view.lineage and is_held(self._name("l", view.lineage)))
        )

    def _bury_process(self, process: SlotView) -> None:
        """It has died: its endpoints end, and what it had in hand goes where it belongs."""
        how = (
            f"{how_it_ended(process.number)} without close()"
            if process.number
            else "was given to a process that ended before it began to run"
        )
        for view in self.ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE):
            if view.owner == process.slot:
                self._bury_endpoint(view, how)
            elif view.kind == QUEUE and view.maker == process.slot:
                self.end(view, how)
        self._release(process.slot)

    def _bury_endpoint(self, view: SlotView, how: str) -> None:
        ledger = self.ledger
        cut_short = view.kind == WORKER and (view.flags & ledger_.UNASKED)
        if view.in_hand:
            lost = self._redeliver(view) if ledger.lease is not None else view.in_hand
            if lost:
                ledger.lose(view.slot, lost)
                cut_short = cut_short or view.kind == WORKER
        if view.kind == PRODUCER or cut_short:
            packed = self.runtime.errors.pack(self.failure(view, how, None))
            ledger.fail(view.slot, view.number, packed)
        else:
            ledger.close(view.slot, view.number)
        self._unlink(self._name("h", view.slot))

    def _redeliver(self, view: SlotView) -> int:
        """Put back what the consumer had in hand. Returns how many items are lost all the same."""
        try:
            with open(self._name("h", view.slot), "rb") as file:
                kept: list[tuple[bytes, int]] = pickle.load(file)
        except (FileNotFoundError, EOFError):
            kept = []
        lost = max(view.in_hand - len(kept), 0)
        for payload, tag in kept[: view.in_hand]:
            tries = (tag >> 48) + 1
            if tries >= MAX_DELIVERIES:
                lost += 1
            else:
                self.ledger.redeliver(view.slot, payload, tag & ledger_.NUMBER_MASK | tries << 48)
        return lost

    def write_lease(self, slot: int) -> None:
        """Write down what the endpoint in *slot* has in hand. Called with the lock held."""
        kept = [payload for hand in self.ledger.hands[slot].values() for payload in hand.kept]
        fd = self._leases.get(slot)
        if fd is None:
            fd = self._leases[slot] = _private(self._name("h", slot), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 0)
        os.pwrite(fd, pickle.dumps(kept), 0)

    def _release(self, process: int) -> None:
        self.ledger.release_process(process)
        self._unlink(self._name("p", process))

    def _unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    # -- forks -----------------------------------------------------------------------------------

    def before_fork(self, arguments: tuple[object, ...]) -> None:
        if self.ledger.me:
            self.transact(self._before_fork, arguments)

    def _before_fork(self, arguments: tuple[object, ...]) -> None:
        ledger = self.ledger
        if not self._lineages:
            # For whoever holds the queue itself: the directory stays while one of them lives.
            self._add_lineage()
        if ledger.is_open(self.queue_slot, 0):
            ledger.cells[self.queue_slot * SLOT_SIZE + FLAGS] |= FORKED
        direct = {id(argument) for argument in arguments}
        lineage = 0
        for endpoint in self._untaken():
            base = endpoint.slot * SLOT_SIZE
            if id(endpoint) in direct:
                if self._heir is None:
                    self._heir = self._make_heir()
                ledger.assign(endpoint.slot, self._heir[0])
            elif not ledger.cells[base + ledger_.OWNER]:
                ledger.cells[base + FLAGS] |= FORKED
                if not ledger.cells[base + LINEAGE]:
                    lineage = lineage or self._add_lineage()
                    ledger.cells[base + LINEAGE] = lineage
        self._drop_lineages()

    def _add_lineage(self) -> int:
        for number in [n for n in self._old_lineages if not is_held(self._name("l", n))]:
            self._unlink(self._name("l", number))
            self._old_lineages.discard(number)
        head = self.ledger.head
        head[LINEAGES] += 1
        self._lineages[head[LINEAGES]] = hold(self._name("l", head[LINEAGES]))
        return head[LINEAGES]

    def _untaken(self) -> Iterator[Endpoint]:
        """The endpoints here that this process may still hand on. Called with the lock held."""
        for endpoint in list(self.endpoints):
            if self.ledger.is_open(endpoint.slot, endpoint.number):
                view = self.ledger.view(endpoint.slot)
                if self.is_mine(view) and not view.flags & USED:
                    yield endpoint

    def _drop_lineages(self) -> None:
        """Close the locks of lineages none of whose endpoints has a copy here any more."""
        needed = set(list(self._lineages)[:1])
        for endpoint in self._untaken():
            needed.add(self.ledger.cells[endpoint.slot * SLOT_SIZE + LINEAGE])
        for number in [number for number in self._lineages if number not in needed]:
            os.close(self._lineages.pop(number))
            self._old_lineages.add(number)

    def _make_heir(self) -> tuple[int, int]:
        """A slot, and the lock that shows its life, for a process that is about to be started."""
        held: list[int] = []

        def prepare(slot: int) -> None:
            held.append(hold(self._name("p", slot)))

        return self.ledger.open_process(0, prepare), held[0]

    def after_fork_in_parent(self) -> None:
        if self._heir is not None:
            os.close(self._heir[1])  # the child has it now, and it alone
            self._heir = None

    def after_fork_in_child(self) -> None:
        if self._life >= 0:
            os.close(self._life)  # else the parent would seem to live as long as this child
        for launch in self._launching.values():
            launch.close()
        for fd in self._leases.values():
            os.close(fd)
        self._launching, self._leases = {}, {}
        self._inherited += self._lineages.values()
        self._lineages, self._old_lineages = {}, set()
        self._life, self.ledger.me = -1, 0
        self._dropped.clear()
        self._shared_runtime.after_fork_in_child()
        self.ledger.hands.clear()
        for endpoint in list(self.endpoints):
            endpoint.forget()
        if self._heir is not None:
            slot, self._life = self._heir
            self._heir = None
            self.ledger.me = slot
            self.ledger.cells[slot * SLOT_SIZE + NUMBER] = os.getpid()

    # -- pickling --------------------------------------------------------------------------------

    def reduce(self, target: object, slot: int, number: int) -> tuple[Any, ...]:
        self.register()
        kind = getattr(target, "kind", QUEUE)
        popen = spawning_popen()
        if popen is None:
            generation = self.transact(self._send, slot, number, kind)
            return attach, (self.address, kind, slot, number, generation, 0, None)
        launch = self._launching.get(id(popen))
        if launch is None:
            launch = _Launch(self, popen, *self.transact(self._make_heir))
            self._launching[id(popen)] = launch
        generation = self.transact(self._send, slot, number, kind, launch)
        return attach, (self.address, kind, slot, number, generation, launch.slot, launch.duplicate)

    def _send(self, slot: int, number: int, kind: int, launch: _Launch | None = None) -> int:
        """Note that a copy goes off. Returns the generation that makes it valid."""
        ledger = self.ledger
        if not ledger.is_open(slot, number):
            if kind == QUEUE:
                return 0
            raise EndpointElsewhere(
                "a closed endpoint, or one that another process has taken, can't be handed on"
            )
        view = ledger.view(slot)
        if kind != QUEUE and not self.is_mine(view):
            raise EndpointElsewhere(
                f"the endpoint belongs to process {self.pid_of(view.owner)}, which alone can hand "
                "it on; clone() one that is yours"
            )
        base = slot * SLOT_SIZE
        if launch is not None and kind != QUEUE:
            launch.endpoints.append((slot, number))
        else:
            ledger.cells[base + FLAGS] |= SENT
            ledger.cells[base + ROAD] = ledger.me
        return ledger.cells[base + ledger_.GENERATION]

    def launched(self, launch: _Launch) -> None:
        """Starting a process has come to its end, well or not."""
        self._launching.pop(id(launch.popen), None)
        launch.close()
        self.transact(self._launched, launch)

    def _launched(self, launch: _Launch) -> None:
        ledger = self.ledger
        if getattr(launch.popen, "pid", None) is None:
            if ledger.cells[launch.slot * SLOT_SIZE] == PROCESS:
                self._release(launch.slot)
            return
        for slot, number in launch.endpoints:
            if ledger.is_open(slot, number):
                view = ledger.view(slot)
                if self.is_mine(view) and not view.flags & USED:
                    ledger.assign(slot, launch.slot)

    def set_adrift(self, view: SlotView) -> None:
        # One that was taken here and handed on unused is as good as untaken again.
        base = view.slot * SLOT_SIZE
        self.ledger.cells[base + ledger_.OWNER] = 0
        self.ledger.cells[base + FLAGS] |= DROPPED_COPY
        self._drop_lineages()

    # -- leaving ---------------------------------------------------------------------------------

    def leave(self, how: str, cause: BaseException | None = None, *, slices: int = 8) -> None:
        """This process takes part no more: it ends, or nothing in it refers to the queue.

        The lock is waited for during so many slices. Without it this process just goes, and the
        others find its endpoints as those of a dead process.
        """
        if self._left:
            return
        self._left = True
        last = False
        while self.ledger.me and slices:
            slices -= 1
            try:
                with self.runtime.lock:
                    last = self.ledger.transact(self._leave, how, cause)
            except KeyError as error:
                if not is_lock_busy(error):
                    raise
                if self.ledger.head[STATE] & BROKEN:
                    last = not self._others()
                    break
            except WouldDeadlock:
                break
        for fd in (*self._lineages.values(), *self._leases.values(), *self._inherited):
            os.close(fd)
        self._lineages.clear()
        self._inherited.clear()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if last:
            remove(self.address.path, self.address.token, self.address.semlock)

    def _leave(self, how: str, cause: BaseException | None) -> bool:
        ledger, me = self.ledger, self.ledger.me
        for view in ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE):
            if not self.is_mine(view):
                continue
            shared = view.flags & (SENT | FORKED)
            if view.owner or (view.kind == QUEUE and shared):
                self.end(view, how, cause)
            elif not shared:
                ledger.close(view.slot, view.number)
            self._unlink(self._name("h", view.slot))
        self._release(me)
        ledger.me = 0
        last = not self._others()
        if last:
            ledger.head[REMOVED] = 1
        return last

    def _others(self) -> bool:
        """Whether another process takes part, or may hold a copy of something."""
        me = self.ledger.me
        if any(self.is_alive(v.slot) for v in self.ledger.views(PROCESS) if v.slot != me):
            return True
        for fd in (*self._lineages.values(), *self._inherited):
            os.close(fd)
        self._lineages.clear()
        self._inherited.clear()
        try:
            names = os.listdir(self.address.path)
        except FileNotFoundError:
            return False
        return any(is_held(f"{self.address.path}/{name}") for name in names if name.startswith("l"))

    def __del__(self) -> None:
        if getattr(self, "_left", True):
            return
        self.leave("was dropped without close()", slices=1)


class _Launch:
    """A process that is being started by spawn or forkserver, and the endpoints it was given."""

    def __init__(self, core: SharedCore, popen: Any, slot: int, fd: int) -> None:
        self.popen = popen
        self.slot = slot
        self.endpoints: list[tuple[int, int]] = []
        self._fd = fd
        # The child gets the open file; the copy here must go once it has been started, or it would
        # seem to live as long as this process. That moment is the end of `_launch`, at which the
        # buffer goes into which this is being pickled.
        self.duplicate = popen.DupFd(popen.duplicate_for_child(fd))
        frame = _forks.launching_frame()
        buffers = [
            value
            for value in ({} if frame is None else frame.f_locals).values()
            if isinstance(value, io.BytesIO)
        ]
        watched = buffers[0] if buffers else popen
        weakref.finalize(watched, _launched, weakref.ref(core), self).atexit = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _launched(core: weakref.ref[SharedCore], launch: _Launch) -> None:
    found = core()
    if found is None:
        launch.close()
    else:
        found.launched(launch)


# -- this process and its queues -----------------------------------------------------------------

_attached: weakref.WeakValueDictionary[str, SharedCore] = weakref.WeakValueDictionary()
"""By path: one part in a queue for each process, however many endpoints it holds."""
_swept_at = -1e9


def attach(
    address: Address,
    kind: int,
    slot: int,
    number: int,
    generation: int,
    heir: int,
    duplicate: Any,
) -> object:
    """Unpickle an endpoint or a queue: take part, and take the endpoint. Never raises."""
    from iterable_queue._endpoints import (
        ConsumerEndpoint,
        ProducerEndpoint,
        WorkerEndpoint,
    )
    from iterable_queue._queue import IterableQueue

    fd = None if duplicate is None else duplicate.detach()
    lost: Exception | None = None
    core: Core
    try:
        core = _attach(address, heir, fd)
    except Exception as error:
        lost = ChannelBroken(
            f"the queue can't be reached from process {os.getpid()}: {error}. It ends with the "
            "last process that takes part in it; keep one of those alive while this travels"
        )
        core = thread_core(SimpleQueue(), 0)  # a stand-in: calls raise *lost* before using it
    if kind == QUEUE:
        handle: IterableQueue[Any] = IterableQueue.__new__(IterableQueue)
        handle.begin(core, maker=False, lost=lost)
        return handle
    classes: dict[int, type[Endpoint]] = {
        PRODUCER: ProducerEndpoint,
        CONSUMER: ConsumerEndpoint,
        WORKER: WorkerEndpoint,
    }
    if lost is None:
        for endpoint in list(core.endpoints):
            if endpoint.slot == slot and endpoint.number == number:
                core.transact(core.ledger.take_over, slot, number, generation)
                return endpoint
        core.transact(core.ledger.take_over, slot, number, generation)
    return classes[kind](core, slot, number, lost)


def _attach(address: Address, heir: int, fd: int | None) -> SharedCore:
    core = _attached.get(address.path)
    if core is None:
        status = os.lstat(address.path)
        if status.st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM, "the queue's directory belongs to another user", address.path
            )
        core = _attached[address.path] = SharedCore(address)
    if fd is not None:
        core.adopt(heir, fd)
    core.register()
    return core


def make_shared_core(
    context: Context | None, maxsize: int, *, cancel: bool, redeliver: bool
) -> SharedCore:
    """A new queue, with this process as its maker."""
    semlock, package = _parts(context)
    _sweep(semlock)
    token = os.urandom(8).hex()
    path = f"{_base()}/{PREFIX}{os.geteuid()}-{os.getpid()}-{token}"
    os.mkdir(path, 0o700)
    address = Address(path, token, semlock, package)
    try:
        fd = os.open(f"{path}/cells", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            reserve(fd, (HEAD_SIZE + FIRST_SLOTS * SLOT_SIZE) * 8)
        finally:
            os.close(fd)
        lock, *conditions = semaphore_names(token)
        semlock(RECURSIVE, 1, 1, lock, False)
        for name in conditions:
            semlock(COUNTING, 0, semlock.SEM_VALUE_MAX, name, False)
        core = SharedCore(address)
        core.ledger.set_up(maxsize, cancel=cancel, redeliver=redeliver)
        if redeliver:
            core.ledger.lease = core.write_lease
        core.register()
    except BaseException:
        remove(path, token, semlock)
        raise
    _attached[path] = core
    return core


def _parts(context: Context | None) -> tuple[type[SemLock], str]:
    """The C type of the context's locks, and the package that it belongs to."""
    if context is None:
        import multiprocessing

        context = multiprocessing
    make = getattr(context, "RLock", None)
    if not callable(make):
        raise TypeError(f"context must have RLock(), as multiprocessing does; {context!r} has not")
    # A lock of the fork kind has no name, so that making it starts no tracker process.
    get_context = getattr(context, "get_context", None)
    source = get_context("fork") if callable(get_context) else context
    semlock = type(getattr(source.RLock(), "_semlock", None))
    if not hasattr(semlock, "_rebuild"):
        raise TypeError(
            f"context must have an RLock() that rests on a semaphore which processes share "
            f"(_semlock), as multiprocessing's does; that of {context!r} does not"
        )
    module = getattr(context, "__name__", None) or type(context).__module__
    return semlock, str(module)


def pickling(package: str) -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    """How items are pickled and unpickled: as *package* pickles what it sends to processes."""
    pickler: Any = None
    parts = package.split(".")
    for name in (package, parts[0]):
        module = sys.modules.get(f"{name}.reduction")
        pickler = pickler or getattr(module, "ForkingPickler", None)
    if pickler is None:
        from multiprocessing.reduction import ForkingPickler

        pickler = ForkingPickler
    loads = getattr(pickler, "loads", pickle.loads)
    if not issubclass(pickler, pickle.Pickler):
        return lambda item: bytes(pickler.dumps(item)), loads
    return _reusing(pickler), loads


def _reusing(pickler: Any) -> Callable[[Any], bytes]:
    """`dumps` by the C pickler *pickler*, which is made anew only for a call inside a call."""
    spare: list[tuple[Any, io.BytesIO]] = []
    plain = {int, str, bytes, float, bool, type(None)}
    dumps = pickle.dumps
    protocol = pickle.HIGHEST_PROTOCOL

    def dump(item: Any) -> bytes:
        if type(item) in plain:  # no reducer is ever asked for these
            return dumps(item, protocol)
        if spare:
            engine, buffer = spare.pop()
        else:
            buffer = io.BytesIO()
            engine = pickler(buffer, protocol)
        engine.dump(item)
        payload = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        engine.clear_memo()
        spare.append((engine, buffer))
        return payload

    return dump


def spawning_popen() -> Any:
    """The Popen object of the process that is being started in this thread by spawn, or None."""
    for name in PACKAGES:
        module = sys.modules.get(f"{name}.context")
        if module is not None:
            popen = module.get_spawning_popen()
            if popen is not None:
                return popen
    return None


PACKAGES: Final = ("multiprocessing", "multiprocess", "billiard")
"""Packages that start processes in multiprocessing's way."""


# -- directories ---------------------------------------------------------------------------------

PREFIX: Final = "iterable_queue-"
ROOM: Final = 1 << 24
"""Shared memory with less room than this, in bytes, is passed over for the temporary directory."""


def _base() -> str:
    """Where directories of queues are made."""
    try:
        room = os.statvfs("/dev/shm")
        if os.access("/dev/shm", os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= ROOM:
            return "/dev/shm"
    except OSError:
        pass
    import tempfile

    return tempfile.gettempdir()


def remove(path: str, token: str, semlock: type[SemLock]) -> None:
    """Remove a queue's directory and its semaphores."""
    unlink = getattr(sys.modules[semlock.__module__], "sem_unlink", None)
    for name in semaphore_names(token):
        try:
            if unlink is not None:
                unlink(name)
        except FileNotFoundError:
            pass
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except FileNotFoundError:
        pass  # somebody else is removing it too


def _sweep(semlock: type[SemLock]) -> None:
    """Remove what queues of this user left behind all of whose processes were killed.

    Done at most once a minute: it looks at the locks of every queue of this user.
    """
    global _swept_at
    now = time.monotonic()
    if now - _swept_at < 60:
        return
    _swept_at = now
    base = _base()
    mine = f"{PREFIX}{os.geteuid()}-"
    for name in os.listdir(base):
        path = f"{base}/{name}"
        if name.startswith(mine) and os.lstat(path).st_uid == os.geteuid() and _is_left(path):
            remove(path, name.rpartition("-")[2], semlock)


def _is_left(path: str) -> bool:
    """Whether nobody lives who takes part in the queue in *path*, or is just making it."""
    try:
        names = os.listdir(path)
    except OSError:
        return False
    if not any(name.startswith("p") for name in names):
        try:
            os.kill(int(path.split("-")[-2]), 0)
        except ProcessLookupError:
            return True
        except (OSError, ValueError):
            pass
        return False
    return not any(is_held(f"{path}/{name}") for name in names if name[0] in "pl")


# -- the end of the process ----------------------------------------------------------------------

_hooked: set[str] = set()


class _Anchor:
    """What `register_after_fork` needs to refer to."""


_anchor = _Anchor()


def _install_exit_hooks(package: str) -> None:
    """Leave all queues when this process ends in order.

    `atexit` runs in processes of one's own and in the main one; multiprocessing's children end
    with `os._exit` after their package's finalizers (up to Python 3.12, without atexit). Each
    package clears its finalizers in a forked child and then calls what `register_after_fork` has.
    """
    if not _hooked:
        atexit.register(_leave_all)
    for name in {*PACKAGES, package.partition(".")[0]} - _hooked:
        util = sys.modules.get(f"{name}.util")
        if util is not None and hasattr(util, "Finalize"):
            _hooked.add(name)
            util.register_after_fork(_anchor, _Hook(name))
            util.Finalize(None, _leave_all, exitpriority=0)
    _hooked.add("")


class _Hook:
    """Re-registers the finalizer in a child that *package* has forked."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __call__(self, anchor: object) -> None:
        sys.modules[f"{self._package}.util"].Finalize(None, _leave_all, exitpriority=0)


def _leave_all() -> None:
    error = sys.exc_info()[1] or getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    how = "returned" if error is None else f"ended by {type(error).__name__}: {error}"
    for core in _forks.tracked():
        if isinstance(core, SharedCore):
            core.leave(f"was left open when its process {how}", error)
