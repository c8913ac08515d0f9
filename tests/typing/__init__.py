"""What type checkers must accept and refuse; `tests/test_typing.py` says how they are asked."""
