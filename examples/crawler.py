"""A web crawler: workers that take an address and put the links that they find there.

Nobody knows beforehand how many pages there are. The queue does: it is done when nothing is left
and no worker is in the middle of a page. So each loop ends by itself, and `join` waits for it.

The site is served by this program, on a free port of this machine.
"""

import re
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import urlopen

from iterable_queue import IterableQueue, Worker

PAGES = 40
CRAWLERS = 4
TIMEOUT_S = 10.0


class Seen:
    """The addresses that have been put, so that each is fetched once. For several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._urls: set[str] = set()

    def is_new(self, url: str) -> bool:
        """True for the first one who asks for this *url*."""
        with self._lock:
            known = len(self._urls)
            self._urls.add(url)
            return len(self._urls) > known


def crawl(urls: Worker[str], seen: Seen) -> list[str]:
    """Fetch pages until there are none; the addresses that this worker could not fetch."""
    broken: list[str] = []
    with urls:
        for url in urls:
            try:
                with urlopen(url, timeout=TIMEOUT_S) as answer:
                    text = answer.read().decode()
            except HTTPError as error:
                error.close()
                broken.append(url)
                continue
            links = (urljoin(url, link) for link in re.findall(r'href="([^"]+)"', text))
            urls.put_many(link for link in links if seen.is_new(link))
    return broken


class Site(BaseHTTPRequestHandler):
    """Page n has links to the pages 2n+1 and 2n+2, some of which are missing, and to the first."""

    def do_GET(self) -> None:
        number = int(self.path.removeprefix("/") or 0)
        if number >= PAGES:
            self.send_error(404)
            return
        links = (0, 2 * number + 1, 2 * number + 2)
        page = "".join(f'<a href="/{link}">{link}</a>' for link in links).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: this program prints what it finds."""


@contextmanager
def served() -> Generator[str]:
    """The site's first address, while it is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/0"
        finally:
            server.shutdown()
            thread.join()


def main() -> int:
    seen = Seen()
    with served() as first, ThreadPoolExecutor(CRAWLERS) as pool:
        with IterableQueue[str].threaded() as iq:
            with iq.get_producer() as start:
                assert seen.is_new(first)
                start.put(first)
            crawlers = [pool.submit(crawl, iq.get_worker(), seen) for _ in range(CRAWLERS)]
        iq.join()  # raises ProducerFailed if a crawler has failed
        broken = [url for crawler in crawlers for url in crawler.result()]
    print(iq.statistics().finished, "addresses,", len(broken), "of them broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
