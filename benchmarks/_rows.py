"""What is measured: every row with its sides and its bars.

A ratio is ours divided by the peer's, taken within each round. A bar is on the median of them.
Where a row has several calls of one peer, each has the bar: what counts is its better one.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks import _imports
from benchmarks._harness import Contender, Harness, Samples
from benchmarks._job import Job, Payload, StartMethod, Work, default_start_method

Unit = Literal["items/s", "µs", "ms", "times"]


@dataclass(frozen=True)
class Bar:
    """What a ratio (or a figure) must reach."""

    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.limit:g}"


@dataclass(frozen=True)
class Line:
    """One line of the table: ours against one peer (or against a bar alone)."""

    work: str
    unit: Unit
    ours: Samples
    peer: Samples | None = None
    bar: Bar | None = None
    ratios: tuple[float, ...] = ()
    """Of each round in which both sides gave a figure."""
    lower_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def worst_ratio(self) -> float | None:
        if not self.ratios:
            return None
        return max(self.ratios) if self.lower_is_better else min(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; a failure of ours is a no.

        None where there is no bar, or no figure to hold against it.
        """
        if self.bar is None:
            return None
        if self.ours.failures:
            return False
        return None if self.ratio is None else self.bar.met(self.ratio)


@dataclass
class RowResult:
    """What a row gave: the figures of everyone, and the lines that compare them."""

    key: str
    title: str
    unit: Unit
    samples: list[Samples]
    lines: list[Line]
    notes: list[str] = field(default_factory=lambda: [])


@dataclass(frozen=True)
class Row:
    """A row to run.

    Attributes:
        key: its name on the command line.
        measure: runs it.
    """

    key: str
    title: str
    measure: Callable[[Harness], RowResult]


def compare(
    work: str,
    unit: Unit,
    ours: Samples,
    peer: Samples,
    bar: Bar | None = None,
) -> Line:
    """A line with the ratio of each round."""
    pairs = zip(ours.by_round, peer.by_round, strict=False)
    ratios = tuple(a / b for a, b in pairs if a is not None and b is not None and b > 0)
    return Line(work, unit, ours, peer, bar, ratios, lower_is_better=unit != "items/s")


# --- contests: ours against peers -----------------------------------------------------------------

_LABELS = {
    "ours": "ours",
    "ours-many": "ours",
    "ours-lists": "ours, put_many, get_many",
    "ours-context": "ours, context=",
    "ours-threaded": "ours, threaded()",
    "multiprocessing": "multiprocessing.Queue",
    "queue": "queue.Queue with sentinels",
    "simplequeue": "queue.SimpleQueue with sentinels",
    "faster-fifo": "faster-fifo put, get",
    "faster-fifo-many": "faster-fifo put_many, get_many",
    "quick-queue-put": "quick-queue put, get",
    "quick-queue-iterable": "quick-queue put_iterable, get",
    "quick-queue-bucket": "quick-queue put_bucket, get_bucket",
    "release-1x": "release 1.2.2",
    "pipe": "bare pipe, 60 kB writes",
}
_ALL = ("multiprocessing", "faster-fifo", "quick-queue-put", "release-1x")
# Slow ones; all others pass 100,000 small items in a second.
_GUESSES = {"release-1x": 10_000.0}


def _label(side: str, work: Work) -> str:
    """The side, by the call that is measured."""
    label = _LABELS[side]
    if work in {"make", "endpoint"}:
        return label.removesuffix(" put, get").removesuffix(" with sentinels")
    return label


def contest(
    key: str,
    title: str,
    ours: str,
    peers: Sequence[str],
    bars: dict[str, Bar],
    job: Job,
    *,
    unit: Unit = "items/s",
    guess_per_s: float = 100_000,
    most_items: int = 5_000_000,
) -> Row:
    """A row in which ours meets peers at one kind of work."""

    def measure(harness: Harness) -> RowResult:
        sides = [ours, *peers]
        contenders = [
            Contender(
                _label(side, job.work),
                replace(job, side=side),
                min(guess_per_s, _GUESSES.get(side, guess_per_s)),
                most_items=most_items,
            )
            for side in sides
        ]
        first, *others = samples = harness.run(contenders)
        lines = [compare(title, unit, first, other, bars.get(other.side)) for other in others]
        return RowResult(key, title, unit, samples, lines)

    return Row(key, title, measure)


def _job(
    work: Work = "throughput",
    *,
    payload: Payload = "ints",
    producers: int = 1,
    consumers: int = 1,
    maxsize: int = 0,
) -> Job:
    """A job whose side and number of items are chosen later."""
    method = default_start_method()
    return Job("", work, 0, payload, producers, consumers, maxsize, method)


def _contests() -> list[Row]:
    rows = [
        contest(
            "one-by-one",
            "put one by one, iteration, 1 and 1 processes",
            "ours",
            _ALL,
            {"multiprocessing": Bar(5)},
            _job(),
        ),
        contest(
            "four-by-four",
            "put one by one, iteration, 4 and 4 processes",
            "ours",
            _ALL,
            {"multiprocessing": Bar(5)},
            _job(producers=4, consumers=4),
        ),
        contest(
            "put-many",
            "put_many, iteration, 1 and 1 processes",
            "ours-many",
            (
                "multiprocessing",
                "faster-fifo-many",
                "quick-queue-put",
                "quick-queue-iterable",
                "quick-queue-bucket",
            ),
            {
                "multiprocessing": Bar(25),
                "faster-fifo-many": Bar(15),
                "quick-queue-put": Bar(1.5),
                "quick-queue-iterable": Bar(1.5),
                "quick-queue-bucket": Bar(1.5),
            },
            _job(),
        ),
        contest(
            "lists",
            "put_many, get_many, 1 and 1 processes",
            "ours-lists",
            ("faster-fifo-many", "quick-queue-bucket"),
            {},
            _job(),
        ),
        contest(
            "blobs",
            "1 MB bytes one by one, 1 and 1 processes",
            "ours",
            _ALL,
            {"multiprocessing": Bar(8)},
            _job(payload="blobs"),
            guess_per_s=400,
            most_items=500,
        ),
        contest(
            "arrays",
            "1 MB NumPy arrays one by one, 1 and 1 processes",
            "ours",
            ("multiprocessing", "faster-fifo"),
            {},
            _job(payload="arrays"),
            guess_per_s=400,
            most_items=500,
        ),
        contest(
            "bounded",
            "maxsize=100, put one by one, 1 and 1 processes",
            "ours",
            _ALL,
            {"multiprocessing": Bar(2)},
            _job(maxsize=100),
            guess_per_s=40_000,
        ),
        contest(
            "latency",
            "there and back between two processes, median",
            "ours",
            _ALL,
            {"multiprocessing": Bar(0.7, at_most=True)},
            _job("latency"),
            unit="µs",
            guess_per_s=5_000,
        ),
        contest(
            "threads",
            "put one by one, iteration, 1 and 1 threads",
            "ours-threaded",
            ("queue", "simplequeue"),
            {"queue": Bar(1.5)},
            _job(),
            guess_per_s=400_000,
        ),
        contest(
            "limit",
            "put one by one, 1 and 1 processes, against the limit",
            "ours",
            ("pipe",),
            {"pipe": Bar(0.5)},
            _job(),
            guess_per_s=400_000,
        ),
    ]
    methods: tuple[StartMethod, ...] = ("fork", "spawn", "forkserver")
    rows += [
        contest(
            f"context-{method}",
            f"context=get_context({method!r}), put one by one, 1 and 1 processes",
            "ours-context",
            ("multiprocessing",),
            {"multiprocessing": Bar(0.8)},
            replace(_job(), start_method=method),
        )
        for method in methods
        if method in multiprocessing.get_all_start_methods()
    ]
    costs: list[tuple[str, str, Work, str, tuple[str, ...]]] = [
        (
            "make",
            "making and closing a queue",
            "make",
            "ours",
            ("multiprocessing", "faster-fifo", "quick-queue-put", "release-1x"),
        ),
        (
            "make-threaded",
            "making and closing a queue for threads",
            "make",
            "ours-threaded",
            ("queue", "simplequeue"),
        ),
        ("endpoint", "making and closing two endpoints", "endpoint", "ours", ("release-1x",)),
    ]
    rows += [
        contest(key, title, ours, peers, {}, _job(work), unit="µs", guess_per_s=40)
        for key, title, work, ours, peers in costs
    ]
    return rows


# --- 1 to 64 producers ----------------------------------------------------------------------------


def _producers(harness: Harness, counts: Sequence[int]) -> RowResult:
    """The same total by more and more producers: the fastest against the slowest of ours."""
    title = "1 to 64 producers, 1 consumer, the same total"
    # Not calibrated: the total is to be the same whatever the number of producers.
    rates = {"ours": 400_000.0, "multiprocessing": 100_000.0}
    contenders = [
        Contender(
            f"{_LABELS[side]}, {_producer(count)}",
            replace(_job(producers=count), side=side),
            rate,
            calibrated=False,
        )
        for count in counts
        for side, rate in rates.items()
    ]
    samples = harness.run(contenders)
    ours, theirs = samples[::2], samples[1::2]
    lines = [
        compare(f"{_producer(count)}, 1 consumer, the same total", "items/s", mine, peer)
        for count, mine, peer in zip(counts, ours, theirs, strict=True)
    ]
    spreads = [
        _spread(side, f"{_LABELS[side[0].side]}, fastest / slowest") for side in (ours, theirs)
    ]
    values = tuple(spreads[0].values)
    lines.append(
        Line(
            title,
            "times",
            spreads[0],
            spreads[1],
            Bar(2, at_most=True),
            values,
            lower_is_better=True,
        )
    )
    return RowResult("producers", title, "items/s", samples + spreads, lines)


def _producer(count: int) -> str:
    return f"{count} producer{'s' if count > 1 else ''}"


def _spread(side: Sequence[Samples], label: str) -> Samples:
    """For each round, the fastest number of producers over the slowest."""
    spread = Samples(label, side[0].side, missing=side[0].missing)
    for number_of_producers in side:
        spread.failures += number_of_producers.failures
    if not spread.missing and not any(not s.by_round for s in side):
        for rates in zip(*(s.by_round for s in side), strict=False):
            known = [rate for rate in rates if rate is not None]
            whole = len(known) == len(rates)
            spread.by_round.append(max(known) / min(known) if whole else None)
    return spread


# --- import ---------------------------------------------------------------------------------------


def _import_cost(harness: Harness) -> RowResult:
    """What our import adds to ``import multiprocessing``; then all of it beside the peers'."""
    title = "import, where multiprocessing is there"
    found = _imports.measure(harness)
    over = found.over
    bar = Bar(10, at_most=True)
    lines = [Line(title, "ms", over, None, bar, tuple(over.values), lower_is_better=True)]
    lines += [compare("import, all of it", "ms", found.ours, peer) for peer in found.others]
    return RowResult("import", title, "ms", [over, found.ours, *found.others], lines, found.notes)


def all_rows(quick: bool) -> list[Row]:
    """Every row in the table's order."""
    counts = (1, 8, 64) if quick else (1, 2, 4, 8, 16, 32, 64)
    rows = _contests()
    before_context = next(n for n, row in enumerate(rows) if row.key.startswith("context"))
    rows.insert(
        before_context,
        Row(
            "producers",
            "1 to 64 producers, the same total",
            lambda harness: _producers(harness, counts),
        ),
    )
    rows.append(Row("import", "import time and modules", _import_cost))
    return rows
