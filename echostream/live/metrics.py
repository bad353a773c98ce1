"""Counters of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

MS_BUCKETS = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)


class Metrics:
    """One server's figures, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.sessions = Gauge("echostream_sessions", "Sessions open now", registry=registry)
        self.started = Counter("echostream_sessions_started", "Sessions begun", registry=registry)
        self.resumed = Counter("echostream_sessions_resumed", "Sessions resumed", registry=registry)
        self.faults = Counter(
            "echostream_faults", "Faults said to clients, by code", ["code"], registry=registry
        )
        self.chunks = Counter(
            "echostream_chunks", "Chunks translated", ["model"], registry=registry
        )
        self.source = Counter(
            "echostream_source_seconds", "Source translated", ["model"], registry=registry
        )
        self.speech = Counter(
            "echostream_speech_seconds", "Speech produced", ["model"], registry=registry
        )
        self.compute = Histogram(
            "echostream_compute_ms",
            "Wall time a chunk took, of what was computed together its share",
            ["model"],
            buckets=MS_BUCKETS,
            registry=registry,
        )
        self.lag = Histogram(
            "echostream_lag_ms",
            "From a chunk's last sample to its translation",
            ["model"],
            buckets=MS_BUCKETS,
            registry=registry,
        )
        self.batch = Histogram(
            "echostream_batch_streams",
            "Streams computed together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
