"""What Prometheus is told."""

from __future__ import annotations

from dmax.engine import EngineStats
from dmax.serving.metrics import ServerMetrics


def test_the_engine_is_told_as_it_stands() -> None:
    told = ServerMetrics().exposition(EngineStats(backend="cpu-compiled", waiting=3, preemptions=2)).decode()
    assert 'dmax_engine_info{backend="cpu-compiled"} 1.0' in told
    assert "dmax_queue 3.0" in told
    assert "dmax_interruptions_total 2.0" in told
