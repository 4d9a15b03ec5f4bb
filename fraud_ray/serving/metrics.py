"""What is counted of requests, for Prometheus: no value, id or token of a transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fraud_ray.serving.served import Served

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._requests = Counter(
            "fraud_ray_requests", "Requests by route and status.", ["route", "status"], registry=own
        )
        self._seconds = Histogram(
            "fraud_ray_request_seconds",
            "From a request's head to its reply.",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._steps = Histogram(
            "fraud_ray_step_seconds",
            "Of a request: the windows, the store that holds the past, and the graph, apart.",
            ["step"],
            buckets=_SECONDS,
            registry=own,
        )
        decisions = Counter("fraud_ray_decisions", "Transactions by decision.", ["decision"], registry=own)
        self._alerts, self._others = decisions.labels("alert"), decisions.labels("none")
        self._version = Gauge(
            "fraud_ray_model_info", "1 for the version that answers.", ["name", "version"], registry=own
        )
        self._age = Gauge("fraud_ray_model_age_seconds", "Since the version was registered.", registry=own)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_decisions(self, decisions: Sequence[bool]) -> None:
        """decisions: whether each transaction is an alert."""
        self._alerts.inc(sum(decisions))
        self._others.inc(len(decisions) - sum(decisions))

    def observe(self, step: str, seconds: float) -> None:
        """step: windows, store or graph."""
        self._steps.labels(step).observe(seconds)

    def watch(self, name: str, told: str, value: Callable[[], float]) -> None:
        """A figure that is asked for whenever the page is. told: what it is."""
        Gauge(f"fraud_ray_{name}", told, registry=self.registry).set_function(value)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """step: windows, store or graph."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(step, time.perf_counter() - began)

    def page(self, served: Served | None) -> bytes:
        """All figures in Prometheus' text format."""
        self._version.clear()
        if served is not None:
            self._version.labels(served.name, served.version).set(1)
            self._age.set(time.time() - served.registered.timestamp() if served.registered else 0.0)
        return generate_latest(self.registry)
