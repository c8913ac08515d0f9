"""The replay string: what goes in comes out, and what is not one is refused."""

from __future__ import annotations

import random

import pytest

from iterable_queue.testing import ReplayError
from iterable_queue.testing._explore._tape import Choice, decode, encode


@pytest.mark.parametrize("seed", range(20))
def test_what_is_encoded_is_decoded(seed: int) -> None:
    rng = random.Random(seed)
    tape: list[Choice] = []
    for _ in range(rng.randrange(200)):
        among = rng.choice([2, 3, 7, 127, 128, 300])
        tape.append(Choice(among, rng.randrange(among)))
    assert decode(encode(tape)) == tape


def test_a_schedule_of_forty_steps_fits_on_a_line() -> None:
    rng = random.Random(1)
    assert len(encode([Choice(3, rng.randrange(3)) for _ in range(40)])) < 60


def test_labels_stay_at_home() -> None:
    assert decode(encode([Choice(2, 1, label=77)])) == [Choice(2, 1)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a replay string of this version"),
        ("iq0-0000-AwA", "begins with 'iq1'"),
        ("iq1", "not a replay string of this version"),
        ("iq1-zzzz-AwA", "not whole"),
        ("iq1-0000-AwA$", "not whole"),
        (encode([Choice(2, 1)] * 30)[:-2], "not whole"),
        (encode([Choice(2, 1)] * 30).replace("iq1-", "iq1-1"), "not whole"),
    ],
)
def test_what_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ReplayError, match=why):
        decode(text)
