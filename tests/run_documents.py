"""Run the programs of one page, one after another in this interpreter: `tests.test_docs` starts it.

    python run_documents.py FOLDER PROGRAM...

Each program is run as `__main__` where it has a main guard; else its tests, if it has any, are
called. What it prints goes to `PROGRAM.out` and `PROGRAM.err` in the folder, with all that its
processes print.
"""

from __future__ import annotations

import gc
import logging
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run(program: Path) -> None:
    """Run it; an exception is printed to its standard error, as the interpreter would."""
    sys.argv = [str(program)]
    try:
        if "__main__" in program.read_text():
            runpy.run_path(str(program), run_name="__main__")
        else:
            names = runpy.run_path(str(program))
            tests: list[Callable[[], None]] = [
                call for name, call in names.items() if name.startswith("test_")
            ]
            for test in tests:
                test()
    except SystemExit as end:
        if end.code:
            print(f"{program.name} exits with {end.code!r}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()


def main(folder: Path, names: list[str]) -> None:
    """Run all of them, each with files of its own for 1 and 2."""
    # In development mode asyncio says what was slow, as anything is on a busy machine.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    for name in names:
        for stream, kind in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, stream)
            os.close(file)
        run(folder / name)
        gc.collect()  # what it leaves ends before the next one begins
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
