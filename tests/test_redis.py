"""The channel over a server: joining, keys, security, counts, batches, what a call costs."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iterable_queue import (
    Cancelled,
    ChannelBroken,
    Consumer,
    Done,
    Empty,
    Full,
    ItemError,
    IterableQueue,
    Producer,
    ProducerFailed,
    QueueClosed,
)
from iterable_queue._cells import FORKED
from iterable_queue._channel import Hand
from iterable_queue._channels.redis.channel import RedisChannel
from iterable_queue._channels.redis.claims import FEW_TIMES, IN_VAIN, NOT_AGAIN, Own
from iterable_queue._channels.redis.ledger import CLAIM_MOST, CLAIM_NS
from iterable_queue._channels.redis.link import look_out
from tests import actors
from tests.conftest import FORKS, Processes, wait_until
from tests.redis_server import (
    SERVER,
    Maker,
    NoServer,
    Server,
    free_port,
    need_redis,
    redis,
    running,
)
from tests.test_endpoints import time_out_in_a_handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from running(Server(tmp_path))


PAGE = Path(__file__).parents[1] / "docs" / "several-machines.md"


def calls(queue: IterableQueue[Any]) -> int:
    """Round trips that this process has made for it."""
    core: Any = queue._core
    return int(core.link.calls)


def hand_of(source: Any) -> Any:
    """What the one thread that has used it holds of it."""
    return next(iter(source._hands.values()))


# Joining


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Another process, which knows nothing of this one."""
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_those_who_name_the_same_queue_share_it(server: Server) -> None:
    made = server.connect(name="jobs", maxsize=3)
    program = (
        "import sys; from iterable_queue import IterableQueue\n"
        "iq = IterableQueue[int].connect(sys.argv[1], name='jobs')\n"
        "with iq.get_producer() as out: out.put_many([1, 2, 3])\n"
        "print(iq.full(), iq.statistics().open_producers)"
    )
    done = run(program, server.url)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "0"]), done.stderr
    made.close()
    assert list(made.get_consumer()) == [1, 2, 3]
    assert made.join(20)


def three() -> int:
    return 3


OTHERS: tuple[tuple[str, str, str, str], ...] = (
    ("maxsize=4", "maxsize", "3", "3"),
    ("redeliver=False", "redeliver", "3", "3"),
    ("max_deliveries=7", "redeliver", "3", "3"),
    ("on_failure='raise'", "on_failure", "cancel", "cancel"),
    ("sign='key'", "sign", "none", "serializer, sign: the items of the queue 'jobs'"),
    (
        "serializer=(repr, eval)",
        "serializer",
        "other functions",
        "are pickle; all who take part must give",
    ),
)
"""What is asked for that is not so; the argument that is named, and what it is, to this process
and to another one."""


@pytest.mark.parametrize(("asked", "name", "here", "there"), OTHERS)
def test_options_that_differ_are_refused(
    server: Server, asked: str, name: str, here: str, there: str
) -> None:
    made = server.connect(name="jobs", maxsize=3, max_deliveries=3, on_failure="cancel")
    again = server.connect(name="jobs")
    assert again.statistics() == made.statistics()
    options = eval(f"dict({asked})")
    with pytest.raises(ValueError, match=f"^{name}: (this process|the queue 'jobs').* with {here}"):
        server.connect(name="jobs", **options)
    elsewhere = (
        "import sys; from iterable_queue import IterableQueue\n"
        f"IterableQueue.connect(sys.argv[1], name='jobs', {asked})"
    )
    done = run(elsewhere, server.url)
    assert "the queue 'jobs' on the server" in done.stderr
    assert there in done.stderr
    assert made.statistics() == again.statistics(), "nothing has changed"


def test_who_has_made_a_queue_is_told_so_when_it_asks_again(server: Server) -> None:
    """Since the answer was lost with the connection, say."""
    core: Any = server.connect(name="jobs")._core
    other: Any = server.connect(name="jobs", url=f"{server.url}?db=0")._core
    for one, made in ((core, True), (other, False)):
        assert one.made is made
        client = one.ledger.me
        one.ledger.me = one.link.client = 0  # as before the first call
        one._is_here = False
        one.join(handle=True)
        assert (one.ledger.me, one.made) == (client, made)


def test_one_that_only_joins_makes_none(server: Server) -> None:
    for _ in range(2):
        with pytest.raises(QueueClosed, match=r"no queue 'jobs' on the server at .* create=False"):
            server.connect(name="jobs", create=False)
    assert server.names() == []
    made = server.connect(name="jobs", maxsize=3)
    out = made.get_producer()
    for url in (server.url, f"{server.url}?db=0"):  # this process takes part by it, or not yet
        joined = server.connect(name="jobs", create=False, url=url)
        out.put(1)
        with joined.get_consumer() as source:
            assert source.get(timeout=20) == 1
        with pytest.raises(ValueError, match=r"^maxsize: .* with 3"):
            server.connect(name="jobs", create=False, maxsize=4, url=url)
        del joined
    made.cancel()


def test_one_that_only_joins_makes_none_where_one_was(server: Server) -> None:
    """Not for what is left of one that is over, and not after its keys were lost."""
    iq = server.connect(name="jobs")
    with server.client() as client:
        client.flushall()
    with pytest.raises(QueueClosed, match="no queue 'jobs'"):
        server.connect(name="jobs", create=False)
    del iq
    gc.collect()
    assert server.names() == []


def test_the_time_of_a_get_runs_out_in_a_signal_handler(server: Server) -> None:
    queue = server.connect()
    time_out_in_a_handler(queue, queue.get_consumer().get)


def made_anew() -> Callable[[bytes], Any]:
    return lambda data: json.loads(data)  # noqa: PLW0108


def test_a_second_connect_may_ask_for_the_same_and_for_longer(server: Server) -> None:
    made = server.connect(name="jobs", maxsize=3, sign="key", serializer=(to_json, json.loads))
    # What makes its functions anew for each call is taken at its word.
    for _ in range(2):
        server.connect(
            name="jobs", maxsize=3, sign=b"key", serializer=(to_json, json.loads), expiry_s=1.0
        )
    lambdas = [server.connect(name="own", serializer=(to_json, made_anew())) for _ in range(2)]
    with pytest.raises(ValueError, match=r"^sign: .* with another key"):
        server.connect(name="jobs", sign="other", serializer=(to_json, json.loads))
    asked = {"sign": "key", "serializer": (to_json, json.loads)}
    server.connect(name="jobs", expiry_s=20.0, keep_s=1e6, **asked)
    with server.client() as client:
        assert client.hmget("iq:{jobs}:q", "ex", "ke") == [b"20000", b"1000000000"]
        assert client.pttl("iq:{jobs}:items") in (-2, client.pttl("iq:{jobs}:q"))
    made.cancel()
    lambdas[0].cancel()


def test_to_drop_one_of_several_handles_does_not_close_the_queue(server: Server) -> None:
    made = server.connect(name="jobs")
    again = server.connect(name="jobs")
    del made
    gc.collect()
    with again, again.get_producer() as out:
        out.put(1)
    assert list(again.get_consumer()) == [1]


def test_who_was_taken_for_dead_connects_again(server: Server) -> None:
    lost = server.connect(name="jobs")
    other = server.connect(name="jobs", url=f"{server.url}?db=0")
    core: Any = lost._core
    with server.client() as client:
        client.delete(f"iq:{{jobs}}:k:{core.ledger.me}")
    again = server.connect(name="jobs")
    again.get_producer().put(1)
    assert other.get_consumer().get(timeout=20) == 1
    other.cancel()


WRONG_NAME = "name must have 1 to 200 characters that can be printed, and no braces, not"


def test_wrong_arguments_raise_at_once() -> None:
    connect: Any = IterableQueue[Any].connect
    for error, text, arguments in (
        (TypeError, "maxsize must be an int, not '3'", {"maxsize": "3"}),
        (TypeError, "name must be a text, not 3", {"name": 3}),
        (ValueError, WRONG_NAME, {"name": "a{b}"}),
        (ValueError, WRONG_NAME, {"name": ""}),
        (ValueError, WRONG_NAME, {"name": "a\nb"}),
        (ValueError, WRONG_NAME, {"name": "a\ud800"}),
        (ValueError, "expiry_s must be 0.3 to 86,400 seconds, not 0.1", {"expiry_s": 0.1}),
        (ValueError, "expiry_s must be 0.3 to 86,400 seconds, not inf", {"expiry_s": math.inf}),
        (ValueError, "expiry_s must be 0.3 to 86,400 seconds, not nan", {"expiry_s": math.nan}),
        (ValueError, "retry_s must be 0 to 31,536,000 seconds, not -1", {"retry_s": -1}),
        (ValueError, "retry_s must be 0 to 31,536,000 seconds, not inf", {"retry_s": math.inf}),
        (ValueError, "keep_s must be 0 to 31,536,000 seconds, not inf", {"keep_s": math.inf}),
        (ValueError, "keep_s must be 0 to 31,536,000 seconds, not 1e+18", {"keep_s": 1e18}),
        (TypeError, "server must be a URL, or a function that returns a client", {"server": 3}),
        (TypeError, "server() must return a redis.Redis or RedisCluster, not 3", {"server": three}),
        (TypeError, "keep_s must be a number of seconds", {"keep_s": "1"}),
        (TypeError, "create must be True or False, not 'no'", {"create": "no"}),
        (ValueError, "keep_s must be more than expiry_s=15, not 1.0", {"keep_s": 1.0}),
        (
            ValueError,
            "keep_s must be more than expiry_s=2, not 2",
            {"keep_s": 2, "expiry_s": 2.0},
        ),
        (ValueError, "sign must not be empty", {"sign": b""}),
        (TypeError, "sign must be a text or bytes, not 1", {"sign": 1}),
        (TypeError, "serializer must be a function", {"serializer": (1, 2)}),
        (TypeError, "serializer must be two functions", {"serializer": (repr,)}),
        (TypeError, "serializer must be two functions", {"serializer": (repr, repr, repr)}),
        (TypeError, "serializer must be two functions", {"serializer": ()}),
        (TypeError, "serializer must be two functions", {"serializer": json}),
        (ValueError, "on_failure must be 'raise' or 'cancel'", {"on_failure": "explode"}),
        (ValueError, "on_failure must be 'raise' or 'cancel', not ''", {"on_failure": ""}),
        (
            ValueError,
            "max_deliveries is for queues with",
            {"redeliver": False, "max_deliveries": 2},
        ),
    ):
        with pytest.raises(error, match=re.escape(text)):
            connect(**{"server": "redis://127.0.0.1:1/0", "name": "n", **arguments})


@pytest.mark.parametrize(
    "most", [{"expiry_s": 86_400, "keep_s": 31_536_000}, {"retry_s": 31_536_000}, {"retry_s": 0}]
)
def test_the_longest_times_work(server: Server, most: dict[str, float]) -> None:
    iq = server.connect(**most)
    with iq, iq.get_producer() as out:
        out.put(1)
    assert list(iq.get_consumer()) == [1]


def test_a_server_without_memory_refuses_a_queue(server: Server) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(OSError, match="by connect") as caught:
            server.connect()
        assert caught.value.errno == errno.ENOSPC
        assert not server.names()
        client.config_set("maxmemory", 0)


def test_a_foreign_key_is_refused_and_left_alone(server: Server) -> None:
    with server.client() as client:
        client.set("iq:{text}:q", "mine")
        client.hset("iq:{hash}:q", "v", "another program 7")
        client.hset("iq:{other}:q", "field", "mine")
        client.rpush("iq:{items}:items", "mine")
        before = {key: client.dump(key) for key in server.names()}
        for name in ("text", "hash", "other", "items"):
            with pytest.raises(ChannelBroken, match=f"the name '{name}' on the server"):
                server.connect(name=name)
        assert {key: client.dump(key) for key in server.names()} == before


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    need_redis()
    port = free_port()
    url = f"redis://user:secret-word@127.0.0.1:{port}/3"
    with pytest.raises(ChannelBroken) as caught:
        IterableQueue[Any].connect(url, name="n", retry_s=0.2)
    assert f"connect: the server at 127.0.0.1:{port}/3 could not be reached" in str(caught.value)
    assert "secret-word" not in str(caught.value)


def test_a_wrong_password_is_refused_at_once(server: Server) -> None:
    """It is not tried again, for half a minute: nothing would change."""
    with server.client() as client:
        client.config_set("requirepass", "secret-word")
        for user in ("", "nobody"):
            url = server.url.replace("redis://", f"redis://{user}:wrong-word@")
            began = time.monotonic()
            with pytest.raises(ChannelBroken, match=r"^connect: .* lets nobody in") as caught:
                IterableQueue[Any].connect(url, name="n")
            assert time.monotonic() - began < 15.0
            assert "could not be reached" not in str(caught.value)
            assert "wrong-word" not in str(caught.value)
        with pytest.raises(ChannelBroken, match="It wants a password"):
            server.connect()
        url = server.url.replace("redis://", "redis://:secret-word@")
        assert "secret-word" not in repr(IterableQueue[Any].connect(url, name="n"))
        client.config_set("requirepass", "")


def test_acl_users_need_the_prefix_alone(server: Server) -> None:
    """By the rule in the documentation, word for word."""
    [rule] = re.findall("^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE)
    with server.client() as client:
        client.execute_command(*rule.split())
        refused = client.acl_log
        url = server.url.replace("redis://", "redis://worker:password@")
        iq = server.connect(url=url, redeliver=True)
        out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
        out.put_many(range(1000))
        assert source.get() == 0
        assert worker.get() == 1
        out.fail(LookupError("told"))
        worker.close()
        assert iq.qsize() <= 998
        iq.explain()
        del worker
        iq.cancel(LookupError("why"))
        with pytest.raises(Cancelled):
            source.get()
        del iq, out, source
        gc.collect()
        wait_until(lambda: not server.names(), "it is left, by its thread if that looked at it")
        assert not refused()
        with (
            redis.Redis.from_url(url) as other,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            other.get("another key")


@pytest.mark.parametrize("command", ["pexpireat", "zadd", "sadd", "hincrby"])
def test_a_command_that_a_user_lacks_spoils_nothing(server: Server, command: str) -> None:
    """A script that is refused one stops in its midst; the name can be used all the same."""
    with server.client() as client:
        client.execute_command(*f"ACL SETUSER less on >word ~* +@all -{command}".split())
    url = server.url.replace("redis://", "redis://less:word@")
    with pytest.raises(ChannelBroken, match=r"refused a call.*ACL LOG"):
        server.connect(url=url, name="spoilt")
    with server.connect(name="spoilt") as iq, iq.get_producer() as out:
        out.put("there")
    assert list(iq.get_consumer()) == ["there"]


def test_unix_sockets_and_clients_of_ones_own(server: Server) -> None:
    for source in (f"unix://{server.path}?db=2", server.client):
        iq = server.connect(url=source)
        iq.get_producer().put("there")
        assert iq.get_consumer().get() == "there"
        assert server.path in repr(iq)
        iq.cancel()


def put_there(out: Producer[str]) -> None:
    with out:
        out.put("there")


def test_tls(tmp_path: Path, processes: Processes) -> None:
    need_redis()
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(certificate)]
    server = Server(tmp_path, *options)
    try:
        try:
            server.start()
        except NoServer as error:
            if "TLS" in str(error):
                pytest.skip(f"{SERVER} was built without TLS")
            raise
        url = f"rediss://127.0.0.1:{port}/0"
        with pytest.raises(ChannelBroken, match="certificate"):
            IterableQueue[str].connect(url, name="q", retry_s=0.2)
        iq = server.connect(url=f"{url}?ssl_ca_certs={certificate}")
        processes.start(get_context("spawn").Process(target=put_there, args=(iq.get_producer(),)))
        iq.close()
        assert list(iq.get_consumer()) == ["there"]
        processes.join()
        del iq
        gc.collect()
    finally:
        server.end()


SENTINEL_PORT = "TESTS_SENTINEL_PORT"
"""The environment variable that says it to `through_sentinel`, wherever that is called."""


def through_sentinel() -> Any:
    sentinels = import_module("redis.sentinel")
    port = int(os.environ[SENTINEL_PORT])
    return sentinels.Sentinel([("127.0.0.1", port)]).master_for("the-master")


def test_sentinel(
    server: Server, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SERVER is not None
    port = free_port()
    monkeypatch.setenv(SENTINEL_PORT, str(port))
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor the-master 127.0.0.1 {server.port} 1\n"
    )
    command = [SERVER, str(settings), "--sentinel"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sentinel:
        try:

            def knows() -> bool:
                try:
                    return bool(through_sentinel().ping())
                except redis.ConnectionError:
                    return False

            wait_until(knows, "the sentinel answers, and knows the server")
            iq = server.connect(url=through_sentinel)
            assert "service the-master" in repr(iq)
            child = get_context("spawn").Process(target=put_there, args=(iq.get_producer(),))
            processes.start(child)
            iq.close()
            assert list(iq.get_consumer()) == ["there"]
            processes.join()
            del iq
            gc.collect()
        finally:
            sentinel.kill()


# Keys


def test_the_end_removes_all_keys(server: Server) -> None:
    for end in ("done", "cancelled", "failed", "abandoned"):
        iq = server.connect(name=end)
        out, source = iq.get_producer(), iq.get_consumer()
        out.put_many(range(100))
        iq.close()
        if end == "cancelled":
            iq.cancel(LookupError("that will do"))
        elif end == "abandoned":
            source.close()
        elif end == "failed":
            out.fail(LookupError("no more"))
            with pytest.raises(ProducerFailed):
                list(source)
        else:
            out.close()
            list(source)
        assert server.names(), "others may still come"
        del iq, out, source
        wait_until(lambda: not server.names(), f"no key is left of the {end} queue")


def test_what_is_left_waits_for_others(server: Server) -> None:
    iq = server.connect(name="later")
    with iq, iq.get_producer() as out:
        out.put_many(range(10))
    del iq, out
    wait_until(lambda: "iq:{later}:beats" not in server.names(), "it has left")
    iq = server.connect(name="later")
    assert list(iq.get_consumer()) == list(range(10))
    assert iq.statistics().state == "done"


def test_keys_share_a_hash_tag_and_expire(server: Server) -> None:
    iq = server.connect(name="jobs", keep_s=100.0)
    out, source, worker = iq.get_producer(), iq.get_consumer(), iq.get_worker()
    out.put_many(range(100))
    assert (source.get(), worker.get()) == (0, 1)
    source.get_many(100)
    with pytest.raises(Empty):
        source.get(timeout=0.02)
    iq.get_producer().fail(LookupError("told"))
    with server.client() as client:
        keys = server.names()
        assert {key.split(":")[2] for key in keys} >= {"q", "open", "e", "k", "beats", "fails"}
        for key in keys:
            assert key.startswith("iq:{jobs}:")
            assert 0 < client.pttl(key) <= 150_000, key
        # Heartbeats put it off.
        for key in keys:
            client.pexpire(key, 20_000)
        wait_until(lambda: client.pttl("iq:{jobs}:q") > 90_000, "the keys are kept")
        for key in set(keys) & set(server.names()):
            assert client.pttl(key) > 90_000, key
    iq.cancel()


@pytest.mark.parametrize("first", [5.0, 1000.0])
def test_the_longest_keep_s_counts(server: Server, first: float) -> None:
    """Whoever makes a key, and whoever comes first."""
    iq = server.connect(name="q", keep_s=first)
    other = server.connect(name="q", keep_s=1005.0 - first, url=f"{server.url}?db=0")
    for queue in (iq, other):
        out, source, worker = queue.get_producer(), queue.get_consumer(), queue.get_worker()
        out.put_many(range(100))
        assert len(source.get_many(40)) == 40
        source.get()
        worker.get()
        queue.get_producer().fail(LookupError("told"))
        source.get_many(1000)
        with pytest.raises(Empty):
            source.get(timeout=0.02)
        out.put_many(range(100))
    with server.client() as client, client.pipeline(transaction=True) as pipe:
        for key in server.names():
            pipe.pttl(key)
        left = pipe.execute()
    assert min(left) > 990_000
    assert max(left) - min(left) < 1000, "none is gone before the others"
    iq.cancel()


def test_keep_s_begins_when_all_have_left(server: Server) -> None:
    iq = server.connect(name="q", keep_s=100.0, expiry_s=60.0)
    with iq, iq.get_producer() as out:
        out.put_many(range(10))
    with server.client() as client:
        for key in server.names():
            client.pexpire(key, 50_000)  # as if it had been some time
        del iq, out
        wait_until(lambda: "iq:{q}:beats" not in server.names(), "it has left")
        for key in server.names():
            assert 99_000 < client.pttl(key) <= 100_000, key


def test_a_name_is_free_again_after_the_end(server: Server) -> None:
    for n in range(3):
        iq = server.connect(name="again")
        with iq, iq.get_producer() as out:
            out.put(n)
        assert list(iq.get_consumer()) == [n]
        del iq, out
        wait_until(lambda: not server.names(), "everybody has left")


def test_a_name_is_free_again_after_everybody_was_killed(server: Server) -> None:
    program = (
        "import os, sys; from iterable_queue import IterableQueue\n"
        "iq = IterableQueue.connect(sys.argv[1], name='q', expiry_s=0.5)\n"
        "iq.cancel(); os._exit(0)"
    )
    assert run(program, server.url).returncode == 0

    def is_silent() -> bool:
        with server.client() as client:
            seconds, micros = client.time()
            [(_, beat)] = client.zrange("iq:{q}:beats", 0, -1, withscores=True)
        return bool(seconds * 1000 + micros / 1000 - beat > 600)

    wait_until(is_silent, "nobody is heard")
    iq = server.connect(name="q", expiry_s=0.5)
    assert iq.statistics().state == "open"
    iq.cancel()


def test_a_pickle_of_a_queue_that_has_gone_makes_none(server: Server) -> None:
    iq = server.connect(name="gone")
    data = pickle.dumps(iq.get_producer())
    iq.cancel()
    del iq
    wait_until(lambda: not server.names(), "the queue is gone")
    late = pickle.loads(data)
    with pytest.raises(ChannelBroken, match="is gone from the server"):
        late.put(1)
    again = server.connect(name="gone")
    late = pickle.loads(data)
    with pytest.raises(ChannelBroken, match="is gone from the server"):
        late.put(1)
    assert again.statistics().put == 0


def test_a_cluster_of_one_runs_the_scripts(tmp_path: Path) -> None:
    need_redis()
    server = Server(tmp_path, "--cluster-enabled", "yes")
    try:
        server.start()
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(
                lambda: (
                    "cluster_state:ok" in repr(client.execute_command("CLUSTER INFO"))
                    or client.execute_command("CLUSTER INFO").get("cluster_state") == "ok"
                ),
                "the cluster is up",
            )
        iq = server.connect()
        with iq, iq.get_producer() as out:
            out.put_many(range(100))
        assert list(iq.get_consumer()) == list(range(100))
    finally:
        server.end()


def test_scripts_flushed(server: Server) -> None:
    iq = server.connect()
    out, source = iq.get_producer(), iq.get_consumer()
    with server.client() as client:
        for n in range(20):
            client.script_flush()
            out.put(n)
            client.script_flush()
            assert source.get() == n
        client.script_flush()
        iq.close()
        client.script_flush()
        out.close()
        with pytest.raises(Done):
            source.get()


# Security


def test_signatures(server: Server) -> None:
    iq = server.connect(name="signed", sign="a key that all share")
    out, source = iq.get_producer(), iq.get_consumer()
    out.put("good")
    with server.client() as client:
        [good] = client.lrange("iq:{signed}:items", 0, -1)
        client.rpush("iq:{signed}:items", good[:-1] + b"!", b"1 0:" + pickle.dumps("bare"))
        client.hincrby("iq:{signed}:q", "pt", 2)
    out.put("after")
    assert source.get() == "good"
    for _ in range(2):
        with pytest.raises(ItemError, match="its signature is wrong or missing") as caught:
            source.get()
        assert caught.value.producer == 1
    assert source.get() == "after"
    assert "2 item(s) were refused, whose signature was wrong or missing" in iq.explain()
    iq.cancel()


def test_nothing_of_a_wrong_signature_is_unpickled(server: Server) -> None:
    iq = server.connect(name="signed", sign=b"key")
    iq.get_producer()
    with server.client() as client:
        client.rpush("iq:{signed}:items", b"1 0:" + bytes(32) + pickle.dumps(Bomb()))
        client.hset("iq:{signed}:q", "cf", 0)
        client.rpush("iq:{signed}:fails", b"p" + pickle.dumps(Bomb()))
        client.hset("iq:{signed}:q", "fa", 1)
    source = iq.get_consumer()
    with pytest.raises(ItemError):
        source.get()
    core: Any = iq._core
    [failure] = core.runtime.errors.failures()
    assert "can't be read here: BadSignature" in str(failure)
    assert Bomb.exploded == 0
    iq.cancel()


class Bomb:
    """Runs code when it is unpickled."""

    exploded = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    Bomb.exploded += 1


def test_keys_must_be_the_same(server: Server) -> None:
    iq = server.connect(name="signed", sign=b"key")
    program = (
        "import sys; from iterable_queue import IterableQueue\n"
        "IterableQueue.connect(sys.argv[1], name='signed')"
    )
    done = run(program, server.url)
    assert "ValueError: serializer, sign: the items of the queue 'signed'" in done.stderr
    assert "are pickle+signed" in done.stderr
    iq.cancel()


def to_json(item: Any) -> bytes:
    return json.dumps(item).encode()


def test_a_serializer_of_ones_own(server: Server) -> None:
    iq = server.connect(name="json", serializer=(to_json, json.loads))
    out, source = iq.get_producer(), iq.get_consumer()
    out.put({"n": [1, 2]})
    with pytest.raises(TypeError, match="not JSON serializable"):
        out.put({1, 2})
    with server.client() as client:
        assert client.lrange("iq:{json}:items", 0, -1) == [b'1 0:{"n": [1, 2]}']
        client.rpush("iq:{json}:fails", b"p" + pickle.dumps(Bomb()))
    assert source.get() == {"n": [1, 2]}
    out.fail(LookupError("told as text"))
    iq.close()
    with pytest.raises(ProducerFailed) as caught:
        source.get()
    assert Bomb.exploded == 0, "errors are not pickled either"
    assert "LookupError: told as text" in str(caught.value.failures[1])
    for wrong in (str, int):
        iq = server.connect(serializer=(wrong, json.loads))
        with pytest.raises(TypeError, match="its first function must return bytes"):
            iq.get_producer().put(1)
        iq.cancel()


# Batches


def test_calls_have_as_few_round_trips_as_they_say(server: Server) -> None:
    iq = server.connect()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put(0)
    assert source.get() == 0

    def cost(call: Any, *args: Any) -> int:
        before = calls(iq)
        call(*args)
        return calls(iq) - before

    assert cost(out.put, 1) == 1
    assert cost(source.get) == 1
    assert cost(out.put_many, range(1000)) == 1
    assert cost(source.get_many, 1000) == 1
    assert cost(out.put_many, [b"x" * 1000] * 100) == 2, "64 KiB and less for each"
    assert cost(source.get_many, 100) == 1
    assert cost(iq.qsize) == 1
    assert cost(iq.statistics) == 1
    out.put_many(range(5000))
    # How many, depends on how fast this is.
    assert cost(lambda: [source.get() for _ in range(5000)]) < 1000, "claims of many"
    assert cost(out.close) == 1
    iq.close()


def test_a_recording_says_where_the_queue_was_made(server: Server, tmp_path: Path) -> None:
    iq = server.connect(name="q")
    other = server.connect(name="q", url=f"{server.url}?db=0")
    for queue in (iq, other):
        path = tmp_path / "recording"
        with queue.record(path, interval=None) as recording:
            before = calls(queue)
            recording.sample()
            assert calls(queue) - before == 1
        made = json.loads(path.read_text().splitlines()[0])["made"]
        assert made.startswith(f"{Path(__file__).parent / 'redis_server.py'}:"), "which connects"
    iq.cancel()


def test_one_who_waits_takes_what_another_has_claimed(server: Server) -> None:
    iq = server.connect()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(4000))
    taken = [source.get() for _ in range(2000)]
    hand = hand_of(source)
    claimed = hand.own.claim.permits
    while claimed < 2:
        taken.append(source.get())
        claimed = hand.own.claim.permits
    late = iq.get_consumer()
    late.get_many(4000)
    rest = claimed
    got: list[int] = []
    while rest:
        got.append(late.get(timeout=20))
        rest = hand.own.claim.permits
    assert len(got) >= claimed // 2
    assert sorted(got) == list(range(min(got), max(got) + 1))
    iq.cancel()


def test_claims_of_a_cancelled_queue_are_not_handed_out(server: Server) -> None:
    iq = server.connect()
    out, source = iq.get_producer(), iq.get_consumer()
    out.put_many(range(4000))
    for _ in range(2000):
        source.get()
    iq.cancel()
    with pytest.raises(Cancelled):
        source.get()
    now = iq.statistics()
    assert (now.put, now.taken + now.dropped, now.queued) == (4000, 4000, 0)


def test_threads_of_a_consumer_have_a_hand_each(server: Server) -> None:
    iq = server.connect()
    source = iq.get_consumer()
    with iq, iq.get_producer() as out:
        out.put_many(range(3000))
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.extend(source)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == list(range(3000))
    assert iq.join(10)


def test_a_waiting_call_makes_hardly_any_round_trip(server: Server) -> None:
    iq = server.connect()
    source = iq.get_consumer()
    before = calls(iq)
    with pytest.raises(Empty):
        source.get(timeout=1.0)
    assert calls(iq) - before <= 4
    out = server.connect(maxsize=1).get_producer()
    out.put(1)
    before = calls(iq)
    with pytest.raises(Full):
        out.put(2, timeout=1.0)
    assert calls(iq) - before <= 4


# Processes


def context_of(method: str) -> Any:
    return {"fork": get_context("fork"), "spawn": get_context("spawn")}[method]


def produce(out: Producer[int], numbers: range) -> None:
    with out:
        for n in numbers:
            out.put(n)


def consume(source: Consumer[int], results: Producer[int]) -> None:
    with source, results:
        results.put(sum(source))


@pytest.mark.parametrize("method", [pytest.param("fork", marks=FORKS), "spawn"])
def test_pools(server: Server, processes: Processes, method: str) -> None:
    context = context_of(method)
    with server.connect() as results, server.connect(maxsize=10) as iq:
        for n in range(3):
            numbers = range(n * 100, n * 100 + 100)
            processes.start(context.Process(target=produce, args=(iq.get_producer(), numbers)))
        for _ in range(3):
            args = iq.get_consumer(), results.get_producer()
            processes.start(context.Process(target=consume, args=args))
    source = results.get_consumer()
    assert sum(source) == sum(range(300))
    assert processes.join() == [0] * 6


def test_that_a_process_was_started_is_noted_later_if_it_is_told_inside_a_call(
    server: Server,
) -> None:
    """As on one machine: the collector may find the end of a launch anywhere."""
    iq = server.connect(name="q")
    out: Any = iq.get_producer()
    core: Any = iq._core
    heir, here, there = core.transact(core._make_heir)
    closed = list[bool]()
    launch: Any = SimpleNamespace(
        popen=SimpleNamespace(pid=os.getpid()),
        client=heir,
        here=here,
        numbers=[out.number],
        close_copy=lambda: closed.append(True),
    )
    core.transact(core.launched, launch)
    assert closed == [True]
    core.transact(lambda: None)
    with server.client() as client:
        assert int(client.hget(f"iq:{{q}}:e:{out.number}", "o")) == heir
        os.close(there)
        wait_until(lambda: not client.exists(f"iq:{{q}}:k:{heir}"), "its end is seen")
    assert launch.here == -1
    iq.cancel()


EXAMPLE = Path(__file__).parents[1] / "examples" / "hash_tree_hosts.py"


@pytest.mark.parametrize("is_there", [True, False])
def test_the_example_tells_of_processes_that_failed(
    server: Server, tmp_path: Path, is_there: bool
) -> None:
    path = tmp_path / "file"
    if is_there:
        path.write_bytes(b"")
    results = server.connect(name="hash-tree-results", maxsize=1000)
    with server.connect(name="hash-tree-paths", maxsize=1000, redeliver=True) as paths:
        with paths.get_producer() as out:
            out.put(str(path))
        source = results.get_consumer()
        command = [sys.executable, str(EXAMPLE), server.url, "hash", "--processes=1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as hashing:
            try:
                wait_until(lambda: paths.statistics().taken, "the path is taken")
                paths.close()
                _, said = hashing.communicate(timeout=40)
            finally:
                hashing.kill()
    assert hashing.returncode == (0 if is_there else 1)
    assert ("FileNotFoundError" in said) is not is_there
    assert (results.qsize() == 1) is is_there
    source.close()
    results.cancel()


@pytest.mark.parametrize("is_there", [True, False])
def test_the_example_says_that_it_comes_too_late(server: Server, is_there: bool) -> None:
    """A pool that was started when all was done, or is gone already, does not wait for ever."""
    left: list[IterableQueue[Any]] = []
    if is_there:
        for name, redeliver in (("hash-tree-paths", True), ("hash-tree-results", False)):
            left.append(server.connect(name=name, maxsize=1000, redeliver=redeliver))
            left[-1].close()
    names = server.names()
    command = [sys.executable, str(EXAMPLE), server.url, "hash", "--processes=1"]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, timeout=40)
    said = "no new producer" if is_there else "there is no queue 'hash-tree-paths' on the server"
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"nothing to do: {said}")
    assert is_there or names == server.names() == []


@FORKS
def test_forks_cost_as_many_calls_as_there_are_processes(
    server: Server, processes: Processes
) -> None:
    count = 20
    with server.connect() as iq:
        outs = [iq.get_producer() for _ in range(count)]
        before = calls(iq)
        for n, out in enumerate(outs):
            processes.start(
                get_context("fork").Process(target=produce, args=(out, range(n, n + 1)))
            )
        # A client, an endpoint for it, its pid and its end; and marks, once.
        assert calls(iq) - before <= 4 * count + 2
    assert sorted(iq.get_consumer()) == list(range(count))
    assert processes.join() == [0] * count


@FORKS
def test_a_forked_child_connects_by_the_same_name(server: Server, processes: Processes) -> None:
    """It has the queue from its parent, but takes part by itself."""
    iq = server.connect(name="jobs")
    source = iq.get_consumer()

    def child() -> None:
        with server.connect(name="jobs").get_producer() as out:
            out.put(os.getpid())

    started = [processes.start(get_context("fork").Process(target=child)) for _ in range(2)]
    assert {source.get(timeout=20) for _ in started} == {p.pid for p in started}
    iq.close()
    assert list(source) == []


@FORKS
def test_what_a_fork_may_have_taken_along_is_marked_once(server: Server) -> None:
    iq = server.connect()
    kept = [iq.get_producer() for _ in range(10)]

    def fork() -> int:
        before = calls(iq)
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        return calls(iq) - before

    assert fork() == 1
    assert fork() == 0
    kept.append(iq.get_producer())
    assert iq.statistics().open_producers == 11
    assert fork() == 1
    with server.client() as client:
        assert {int(client.hget(f"iq:{{q1}}:e:{n}", "f")) for n in range(1, 12)} == {FORKED}
        assert client.hget("iq:{q1}:q", "ha") == b"0"
    iq.cancel()


@FORKS
def test_a_task_that_ends_before_it_uses_its_producer(server: Server) -> None:
    """It came by a pickle to a process that has inherited a copy of it."""
    iq = server.connect()
    source, out = iq.get_consumer(), iq.get_producer()
    iq.close()
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        executor.submit(actors.nothing, out).result(30)
        with pytest.raises(ProducerFailed, match="dropped, without having been used, by the proc"):
            source.get(timeout=30)


def test_a_name_that_an_earlier_run_has_left_says_whose_it_is(server: Server) -> None:
    program = (
        "import os; from iterable_queue import IterableQueue\n"
        f"with IterableQueue.connect({server.url!r}, name='jobs') as iq:\n"
        "    iq.get_producer().put(1)\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = run(program)
    pid = int(done.stdout)
    again = server.connect(name="jobs")
    with pytest.raises(
        QueueClosed, match=rf"made by pid {pid} on .*, at <string>:2\. If .*own for"
    ):
        again.get_producer()
    made = server.connect(name="other")
    made.close()
    with pytest.raises(QueueClosed, match=r"or clone\(\) one that is still open$"):
        made.get_producer()


def test_a_consumer_asks_later_as_long_as_it_finds_more_by_that() -> None:
    own = Own(0)
    hand: Any = SimpleNamespace(since=0)

    def claims(*counts: int) -> bool:
        for count in counts:
            own.gather(hand, 1_000_000_000)  # a second after its last claim: it needs no sleep
            own.learn(count, 100)
        return own.gathers

    assert not claims(*[2] * (FEW_TIMES - 1))
    assert claims(2), "it found few, again and again"
    vain = [2] * (IN_VAIN - 1)
    assert claims(*vain, 3, *vain, 3), "now and then it found no more, which is chance"
    for _ in range(IN_VAIN):
        own.learn(1, 100)
    assert own.gathers, "those it asked for at once"
    assert not claims(*[1] * IN_VAIN), "it has not found more for some time"
    assert not claims(*[1] * (NOT_AGAIN + FEW_TIMES - 1)), "so it asks at once, for a while"
    assert claims(1)


def test_a_consumer_that_asks_later_claims_what_it_works_through_meanwhile() -> None:
    """Its pace is not that of those who put: the claim after one of one item may be large."""
    own = Own(0)
    own.gathers = True
    hand = Hand(RedisChannel(), True)
    hand.pace = 8
    for pace in (16, 32, 40):  # never more than twice as many as before, nor than in 2 ms
        now = time.monotonic_ns()
        claimed = now - 50_000
        hand.since, hand.size = claimed, 1  # it has worked on one item for as long
        own.gather(hand, now)
        slept = hand.since - claimed
        assert slept > 0.9e6, "it asks a millisecond after its last claim"
        assert hand.pace_at(now + slept, CLAIM_NS, CLAIM_MOST) == pace


def test_looking_out_for_an_answer_ends() -> None:
    out, into = os.pipe()
    try:
        look_out(out, 0.001)  # nothing comes
        wait = threading.Thread(target=look_out, args=(out, 60.0), daemon=True)
        wait.start()
        os.write(into, b"x")
        wait.join(20)
        assert not wait.is_alive()
        assert os.read(out, 9) == b"x", "it only looks"
        look_out(-1, 60.0)  # there is no connection
    finally:
        os.close(out)
        os.close(into)


def test_importing_the_package_imports_no_client() -> None:
    program = (
        "import sys, iterable_queue; from iterable_queue import IterableQueue\n"
        "iq = IterableQueue(); print('redis' in sys.modules, "
        "'iterable_queue._channels.redis' in sys.modules)"
    )
    done = run(program)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "False"]), done.stderr


def test_without_the_client_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from iterable_queue import IterableQueue\n"
        "IterableQueue.connect('redis://127.0.0.1', name='n')"
    )
    done = run(program)
    assert "pip install 'iterable-queue[redis]'" in done.stderr


def test_the_maker_for_conformance_can_be_pickled(server: Server) -> None:
    make = pickle.loads(pickle.dumps(server.maker()))
    assert isinstance(make, Maker)
    make().cancel()
