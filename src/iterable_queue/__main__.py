"""`python -m iterable_queue`: see what queues do, and whether they can work here."""

import sys

from iterable_queue._command import main

if __name__ == "__main__":
    sys.exit(main())
