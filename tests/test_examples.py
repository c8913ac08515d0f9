"""Every example, run as its users run it: as a program of its own, in a process group of its own.

`hash_tree` is compared with the tools whose output it promises, ``find`` and ``sha256sum``.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import pty
import re
import runpy
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

import iterable_queue
from tests.conftest import wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"
HASH_TREE = str(EXAMPLES / "hash_tree.py")
DEADLINE_S = 40.0
"""For what takes a few seconds; only a hang gets there."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists() or shutil.which("sha256sum") is None,
    reason="needs /proc and the GNU tools to compare with",
)


class Program:
    """A program in a session of its own, its output in files, all of it killed on leaving.

    Attributes:
        pid: of the program, and of its process group.
        status: what `wait` found: the exit status, negative for a signal.
    """

    def __init__(
        self,
        *command: str,
        cwd: Path | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        # What multiprocessing leaves there when it is killed goes with it.
        self._tmp = tempfile.TemporaryDirectory(prefix="examples-")
        Path(self._tmp.name).chmod(0o777)
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(iterable_queue.__file__).parents[1]),
            "LC_ALL": "C",
            "TMPDIR": self._tmp.name,
            # Else a `print` is two writes, and those of several processes mix.
            "PYTHONUNBUFFERED": "",
        }
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._out if stdout is None else stdout,
            stderr=self._err if stderr is None else stderr,
            env=environment,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.status: int | None = None

    def wait(self) -> int:
        """Wait for its end, and for that of every process that it has started."""
        self.status = self._process.wait(DEADLINE_S)
        wait_until(lambda: not self.members(), "the end of every process that it has started")
        return self.status

    def members(self) -> dict[int, int]:
        """The living processes of the group, each with its parent."""
        found: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # After the name, in parentheses: state, parent, process group.
                state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state not in "ZX":
                    found[int(stat.parent.name)] = int(parent)
        return found

    def holders(self, path: Path) -> list[int]:
        """Its processes that have `path` open."""
        found: list[int] = []
        for pid in self.members():
            with contextlib.suppress(OSError):
                if str(path) in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()):
                    found.append(pid)
        return found

    @property
    def out(self) -> bytes:
        self._out.seek(0)
        return self._out.read()

    @property
    def err(self) -> str:
        self._err.seek(0)
        return self._err.read().decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc is not None:
            exc.add_note(f"output of {self._process.args!r}:\n{self.out[-3000:]!r}\n{self.err}")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._out.close()
        self._err.close()
        self._tmp.cleanup()


def python(script: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, script, *arguments


def run(*command: str, cwd: Path | None = None) -> tuple[int, bytes, str]:
    with Program(*command, cwd=cwd) as program:
        status = program.wait()
        return status, program.out, program.err


def sorted_lines(text: bytes) -> list[bytes]:
    return sorted(text.splitlines(keepends=True))


def sha256sum_of(directory: str, *, cwd: Path, prefix: Sequence[str] = ()) -> list[bytes]:
    """What the standard tools say, sorted; what they complain of is not looked at."""
    script = 'find "$1" -type f -print0 | xargs -0r sha256sum'
    _, out, _ = run(*prefix, "sh", "-c", script, "sh", directory, cwd=cwd)
    return sorted_lines(out)


# The small ones -------------------------------------------------------------------------------


def test_quickstart() -> None:
    status, out, err = run(*python(str(EXAMPLES / "quickstart.py")))
    assert (status, err) == (0, "")
    assert sorted(map(int, out.split())) == list(range(30))


BEFORE_THE_FAILURE = [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23, 24]


def received(out: str) -> list[int]:
    """All that the consumers of an example say they got."""
    got = re.findall(r"^(?:Ann|Bob) got \[(.*)\], then$", out, re.MULTILINE)
    assert len(got) == 2, out
    return sorted(int(n) for numbers in got for n in numbers.split(", ") if n)


def test_failing_producer(start_method: str) -> None:
    script = str(EXAMPLES / "failing_producer.py")
    status, raw, err = run(*python(script, "--start-method", start_method))
    out = raw.decode()
    assert status == 0, err
    assert received(out) == BEFORE_THE_FAILURE
    assert out.count("  ProducerFailed: ") == 2, "each consumer is told"
    assert out.count("its cause: ValueError('cannot make 13')") == 2
    assert out.count("failures in all: 1\n") == 2
    assert err.count("Traceback (most recent call last)") == 1, "only the failing process's own"


def test_killed_producer(start_method: str) -> None:
    script = str(EXAMPLES / "killed_producer.py")
    status, raw, err = run(*python(script, "--start-method", start_method))
    out = raw.decode()
    assert (status, err) == (0, "")
    assert received(out) == BEFORE_THE_FAILURE
    assert out.count("  ProducerFailed: ") == 2, "each consumer is told"
    assert f"exit statuses: [0, {-signal.SIGKILL}, 0, 0, 0]\n" in out


# hash_tree: the output ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a part of Python's library that has more than 1,000 files.

    A copy, since a test that runs beside this one may make Python write its caches.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    counts = {
        folder: sum(len(files) for _, _, files in os.walk(folder))
        for folder in stdlib.iterdir()
        if folder.is_dir() and folder.name not in ("site-packages", "dist-packages")
    }
    large = [folder for folder, count in counts.items() if count > 1_000]
    source = min(large, key=lambda folder: counts[folder], default=stdlib)
    target = tmp_path_factory.mktemp("library") / "lib"
    shutil.copytree(source, target, symlinks=True)
    assert sum(len(files) for _, _, files in os.walk(target)) > 1_000
    return target


NASTY_NAMES = [
    b"plain",
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"carriage\rreturn",
    b"back\\slash",
    b"\\leading",
    b"trailing\\",
    b"\\n",
    b"\\\n\r\\",
    b"tab\t",
    b"*star",
    b"-dash",
    b"--output=x",
    b"'quotes\"",
    b"$(reboot)",
    b"not utf-8 \xff\xfe",
    b"latin \xe9",
    "umlaut ü, \N{SNOWMAN}".encode(),
    b"\x01\x1b[31m\x7f",
    b"n" * 255,
]
"""All a file or a folder may be called."""


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A tree with everything that may go wrong for a user who may read all of it."""
    root = os.fsencode(tmp_path / "nasty tree\\")
    for folder in (root, *(os.path.join(root, b"in " + name[:250]) for name in NASTY_NAMES)):
        os.mkdir(folder)
        for name in NASTY_NAMES:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(name * (len(name) % 3))  # some are empty
    inside = os.path.join(root, b"links")
    os.mkdir(inside)
    for name, target in (
        (b"to a file", b"../plain"),
        (b"to a folder", b"../in plain"),
        (b"to its parent", b".."),
        (b"to a fifo", b"../a fifo"),
        (b"to itself", b"to itself"),
        (b"to \xff nothing", b"nothing"),
        (b"through a file", b"../plain/x"),
    ):
        os.symlink(target, os.path.join(inside, name))
    os.mkfifo(os.path.join(root, b"a fifo"))
    os.mkdir(os.path.join(root, b"empty"))
    with contextlib.chdir(root), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a socket")
    return Path(os.fsdecode(root))


NASTY_DIRECTORIES = len(NASTY_NAMES) + 3
NASTY_FILES = len(NASTY_NAMES) * (len(NASTY_NAMES) + 1)


def test_hash_tree_of_the_library(library: Path, start_method: str) -> None:
    command = python(HASH_TREE, str(library), "--start-method", start_method)
    status, out, err = run(*command)
    expected = sha256sum_of(str(library), cwd=library)
    assert sorted_lines(out) == expected
    assert status == 0
    assert re.fullmatch(rf"hash_tree: files hashed: {len(expected):,} \(.*\n", err), err


@pytest.mark.parametrize("pool", [("1", "1"), ("3", "4")], ids="x".join)
def test_hash_tree_of_the_nasty_tree(nasty: Path, start_method: str, pool: tuple[str, str]) -> None:
    options = ("--start-method", start_method, "--walkers", pool[0], "--hashers", pool[1])
    status, out, err = run(*python(HASH_TREE, str(nasty), *options))
    assert sorted_lines(out) == sha256sum_of(str(nasty), cwd=nasty)
    assert status == 0, "what find leaves out is no failure"
    *notes, summary = err.splitlines()
    links = f"{nasty}/links/"
    undecodable = repr(f"{links}to \udcff nothing")
    assert sorted(notes) == [
        f"hash_tree: {undecodable}: Dangling symbolic link",
        f"hash_tree: {links}through a file: Dangling symbolic link",
        f"hash_tree: {links}to itself: Dangling symbolic link",
    ]
    assert f"files hashed: {NASTY_FILES} " in summary
    assert f"directories: {NASTY_DIRECTORIES}; unreadable: 0; " in summary
    assert "symbolic links: 7 (dangling: 3); fifos, sockets and devices: 2; " in summary


def test_sha256sum_accepts_the_output(nasty: Path, tmp_path: Path) -> None:
    hashes = tmp_path / "hashes"
    assert run(*python(HASH_TREE, str(nasty), "-o", str(hashes)))[:2] == (0, b"")
    status, out, err = run("sha256sum", "--check", "--strict", str(hashes))
    assert (status, out.count(b": OK\n"), err) == (0, NASTY_FILES, "")


@pytest.mark.parametrize(
    "directory",
    [".", "./", "in plain", "in plain/", "in plain//", "links/../in plain", "links/to a folder/."],
)
def test_paths_begin_as_find_prints_them(nasty: Path, directory: str) -> None:
    status, out, _ = run(*python(HASH_TREE, directory), cwd=nasty)
    assert status == 0
    assert sorted_lines(out) == sha256sum_of(directory, cwd=nasty) != []


def test_a_single_file(nasty: Path) -> None:
    status, out, _ = run(*python(HASH_TREE, "back\\slash"), cwd=nasty)
    assert (status, sorted_lines(out)) == (0, sha256sum_of("back\\slash", cwd=nasty))


@pytest.mark.parametrize(
    ("directory", "problem"),
    [
        ("missing", "missing: No such file or directory"),
        ("", ": No such file or directory"),
        ("plain/x", "plain/x: Not a directory"),
        ("a fifo", "a fifo: Not a regular file"),
        ("links/to a folder", "links/to a folder: Symbolic link, not followed"),
    ],
)
def test_nothing_to_walk(nasty: Path, directory: str, problem: str) -> None:
    status, out, err = run(*python(HASH_TREE, directory), cwd=nasty)
    assert (status, out) == (1, b"")
    assert f"hash_tree: {problem}\n" in err
    assert "unreadable: 1;" in err


def test_an_empty_tree(tmp_path: Path) -> None:
    status, out, err = run(*python(HASH_TREE, str(tmp_path)))
    assert (status, out) == (0, b"")
    assert "files hashed: 0 (0.0 MB); directories: 1; unreadable: 0;" in err


def test_wrong_usage() -> None:
    for arguments in ((), (".", "--hashers", "0"), (".", "--walkers", "x"), (".", "more")):
        status, out, err = run(*python(HASH_TREE, *arguments))
        assert (status, out) == (2, b"")
        assert err.startswith("usage: ")


def test_the_escape_is_that_of_coreutils() -> None:
    """Fixed expectations, beside the comparison with whatever release is on this machine."""
    names = runpy.run_path(HASH_TREE)
    for name, line in (
        (b"plain name", b"00  plain name\n"),
        (b"\xff\t*", b"00  \xff\t*\n"),
        (b"back\\slash", b"\\00  back\\\\slash\n"),
        (b"new\nline", b"\\00  new\\nline\n"),
        (b"carriage\rreturn", b"\\00  carriage\\rreturn\n"),
        (b"\\n\n", b"\\00  \\\\n\\n\n"),
    ):
        assert names["sha256sum_line"](names["Hashed"](name, "00", 0)) == line


# hash_tree: what can't be read ----------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A tree of which some may only be read by a superuser."""
    tree = tmp_path / "locked"
    for name in ("open/file", "closed/unseen", "listed only/seen", "searchable only/unseen"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(name)
    (tree / "secret").write_text("secret")
    (tree / "secret \\\n").write_text("secret")
    modes = {
        "secret": 0o000,
        "secret \\\n": 0o200,
        "closed": 0o000,
        "listed only": 0o444,
        "searchable only": 0o311,
    }
    for name, mode in modes.items():
        (tree / name).chmod(mode)
    yield tree
    for name in modes:
        (tree / name).chmod(0o700)


LOCKED = {
    "./secret": "Permission denied",
    repr("./secret \\\n"): "Permission denied",
    "./closed": "Permission denied",
    "./listed only/seen": "Permission denied",
    "./searchable only": "Permission denied",
}


def assert_that_the_locked_is_reported(status: int, out: bytes, err: str) -> None:
    file = b"open/file"
    assert out == b"%s  ./%s\n" % (hashlib.sha256(file).hexdigest().encode(), file)
    *problems, summary = err.splitlines()
    assert sorted(problems) == sorted(f"hash_tree: {path}: {LOCKED[path]}" for path in LOCKED)
    assert f"files hashed: 1 (0.0 MB); directories: 5; unreadable: {len(LOCKED)}; " in summary
    assert status == 1


@pytest.fixture
def without_privileges() -> list[str]:
    """What to put before a command, for it to be refused what the owner of a file may not do.

    A superuser who drops these capabilities is bound by the permissions like everybody else, but
    may still read the interpreter, wherever that is installed.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to drop the superuser's privileges")
    privileges = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={privileges}", f"--inh-caps={privileges}"]


def test_without_privileges(locked: Path, without_privileges: list[str], start_method: str) -> None:
    command = (*without_privileges, *python(HASH_TREE, ".", "--start-method", start_method))
    status, out, err = run(*command, cwd=locked)
    assert_that_the_locked_is_reported(status, out, err)
    assert sorted_lines(out) == sha256sum_of(".", cwd=locked, prefix=without_privileges)


AS_NOBODY = """
import multiprocessing.popen_fork, multiprocessing.synchronize, os, pathlib, pkgutil, sys
import iterable_queue
from multiprocessing import resource_tracker

# Nobody may not be able to read the interpreter's library: import all that is needed before.
for module in pkgutil.walk_packages(iterable_queue.__path__, "iterable_queue."):
    if "testing" not in module.name:
        __import__(module.name)
script = sys.argv[1]
code = compile(pathlib.Path(script).read_bytes(), script, "exec")
exec(code, {"__name__": "imported"})
resource_tracker.ensure_running()

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.argv[:] = sys.argv[1:]
exec(code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only a superuser can become nobody")
@pytest.mark.skipif(
    "COVERAGE_PROCESS_START" in os.environ, reason="nobody may not write what is measured"
)
def test_as_nobody(locked: Path) -> None:
    for path in (locked, locked / "open", locked / "open/file"):
        path.chmod(0o755)
    command = (sys.executable, "-c", AS_NOBODY, HASH_TREE, ".", "--start-method", "fork")
    assert_that_the_locked_is_reported(*run(*command, cwd=locked))


# hash_tree: -o and where the output goes ------------------------------------------------------


def test_output_file(nasty: Path, tmp_path: Path) -> None:
    target = tmp_path / "hashes"
    target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    status, out, _ = run(*python(HASH_TREE, ".", "-o", str(tmp_path / "link")), cwd=nasty)
    assert (status, out) == (0, b"")
    assert sorted_lines(target.read_bytes()) == sha256sum_of(".", cwd=nasty)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hashes", "link", nasty.name]


def test_the_output_itself_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    descriptor = os.open(tmp_path / "hashes", os.O_WRONLY | os.O_CREAT)
    with Program(*python(HASH_TREE, "."), cwd=tmp_path, stdout=descriptor) as program:
        os.close(descriptor)
        assert program.wait() == 0
        assert "hash_tree: ./hashes: Is the output, so not hashed\n" in program.err
    expected = b"%s  ./file\n" % hashlib.sha256(b"x").hexdigest().encode()
    assert (tmp_path / "hashes").read_bytes() == expected


def test_an_output_that_is_no_regular_file(nasty: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Program(*python(HASH_TREE, ".", "-o", str(fifo)), cwd=nasty) as program:
        assert sorted_lines(fifo.read_bytes()) == sha256sum_of(".", cwd=nasty)
        assert program.wait() == 0
    assert fifo.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk(nasty: Path) -> None:
    with (
        open("/dev/full", "wb") as full,
        Program(*python(HASH_TREE, "."), cwd=nasty, stdout=full.fileno()) as program,
    ):
        assert program.wait() == 3
        *notes, incomplete, reason = program.err.splitlines()
    assert all(note.endswith(": Dangling symbolic link") for note in notes)
    assert incomplete == "hash_tree: the result is INCOMPLETE"
    assert reason == "OSError: [Errno 28] No space left on device"


def test_an_output_that_cannot_be_opened(nasty: Path) -> None:
    status, out, err = run(*python(HASH_TREE, ".", "-o", "missing/file"), cwd=nasty)
    assert (status, out) == (3, b"")
    assert "No such file or directory: " in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away(library: Path) -> None:
    reading, writing = os.pipe()
    with Program(*python(HASH_TREE, str(library)), stdout=writing) as program:
        os.close(writing)
        assert len(os.read(reading, 64)) == 64
        os.close(reading)
        assert (program.wait(), program.err) == (141, "")


# hash_tree: on a terminal ---------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal; `slave` is for a program's stderr, `text` what has been written to it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        os.set_blocking(self._master, False)
        self._text = b""

    def text(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._master, 65536):
                self._text += chunk
        return self._text.decode()

    def close(self) -> None:
        os.close(self._master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal()) as opened:
        yield opened


def on_screen(text: str) -> list[str]:
    """The lines that are left to be read, once everything has been overwritten that will be."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = line.rpartition("\r")[2]
        assert shown.count("\x1b") == ("\x1b[K" in shown)
        lines.append(shown.replace("\x1b[K", ""))
    return lines


WITHOUT_TQDM = (
    "import runpy, sys; sys.modules['tqdm'] = None; "
    "sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize("has_tqdm", [True, False], ids=["tqdm", "no tqdm"])
def test_progress_on_a_terminal(nasty: Path, terminal: Terminal, has_tqdm: bool) -> None:
    command = python(HASH_TREE, ".")
    if has_tqdm:
        pytest.importorskip("tqdm")
    else:
        command = sys.executable, "-c", WITHOUT_TQDM, HASH_TREE, ".", "--start-method", "fork"
    with Program(*command, cwd=nasty, stderr=terminal.slave) as program:
        wait_until(lambda: "dangling: 3" in terminal.text(), "the summary")
        assert program.wait() == 0
        assert sorted_lines(program.out) == sha256sum_of(".", cwd=nasty)
    text = terminal.text()
    assert text.startswith("\rstarting\x1b[K\r")
    shown = r"\r[\d,]+ hashed, [\d,]+ waiting\x1b\[K\r"
    if (
        has_tqdm
    ):  # with a percentage once some of it waits, which in so small a tree may never be seen
        shown = r"\r(\d+ files| *\d+%.*\d+/\d+) \[.* files/s\]"
    assert re.search(shown, text), text
    *notes, summary, nothing = on_screen(text)
    assert all(note.endswith(": Dangling symbolic link") for note in notes)
    assert len(notes) == 3
    assert summary.startswith(f"hash_tree: files hashed: {NASTY_FILES} ")
    assert nothing == ""


def test_the_bar_says_how_much_of_what_was_found_is_done() -> None:
    pytest.importorskip("tqdm")
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    display = runpy.run_path(HASH_TREE)["Display"](stream)
    display.progress(30, lambda: 90)
    assert re.search(r"\r *25%.* 30/120 \[.* files/s\]$", stream.getvalue()), stream.getvalue()
    display.progress(31, lambda: pytest.fail("asked again at once"))
    display.close()
    assert on_screen(stream.getvalue()) == [""]


def test_no_progress_elsewhere(nasty: Path) -> None:
    _, _, err = run(*python(HASH_TREE, "."), cwd=nasty)
    assert "\r" not in err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 4


# hash_tree: cut short -------------------------------------------------------------------------


@pytest.fixture
def long_job(tmp_path: Path) -> Path:
    """A tree with one file that takes for ever to hash, and behind it more than may wait."""
    tree = tmp_path / "long"
    (tree / "many").mkdir(parents=True)
    for number in range(1_500):
        (tree / "many" / f"{number}").touch()
    (tree / "endless").touch()
    os.truncate(tree / "endless", 1 << 40)
    return tree


@pytest.mark.parametrize("moment", ["starting", "hashing"])
def test_ctrl_c(long_job: Path, terminal: Terminal, start_method: str, moment: str) -> None:
    command = python(HASH_TREE, ".", "--start-method", start_method)
    with Program(*command, cwd=long_job, stderr=terminal.slave) as program:
        if moment == "starting":
            wait_until(lambda: "starting" in terminal.text(), "the start")
        else:
            wait_until(
                lambda: program.holders(long_job / "endless"),
                "the endless file in somebody's hands",
            )
        os.killpg(program.pid, signal.SIGINT)
        wait_until(lambda: "INCOMPLETE" in terminal.text(), "the announcement of the end")
        assert program.wait() == 130
    assert on_screen(terminal.text()) == ["hash_tree: interrupted: the result is INCOMPLETE", ""]


def end_of(path: Path) -> None:
    """Let whoever reads the endless file get to its end."""
    os.truncate(path, 0)


def test_a_killed_hasher(long_job: Path, tmp_path: Path, start_method: str) -> None:
    hashes = tmp_path / "hashes"
    command = python(
        HASH_TREE, ".", "-o", str(hashes), "--start-method", start_method, "--hashers", "2"
    )
    with Program(*command, cwd=long_job) as program:
        [hasher] = wait_until(
            lambda: program.holders(long_job / "endless"), "the endless file in somebody's hands"
        )
        os.kill(hasher, signal.SIGKILL)
        assert program.wait() == 3
        message = r"hash_tree: the result is INCOMPLETE\nProducerFailed: .*\n"
        assert re.fullmatch(message, program.err)
        assert str(hasher) in program.err, "the message says who"
    assert not hashes.exists(), "a file of this name would look complete"
    found = sorted_lines((tmp_path / "hashes.partial").read_bytes())
    assert found == sha256sum_of("./many", cwd=long_job), "all the others are there"


def test_a_killed_walker(long_job: Path, start_method: str) -> None:
    command = python(
        HASH_TREE, ".", "--start-method", start_method, "--walkers", "1", "--hashers", "1"
    )
    with Program(*command, cwd=long_job) as program:
        [hasher] = wait_until(
            lambda: program.holders(long_job / "endless"), "the endless file in somebody's hands"
        )
        # With one hasher busy and 1,500 files to list, the walker can't have ended.
        members = program.members()
        [walker] = (
            pid
            for pid in members
            if pid not in (program.pid, hasher, *members.values())
            and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(walker, signal.SIGKILL)
        end_of(long_job / "endless")
        assert program.wait() == 3
        # It may have had the lock of a queue, which dies with it where semaphores are the locks.
        message = r"hash_tree: the result is INCOMPLETE\n(ProducerFailed|ChannelBroken): .*\n"
        assert re.fullmatch(message, program.err)
        assert str(walker) in program.err, "the message says who"


def test_nobody_is_left_behind(long_job: Path, start_method: str) -> None:
    """When the process at the end is killed, the pools notice and end by themselves."""
    with Program(*python(HASH_TREE, ".", "--start-method", start_method), cwd=long_job) as program:
        wait_until(
            lambda: program.holders(long_job / "endless"), "the endless file in somebody's hands"
        )
        os.kill(program.pid, signal.SIGKILL)
        end_of(long_job / "endless")
        assert program.wait() == -signal.SIGKILL
        assert "Traceback" not in program.err


def test_an_error_in_a_worker(nasty: Path, tmp_path: Path, start_method: str) -> None:
    """A bug in a stage is reported with its traceback, once, and never looks like success."""
    source = Path(HASH_TREE).read_text()
    broken = source.replace("hashlib.file_digest(file, ", "int(")
    assert broken != source
    script = tmp_path / "broken.py"
    script.write_text(broken)
    command = python(str(script), str(nasty), "--start-method", start_method, "--hashers", "1")
    status, out, err = run(*command)
    assert (status, out) == (3, b"")
    assert "INCOMPLETE" in err
    assert "ValueError: invalid literal for int() with base 10: 'sha256'" in err
    assert err.count("Traceback (most recent call last)") == 1
