"""The command line: `top` shows what is there and changes nothing, `doctor` says what to do."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

import iterable_queue
from iterable_queue import IterableQueue, Statistics, _directory, _fence, _mutex
from iterable_queue._cells import LAYOUT
from iterable_queue._command import _doctor, _find, _top, main
from iterable_queue._command._doctor import BROKEN, TO_DO, WELL, Check
from iterable_queue._command._trial import try_method

KEYS = {
    "path",
    "status",
    "pid",
    "alive",
    "command",
    "made",
    "made_at",
    "maxsize",
    "processes",
    "dead",
    "statistics",
    "put_per_s",
    "taken_per_s",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where queues are made and looked for in this test."""
    path = tmp_path / "queues"
    path.mkdir()
    monkeypatch.setattr(_directory, "place_for_new", lambda: str(path))
    monkeypatch.setattr(_directory, "places", lambda: [str(path), str(tmp_path / "no place")])
    monkeypatch.setattr(_directory, "_swept_at", time.monotonic())
    return path


def path_of(queue: IterableQueue[Any]) -> Path:
    path = queue._core.place
    assert path is not None
    return Path(path)


def used(maxsize: int = 0) -> tuple[IterableQueue[int], list[object]]:
    """A queue with three items put, of which one is taken."""
    queue = IterableQueue[int](maxsize)
    out, source = queue.get_producer(), queue.get_consumer()
    for n in range(3):
        out.put(n)
    assert source.get() == 0
    return queue, [out, source, queue.get_worker()]


def left_over(place: Path) -> Path:
    path = place / f"{_directory.PREFIX}{os.geteuid()}-{os.getpid()}-{os.urandom(4).hex()}"
    path.mkdir()
    for name in ("cells", "p1", "s0.0"):
        (path / name).touch()
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def objects(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(capsys, *arguments)]


# top: the table


def test_a_table_of_all_queues(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = used(maxsize=5), used()
    head, first, second = (re.split(r"  +", line.strip()) for line in printed(capsys, "top"))
    assert head == list(_top.HEADINGS)
    shown = dict(zip(head, first, strict=True))
    assert shown["PID"] == str(os.getpid())
    assert shown["MADE AT"].startswith("test_command.py:")
    assert re.fullmatch(r"\d+s", shown["AGE"])
    assert first[4:] == ["open", "2/5", "3", "1", "-", "-", "1p 1c 1w", "-", "0", "0"]
    assert second[5] == "2"
    del kept


def test_columns_are_aligned(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queues = [used() for _ in range(2)]
    queues[1][0].cancel()
    head, *rows = printed(capsys, "top", "--once")
    assert all(row.index("test_command") == head.index("MADE AT") for row in rows)
    end = head.index("PUT/S") + len("PUT/S")
    assert all(row[end - 1] == "-" for row in rows)


def test_no_queue(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "top") == ["No queue of yours is in use."]


def test_explanations(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue, ends = used()
    text = "\n".join(printed(capsys, "top", "--explain"))
    assert f"{path_of(queue)}: open, not done: the queue has not been closed" in text
    assert f"producer 1, made at {__file__}" in text
    del ends


def test_left_overs_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left_over(place)
    [no_queue, line] = printed(capsys, "top")
    assert no_queue == "No queue of yours is in use."
    assert line.startswith("1 left over of processes that were killed: `python -m iterable_queue")
    assert path.exists(), "top removes nothing"


def test_another_version_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue, ends = used()
    queue._core.ledger.head[LAYOUT] += 1
    assert any("another version" in line for line in printed(capsys, "top"))
    [seen] = objects(capsys, "top", "--json")
    assert (seen["status"], seen["statistics"]) == ("other version", None)
    del ends


def test_what_is_no_queue_to_be_shown(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"{_directory.PREFIX}{os.geteuid()}"
    (place / f"{prefix}-what-ever").mkdir()
    (place / f"{prefix}-{os.getpid()}-00").touch()  # a file
    (place / f"{prefix}-{os.getpid()}-01").mkdir()  # just made
    (place / f"{_directory.PREFIX}{os.geteuid() + 1}-{os.getpid()}-02").mkdir()
    theirs, ends = used()
    lstat = os.lstat

    def not_mine(path: str) -> Any:
        if path == str(path_of(theirs)):
            return SimpleNamespace(st_uid=os.geteuid() + 1, st_mode=0o40700)
        return lstat(path)

    mine, more = used()
    (place / f"{prefix}-{os.getpid()}-03").symlink_to(path_of(mine))
    monkeypatch.setattr(os, "lstat", not_mine)
    assert [seen["path"] for seen in objects(capsys, "top", "--json")] == [str(path_of(mine))]
    assert _find.left_overs() == []
    del ends, more


def test_one_that_may_not_be_read(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, ends = used()

    def refuse(path: str) -> bool:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_directory, "is_left", refuse)
    assert printed(capsys, "top", "--json") == []
    del queue, ends


def test_one_that_is_being_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / f"{_directory.PREFIX}{os.geteuid()}-{os.getpid()}-00"
    path.mkdir()
    (path / "cells").write_bytes(bytes(8 * 64))
    [seen] = objects(capsys, "top", "--json")
    assert (seen["status"], seen["pid"], seen["made"]) == ("being made", os.getpid(), None)


@pytest.mark.parametrize("moment", ["is_left", "Look"])
def test_one_that_vanishes(
    moment: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, ends = used()
    path = path_of(queue)
    aside = path.with_name("aside")
    owner = _directory if moment == "is_left" else _find
    call = getattr(owner, moment)

    def late(path_: str) -> object:
        os.rename(path, aside)
        return call(path_)

    monkeypatch.setattr(owner, moment, late)
    assert printed(capsys, "top") == ["No queue of yours is in use."]
    os.rename(aside, path)
    del ends


def test_nothing_is_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue, ends = used()

    def everything() -> dict[str, tuple[bytes, int]]:
        return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in path_of(queue).iterdir()}

    before = everything()
    printed(capsys, "top", "--explain")
    objects(capsys, "top", "--json", "--explain", "--interval", "0.001")
    assert everything() == before
    del ends


# top: for programs


def test_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue, ends = used(maxsize=5)
    [seen] = objects(capsys, "top", "--json")
    assert set(seen) == KEYS
    assert Statistics(**seen["statistics"]) == queue.statistics()
    assert seen["path"] == str(path_of(queue))
    assert (seen["status"], seen["pid"], seen["alive"]) == ("live", os.getpid(), True)
    assert (seen["maxsize"], seen["processes"], seen["dead"]) == (5, [os.getpid()], [])
    assert seen["command"][0].endswith(os.path.basename(sys.executable)[:6])
    assert seen["made"].startswith(__file__)
    assert 0 <= time.time() - seen["made_at"] < 60
    assert (seen["put_per_s"], seen["taken_per_s"]) == (None, None)
    [explained] = objects(capsys, "top", "--json", "--explain")
    assert set(explained) == KEYS | {"explanation"}
    assert explained["explanation"].startswith("open, not done")
    del ends


def test_rates_take_two_looks(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = IterableQueue[int]()
    out, source = queue.get_producer(), queue.get_consumer()
    out.put(0)
    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        out.put_many(range(10))
        source.get_many(4)

    with monkeypatch.context() as patch:
        patch.setattr(_top, "time", SimpleNamespace(sleep=sleep, time=time.time))
        patch.setattr(_top, "monotonic", lambda: now[0])
        [seen] = objects(capsys, "top", "--json", "--interval", "2")
    assert slept == [2.0]
    assert (seen["put_per_s"], seen["taken_per_s"]) == (5.0, 2.0)


def test_a_maker_that_has_gone(place: Path) -> None:
    queue, ends = used()
    [seen] = _top.look()
    gone = seen._replace(processes=((os.getpid(), False), (1, True)))
    assert _top._row(gone)[:2] == (f"({os.getpid()})", "")
    shown = _top.as_json(gone, explain=False)
    assert (shown["alive"], shown["command"]) == (False, None)
    assert (shown["processes"], shown["dead"]) == ([1], [os.getpid()])
    del queue, ends


# top: again and again


def test_a_terminal_is_refreshed_until_ctrl_c(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, ends = used()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    with monkeypatch.context() as patch:
        patch.setattr(
            _top, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic, time=time.time)
        )
        assert main(["top", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert slept == [1.0, 1.0]
    assert shown.count(_top.HOME) == 1 + 2
    assert shown.endswith("\n")
    lines = shown.replace(_top.CLEAR_LINE, "").rpartition(_top.HOME)[2].split("\n")
    assert all(len(line.replace(_top.CLEAR_REST, "")) <= 40 for line in lines)
    assert lines[-2] == "Ctrl-C ends this." + _top.CLEAR_REST
    assert any(line.startswith("  producer 1, made at") for line in lines)
    del queue, ends


def test_it_fits_a_low_terminal(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [used() for _ in range(9)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 5)))

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            _top, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic, time=time.time)
        )
        assert main(["top"]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    del kept


# top: how things are written


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.4, "0"),
        (99_999, "99999"),
        (100_000, "100k"),
        (123_456, "123k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (1_234_567, "1.23M"),
        (5e9, "5G"),
        (2.5e15, "2500T"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert _top.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0s"), (59, "59s"), (187, "3m07s"), (7500, "2h05m"), (356_400, "4d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _top.duration(seconds) == text


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/usr/bin/python3", "-X", "dev", "/srv/job.py", "-v"], "dev"),
        (["/usr/bin/python3", "/srv/job.py", "-v"], "job.py"),
        (["python", "-m", "pkg.tool", "x"], "pkg.tool"),
        (["python", "-c", "print()"], "python"),
        (["/usr/sbin/daemon", "x.py"], "daemon"),
        ([], ""),
    ],
)
def test_programs(words: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_top, "_command", lambda pid: words)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert _top._program(1) == name


def test_the_command_of_a_process_that_has_gone() -> None:
    assert _top._command(0) == []


# doctor


def checks(**options: bool) -> dict[str, Check]:
    return {c.name: c for c in _doctor.checks(**{"clean": False, "quick": True, **options})}


def test_every_check_says_how_it_is(place: Path) -> None:
    found = checks()
    assert len(found) == 10
    for check in found.values():
        assert check.found
        assert (check.result == WELL) == (not check.advice)


@pytest.mark.parametrize(
    ("results", "status", "said"),
    [
        ([WELL, WELL], 0, "All is well."),
        ([WELL, TO_DO, WELL], 1, "see what there is to do"),
        ([BROKEN, TO_DO], 2, "do not work"),
    ],
)
def test_the_exit_status_is_that_of_the_worst(
    results: list[int],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [Check(f"check {r}", r, "found", "what to do " * 20 if r else "") for r in results]
    monkeypatch.setattr(_doctor, "checks", lambda **options: made)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert main(["doctor"]) == status
    *lines, last = capsys.readouterr().out.splitlines()
    assert said in last
    assert all(len(line) <= 90 for line in lines)
    assert main(["doctor", "--json"]) == status
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["result"] for row in rows] == [_doctor.WORDS[result] for result in results]
    assert all(set(row) == {"name", "result", "found", "advice"} for row in rows)


def test_left_overs_are_removed_when_asked(place: Path) -> None:
    queue, ends = used()
    lefts = [left_over(place) for _ in range(5)]
    check = checks()["left-overs"]
    assert check.result == TO_DO
    assert check.found.startswith("5 queue(s)")
    assert "and 2 more" in check.found
    assert "--clean" in check.advice
    assert all(path.exists() for path in lefts)
    check = checks(clean=True)["left-overs"]
    assert (check.result, check.found.split(":")[0]) == (WELL, "5 removed")
    assert not any(path.exists() for path in lefts)
    assert path_of(queue).exists()
    assert checks()["left-overs"] == Check("left-overs", WELL, "none")
    del ends


def room(monkeypatch: pytest.MonkeyPatch, free: int, **status: int) -> list[Check]:
    usage = SimpleNamespace(free=free, total=1 << 41)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    inodes = SimpleNamespace(**{"f_files": 10, "f_favail": 10**6, **status})
    monkeypatch.setattr(os, "statvfs", lambda path: inodes)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    return list(_doctor.room())


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_directory, "place_for_new", lambda: "/dev/shm")
    shared, temporary = room(monkeypatch, 1 << 30)
    assert (shared.result, temporary.result) == (WELL, WELL)
    assert shared.found == "/dev/shm: 1 GiB of 2.0 TiB free; queues are made here"
    shared, temporary = room(monkeypatch, 1 << 20)
    assert (shared.result, temporary.result) == (BROKEN, WELL), "there is none where it is needed"
    shared, _ = room(monkeypatch, 1 << 30, f_favail=3)
    assert (shared.result, "room for 3 more files" in shared.found) == (TO_DO, True)
    assert room(monkeypatch, 1 << 30, f_files=0, f_favail=0)[0].result == WELL


def test_room_in_shared_memory_only_makes_things_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_directory, "place_for_new", lambda: "/elsewhere")
    shared, _ = room(monkeypatch, 1 << 20)
    assert shared.result == TO_DO
    assert "made in /elsewhere instead" in shared.advice


def test_room_that_may_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_directory, "place_for_new", lambda: "/elsewhere")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    shared, _ = room(monkeypatch, 1 << 30)
    assert (shared.result, "may not be written" in shared.found) == (TO_DO, True)

    def none(path: str) -> object:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(shutil, "disk_usage", none)
    shared, _ = _doctor.room()
    assert shared.found == "/dev/shm: No such file or directory"


@pytest.mark.parametrize(
    ("check", "limit", "result"),
    [
        (_doctor.files, 20, TO_DO),
        (_doctor.files, 1024, WELL),
        (_doctor.files, resource.RLIM_INFINITY, WELL),
        (_doctor.file_size, 1 << 20, TO_DO),
        (_doctor.file_size, 1 << 30, WELL),
        (_doctor.file_size, resource.RLIM_INFINITY, WELL),
    ],
)
def test_limits(
    check: Callable[[], Check], limit: int, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert check().result == result


def test_semaphores_that_can_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert _doctor.semaphores().result == BROKEN


def test_slower_ways_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mutex, "is_supported", lambda: False)
    assert _doctor.lock().result == TO_DO
    monkeypatch.setattr(_fence, "is_supported", lambda: False)
    assert _doctor.lockless().result == TO_DO


@pytest.mark.skipif(not _mutex.is_supported(), reason="there are no robust mutexes here")
def test_a_mutex_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_mutex, "make", refuse)
    assert _doctor.lock().result == TO_DO


def test_another_system_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _doctor.python().result == WELL
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _doctor.python().result == TO_DO


# doctor: the trial


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_trial(place: Path) -> None:
    assert 0 <= try_method("fork") < 10


def test_trials_are_programs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    check = _doctor.trial("spawn")
    assert check.result in (WELL, TO_DO)  # the latter if the machine is busy
    assert "noticed after" in check.found
    monkeypatch.setattr(_doctor, "NOTICED_S", -1.0)
    monkeypatch.setattr(_doctor, "Popen", Printing)
    assert _doctor.trial("spawn").result == TO_DO


class Printing:
    """A trial that has said how long it took."""

    returncode = 0
    pid = 0

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def communicate(self, timeout: float) -> tuple[str, str]:
        return "0.5\n", ""


def test_a_trial_that_fails() -> None:
    check = _doctor.trial("no_method")
    assert check.result == BROKEN
    assert check.found == "ValueError: cannot find context for 'no_method'"


def test_a_trial_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    end = _doctor._end

    def watched(group: int) -> None:
        ended.append(group)
        end(group)

    monkeypatch.setattr(_doctor, "TRIAL_S", 0.0)
    monkeypatch.setattr(_doctor, "_end", watched)
    check = _doctor.trial("spawn")
    assert len(ended) == 1
    assert (check.result, check.found) == (BROKEN, "not done within 0 s")


@pytest.mark.parametrize(
    ("quick", "methods"), [(True, []), (False, ["fork", "spawn", "forkserver"])]
)
def test_each_start_method_is_tried(
    quick: bool, methods: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def trial(method: str) -> Check:
        tried.append(method)
        return Check(method, WELL, "tried")

    monkeypatch.setattr(_doctor, "trial", trial)
    checks(quick=quick)
    assert tried == methods


# The command


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    intervals = (["top", "--interval", text] for text in ("0", "soon"))
    for arguments in ([], ["bottom"], ["plot"], *intervals):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "usage: python -m iterable_queue" in text
    assert "must be above 0 seconds, not soon" in text


@pytest.mark.parametrize("command", ["top", "doctor", "plot"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  python -m iterable_queue {command}" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"iterable_queue {iterable_queue.__version__}\n"


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**options: bool) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(_doctor, "checks", interrupt)
    assert main(["doctor"]) == 130


def command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "iterable_queue", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(iterable_queue.__file__).parents[1]),
            "PYTHONUNBUFFERED": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_another_process_sees_this_queue() -> None:
    queue, ends = used()
    with command("top", "--json") as process:
        out, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (0, b"")
    seen = {each["path"]: each for each in map(json.loads, out.splitlines())}
    assert Statistics(**seen[str(path_of(queue))]["statistics"]) == queue.statistics()
    del ends


def test_a_reader_that_goes_away() -> None:
    queue = used()  # or there would be nothing to be printed
    with command("top", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(40) == 141
    del queue
