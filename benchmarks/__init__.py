"""What the library reaches, measured side by side with what else there is.

``python -m benchmarks`` prints the table; ``python -m benchmarks.peers`` installs the peers into
``benchmarks/.peers`` first (without it, only those of the running environment are measured, and
the others are said to be missing).

How a figure comes about:

- One *cell* is one measurement of one side, in a fresh interpreter of its own (``_cell``), which
  starts the workers. Nothing of one side is ever in the memory of another: release 1.x of this
  package, which has the same import name, is a side like all others.
- In a cell every worker first passes some items through the very queue that is measured (the
  warm-up), then all meet at a barrier. The time runs from the first worker that leaves the
  barrier to the last consumer that has checked its last item and knows that no more will come.
- Consumers count and add up what they get. A count or a sum that is not the expected one is an
  error: it is printed in place of a figure, never left out.
- The cells of one row are interleaved (A, B, C, A, B, C, ...), after one discarded round that
  also finds out how many items last about as long as wanted. Ratios are taken within a round,
  then their median and their worst are printed: what slows the machine down slows both sides.
- Each worker has a deadline and is ended by its process id. A side that hangs is said to hang.

Modules: ``_rows`` (what is measured, and the bars), ``_harness`` (rounds), ``_cell`` (one
measurement), ``_crew`` (the workers of a cell), ``_sides`` (what a side is), ``_ours`` and
``_peers`` (the sides), ``_imports`` (the cost of an import), ``_table`` (the output), ``plot`` (a
picture of it).
"""
