"""A queue's `statistics()` as OpenTelemetry metrics.

`observe(iq, meter, name)` makes observable instruments: the SDK calls back at its own pace, and
nothing is counted twice, since the queue counts already. Call it in one process for each queue.

What the semantic conventions for messaging have a name for is called by it:

    messaging.client.sent.messages      items put
    messaging.client.consumed.messages  items handed to user code

They have none for what is inside a broker, nor for its clients as a whole. Those instruments are
in a namespace of this package's own, named in the same way:

    iterable_queue.queued.messages       put and not taken: the depth
    iterable_queue.finished.messages     their takers have asked for the next one, or closed
    iterable_queue.lost.messages         in the hands of consumers that were killed
    iterable_queue.redelivered.messages  handed out again for that reason
    iterable_queue.open.endpoints        by `iterable_queue.endpoint.kind`
    iterable_queue.blocked.callers       waiting in put or get, by the same
    iterable_queue.failed.producers

Every point has the attributes `messaging.system` and `messaging.destination.name`, as the
conventions have it, and those of the first two `messaging.operation.name`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from iterable_queue import IterableQueue, IterableQueueError, Statistics

Values = Callable[[Statistics], Iterable[tuple[int, dict[str, str]]]]
"""What an instrument shows of a snapshot: numbers, each with the attributes that are its own."""

KIND = "iterable_queue.endpoint.kind"
OPERATION = "messaging.operation.name"


def observe(iq: IterableQueue[Any], meter: Meter, name: str) -> None:
    """Show *iq* as the destination *name* for as long as it is there."""
    common = {"messaging.system": "iterable_queue", "messaging.destination.name": name}

    def shows(values: Values) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        def observations(options: CallbackOptions) -> Iterable[Observation]:
            try:
                statistics = iq.statistics()
            except IterableQueueError:
                return []  # broken, or this process has left it
            return [Observation(n, common | own) for n, own in values(statistics)]

        return [observations]

    def counts(instrument: str, description: str, values: Values) -> None:
        meter.create_observable_counter(instrument, shows(values), "{message}", description)

    counts(
        "messaging.client.sent.messages",
        "Items put",
        lambda s: [(s.put, {OPERATION: "put"})],
    )
    counts(
        "messaging.client.consumed.messages",
        "Items handed to user code",
        lambda s: [(s.taken, {OPERATION: "get"})],
    )
    counts(
        "iterable_queue.finished.messages",
        "Items whose takers have asked for the next one, or closed",
        lambda s: [(s.finished, {})],
    )
    counts(
        "iterable_queue.lost.messages",
        "Items that were in the hands of killed consumers",
        lambda s: [(s.lost, {})],
    )
    counts(
        "iterable_queue.redelivered.messages",
        "Times that an item was handed out again because its consumer was killed",
        lambda s: [(s.redelivered, {})],
    )
    meter.create_observable_counter(
        "iterable_queue.failed.producers",
        shows(lambda s: [(s.failures, {})]),
        "{producer}",
        "Producers that failed",
    )
    meter.create_observable_up_down_counter(
        "iterable_queue.queued.messages",
        shows(lambda s: [(s.queued, {})]),
        "{message}",
        "Items put and not taken",
    )
    meter.create_observable_up_down_counter(
        "iterable_queue.open.endpoints",
        shows(
            lambda s: [
                (s.open_producers, {KIND: "producer"}),
                (s.open_consumers, {KIND: "consumer"}),
                (s.open_workers, {KIND: "worker"}),
            ]
        ),
        "{endpoint}",
        "Endpoints that have not closed",
    )
    meter.create_observable_up_down_counter(
        "iterable_queue.blocked.callers",
        shows(
            lambda s: [
                (s.blocked_producers, {KIND: "producer"}),
                (s.blocked_consumers, {KIND: "consumer"}),
            ]
        ),
        "{caller}",
        "Callers that wait in put or get",
    )


def main() -> None:
    reader = InMemoryMetricReader()  # where a real program has an exporter
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with IterableQueue[str].threaded() as iq:
        observe(iq, provider.get_meter("metrics_otel"), "greetings")
        with iq.get_producer() as out:
            out.put_many(["hello", "world", "!"])
        with iq.get_consumer() as greetings:
            greetings.get()
            data = reader.get_metrics_data()
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    kind = (point.attributes or {}).get(KIND, "")
                    print(metric.name, kind, getattr(point, "value", None))
    provider.shutdown()


if __name__ == "__main__":
    main()
