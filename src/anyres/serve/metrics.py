"""What the server counts, for Prometheus, under names of its own and those of Triton that dashboards know."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from anyres.evaluation.drift import WHATS, Monitor, What
from anyres.flow import Size
from anyres.serve.sizing import Reason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHARES = tuple(i / 10 for i in range(1, 10))
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's numbers, in a registry of its own. ``sizes``: those with a label of their own; others are
    ``other``, so that no client makes labels without end. ``monitor``: sees every image (None: there is nothing to
    compare with)."""

    def __init__(
        self,
        sizes: frozenset[Size],
        queue: Callable[[], float],
        in_flight: Callable[[], float],
        monitor: Monitor | None = None,
    ) -> None:
        self._sizes, self._monitor = sizes, monitor
        self.registry = CollectorRegistry()
        here = self.registry
        ProcessCollector(registry=here)
        self._requests = Counter("anyres_requests", "Requests by the status of the answer", ["code"], registry=here)
        self._request = Histogram("anyres_request_seconds", "From head to answer", buckets=SECONDS, registry=here)
        self._queue = Histogram("anyres_queue_seconds", "Waiting for a batch", buckets=SECONDS, registry=here)
        self._read = Histogram("anyres_read_seconds", "Decoding and resizing an image", buckets=SECONDS, registry=here)
        self._compute = Histogram("anyres_compute_seconds", "One batch", ["size"], buckets=SECONDS, registry=here)
        self._batch = Histogram("anyres_batch_images", "Images of a batch", ["size"], buckets=IMAGES, registry=here)
        self._chosen = Counter("anyres_size_chosen", "Images by size and reason", ["size", "reason"], registry=here)
        self._rejected = Counter("anyres_rejected", "Requests without an answer by reason", ["reason"], registry=here)
        self._confidence = Histogram("anyres_confidence", "Largest probability", buckets=SHARES, registry=here)
        Gauge("anyres_queue_images", "Images that wait", registry=here).set_function(queue)
        Gauge("anyres_in_flight", "Requests that are read or answered", registry=here).set_function(in_flight)
        if monitor is not None:
            drift = Gauge(
                "anyres_drift", "Population stability index of the last images, NaN for few", ["of"], registry=here
            )
            for what in WHATS:
                drift.labels(what).set_function(partial(_psi, monitor, what))
        # Triton's names
        self._success = Counter("nv_inference_request_success", "Requests answered", registry=here)
        self._failure = Counter("nv_inference_request_failure", "Requests not answered", registry=here)
        self._count = Counter("nv_inference_count", "Images answered", registry=here)
        self._executions = Counter("nv_inference_exec_count", "Batches run", registry=here)
        self._waited = Counter("nv_inference_queue_duration_us", "Microseconds of waiting", registry=here)

    def request(self, status: int, seconds: float) -> None:
        """One request was answered with ``status``."""
        self._requests.labels(str(status)).inc()
        self._request.observe(seconds)
        (self._success if status < 400 else self._failure).inc()

    def rejected(self, reason: str) -> None:
        """One request got no answer."""
        self._rejected.labels(reason).inc()

    def batch(self, size: Size, images: int, seconds: float) -> None:
        """One batch was run."""
        self._compute.labels(self._label(size)).observe(seconds)
        self._batch.labels(self._label(size)).observe(images)
        self._executions.inc()

    def image(self, size: Size, reason: Reason, confidence: float, read_s: float, queue_s: float) -> None:
        """One image was answered."""
        self._chosen.labels(self._label(size), reason).inc()
        self._confidence.observe(confidence)
        if self._monitor is not None:
            self._monitor.add(size, confidence, cascade=reason == "cascade", chosen=reason != "asked")
        self._read.observe(read_s)
        self._queue.observe(queue_s)
        self._count.inc()
        self._waited.inc(1e6 * queue_s)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self.registry)

    def _label(self, size: Size) -> str:
        return str(size) if size in self._sizes else "other"


def _psi(monitor: Monitor, what: What) -> float:
    drift = monitor.drift(what)
    return math.nan if drift is None else drift.psi
