"""Counters, gauges and histograms of one process: updated at half the cost, and scraped at a fifteenth.

prometheus-client's own take a lock for each number that they hold, look for a histogram's bucket one by one, check
each exemplar, and make an object of each line of a scrape. These do what Outlive needs: the names of labels are known,
there are no `_created` series, and exemplars are ids that are put into words when somebody scrapes. The text is
prometheus-client's all the same: it renders one series of each family, and from then on only labels and numbers are new.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate, islice
from threading import Lock, local
from typing import Any

from opentelemetry.trace import SpanContext, format_span_id, format_trace_id
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import INF, floatToGoString

Encode = Callable[[Any], bytes]
"""One of prometheus-client's: what is in a registry, in one of the text formats."""

OPENMETRICS = "application/openmetrics-text"
"""The beginning of the content types that have exemplars, and a last line."""
END = b"# EOF\n"
"""That last line."""
PART = 100
"""So many series are rendered in one go: half a millisecond's work."""


@lru_cache(4096)
def _text(number: float) -> str:
    # Most numbers of a scrape are small, or those of the last one: remembering them saves a third of its time.
    return str(floatToGoString(number))  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped


class Number:
    """The one number of a counter or a gauge.

    Attributes:
        mark: differs from what it was, if anything has changed.
        told: the mark and the text of the last scrape, by layout.
    """

    __slots__ = ("_lock", "mark", "told")

    def __init__(self) -> None:
        self._lock = Lock()
        self.mark = 0.0
        self.told: dict[str, tuple[float, str]] = {}

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with self._lock:
            self.mark += amount

    def dec(self) -> None:
        """Take one from a gauge."""
        with self._lock:
            self.mark -= 1.0

    def set(self, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self.mark = float(value)

    def numbers(self) -> tuple[float, list[float], None]:
        """What a scrape tells, and the mark of that."""
        mark = self.mark
        return mark, [mark], None


class Buckets:
    """The numbers of a histogram; `mark` and `told` are as with a `Number`."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_lock", "_sum", "mark", "told")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._lock = Lock()
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self.mark = 0
        self._exemplars: dict[int, tuple[SpanContext, float, float]] = {}
        self.told: dict[str, tuple[float, str]] = {}

    def observe(self, amount: float, exemplar: SpanContext | None = None) -> None:
        """Count it, with the span that it was measured in."""
        bucket = bisect_left(self._bounds, amount)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += amount
            self.mark += 1
            if exemplar is not None:
                self._exemplars[bucket] = (exemplar, amount, time.time())

    def numbers(self) -> tuple[float, list[float], dict[int, Exemplar]]:
        """What a scrape tells, and the mark of that: the buckets' counts, the count and the sum; and exemplars."""
        with self._lock:
            mark = self.mark
            counts = self._counts.copy()
            total = self._sum
            exemplars = self._exemplars.copy()
        summed: list[float] = [*accumulate(counts)]
        return (
            mark,
            [*summed, mark, total],
            {
                bucket: Exemplar(_ids(context), amount, at)
                for bucket, (context, amount, at) in exemplars.items()
            },
        )


class Family:
    """All series of one name."""

    def __init__(
        self,
        empty: Callable[..., Metric],
        names: Sequence[str],
        new: Callable[[], Number | Buckets],
        bounds: Sequence[float],
    ) -> None:
        self._empty = partial(empty, labels=names)
        self._new = new
        self._les = [_text(bound) for bound in (*bounds, INF)]
        self._series: dict[tuple[str, ...], Number | Buckets] = {}
        self._templates: dict[str, tuple[str, str]] = {}
        self._stand_ins = tuple(f"\0{number}\0" for number in range(len(names)))

    def labels(self, *values: object) -> Any:
        """The series of these labels. It exists from now on."""
        key = tuple(map(str, values))
        return self._series.get(key) or self._series.setdefault(key, self._new())

    def metric(self, series: Mapping[tuple[str, ...], Number | Buckets] | None = None) -> Any:
        """The series, or those given instead, as prometheus-client has them."""
        metric: Any = self._empty()
        for key, each in (dict(self._series) if series is None else series).items():
            _, numbers, exemplars = each.numbers()
            if exemplars is None:
                metric.add_metric(key, numbers[0])
            else:
                buckets = [
                    (le, count, exemplars.get(place))
                    for place, (le, count) in enumerate(zip(self._les, numbers, strict=False))
                ]
                metric.add_metric(key, buckets, numbers[-1])
        return metric

    def render(self, encode: Encode, layout: str) -> Iterator[str]:
        """The text of the series, one after the other."""
        template = self._templates.get(layout)
        if template is None:
            template = self._templates[layout] = self._template(encode)
        header, one = template
        yield header
        # Not `items()`: thousands of tuples at once bring on the garbage collector's longest pauses.
        for key in list(self._series):
            series = self._series[key]
            told = series.told.get(layout)
            if told is None or told[0] != series.mark:
                mark, numbers, exemplars = series.numbers()
                text = one
                for stand_in, value in zip(self._stand_ins, key, strict=True):
                    text = text.replace(stand_in, _escaped(value))
                texts = list(map(_text, numbers))
                if exemplars and layout.startswith(OPENMETRICS):
                    for place, exemplar in exemplars.items():
                        texts[place] += _exemplar(exemplar)
                # Most series of a scrape are as they were in the last one: to keep their text makes it 3 times as fast.
                told = series.told[layout] = (mark, text % tuple(texts))
            yield told[1]

    def _template(self, encode: Encode) -> tuple[str, str]:
        """The lines that tell of the family, and those of a series with `%s` for each number."""
        header = _encoded(encode, self._empty())
        series = _encoded(encode, self.metric({self._stand_ins: self._new()}))[len(header) :]
        return header, "".join(f"{line.rpartition(' ')[0]} %s\n" for line in series.splitlines())


class Series(Collector):
    """All families that one registry has of Outlive."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        self._apart = local()

    def counter(self, name: str, text: str, *labels: str) -> Family:
        """Add a family of counters."""
        return self._add(Family(partial(CounterMetricFamily, name, text), labels, Number, ()))

    def gauge(self, name: str, text: str, *labels: str) -> Family:
        """Add a family of gauges."""
        return self._add(Family(partial(GaugeMetricFamily, name, text), labels, Number, ()))

    def histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Family:
        """Add a family of histograms with these upper bounds, in order and without infinity."""
        empty = partial(HistogramMetricFamily, name, text)
        return self._add(Family(empty, labels, partial(Buckets, bounds), bounds))

    def _add(self, family: Family) -> Family:
        self._families.append(family)
        return family

    def describe(self) -> Iterator[Metric]:
        """The names, for the registry that refuses a name twice."""
        return (family.metric({}) for family in self._families)

    def collect(self) -> Iterator[Metric]:
        """Everything, for those who read the registry without the page of Outlive."""
        if getattr(self._apart, "now", False):
            return iter(())
        return (family.metric() for family in self._families)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave these series out of what this thread collects."""
        self._apart.now = True
        try:
            yield
        finally:
            self._apart.now = False

    def render(self, registry: CollectorRegistry, encode: Encode, form: str) -> Iterator[bytes]:
        """All that `encode(registry)` would give, quickly, and in parts.

        Parameters:
            registry: the one that these series are in.
            encode: prometheus-client's encoder of the format.
            form: the content type of the format.
        """
        with self.apart():
            others = encode(registry)
        yield others.removesuffix(END)
        layout = _layout(form)
        texts = (text for family in self._families for text in family.render(encode, layout))
        while part := "".join(islice(texts, PART)):
            yield part.encode()
        if form.startswith(OPENMETRICS):
            yield END


def _layout(form: str) -> str:
    """All of a content type that these series' text depends on.

    Clients choose the version in it, in as many ways as they like, and the texts of each layout are kept.
    """
    return f"{form.partition(';')[0]} {form.rpartition('escaping=')[2]}"


class _One:
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        return iter((self._metric,))


def _encoded(encode: Encode, metric: Metric) -> str:
    return encode(_One(metric)).removesuffix(END).decode()


def _escaped(value: str) -> str:
    # As both formats want it, and `%` for the template.
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("%", "%%")


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(exemplar.labels.items()))
    return f" # {{{labels}}} {_text(exemplar.value)} {exemplar.timestamp}"


def _ids(context: SpanContext) -> dict[str, str]:
    return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
