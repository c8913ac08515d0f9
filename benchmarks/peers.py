"""Install the peers for the benchmarks: ``python -m benchmarks.peers``.

Each goes into a directory of its own below ``benchmarks/.peers`` by ``pip install --target``, so
none of them is ever on the path of the running environment. That matters for release 1.2.2 of
this package: it has the same import name.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks._harness import PEERS_DIR, RELEASE_1X_DIR

_PEERS = {
    PEERS_DIR / "faster-fifo": ["faster-fifo==1.5.2"],
    PEERS_DIR / "quick-queue": ["quick-queue==1.0.7"],
    RELEASE_1X_DIR: ["iterable-queue==1.2.2"],  # brings future, which it needs
}


def main() -> int:
    """Install all that can be; 1 if any could not. The benchmarks run without those."""
    failed: list[str] = []
    for directory, requirements in _PEERS.items():
        print(f"{', '.join(requirements)} -> {directory}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
        command += ["--disable-pip-version-check", "--target", str(directory), *requirements]
        if subprocess.run(command, check=False).returncode:
            failed += requirements
    if failed:
        print(f"not installed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
