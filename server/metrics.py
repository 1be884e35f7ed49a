"""The HTTP port: /metrics for Prometheus, /healthz, and a page with links. The only importer of prometheus_client.

Everything is counted in C; the collector here turns those numbers into samples at the moment of a scrape, on the HTTP port's
own thread, so a scrape costs the tills nothing. Not for counting. Made and stopped by server/service.py; docs/metrics.md lists every name.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger import errors
from server._transport import LATENCY_BOUNDS_US
from server.config import METHOD_NAMES, Address

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_S = 5  # a scraper that is slower than this is gone
US = 1e-6


class Row(NamedTuple):
    """One number of a stats dictionary and the metric that it becomes."""

    key: str
    name: str  # without the unit-free suffix _total, which prometheus_client adds to counters
    kind: str  # "counter" or "gauge"
    help: str
    scale: float = 1  # the metric's base unit in units of the number


TRANSPORT = (
    Row("connections", "ledger_connections", "gauge", "Connections of the checkout port open now."),
    Row("streams", "ledger_open_calls", "gauge", "Calls of the checkout port open now, waiting ones included."),
    Row("held", "ledger_held_answers", "gauge", "Answers that wait for the disk now."),
    Row("connections_total", "ledger_connections_opened", "counter", "Connections accepted."),
    Row("connections_refused", "ledger_connections_refused", "counter", "Connections refused: too many, or out of file descriptors."),
    Row("connections_abused", "ledger_connections_abused", "counter", "Connections closed for a flood of frames or resets."),
    Row("connections_broken", "ledger_connections_broken", "counter", "Connections closed for bytes that are not HTTP/2."),
    Row("connections_timed_out", "ledger_connections_timed_out", "counter", "Connections closed because they were idle or too slow."),
    Row("streams_refused", "ledger_calls_refused", "counter", "Calls refused with REFUSED_STREAM: too many are open."),
    Row("streams_timed_out", "ledger_calls_timed_out", "counter", "Calls cut: request not completed, or answer not read in time."),
    Row("calls_cancelled", "ledger_calls_cancelled", "counter", "Calls that the peer gave up before they were decided."),
    Row("answers_dropped", "ledger_answers_dropped", "counter", "Answers decided whose peer had gone."),
    Row("resets_received", "ledger_resets_received", "counter", "RST_STREAM frames received."),
    Row("resets_sent", "ledger_resets_sent", "counter", "RST_STREAM frames sent."),
    Row("bytes_received", "ledger_received_bytes", "counter", "Bytes read from the checkout port's sockets."),
    Row("bytes_sent", "ledger_sent_bytes", "counter", "Bytes written to the checkout port's sockets."),
    Row("turns", "ledger_loop_turns", "counter", "Turns of the hot loop."),
)
