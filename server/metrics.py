"""The HTTP port: /metrics for Prometheus, /healthz, and a page with links. The only importer of prometheus_client.

Everything is counted in C; the collector here turns those numbers into samples at the moment of a scrape, on the HTTP port's
own thread, so a scrape costs the tills nothing. Not for counting. Made and stopped by server/service.py and server/follow.py;
docs/metrics.md lists every name.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ledger import errors
from server._transport import LATENCY_BOUNDS_US
from server.config import METHOD_NAMES, METHODS, Address

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
    Row("parked", "ledger_parked_calls", "gauge", "Calls that wait for what the runs of old ids say, now."),
    Row("connections_total", "ledger_connections_opened", "counter", "Connections accepted."),
    Row("connections_refused", "ledger_connections_refused", "counter", "Connections refused: too many, or out of file descriptors."),
    Row("connections_abused", "ledger_connections_abused", "counter", "Connections closed for a flood of frames or resets."),
    Row("connections_broken", "ledger_connections_broken", "counter", "Connections closed for breaking HTTP/2, or not speaking it."),
    Row("connections_timed_out", "ledger_connections_timed_out", "counter", "Connections closed because they were idle or too slow."),
    Row("streams_refused", "ledger_calls_refused", "counter", "Calls refused with REFUSED_STREAM: too many are open."),
    Row("streams_timed_out", "ledger_calls_timed_out", "counter", "Calls cut: request not completed, or answer not read in time."),
    Row("calls_cancelled", "ledger_calls_cancelled", "counter", "Calls that the peer gave up before they were decided."),
    Row("late_calls", "ledger_late_calls", "counter", "Calls of receipts over an hour old, put behind those for which somebody waits."),
    Row("answers_dropped", "ledger_answers_dropped", "counter", "Answers decided whose peer had gone."),
    Row("resets_received", "ledger_resets_received", "counter", "RST_STREAM frames received."),
    Row("resets_sent", "ledger_resets_sent", "counter", "RST_STREAM frames sent."),
    Row("bytes_received", "ledger_received_bytes", "counter", "Bytes read from the checkout port's sockets."),
    Row("bytes_sent", "ledger_sent_bytes", "counter", "Bytes written to the checkout port's sockets."),
    Row("turns", "ledger_loop_turns", "counter", "Turns of the hot loop."),
)

# Keys of EngineHandle.stats(), a dot for a dictionary inside it (ledger/engine.py, STATS).
ENGINE = (
    Row("core.sequence", "ledger_journal_sequence", "gauge", "Last journal sequence decided."),
    Row("durable_sequence", "ledger_journal_durable_sequence", "gauge", "Last sequence flushed to the tail: what answers wait for."),
    Row("drained_sequence", "ledger_journal_drained_sequence", "gauge", "Last sequence in LMDB."),
    Row("core.time_us", "ledger_journal_time_seconds", "gauge", "Server time of the last entry, since 1970.", US),
    Row("core.members", "ledger_members", "gauge", "Accounts."),
    Row("core.identifiers", "ledger_identifiers", "gauge", "Cards, phones, e-mails and apps linked to accounts."),
    Row("core.lots", "ledger_lots", "gauge", "Lots with points."),
    Row("core.reservations_active", "ledger_reservations", "gauge", "Active reservations."),
    Row("core.request_ids", "ledger_request_ids", "gauge", "Request ids remembered in memory."),
    Row("core.receipt_keys", "ledger_receipt_keys", "gauge", "Receipt keys remembered in memory."),
    Row("ids.runs", "ledger_ids_runs", "gauge", "Runs of ids and receipt keys that memory has dropped or may drop."),
    Row("ids.keys", "ledger_ids_keys", "gauge", "Ids and receipt keys in runs."),
    Row("ids.bytes", "ledger_ids_bytes", "gauge", "Size of the runs on disk."),
    Row("ids.lookups", "ledger_ids_lookups", "counter", "Questions that were asked of the runs."),
    Row("ids.unreadable", "ledger_ids_unreadable_lookups", "counter", "Questions that met a damaged run."),
    Row("ids.refused_behind", "ledger_ids_refused_writes", "counter", "Writes refused with IDS_BEHIND."),
    Row("ids.failures", "ledger_ids_failures", "counter", "Transactions of runs that met a full disk; they are tried again."),
    Row("core.counters", "ledger_counters", "gauge", "Counters of caps and tiers, all members."),
    Row("core.counters_room", "ledger_counters_room", "gauge", "Counters that there is memory for, when none is lost to sizes."),
    Row("core.days", "ledger_counted_days", "gauge", "Days that rolling windows of tiers keep, all members."),
    Row("core.days_room", "ledger_counted_days_room", "gauge", "Pairs of days that there is memory for, when none is lost to sizes."),
    Row("core.campaigns", "ledger_campaigns", "gauge", "Campaigns of all programmes so far."),
    Row("core.campaigns_max", "ledger_campaigns_max", "gauge", "Campaigns that there is room for."),
    Row("core.evaluated", "ledger_evaluated_receipts", "counter", "Receipts that went through the rules, those of quotes too."),
    Row("core.by_quote", "ledger_quoted_receipts", "counter", "Receipts written that brought the token of a quote."),
    Row("core.changed_since_quote", "ledger_quotes_changed", "counter", "Of them, those that came to something else than was quoted."),
    Row("core.entries_expired_lots", "ledger_expired_lots_entries", "counter", "Entries that posted the expiry of lots."),
    Row("core.entries_expired_reservations", "ledger_expired_reservations_entries", "counter", "Entries that ended reservations by time."),
    Row("drain_lag_entries", "ledger_drain_lag_entries", "gauge", "Entries in the tail that are not in LMDB yet."),
    Row("drain_lag_us", "ledger_drain_lag_seconds", "gauge", "Age of the oldest group that is not in LMDB yet.", US),
    Row("drain_failures", "ledger_drain_failures", "counter", "LMDB transactions that met a full disk or map; they are tried again."),
    Row("inbox_calls", "ledger_inbox_calls", "gauge", "Calls of the control port on their way to the hot thread."),
    Row("outbox_calls", "ledger_outbox_calls", "gauge", "Answers on their way back to the control port."),
    Row("tail_used_bytes", "ledger_tail_used_bytes", "gauge", "Bytes of the tail that hold groups not in LMDB yet."),
    Row("tail_bytes", "ledger_tail_size_bytes", "gauge", "Size of the tail's ring."),
    Row("map_used_bytes", "ledger_journal_map_used_bytes", "gauge", "Bytes of LMDB's map in use: the size of the journal."),
    Row("map_bytes", "ledger_journal_map_size_bytes", "gauge", "Size of LMDB's map."),
    Row("free_bytes", "ledger_disk_free_bytes", "gauge", "Free bytes on the journal's disk."),
    Row("free_bytes_min", "ledger_disk_free_min_bytes", "gauge", "Below this many free bytes writes are refused."),
    Row("refused_full", "ledger_refused_writes", "counter", "Writes refused with JOURNAL_FULL."),
    Row("clock_ahead_us", "ledger_clock_ahead_seconds", "gauge", "How far the machine's clock is ahead of what is believed.", US),
    Row("clock_behind_us", "ledger_clock_behind_seconds", "gauge", "How far the machine's clock is behind server time.", US),
    Row("ticks", "ledger_tick_entries", "counter", "Entries written by ticks."),
)

# Keys of Follower.stats() (ledger/follower.py).
FOLLOWER = (
    Row("sequence", "ledger_follower_sequence", "gauge", "Last journal sequence that the follower has applied."),
    Row("time_us", "ledger_follower_time_seconds", "gauge", "Server time of that entry, since 1970.", US),
    Row("lag_entries", "ledger_follower_lag_entries", "gauge", "Entries in LMDB that the follower has not applied yet."),
    Row("lag_us", "ledger_follower_lag_seconds", "gauge", "How much older what the follower shows is than what LMDB has.", US),
    Row("members", "ledger_follower_members", "gauge", "Accounts in the follower's state."),
    Row("groups", "ledger_follower_groups", "counter", "Groups applied since the follower's start."),
    Row("digests", "ledger_follower_digests_met", "counter", "State digests of the service that the follower's own state has met."),
    Row("snapshots", "ledger_snapshots", "counter", "Snapshots written since the follower's start."),
    Row("snapshot_failures", "ledger_snapshot_failures", "counter", "Snapshots that could not be written."),
    Row("snapshot_writing", "ledger_snapshot_writing", "gauge", "1 while a snapshot is being written."),
    Row("snapshot_sequence", "ledger_snapshot_sequence", "gauge", "Last journal sequence in the newest snapshot."),
    Row("snapshot_bytes", "ledger_snapshot_bytes", "gauge", "Size of the snapshot written last."),
    Row("snapshot_us", "ledger_snapshot_duration_seconds", "gauge", "How long the snapshot written last took.", US),
)

# Keys of FollowerChild.stats() (server/child.py), on the service's own page.
CHILD = (
    Row("running", "ledger_follower_running", "gauge", "1 while the service's follower runs."),
    Row("restarts", "ledger_follower_restarts", "counter", "Times that the service started its follower again."),
)

# Label values of the metrics below, and the number or state that each stands for.
GATE = {"disk_space": 1, "drain": 2}
CLOCK = {"step": "clock_stepped", "gap": "clock_gap"}
REPEATS = {"memory": "finds_ring", "journal": "finds_journal"}
HISTOGRAMS = (
    Row("group_entries", "ledger_group_entries", "histogram", "Entries of one group: what one flush made durable."),
    Row("group_bytes", "ledger_group_bytes", "histogram", "Bytes of one group."),
    Row("flush_us", "ledger_flush_duration_seconds", "histogram", "Hash, write and flush of one group.", US),
    Row("drain_us", "ledger_drain_duration_seconds", "histogram", "One LMDB transaction of the drain.", US),
    Row("ids.lookup_us", "ledger_ids_lookup_duration_seconds", "histogram", "From parking a call to the answer of the runs.", US),
    Row("ids.run_us", "ledger_ids_run_duration_seconds", "histogram", "Writing the runs that were due, pauses included.", US),
)
WALLETS = (
    Row("issued_points", "ledger_issued_points", "gauge", "Points ever given, less what returns and denied reviews took again."),
    Row("redeemed_points", "ledger_redeemed_points", "gauge", "Points ever taken by burns and captures, less what returns gave back."),
    Row("expired_points", "ledger_expired_points", "counter", "Points ever expired."),
    Row("adjusted_points", "ledger_adjusted_points", "gauge", "Points given by hand less points taken by hand."),
    Row("reserved_points", "ledger_reserved_points", "gauge", "Points held by active reservations now."),
    Row("reserved_total_points", "ledger_ever_reserved_points", "counter", "Points ever held."),
)


class LedgerCollector(Collector):
    """Reads both stats dictionaries once per scrape and turns them into metric families."""

    def __init__(self, engine: Callable[[], Mapping[str, Any]], transport: Callable[[], Mapping[str, Any]],
                 child: Callable[[], Mapping[str, Any]]) -> None:
        self._engine = engine
        self._transport = transport
        self._child = child

    def collect(self) -> Iterator[Metric]:
        transport, engine = self._transport(), self._engine()
        yield from _calls(transport)
        for rows, stats in ((TRANSPORT, transport), (ENGINE, engine), (CHILD, self._child())):
            for row in rows:
                yield _family(row, [((), _value(stats, row.key) * row.scale)])
        for row in HISTOGRAMS:
            histogram = HistogramMetricFamily(row.name, row.help, labels=())
            value = _value(engine, row.key)
            histogram.add_metric((), _cumulative(value["bounds"], value["counts"], row.scale), value["sum"] * row.scale)
            yield histogram
        wallets = engine["core"]["wallets"]
        for row in WALLETS:
            yield _family(row, [((wallet["name"],), wallet[row.key]) for wallet in wallets], "wallet")
        yield _family(Row("", "ledger_outstanding_points", "gauge", "Points in members' wallets, pending and reserved ones included."),
                      [((wallet["name"],), wallet["issued_points"] + wallet["adjusted_points"] - wallet["redeemed_points"]
                        - wallet["expired_points"]) for wallet in wallets], "wallet")
        yield from _rules(engine)
        yield _family(Row("", "ledger_memory_bytes", "gauge", "Memory by table: in use for tables, reserved for rings."),
                      [((table,), size) for table, size in engine["memory_bytes"].items()], "table")
        yield _family(Row("", "ledger_gate_closed", "gauge", "1 while writes are refused (JOURNAL_FULL), by cause."),
                      [((cause,), engine["gate"] == state) for cause, state in GATE.items()], "cause")
        yield _family(Row("", "ledger_clock_alarm", "gauge", "1 while a forward jump of the clock is not believed: expiries stand still."),
                      [((cause,), engine[key]) for cause, key in CLOCK.items()], "cause")
        yield _family(Row("", "ledger_repeat_reads", "counter", "Entries read again to answer repeats, by where they were found."),
                      [((where,), engine[key]) for where, key in REPEATS.items()], "found")
        yield _build()


JOURNAL = (
    Row("streams", "ledger_feed_streams", "gauge", "Readers of the feed now."),
    Row("entries_sent", "ledger_feed_entries", "counter", "Entries sent to readers of the feed."),
    Row("readers_cut", "ledger_feed_readers_cut", "counter", "Readers of the feed cut off because they were too slow."),
    Row("index.sequence", "ledger_index_sequence", "gauge", "Everything up to this entry can be found by key."),
    Row("index_lag", "ledger_index_lag_entries", "gauge", "Entries that the follower has applied and the index has not read."),
    Row("index.segments", "ledger_index_segments", "gauge", "Segments of the index, in memory and in files."),
    Row("index.files", "ledger_index_files", "gauge", "Segments of the index in files."),
    Row("index.file_bytes", "ledger_index_file_bytes", "gauge", "Bytes of the index's files."),
    Row("index.memory_bytes", "ledger_index_memory_bytes", "gauge", "Bytes of the index's segments in memory."),
    Row("index.damaged", "ledger_index_damaged_files", "counter", "Files of the index passed over because they were damaged."),
)


class FollowerCollector(Collector):
    """Reads the numbers of the follower and of its journal service once per scrape."""

    def __init__(self, follower: Callable[[], Mapping[str, Any]], journal: Callable[[], Mapping[str, Any]]) -> None:
        self._follower = follower
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        for rows, stats in ((FOLLOWER, self._follower()), (JOURNAL, journal := self._journal())):
            for row in rows:
                yield _family(row, [((), _value(stats, row.key) * row.scale)])
        yield _family(Row("", "ledger_reads", "counter", "Calls of the journal service answered, by method and outcome."),
                      [(key, count) for key, count in sorted(journal["calls"].items())], "method", "outcome")
        yield _build()


# By Result2.refused and Notice.kind of ledger/_evaluate.pxd.
RULES_REFUSED = ("", "too_many_lines", "absurd_amount", "total_differs", "unknown_store", "burn_not_possible", "burn_step", "burn_too_high",
                 "burn_below_min", "points_overflow", "too_many_awards")
COUNTER_TABLES = ("calendar", "sliding", "different")  # of limits, as CoreStats has them
ANSWERS = ("", "shadow", "mark", "refuse", "challenge", "reduce", "review")  # by LimitAction
NOTICES = ("", "store", "sku", "category", "promo_code", "tender", "channel")


def _rules(engine: Mapping[str, Any]) -> Iterator[Metric]:
    """The programme in force, and what its rules have given since its image was loaded."""
    core, told = engine["core"], engine["program"] or {"version": 0, "name": "", "hash": "", "rule_count": 0, "image_bytes": 0, "rules": [],
                                                       "others": None, "limits": []}
    yield _family(Row("", "ledger_program_info", "gauge", "Always 1; the labels say which version of the programme is in force."),
                  [((str(told["version"]), told["name"], told["hash"]), 1)], "version", "name", "hash")
    yield _family(Row("", "ledger_program_rules", "gauge", "Rules of the programme in force."), [((), told["rule_count"])])
    yield _family(Row("", "ledger_program_image_bytes", "gauge", "Size of its image."), [((), told["image_bytes"])])
    rows = [*told["rules"], *([{"name": "(others)", "wallet": "", **told["others"]}] if told["others"] else [])]
    yield _family(Row("", "ledger_rule_receipts", "counter", "Receipts on which a rule gave something, since its image was loaded."),
                  [((row["name"],), row["receipts"]) for row in rows], "rule")
    yield _family(Row("", "ledger_rule_points", "counter", "Points that a rule gave, since its image was loaded."),
                  [((row["name"], row["wallet"]), row["points"]) for row in rows if row["wallet"] or row["points"]], "rule", "wallet")
    yield _family(Row("", "ledger_rule_discounts_minor", "counter", "Minor units that a rule took off, since its image was loaded."),
                  [((row["name"],), row["discounts"]) for row in rows if not row["wallet"]], "rule")
    yield _family(Row("", "ledger_rules_refused_receipts", "counter", "Receipts that the rules refused, those of quotes too, by reason."),
                  [((name,), core["rules_refused"][number]) for number, name in enumerate(RULES_REFUSED) if name], "reason")
    yield _family(Row("", "ledger_limit_above", "counter", "Commands and look-ups that were above a limit, since its image was loaded."),
                  [((row["name"], ANSWERS[row["answer"]]), row["above"]) for row in told["limits"]], "limit", "answer")
    for name, key, what in (("ledger_limit_counters", "limit_counters", "Counters of limits in use, by table."),
                            ("ledger_limit_counters_room", "limit_counters_room", "Counters of limits that there is room for, by table.")):
        yield _family(Row("", name, "gauge", what), [((table,), core[key][number]) for number, table in enumerate(COUNTER_TABLES)], "table")
    yield _family(Row("", "ledger_blocked_rows", "gauge", "Rows of the block lists."), [((), core["blocks"])])
    yield _family(Row("", "ledger_blocks_version", "gauge", "Changes of the block lists so far."), [((), core["blocks_version"])])
    yield _family(Row("", "ledger_receipt_notices", "counter", "What was not known in receipts that were written, by kind."),
                  [((name,), core["notices"][number]) for number, name in enumerate(NOTICES) if name], "kind")


def _build() -> Metric:
    try:
        version = metadata.version("daybook")
    except metadata.PackageNotFoundError:
        version = "not installed"  # run from a source tree
    build = GaugeMetricFamily("ledger_build_info", "Always 1; the labels say which build runs.", labels=("version",))
    build.add_metric((version,), 1)
    return build


def _value(stats: Mapping[str, Any], key: str) -> Any:
    """A number, or a histogram."""
    for part in key.split("."):
        stats = stats[part]
    return stats


def _family(row: Row, samples: list[tuple[tuple[str, ...], float]], *labels: str) -> Metric:
    family = (CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily)(row.name, row.help, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _calls(stats: Mapping[str, Any]) -> Iterator[Metric]:
    calls = CounterMetricFamily("ledger_calls", "Calls answered, by port, method and outcome (reason in docs/errors.md).",
                                labels=("port", "method", "outcome"))
    counted = dict.fromkeys(((port, method, 0) for port in ("checkout", "control") for method in METHOD_NAMES if method), 0)
    for (port, method, status), count in sorted({**counted, **stats["calls"]}.items()):
        calls.add_metric((port, METHOD_NAMES[method], errors.BY_NUMBER[status].name), count)
    yield calls
    commands = CounterMetricFamily("ledger_batch_commands", "Commands and members inside batches, by their own method and outcome.",
                                   labels=("method", "outcome"))
    for (method, status), count in sorted({(METHODS["EarnPoints"], 0): 0, **stats["in_batches"]}.items()):
        commands.add_metric((METHOD_NAMES[method], errors.BY_NUMBER[status].name), count)
    yield commands
    latency = HistogramMetricFamily(
        "ledger_call_duration_seconds", "From a call's HEADERS frame to its answer on the socket (control: from inbox to outbox).",
        labels=("port", "method"))
    for (port, method), (buckets, sum_us) in sorted(stats["latency"].items()):
        latency.add_metric((port, METHOD_NAMES[method]), _cumulative(LATENCY_BOUNDS_US, buckets, US), sum_us * US)
    yield latency


def _cumulative(bounds: Sequence[int], buckets: Sequence[int], scale: float) -> list[tuple[str, float]]:
    """Counts per bucket to Prometheus' cumulative ones; the last bucket has no bound."""
    total, rows = 0, []
    for bound, count in zip((*bounds, None), buckets, strict=True):
        total += count
        rows.append(("+Inf" if bound is None else f"{bound * scale:.9g}", float(total)))
    return rows


PAGE = """<!doctype html><title>Daybook</title><h1>Daybook</h1>
<p><a href="/metrics">/metrics</a> for Prometheus, <a href="/healthz">/healthz</a> for probes.</p>"""


class MetricsServer:
    """The HTTP port. Binds at once (errors: OSError), serves from `start` to `close` on its own threads."""

    def __init__(self, address: Address, collector: Collector) -> None:
        registry = CollectorRegistry()  # without auto_describe: registering collects nothing
        registry.register(collector)
        ProcessCollector(registry=registry)
        self.stopping = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S
            protocol_version = "HTTP/1.0"  # one request a connection: nothing idles here
            server_version = "daybook"
            sys_version = ""

            def do_GET(self) -> None:
                code, kind, text = outer._page(self.path.partition("?")[0], registry)
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """No line per scrape."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            daemon_threads = True
            request_queue_size = 16

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A scraper that hangs up is no event; everything else is our mistake and is shown."""
                if not isinstance(sys.exc_info()[1], OSError):
                    super().handle_error(request, client_address)

        self._server = Server((address.host, address.port), Handler)
        self.port: int = self._server.server_address[1]

    def _page(self, path: str, registry: CollectorRegistry) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE, generate_latest(registry)
        if path == "/healthz":
            return (503, "text/plain", b"stopping\n") if self.stopping else (200, "text/plain", b"ok\n")
        if path == "/":
            return 200, "text/html; charset=utf-8", PAGE.encode()
        return 404, "text/plain", b"not found: see /\n"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

