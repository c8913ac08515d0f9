"""One queue for processes: its directory, and one process's part in it.

A queue is a private directory, in shared memory where there is some:

    cells    the ledger's cells: the head, then the slots; grows
    s<m>.<n> segments of items, of the lane in slot m (see `_channels.log`)
    p<slot>  locked by the process in that slot for as long as it lives (`_liveness`)
    mutex    the queue's lock (`_mutex`)
    l<n>     locked by a process and by the children that it forked since, which may hold copies of
             endpoints that nobody had taken then
    h<slot>  with `redeliver=True`, what the consumer in that slot has in hand
    bell.<…> FIFOs, by which event loops are woken (`_shared_runtime.Fifo`)
    errors   failures, `reason`: why it was cancelled
    watcher  in tests: who is told of each endpoint made (`Core.watch`)

and semaphores of the context's kind, named after it. Everything is found by name, so that a
queue and its endpoints can travel by any road that pickles.

The lock is one that the kernel lets go of when its holder dies (`_mutex`); who has it next mends
what was left half done (`Ledger.mend`). Where there are no such locks it is a semaphore, which has
no owner: a process that dies inside takes it with it. HOLDER names who is inside; who can't get the
lock within a slice looks whether that process lives, and if not, takes the lock over and mends.

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

import errno
import os
import pickle
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iterable_queue import _cells as cells_
from iterable_queue import _fence, _forks, _news
from iterable_queue._cells import (
    BROKEN,
    CONSUMER,
    DROPPED_COPY,
    FLAGS,
    FORKED,
    HOLDER,
    KIND_NAMES,
    LINEAGE,
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
    SlotView,
)
from iterable_queue._channel import Hand
from iterable_queue._channels.log import LogChannel, reserve
from iterable_queue._clock import monotonic
from iterable_queue._core import BRIEFLY_S, Core, leave_dropped, stays_here, unpickled
from iterable_queue._directory import Address, make_directory, remove
from iterable_queue._errors import (
    ChannelBroken,
    EndpointElsewhere,
    WouldDeadlock,
)
from iterable_queue._exits import install_exit_hooks, watch
from iterable_queue._ledger import Ledger
from iterable_queue._liveness import (
    hold,
    how_it_ended,
    is_held,
    may_be_stopped,
    runs,
    try_hold,
)
from iterable_queue._pickling import pickling, pickling_apart, plain_types, spawning_popen
from iterable_queue._runtime import is_lock_busy
from iterable_queue._shared_runtime import SharedRuntime, private

if TYPE_CHECKING:
    from iterable_queue._endpoints import Endpoint
    from iterable_queue._protocols import Context
    from iterable_queue._seams import Cells

REMOVED: Final = 31
"""A cell of the head: 1 once the directory is being removed."""
LINEAGES: Final = 30
"""A cell of the head: the last number given to a lock that children inherit."""
SPINS: Final = 15
"""How often a call without a time-out tries a busy lock again before it sleeps for it: about as
long as another process is inside, which is a fraction of what a sleep costs both."""
LOOK_S: Final = 0.8
"""How often a process that waits looks who has died, in seconds."""
LEAVE_SLICES: Final = 8
"""For how many slices a process that leaves waits for the lock."""
SUSPICION_GAP_S: Final = 2.0
"""Suspicion begins anew if the lock was not seen like that for so long, in seconds."""
DEATHLESS_S: Final = 1.2
"""How long suspicion must last if no process that takes part is known to have died."""
STUCK_LOOKS: Final = 300
"""How often, at last, it is looked at, a millisecond apart: a living process that was put aside
between taking the lock and writing its name must have come back by then. Looks, not seconds, since
all processes stand still together when their machine does."""
FORK_S: Final = 5.0
"""How long a fork waits for a lock that is a semaphore, in seconds: well above all of these."""
SUSPICION_S: Final = 0.7
"""How long the lock must be out of reach, with nobody's name on it, before its holder is taken to
have died between taking it and writing its name."""


class SharedCore(Core):
    """One process's part in a queue.

    Attributes:
        address: where the queue is.
    """

    spins = SPINS

    def __init__(self, address: Address) -> None:
        runtime = SharedRuntime(address)
        log = LogChannel(runtime.head, address.path)
        super().__init__(runtime, Ledger(runtime, log))
        self.log = log
        self._log = log
        log.begin(self.ledger)
        self.address = address
        self.place = address.path
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
        self._took_part = False
        """Of a process that leaves: it took part, or what it inherited did."""
        self._was = 0
        """Its slot, until that is free."""
        self._is_last = False
        """It has left, and no other takes part."""
        self._left = False
        self._begun = False
        self._looked_at = 0.0
        self._noted_broken = False
        self._late: deque[_Launch] = deque()
        """What is still to be noted of processes that were started."""
        self._nameless_since = 0.0
        """When the lock was first found so, if it was without a gap since."""
        self._leases = _Leases(address.path, self.ledger.head, self.ledger.hands)
        self.dumps, self.loads = pickling(address.package)
        self.dumps_apart = pickling_apart(address.package)
        self.plain = plain_types(address.package)
        install_exit_hooks(address.package)
        _forks.track(self)  # now that it is whole

    # -- the lock --------------------------------------------------------------------------------

    def lock_was_busy(self, error: KeyError) -> None:
        if not is_lock_busy(error):
            raise error
        head = self.ledger.head
        if head[STATE] & BROKEN:
            raise self.ledger.refusal()
        if self._shared_runtime.is_robust:
            return  # its holder lives: the kernel sees to that
        self.ledger.cells = self.runtime.cells(head[cells_.SLOTS] * SLOT_SIZE)
        holder = head[HOLDER]
        if holder:
            self._nameless_at = 0.0
            if holder != self.ledger.me and not self.is_alive(holder):
                self._mend(holder)
            return
        now = monotonic()
        if now - self._nameless_at > SUSPICION_GAP_S:
            self._nameless_since = now
        self._nameless_at = now
        if now - self._nameless_since > SUSPICION_S:
            self._mend_for_nobody()

    def _mend(self, holder: int) -> None:
        """Take the lock over from a dead holder, mend what it left half done, let the lock go.

        `mend`, a lock of the kernel's, keeps others out.
        """
        fd = try_hold(f"{self.address.path}/mend")
        if fd is None:
            return
        try:
            head = self.ledger.head
            if head[HOLDER] != holder or not self._shared_runtime.is_locked():
                return
            if holder == 0 and not self._is_stuck():
                return
            self.ledger.mend_after(holder)
            self._shared_runtime.unlock()
            self._nameless_at = 0.0
        finally:
            os.close(fd)

    def _mend_for_nobody(self) -> None:
        """The lock was taken by one that died before it wrote its name, or after it wiped it out.

        Or is it by one that is stopped just there? Then it must be waited for.
        """
        if not self._is_stuck():
            return
        processes = list(self.ledger.views(PROCESS))
        living = [view.number for view in processes if self.is_alive(view.slot)]
        dead = len(living) < len(processes)
        if not dead and monotonic() - self._nameless_since < DEATHLESS_S:
            return
        if not any(may_be_stopped(pid) for pid in living if pid != os.getpid()):
            self._mend(0)
        elif dead:
            text = (
                "a process died as it took the queue's lock or let it go, or one that is stopped "
                "holds it: that can't be told apart. Make a new queue"
            )
            self.ledger.mark_broken(self.runtime.errors.pack(ChannelBroken(text)))
            self._note_broken(text)
            _news.tell()
            raise self.ledger.refusal()

    def _is_stuck(self) -> bool:
        """Whether the lock stays out of reach, with nobody's name on it, for some more time."""
        for _ in range(STUCK_LOOKS):
            try:
                with self.runtime.trylock:
                    self._nameless_at = 0.0
                    return False
            except KeyError as error:
                if not is_lock_busy(error):
                    raise
            if self.ledger.head[HOLDER]:
                return False
            time.sleep(0.001)
        return True

    def watch(self, target: object) -> None:
        """Likewise; who watches is pickled in a file, so that every process finds it."""
        try:
            with open(f"{self.address.path}/watcher", "rb") as file:
                watcher = pickle.load(file)
        except FileNotFoundError:
            return  # it has just stopped watching
        watcher(target)

    def _begin(self) -> None:
        """Once it is known what kind of queue it is."""
        head = self.ledger.head
        if head[cells_.REDELIVER]:
            self.ledger.lease = self._leases.write  # writes down what is in hand
        if head[cells_.LOCKLESS]:
            if not _fence.is_supported():
                raise ChannelBroken(
                    "the process that made the queue shares it without a lock, which this one, "
                    f"{sys.implementation.name} {sys.version.split()[0]}, can't do. Use the same "
                    "interpreter, with its global lock and with ctypes, in all processes"
                )
            self._log.pass_the_lock_by(_fence.gate, self.runtime.trylock)
        self._begun = True  # last: an interrupt before this has it done again

    # -- taking part -----------------------------------------------------------------------------

    def check_here(self) -> None:
        if self._left:
            raise ChannelBroken(
                f"process {os.getpid()} is ending and has left the queue; close endpoints before"
            )

    def register(self) -> None:
        watch()
        if not self._begun:
            self._begin()
        if not self.ledger.me:
            self.transact(self._register)

    def _register(self) -> None:
        if self.ledger.me:
            return  # another thread was faster
        if self.ledger.head[REMOVED]:
            raise ChannelBroken("the queue is gone: every process that took part in it has ended")
        self._check_directory()
        self.ledger.me = self.ledger.open_process(os.getpid(), self._hold_life)

    def _hold_life(self, slot: int) -> None:
        _forks.undisturbed(self._hold_life_now, slot)

    def _hold_life_now(self, slot: int) -> None:
        self._life = hold(self._name("p", slot))

    def _name(self, kind: str, number: int) -> str:
        return f"{self.address.path}/{kind}{number}"

    def is_alive(self, process: int) -> bool:
        if process < 0:
            return runs(-process)
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

    @property
    def maker_pid(self) -> int:
        return int(self.address.path.split("-")[-2])

    # -- seeing who has died ---------------------------------------------------------------------

    def _find_dead(self) -> list[int]:
        """The slots of processes that have ended."""
        return [v.slot for v in self.ledger.views(PROCESS) if not self.is_alive(v.slot)]

    def look(self, patience_s: float = BRIEFLY_S) -> None:
        if monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = monotonic()
            try:
                self._check_directory()
                self.try_transact(patience_s, partial(self._look, self._find_dead()))
            finally:
                _news.tell()
        else:
            super().look(patience_s)

    def _check_directory(self) -> None:
        """Raises if somebody else has removed it; then everybody would seem to be dead."""
        if not os.path.exists(f"{self.address.path}/cells"):
            self.ledger.head[STATE] |= BROKEN
            self._note_broken("its directory was removed by somebody else")
            raise self.ledger.refusal()

    def _note_broken(self, why: str) -> None:
        """Once in each process: a queue that is broken stays so."""
        if not self._noted_broken:
            self._noted_broken = True
            _news.note(_news.ERROR, "broken: %s; queue %s", why, self.address.path)

    def look_now_and_then(self) -> None:
        self.look()

    def _look(self, suspects: list[int]) -> None:
        self._drop_lineages()
        for slot in suspects:
            # Again, under the lock: the slot may have been given to a new process since.
            if self.ledger.cells[slot * SLOT_SIZE] == PROCESS and not self.is_alive(slot):
                self._bury_process(self.ledger.view(slot))
        for view in self.ledger.views(PRODUCER, CONSUMER, WORKER):
            if not view.owner and not self._may_be_held(view):
                how = (
                    "was never taken: every process that could have held it has ended, or dropped "
                    "it"
                )
                self.bury_endpoint(view, how)
                name = f"{KIND_NAMES[view.kind]} {view.number}"
                _news.note(_news.WARNING, "%s %s; queue %s", name, how, self.address.path)
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
            else "was given to a process that ended before it began to run, for a reason that its "
            "stderr shows. Under spawn and forkserver, start processes below "
            "`if __name__ == '__main__':` only"
        )
        ended: list[str] = []
        head = self.ledger.head
        before = head[cells_.LOST], head[cells_.REDELIVERED]
        for view in self.ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE):
            if view.owner == process.slot:
                self.bury_endpoint(view, how)
                self._unlink(self._name("h", view.slot))
            elif view.kind == QUEUE and view.maker == process.slot:
                self.end(view, how)
            else:
                continue
            name = KIND_NAMES[view.kind]
            ended.append(f"the {name}" if view.kind == QUEUE else f"{name} {view.number}")
        self._release(process.slot)
        self._note_death(process.number, how, ended, before)

    def _note_death(self, pid: int, how: str, ended: list[str], before: tuple[int, int]) -> None:
        """A process was found dead; *before* are the counts of lost and redelivered items."""
        path, head = self.address.path, self.ledger.head
        what = f"process {pid}" if pid else "a process"
        if not pid:
            how = "ended before it began to run"
        text = "%s %s; what it had open has ended: %s; queue %s"
        _news.note(_news.WARNING, text, what, how, ", ".join(ended) or "nothing", path)
        lost, redelivered = head[cells_.LOST] - before[0], head[cells_.REDELIVERED] - before[1]
        if lost:
            _news.note(
                _news.WARNING, "%d item(s) in hand of %s are lost; queue %s", lost, what, path
            )
        if redelivered:
            text = "%d item(s) in hand of %s are handed out again; queue %s"
            _news.note(_news.INFO, text, redelivered, what, path)

    def kept_in_hand(self, view: SlotView) -> list[tuple[Any, int]]:
        try:
            with open(self._name("h", view.slot), "rb") as file:
                kept: list[tuple[bytes, int]] = pickle.load(file)
        except (FileNotFoundError, EOFError):
            return []
        return kept

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
            # Not for ever: a fork must not wait for somebody who is stopped inside. But for as long
            # as it takes to see that a holder is dead, or nobody could tell whose the endpoint was
            # if the child were killed before its first call.
            robust = self._shared_runtime.is_robust
            patience = monotonic() + (_forks.PATIENCE_S if robust else FORK_S)
            self.transact_until(patience, partial(self._before_fork, arguments))

    def _before_fork(self, arguments: tuple[object, ...]) -> None:
        ledger = self.ledger
        if not self._lineages:
            # For whoever holds the queue itself: the directory stays while one of them lives.
            self._add_lineage()
        if ledger.head[cells_.HANDLE] == ledger.me:
            ledger.head[cells_.HANDLE] = 0
        direct = {id(argument) for argument in arguments}
        lineage = 0
        for endpoint in self._untaken():
            base = endpoint.slot * SLOT_SIZE
            if id(endpoint) in direct:
                if self._heir is None:
                    self._heir = self._make_heir()
                ledger.assign(endpoint.slot, self._heir[0])
            elif not ledger.cells[base + cells_.OWNER]:
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
        for endpoint in _forks.members_of(self.endpoints):
            if self.ledger.is_open(endpoint.slot, endpoint.number):
                view = self.ledger.view(endpoint.slot)
                if self.is_mine(view) and not view.flags & (USED | DROPPED_COPY):
                    yield endpoint

    def _drop_lineages(self) -> None:
        """Close the locks of lineages none of whose endpoints has a copy here any more."""
        self._drop_lineages_but(self._untaken())

    def _drop_lineages_but(self, endpoints: Iterable[Endpoint]) -> None:
        """Close the locks of lineages but for those of *endpoints*."""
        needed = set(list(self._lineages)[:1])
        for endpoint in endpoints:
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
        self._launching = {}
        # As before the fork, if that could not have the lock: what this process has no copy of must
        # not seem to be held as long as it lives. What it has may be the parent's no more by now.
        is_open = self.ledger.is_open
        copies = _forks.members_of(self.endpoints)
        self._drop_lineages_but([copy for copy in copies if is_open(copy.slot, copy.number)])
        self._inherited += self._lineages.values()
        self._lineages, self._old_lineages = {}, set()
        self._life, self.ledger.me = -1, 0
        self.dropped.clear()
        self._late.clear()
        self._shared_runtime.after_fork_in_child()
        self.leave_loops()
        self._log.after_fork_in_child()
        self.ledger.hands.clear()
        for endpoint in copies:
            endpoint.forget()
        cells = self.ledger.cells
        if self._heir is not None:
            slot, self._life = self._heir
            self._heir = None
            self.ledger.me = slot
            cells[slot * SLOT_SIZE + NUMBER] = os.getpid()
            # What it was given is in frames of its own.
            owner = cells_.OWNER
            copies = [copy for copy in copies if cells[copy.slot * SLOT_SIZE + owner] != slot]
        self.copies = weakref.WeakSet(copies)

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
            self.transact(_forks.undisturbed, self._begin_launch, popen)
            launch = self._launching[id(popen)]
        generation = self.transact(self._send, slot, number, kind, launch)
        return attach, (self.address, kind, slot, number, generation, launch.slot, launch.duplicate)

    def receive(self, kind: int, slot: int, number: int, generation: int) -> Endpoint | None:
        taken = self.ledger.take_over(slot, number, generation)
        endpoint = self.arrived(slot, number, taken=taken)
        if endpoint is not None and self.ledger.head[cells_.WATCHED] > 0:
            self.watch(endpoint)  # inherited, perhaps, before that
        return endpoint

    def _send(self, slot: int, number: int, kind: int, launch: _Launch | None = None) -> int:
        """Note that a copy goes off. Returns the generation that makes it valid."""
        ledger = self.ledger
        if kind == QUEUE:
            ledger.head[cells_.HANDLE] = 0
            return 0
        if not ledger.is_open(slot, number):
            raise EndpointElsewhere(
                f"{KIND_NAMES[kind]} {number} has been closed by the process that took it and "
                "can't be handed on; get another one from the queue"
            )
        view = ledger.view(slot)
        if not self.is_mine(view):
            pid = self.pid_of(view.owner or view.maker)
            raise EndpointElsewhere(
                f"{KIND_NAMES[kind]} {number} belongs to "
                f"{f'process {pid}' if pid else 'a process that was started with it'}, which alone "
                "can hand it on. Give every process one of its own, by "
                f"get_{KIND_NAMES[kind]}() or clone()"
            )
        if view.flags & USED:
            raise stays_here(f"{KIND_NAMES[kind]} {number}")  # another thread used it, just now
        base = slot * SLOT_SIZE
        if launch is not None:
            launch.endpoints.append((slot, number))
        else:
            ledger.cells[base + FLAGS] |= SENT
            ledger.cells[base + ROAD] = ledger.me
        return ledger.cells[base + cells_.GENERATION]

    def launched(self, launch: _Launch) -> None:
        """Starting a process has come to its end, well or not."""
        _forks.undisturbed(self._end_launch, launch)
        try:
            self.transact(self._launched, launch)
        except ChannelBroken:
            pass  # the next call says so
        except WouldDeadlock:
            self._late.append(launch)  # the collector came upon it, inside another call

    def _bury_dropped(self) -> None:
        super()._bury_dropped()
        while self._late and not self.ledger.head[HOLDER]:
            self.ledger.transact(self._launched, self._late.popleft())

    def _begin_launch(self, popen: Any) -> None:
        self._launching[id(popen)] = _Launch(self, popen, *self._make_heir())

    def _end_launch(self, launch: _Launch) -> None:
        self._launching.pop(id(launch.popen), None)
        launch.close()

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
        self.ledger.cells[base + cells_.OWNER] = 0
        self.ledger.cells[base + FLAGS] |= DROPPED_COPY
        self._drop_lineages()

    # -- leaving ---------------------------------------------------------------------------------

    def _leave_now(self, how: str, cause: BaseException | None) -> None:
        """The lock is waited for during `LEAVE_SLICES`.

        Without it this process just goes, and the others find its endpoints as those of a dead
        process.
        """
        # Together.
        self._left = True
        if self.ledger.me or self._inherited:
            self._took_part = True
        # First: other threads may still use endpoints whose slots and lanes others get next.
        for endpoint in _forks.members_of(self.endpoints):
            endpoint.forget()
        for _ in range(LEAVE_SLICES if self._took_part and not self._is_last else 0):
            try:
                with self.runtime.lock:
                    self._check_directory()
                    self.ledger.transact(self._leave, how, cause)
            except KeyError as error:
                busy = error
            except (WouldDeadlock, ChannelBroken):
                break
            else:
                break
            try:
                self.lock_was_busy(busy)  # whose holder may have died
            except ChannelBroken:
                break
            finally:
                del busy  # as in `transact`
        self._let_go()
        self._log.end()
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)
        if self._is_last or (self.ledger.head[STATE] & BROKEN and not self._others()):
            remove(self.address)

    def _leave(self, how: str, cause: BaseException | None) -> None:
        """Called with the lock held."""
        ledger, me = self.ledger, self.ledger.me
        for view in ledger.views(PRODUCER, CONSUMER, WORKER, QUEUE):
            if not self.is_mine(view):
                continue
            alone = ledger.head[cells_.HANDLE] == me and cause is None
            if view.owner or (view.kind == QUEUE and not alone):
                self.end(view, how, cause)
            elif not view.flags & (SENT | FORKED):
                ledger.close(view.slot, view.number)
            self._unlink(self._name("h", view.slot))
        pid = os.getpid()
        if me:
            # Together. First: nothing may be taken for this process's once the slot is another's.
            self._was = me
            ledger.head[HOLDER] = -pid  # or a call nested in this would take it for dead
            ledger.me = 0
        if self._was:
            # Its file stays, locked until the lock is free again: this process is still inside.
            ledger.release_process(self._was)
            self._was = 0  # together with the last stores of that: no call between them
        self._let_go()  # within the lock, or two that leave at once would wait for each other
        if not self._others():
            # Together.
            ledger.head[REMOVED] = 1
            self._is_last = True

    def _let_go(self) -> None:
        """Close the locks that say that copies of something may be held here."""
        for number in list(self._lineages):
            # Together, and so below: what is closed twice may be another's by then.
            fd = self._lineages[number]
            del self._lineages[number]
            os.close(fd)
        while self._inherited:
            fd = self._inherited[-1]
            del self._inherited[-1]
            os.close(fd)

    def _others(self) -> bool:
        """Whether another process takes part, or may hold a copy of something."""
        me = self.ledger.me
        if any(self.is_alive(v.slot) for v in self.ledger.views(PROCESS) if v.slot != me):
            return True
        try:
            names = os.listdir(self.address.path)
        except FileNotFoundError:
            return False
        return any(is_held(f"{self.address.path}/{name}") for name in names if name.startswith("l"))

    __del__ = leave_dropped


class _Leases:
    """What the consumers of this process have in hand, in a file for each (`h<slot>`)."""

    def __init__(self, path: str, head: Cells, hands: dict[int, dict[int, Hand]]) -> None:
        self._path = path
        self._head = head
        self._hands = hands

    def write(self, slot: int, last: Hand) -> None:
        """Write down what the endpoint in *slot* has in hand. Called with the lock held.

        What *last* holds comes last: a take that is not committed yet is then the first to be left
        out of as many as IN_HAND says.
        """
        # A list, since a thread that comes to the endpoint adds its hand without the lock.
        hands = [hand for hand in list(self._hands[slot].values()) if hand is not last]
        kept = [payload for hand in (*hands, last) for payload in hand.kept]
        name = f"{self._path}/h{slot}"
        data = pickle.dumps(kept)
        fd = private(f"{name}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, self._head)
        try:
            reserve(fd, len(data))  # or a part of it would be written
            os.write(fd, data)
        finally:
            os.close(fd)
        os.replace(f"{name}.new", name)


class _Launch:
    """A process that is being started by spawn or forkserver, and the endpoints it was given."""

    def __init__(self, core: SharedCore, popen: Any, slot: int, fd: int) -> None:
        self.popen = popen
        self.slot = slot
        self.endpoints: list[tuple[int, int]] = []
        self._fd = fd
        # The child gets the open file; the copy here must go once it has been started, or it would
        # seem to live as long as this process.
        self.duplicate = popen.DupFd(popen.duplicate_for_child(fd))
        watched = _forks.end_of_launch(popen)
        weakref.finalize(watched, _launched, weakref.ref(core), self).atexit = False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _launched(core: weakref.ref[SharedCore], launch: _Launch) -> None:
    found = core()
    if found is None:
        launch.close()
    else:
        found.launched(launch)


# -- this process and its queues -----------------------------------------------------------------

REMEDY: Final = (
    ". It ends with the last process that takes part in it; keep one of those alive while this "
    "travels"
)
_attached: weakref.WeakValueDictionary[str, SharedCore] = weakref.WeakValueDictionary()
"""By path: one part in a queue for each process, however many endpoints it holds."""


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
    fd = None if duplicate is None else duplicate.detach()
    return unpickled(partial(_attach, address, heir, fd), REMEDY, kind, slot, number, generation)


def _attach(address: Address, heir: int, fd: int | None) -> SharedCore:
    with _forks.still():
        core = _attached.get(address.path)
        if core is None:
            status = os.lstat(address.path)
            if status.st_uid != os.geteuid():
                raise PermissionError(
                    errno.EPERM, "the queue's directory belongs to another user", address.path
                )
            core = _attached.setdefault(address.path, SharedCore(address))
        if fd is not None:
            core.adopt(heir, fd)
    core.register()
    return core


def make_shared_core(
    context: Context | None, maxsize: int, *, cancel: bool, deliveries: int
) -> SharedCore:
    """A new queue, with this process as its maker."""
    with _forks.still():
        address = make_directory(context)
        try:
            core = SharedCore(address)
            lockless = not deliveries and _fence.is_supported()
            core.ledger.set_up(maxsize, cancel=cancel, deliveries=deliveries, lockless=lockless)
            core.ledger.head[cells_.MADE_AT] = time.time_ns()
            core.ledger.head[cells_.LAYOUT] = cells_.LAYOUT_OF_THIS
            core.register()
        except BaseException:
            remove(address)
            raise
        _attached[address.path] = core
    _news.tell()
    return core
