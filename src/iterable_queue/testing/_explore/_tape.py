"""The tape: every choice of one schedule, in order. Search, replay and shrinking all read it.

A choice is one of several alternatives; where there is only one, nothing is written. A replay
string holds them in a few characters: a version, a checksum, and the choices, each as two small
numbers, deflated and in URL-safe base64.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Final, NamedTuple

from iterable_queue.testing._explore._errors import ReplayError

VERSION: Final = "iq1"


class Choice(NamedTuple):
    """One choice.

    Attributes:
        among: how many alternatives there were.
        chosen: the index of the one that was taken; 0 is what happens if nobody has a better idea.
        label: who was chosen and what for, as a number; it is not part of a replay string.
    """

    among: int
    chosen: int
    label: int = 0


def encode(tape: list[Choice]) -> str:
    """The replay string of *tape*."""
    raw = bytearray()
    for choice in tape:
        for number in (choice.among, choice.chosen):
            while number >= 128:
                raw.append(number & 127 | 128)
                number >>= 7  # noqa: PLW2901
            raw.append(number)
    body = zlib.compress(bytes(raw), 9, wbits=-15)
    text = base64.urlsafe_b64encode(body).decode("ascii").rstrip("=")
    return f"{VERSION}-{zlib.crc32(bytes(raw)) & 0xFFFF:04x}-{text}"


def decode(replay: str) -> list[Choice]:
    """The tape of a replay string. Raises `ReplayError` if it is none of this version."""
    version, _, rest = str(replay).strip().partition("-")
    check, _, text = rest.partition("-")
    if version != VERSION or not check:
        raise ReplayError(
            f"{replay!r} is not a replay string of this version, which begins with {VERSION!r}"
        )
    try:
        raw = zlib.decompress(base64.b64decode(text + "=" * (-len(text) % 4), b"-_"), wbits=-15)
        whole = int(check, 16) == zlib.crc32(raw) & 0xFFFF
    except (ValueError, binascii.Error, zlib.error):
        raw, whole = b"", False
    if not whole:
        raise ReplayError(f"{replay!r} is not whole: a part of it is missing or was changed")
    numbers: list[int] = []
    number = shift = 0
    for byte in raw:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    return [Choice(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
