"""The layout of the cells: no two meanings share a cell, a bit or a kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iterable_queue import _cells as cells_
from iterable_queue import _shared, _shared_runtime
from iterable_queue._cells import SlotView
from iterable_queue._channels import log


def names_under(title: str) -> dict[str, int]:
    """The names in the source under the comment that begins with *title*."""
    source = Path(cells_.__file__).read_text(encoding="utf-8")
    _, _, rest = source.partition(f"\n# {title}")
    section = rest.partition("\n\n")[0]
    found = {name: vars(cells_)[name] for name in re.findall(r"^([A-Z_]+): Final", section, re.M)}
    return {name: value for name, value in found.items() if isinstance(value, int)}


HEAD = names_under("The cells of the head.")
SLOT = names_under("The cells of a slot.")
STATES = names_under("Bits of STATE.")
KINDS = names_under("Kinds of slot.")
FLAGS = names_under("Flags of a slot.")


@pytest.mark.parametrize(
    ("cells", "size", "some"),
    [
        (HEAD, cells_.HEAD_SIZE, {"STATE", "HOLDER", "CHANNEL", "HEAD_SIZE"}),
        (SLOT, cells_.SLOT_SIZE, {"KIND", "TEXT", "SLOT_SIZE"}),
    ],
)
def test_each_cell_has_one_meaning(cells: dict[str, int], size: int, some: set[str]) -> None:
    assert some <= set(cells)
    cells = {name: cell for name, cell in cells.items() if name != "LANE_CELLS"}
    assert len(set(cells.values())) == len(cells)
    assert max(cells.values()) == size
    assert min(cells.values()) == 0


def test_others_cells_are_apart_too() -> None:
    others = [_shared.REMOVED, _shared.LINEAGES, _shared_runtime.ERRORS]
    assert len(set(others)) == len(others)
    assert not set(others) & set(HEAD.values())
    assert all(0 < cell < cells_.CHANNEL for cell in others)


def test_the_channels_cells_come_last() -> None:
    used = [name for name, cell in HEAD.items() if cell > cells_.CHANNEL]
    assert used == ["HEAD_SIZE"]
    pairs = 8
    cells = [
        log.COMMITS,
        log.UNTAKEN,
        log.LANES,
        log.CUT,
        log.CUT_END,
        log.ROLL_AT,
        *range(log.PAIRS, log.PAIRS + 2 * pairs),
    ]
    assert len(set(cells)) == len(cells)
    assert all(cells_.CHANNEL <= cell < cells_.HEAD_SIZE for cell in cells)


def test_a_lanes_cells_are_those_of_a_text() -> None:
    """Slot 0 is lane 0's, so none of them may be counted for a consumer."""
    cells = [log.OWNER, log.PUT, log.READ, log.POS, log.SPARE, log.OLDEST, log.FILES, log.LEFT_AT]
    cells += [log.TAIL, log.TAIL + 1, log.LOW, log.LOW + 1]
    assert len(set(cells)) == len(cells)
    assert all(cells_.LANE_CELLS <= cell < cells_.SLOT_SIZE for cell in cells)


@pytest.mark.parametrize("bits", [STATES, FLAGS])
def test_flags_are_single_bits(bits: dict[str, int]) -> None:
    assert len(bits) >= 4
    assert sorted(bits.values()) == [1 << n for n in range(len(bits))]


def test_an_open_or_closed_queue_is_told_by_one_comparison() -> None:
    """`put` looks at the state this way."""
    others = [bit for name, bit in STATES.items() if name != "CLOSED"]
    assert min(others) > cells_.CLOSED


def test_kinds_have_names() -> None:
    assert sorted(KINDS.values()) == list(range(len(KINDS)))
    assert len(cells_.KIND_NAMES) == len(KINDS)
    assert cells_.KIND_NAMES[cells_.FREE] == "free slot"
    for kind in ("PRODUCER", "CONSUMER", "WORKER", "QUEUE", "PROCESS", "LANE"):
        assert cells_.KIND_NAMES[KINDS[kind]] == kind.lower()


def test_the_slot_ends_with_its_text() -> None:
    assert cells_.DEALT_WITH == cells_.GATE + 4, "a semaphore"
    assert cells_.TEXT == cells_.DEALT_WITH + 1
    assert max(cell for name, cell in SLOT.items() if name != "SLOT_SIZE") == cells_.TEXT
    assert cells_.SLOT_SIZE - cells_.TEXT >= 16, "room for the end of a path and a line"


def test_a_tag_holds_a_number_what_it_is_and_the_tries() -> None:
    parts = [cells_.NUMBER_MASK, cells_.RAW, cells_.MAX_DELIVERIES << cells_.TRIES_SHIFT]
    assert sum(parts) == parts[0] | parts[1] | parts[2] < 1 << 63


def test_a_view_has_what_people_want_to_know() -> None:
    assert SlotView._fields[0] == "slot"
    names = {name.upper() for name in SlotView._fields[1:]}
    assert names <= set(SLOT)
