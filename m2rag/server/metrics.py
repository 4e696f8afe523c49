"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        waiting_tokens: gives the tokens that wait or run.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, waiting_tokens: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "m2rag_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "m2rag_request_seconds",
            "From the first byte to the last",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inputs = Counter("m2rag_inputs", "Texts embedded", registry=self.registry)
        self.tokens = Counter("m2rag_tokens", "Their tokens", registry=self.registry)
        self.batch_seconds = Histogram(
            "m2rag_batch_seconds", "Forward passes of the model", ["lane"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_inputs = Histogram(
            "m2rag_batch_inputs", "Texts or windows in one of them", ["lane"], buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )  # fmt: skip
        waiting = Gauge("m2rag_waiting_tokens", "Tokens that wait or run, padding included", registry=self.registry)
        waiting.set_function(waiting_tokens)

    def batch(self, lane: str, inputs: int, tokens: int, seconds: float) -> None:
        """One forward pass."""
        self.batch_seconds.labels(lane).observe(seconds)
        self.batch_inputs.labels(lane).observe(inputs)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request, answered."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
