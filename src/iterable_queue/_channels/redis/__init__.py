"""The channel for several machines: a queue on a Redis or Valkey server.

    connection (commands)       scripts, one at a time: `link`; and hand-outs, told without a reply
    connection (messages)       BLPOP on this client's list, and heartbeats: `listener`, a thread

The ledger's transitions are Lua scripts (`scripts`); `RedisLedger` is the ledger as the
endpoints know it, each of whose transitions is one call of a script. Its slots are the numbers of
endpoints, its processes are the server's *clients*: one for each process that takes part. Of the
cells only those are used that are this process's own affair.

Waiting goes as everywhere: an attempt under this process's lock, then a sleep on a condition. An
attempt that finds nothing has this client written down at the server as one that waits, in the same
script. Whoever puts then sends it a message; the thread that listens gives a token to a sleeper.

Why lists and not Streams: a group's consumer reads ahead and acknowledges later, but a stream
knows nothing of who may still put, of a bound, or of what a consumer was handed and what it only
read. All of that is in the scripts anyway; then a list does what a stream would, in less memory
and time.

Liveness is by heartbeats and the server's clock. A client that sends none for *expiry* seconds is
taken for dead by whichever client beats next: its endpoints end. If it lives on, each of its calls
raises from then on. Children that this process starts are seen at once, by the end of a pipe.

The modules, each of which makes use of those above it:

    settings    how a process takes part, and where a queue is
    scripts     the transitions, in Lua
    calls       the scripts as commands, and their bytes
    link        the connection: a call is made once, however often that breaks
    sealer      items and errors as bytes, signed
    runtime     what the ledger runs on
    claims      what a consumer holds ahead of handing it out
    channel     what else endpoints ask about items
    ledger      the ledger as the endpoints know it
    listener    the thread for messages, heartbeats, and the ends of children
    core        this process's part in a queue
    connect     how it comes to that part

This package shares its name with the client, `redis`, which only `link` imports.
"""
