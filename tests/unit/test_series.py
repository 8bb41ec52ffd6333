"""Outlive's own series are what prometheus-client would have made of the same numbers."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from outlive.telemetry.series import Series

BOUNDS = (0.005, 0.5, 10.0)
NUMBERS = (0.0, 0.005, 0.0051, 0.5, 7, 1e9, 123456.75, 1e-9)
AWKWARD = ('a "quoted" one', "back\\slash", "two words # {", "100 %s", "a\nline", "ü")
CLASSIC = "text/plain"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def series(registry: CollectorRegistry) -> Series:
    series = Series()
    registry.register(series)
    return series


def span(number: int) -> SpanContext:
    return SpanContext(number, number + 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def rendered(series: Series, registry: CollectorRegistry, accept: str) -> str:
    encode, form = choose_encoder(accept)
    return b"".join(series.render(registry, encode, form)).decode()


def encoded(registry: CollectorRegistry, accept: str) -> str:
    encode, _ = choose_encoder(accept)
    return encode(registry).decode()


def fill(counter: Any, gauge: Any, histogram: Any, lag: Any, exemplar: Callable[[int], Any]) -> None:
    for label in AWKWARD:
        counter.labels(label, "x").inc()
        gauge.labels(label).inc()
        gauge.labels(label).inc(3)
        gauge.labels(label).dec()
        for number, amount in enumerate(NUMBERS):
            histogram.labels(label, "y").observe(amount, exemplar(number))
    gauge.labels("set").set(-2.5)
    histogram.labels("empty", "y")
    lag.observe(0.25)


def filled(series: Series) -> None:
    fill(
        series.counter("runs", "Runs.", "task", "outcome"),
        series.gauge("running", 'Those that\nrun, "now".', "task"),
        series.histogram("took_seconds", "Time.", BOUNDS, "task", "outcome"),
        series.histogram("lag_seconds", "Lag.", BOUNDS).labels(),
        lambda number: span(number) if number % 2 else None,
    )


@pytest.mark.parametrize("accept", [CLASSIC, OPENMETRICS])
def test_the_text_is_what_prometheus_client_makes_of_them(
    series: Series, registry: CollectorRegistry, accept: str
) -> None:
    filled(series)
    Counter("others", "Somebody else's.", registry=registry).inc()
    wanted = encoded(registry, accept)
    lines = wanted.splitlines()
    for _ in range(2):  # the second time from what was kept
        assert sorted(rendered(series, registry, accept).splitlines()) == sorted(lines)
    assert rendered(series, registry, accept).endswith("# EOF\n") is (accept is OPENMETRICS)


@pytest.mark.parametrize("accept", [CLASSIC, OPENMETRICS])
def test_the_numbers_are_those_of_prometheus_client(
    series: Series, registry: CollectorRegistry, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.5)
    filled(series)
    theirs = CollectorRegistry()
    fill(
        Counter("runs", "Runs.", ("task", "outcome"), registry=theirs),
        Gauge("running", 'Those that\nrun, "now".', ("task",), registry=theirs),
        Histogram("took_seconds", "Time.", ("task", "outcome"), registry=theirs, buckets=BOUNDS),
        Histogram("lag_seconds", "Lag.", registry=theirs, buckets=BOUNDS),
        lambda number: (
            {"span_id": f"{number + 1:016x}", "trace_id": f"{number:032x}"} if number % 2 else None
        ),
    )
    created = [line for line in encoded(theirs, accept).splitlines() if "_created" in line]
    wanted = [line for line in encoded(theirs, accept).splitlines() if line not in created]
    assert rendered(series, registry, accept).splitlines() == wanted


def test_a_series_of_later_is_in_the_next_scrape(series: Series, registry: CollectorRegistry) -> None:
    counter = series.counter("runs", "Runs.", "task")
    counter.labels("a").inc()
    assert 'runs_total{task="b"}' not in rendered(series, registry, CLASSIC)
    counter.labels("b").inc()
    counter.labels("a").inc()
    text = rendered(series, registry, CLASSIC)
    assert 'runs_total{task="b"} 1.0\n' in text
    assert 'runs_total{task="a"} 2.0\n' in text


def test_a_name_that_is_taken_is_refused(series: Series, registry: CollectorRegistry) -> None:
    series.counter("runs", "Runs.", "task")
    registry.unregister(series)
    registry.register(series)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Counter("runs", "Runs.", registry=registry)


def test_what_is_read_beside_the_page_is_whole(series: Series, registry: CollectorRegistry) -> None:
    filled(series)
    found: list[str] = []
    with series.apart():
        # Only this thread leaves them out.
        reader = threading.Thread(target=lambda: found.append(generate_latest(registry).decode()))
        reader.start()
        reader.join()
        assert "runs_total" not in generate_latest(registry).decode()
    assert "runs_total" in found[0]
    assert "runs_total" in generate_latest(registry).decode()


def test_nothing_is_lost_between_threads(series: Series, registry: CollectorRegistry) -> None:
    counter = series.counter("runs", "Runs.", "task").labels("a")
    histogram = series.histogram("took_seconds", "Time.", BOUNDS).labels()

    def count() -> None:
        for _ in range(20_000):
            counter.inc()
            histogram.observe(1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        text = rendered(series, registry, OPENMETRICS)
        families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
        numbers = {sample.name: sample.value for sample in families["took_seconds"].samples}
        # Count and sum are of one moment.
        assert numbers["took_seconds_count"] == numbers["took_seconds_sum"]
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("runs_total", {"task": "a"}) == 80_000
    assert registry.get_sample_value("took_seconds_count") == 80_000
