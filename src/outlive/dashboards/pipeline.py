"""What carries the telemetry, and the processes themselves."""

from typing import Any

from outlive.dashboards.boards import board
from outlive.dashboards.panels import Column, lines, number, rows
from outlive.dashboards.promql import (
    chosen,
    count,
    over_time,
    quantile,
    quantile_of_range,
    rate,
    ratio,
    total,
)

UID = "outlive-pipeline"

NO_COLLECTOR = "no Collector among the chosen jobs"
LAG = "outlive_event_loop_lag_seconds"
PROCESS = "{{job}} {{instance}}"


def late(expr: str) -> str:
    """Ask for what has no series before it has happened once."""
    return f"({expr} or vector(0))"


def pipeline(datasource: str) -> dict[str, Any]:
    """Build the dashboard for the data source with this uid."""
    failed = ("otelcol_exporter_send_failed_spans_total", "otelcol_exporter_enqueue_failed_spans_total")
    queue, capacity = (
        f"sum by (job, instance, exporter) ({chosen(f'otelcol_exporter_queue_{name}')})"
        for name in ("size", "capacity")
    )
    glance = [
        number(
            "Targets down",
            "Scrape targets that Prometheus couldn't reach at its last try.",
            "docs/runbooks/OutliveTargetDown.md; *Targets* names them.",
            "short",
            f"count({chosen('up')} == 0) or vector(0)",
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Spans refused",
            "Spans of the time range that the Collector refused, for want of memory as a rule; senders try again.",
            "docs/runbooks/OutliveCollectorRefusing.md.",
            "short",
            late(count("otelcol_receiver_refused_spans_total")),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Spans lost",
            "Spans of the time range that the Collector gave up sending, or had no room for in its queue.",
            "docs/runbooks/OutliveCollectorDropping.md; metrics and exemplars go on, traces have holes.",
            "short",
            " + ".join(late(count(metric)) for metric in failed),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Fullest queue",
            "The largest share of its capacity that an exporter's queue holds now.",
            "it fills while its backend is away: bring that back before it is full.",
            "percentunit",
            f"max({ratio(queue, capacity)})",
            thresholds=[(None, "green"), (0.5, "orange"), (0.8, "red")],
            decimals=1,
            no_value=NO_COLLECTOR,
        ),
        number(
            "Event loop lag p99",
            "99 of 100 times in the time range the event loop called back no later than this.",
            "docs/runbooks/OutliveEventLoopLag.md: something blocks the loop, or there is no CPU left.",
            "s",
            quantile_of_range(0.99, LAG),
            thresholds=[(None, "green"), (0.1, "orange"), (0.5, "red")],
            no_value="no process",
        ),
        number(
            "Rules that failed",
            "Evaluations of rules that failed in the time range: alerts may be blind.",
            "Prometheus's page Status > Rules shows the error; promtool check rules finds most before.",
            "short",
            late(count("prometheus_rule_evaluation_failures_total")),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
    ]
    collector = [
        lines(
            "Spans in",
            "Spans in a second that the Collector took, refused, or failed to handle.",
            "refused: its memory limit is reached, see *Memory*. Nothing at all: the services don't send.",
            "ops",
            [
                over_time(late(rate(f"otelcol_receiver_{what}_spans_total")), what)
                for what in ("accepted", "refused", "failed")
            ],
            width=8,
        ),
        lines(
            "Spans out",
            "Spans in a second that reached their backend, that were given up after all tries, and that found the queue"
            " full.",
            "given up: the backend is away or refuses. queue full: it was away for too long.",
            "ops",
            [
                over_time(late(rate("otelcol_exporter_sent_spans_total")), "sent"),
                over_time(late(rate(failed[0])), "given up"),
                over_time(late(rate(failed[1])), "queue full"),
            ],
            width=8,
        ),
        lines(
            "Exporter queues",
            "What waits to be sent, and the limit.",
            "a line that climbs to the limit: the backend is away. Spans are lost when it gets there.",
            "short",
            [over_time(queue, "{{exporter}}"), over_time(capacity, "{{exporter}} limit")],
            width=8,
            no_value=NO_COLLECTOR,
        ),
        lines(
            "Traces kept and sampled out",
            "What tail sampling decided, in traces a second, and those it had to decide on too early.",
            "dropped too early above 0: raise num_traces. Kept far above your budget: lower the percentages.",
            "ops",
            [
                over_time(
                    rate("otelcol_processor_tail_sampling_global_count_traces_sampled_total", by="decision"),
                    "{{decision}}",
                ),
                over_time(
                    late(rate("otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total")),
                    "dropped too early",
                ),
            ],
            width=8,
        ),
        lines(
            "Spans by service",
            "Spans in a second that the Collector saw from each service, before sampling; the 20 busiest.",
            "a service that is missing sends nothing: look at its OTEL_EXPORTER_OTLP_ENDPOINT.",
            "ops",
            [
                over_time(
                    f"topk(20, {rate('traces_span_metrics_calls_total', by='service_name')})",
                    "{{service_name}}",
                )
            ],
            width=8,
            no_value=NO_COLLECTOR,
        ),
        lines(
            "Calls between services",
            "Calls in a second from one service to another, as the service graph has them; the 20 most frequent.",
            "none while the services call each other: trace context gets lost on the way.",
            "ops",
            [
                over_time(
                    f"topk(20, {rate('traces_service_graph_request_total', by='client, server')})",
                    "{{client}} to {{server}}",
                )
            ],
            width=8,
            no_value=NO_COLLECTOR,
        ),
    ]
    prometheus = [
        lines(
            "Scrape duration",
            "How long Prometheus takes to scrape each target; the 20 slowest.",
            "near the scrape timeout: too many series, or a process that has no time to answer.",
            "s",
            [over_time(f"topk(20, {chosen('scrape_duration_seconds')})", PROCESS)],
            width=8,
        ),
        lines(
            "Samples scraped",
            "How many samples Prometheus gets from each job at a scrape.",
            "growth without end: a label with unbounded values. `topk(10, count by (__name__) ({job=...}))` finds it.",
            "short",
            [over_time(total("scrape_samples_scraped", by="job"), "{{job}}")],
            width=8,
        ),
        rows(
            "Targets",
            "Each scrape target, and whether its last scrape worked.",
            "docs/runbooks/OutliveTargetDown.md.",
            [Column("up", chosen("up"), "bool_yes_no", [(None, "red"), (1, "green")])],
            labels={"job": "job", "instance": "instance"},
            sort="job",
            width=8,
            height=8,
        ),
    ]
    processes = [
        lines(
            "Event loop lag",
            "How much later than asked for the event loop calls back: p50 and p99 over all, and the ten worst processes.",
            "p99 alone: single blocking calls. p50 as well: the CPU is used up. docs/runbooks/OutliveEventLoopLag.md.",
            "s",
            [
                over_time(quantile(0.5, LAG), "p50"),
                over_time(quantile(0.99, LAG), "p99"),
                over_time(f"topk(10, {quantile(0.99, LAG, by='instance')} >= 0)", "p99 {{instance}}"),
            ],
            width=8,
        ),
        lines(
            "Memory",
            "Resident memory of each process, the Collector's included; the 20 largest.",
            "a line that climbs for hours is a leak, or pending runs that hold what they were given.",
            "bytes",
            [
                over_time(f"topk(20, {chosen('process_resident_memory_bytes')})", PROCESS),
                over_time(chosen("otelcol_process_memory_rss_bytes"), PROCESS),
            ],
            width=8,
        ),
        lines(
            "CPU",
            "CPU seconds a second of each process, the Collector's included; the 20 busiest.",
            "at 1 a Python process is at its end: add processes.",
            "short",
            [
                over_time(f"topk(20, {rate('process_cpu_seconds_total', by='job, instance')})", PROCESS),
                over_time(rate("otelcol_process_cpu_seconds_total", by="job, instance"), PROCESS),
            ],
            width=8,
        ),
        lines(
            "Open files",
            "Open file descriptors as a share of the process's limit; the 20 fullest.",
            "above 80 %: connections are refused next. Raise the limit, or find what isn't closed.",
            "percentunit",
            [
                over_time(
                    f"topk(20, {chosen('process_open_fds')} / ({chosen('process_max_fds')} > 0))",
                    PROCESS,
                )
            ],
            width=8,
            thresholds=[(None, "green"), (0.8, "red")],
        ),
        rows(
            "Build info",
            "The version of Outlive and of Python that each process runs, and when it started.",
            "two versions outside of a deploy: a rollout is stuck. A start you didn't order: a crash.",
            [
                Column(
                    "processes", f"sum by (job, instance, version, python) ({chosen('outlive_build_info')})"
                ),
                Column(
                    "started",
                    f"max by (job, instance) ({chosen('process_start_time_seconds')}) * 1000"
                    f" and on (job, instance) {chosen('outlive_build_info')}",
                    "dateTimeAsIso",
                ),
            ],
            labels={"job": "job", "instance": "instance", "version": "version", "python": "Python"},
            sort="started",
            width=16,
            height=8,
        ),
    ]
    return board(
        UID,
        "Pipeline",
        "What carries the telemetry (Collector, exporters, Prometheus) and how the processes are: lag, memory, CPU, versions.",
        datasource,
        {"At a glance": glance, "Collector": collector, "Prometheus": prometheus, "Processes": processes},
        jobs="up",
    )
