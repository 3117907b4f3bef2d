"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from dmax.engine import EngineStats, GenerationOutput

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_FORWARD = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 32)
_PER_SECOND = (1, 3, 10, 30, 100, 300, 500, 1000, 1500, 2000, 3000, 5000)


class ServerMetrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dmax_requests", "Requests by path and HTTP status", ["path", "status"], registry=self.registry
        )
        self.answers = Counter(
            "dmax_answers", "Finished answers by finish reason", ["finish_reason"], registry=self.registry
        )
        self.tokens = Counter("dmax_tokens", "Answer tokens, EOS not counted", registry=self.registry)
        self.nfe = Counter("dmax_nfe", "Forward passes of finished answers (NFE)", registry=self.registry)
        self.tpf = Histogram(
            "dmax_tpf", "Tokens per forward of an answer", buckets=_PER_FORWARD, registry=self.registry
        )
        self.tps = Histogram("dmax_tps", "Tokens per second of an answer", buckets=_PER_SECOND, registry=self.registry)
        self.first_block = Histogram(
            "dmax_time_to_first_block_seconds", "Request to first final block", buckets=_SECONDS, registry=self.registry
        )
        self.latency = Histogram(
            "dmax_answer_seconds", "Request to whole answer", buckets=_SECONDS, registry=self.registry
        )
        self._engine = _EngineCollector()
        self.registry.register(self._engine)

    def answered(self, output: GenerationOutput) -> None:
        """Count a finished answer."""
        self.answers.labels(output.finish_reason).inc()
        self.tokens.inc(output.num_tokens)
        self.nfe.inc(output.nfe)
        self.tpf.observe(output.tpf)
        self.tps.observe(output.tps)
        self.latency.observe(output.seconds)

    def exposition(self, stats: EngineStats) -> bytes:
        """Write the text format, with the engine as it stands."""
        self._engine.stats = stats
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """An engine as it stands, whose own counts are the counters; those of replicas that are gone are gone with them."""

    stats: EngineStats | None = None

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily]:
        if (stats := self.stats) is None:
            return
        yield InfoMetricFamily("dmax_engine", "What computes the passes", {"backend": stats.backend})
        yield GaugeMetricFamily("dmax_queue", "Requests that wait", stats.waiting)
        yield GaugeMetricFamily("dmax_running", "Requests that run", stats.running)
        yield GaugeMetricFamily("dmax_pages", "Pages of the KV cache", stats.pages)
        yield GaugeMetricFamily("dmax_pages_held", "Pages held by running requests", stats.pages_held)
        yield GaugeMetricFamily("dmax_pages_cached", "Pages whose contents can be reused", stats.pages_cached)
        yield CounterMetricFamily("dmax_prefix_queries", "Prompt pages looked up", stats.prefix_queries)
        yield CounterMetricFamily("dmax_prefix_hits", "Prompt pages found", stats.prefix_hits)
        yield CounterMetricFamily("dmax_interruptions", "Requests preempted for lack of pages", stats.preemptions)
        yield CounterMetricFamily("dmax_forwards", "Forwards", stats.steps)
        yield CounterMetricFamily("dmax_positions", "Positions of all forwards", stats.positions)
