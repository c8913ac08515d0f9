"""Small pipelines. Of each there are two: one that looks right, and one that is."""

from collections.abc import Callable, Iterable

from iterable_queue import Consumer, Producer, Worker
from iterable_queue.testing import checkpoint

# 1. A forgotten close()


def read_and_forget(lines: Iterable[str], out: Producer[str]) -> None:
    for line in lines:
        out.put(line)


def read(lines: Iterable[str], out: Producer[str]) -> None:
    with out:
        for line in lines:
            out.put(line)


def count_words(lines: Consumer[str], totals: list[int]) -> None:
    totals.append(sum(len(line.split()) for line in lines))


# 2. A sentinel of one's own


def send_with_sentinel(numbers: Iterable[int], out: Producer[int | None]) -> None:
    with out:
        for number in numbers:
            out.put(number)
        out.put(None)  # "that was all"


def add_up_to_sentinel(numbers: Consumer[int | None], sums: list[int]) -> None:
    total = 0
    while (number := numbers.get()) is not None:
        total += number
    sums.append(total)


def send(numbers: Iterable[int], out: Producer[int]) -> None:
    with out:
        for number in numbers:
            out.put(number)


def add_up(numbers: Consumer[int], sums: list[int]) -> None:
    sums.append(sum(numbers))


# 3. Two bounded stages in a cycle: pages have links, and links lead to pages


def fetch(links: Consumer[str], pages: Producer[str]) -> None:
    with pages:
        for link in links:
            pages.put(link)


def follow(pages: Consumer[str], links: Producer[str], site: dict[str, list[str]]) -> None:
    with links:
        for page in pages:
            for link in site[page]:
                links.put(link)


def crawl(links: Worker[str], site: dict[str, list[str]], seen: list[str]) -> None:
    for page in links:
        seen.append(page)
        links.put_many(site[page])


# 4. Check, then act: two consumers share what was seen


def greet_once(names: Consumer[str], greeted: set[str], say: Callable[[str], object]) -> None:
    for name in names:
        if name not in greeted:
            checkpoint("not greeted yet")
            greeted.add(name)
            say(name)


def greet_first(
    names: Consumer[str], claims: dict[str, object], say: Callable[[str], object]
) -> None:
    for name in names:
        claim = object()
        checkpoint("about to claim")
        if claims.setdefault(name, claim) is claim:  # one step: the first one wins
            say(name)


# 5. Work that is lost with the one who had it in hand


def bill(orders: Consumer[int], billed: list[int]) -> None:
    for order in orders:
        checkpoint("has the order, not billed yet")
        billed.append(order)
