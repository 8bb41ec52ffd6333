"""The queries of the dashboards, put together from PromQL."""

from grafana_foundation_sdk.builders import prometheus

from outlive.outcomes import BAD_OUTCOMES

BAD = f'outcome=~"{"|".join(BAD_OUTCOMES)}"'
CHOSEN = 'job=~"$job", instance=~"$instance"'

Target = prometheus.Dataquery


def chosen(metric: str, *matchers: str) -> str:
    """Select a metric of the chosen jobs and instances."""
    return f"{metric}{{{', '.join([CHOSEN, *matchers])}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Tell how often a second something is counted, summed over all but the labels in `by`."""
    return f"sum{_by(by)} (rate({chosen(metric, *matchers)}[$__rate_interval]))"


def count(metric: str, *matchers: str, by: str = "") -> str:
    """Tell how often something was counted in the time range that is looked at."""
    return f"sum{_by(by)} (increase({chosen(metric, *matchers)}[$__range]))"


def total(metric: str, *matchers: str, by: str = "") -> str:
    """Sum a gauge."""
    return f"sum{_by(by)} ({chosen(metric, *matchers)})"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Estimate a quantile of a histogram over time."""
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', *matchers, by=_and_le(by))})"


def quantile_of_range(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Estimate a quantile of a histogram over the whole time range that is looked at."""
    return f"histogram_quantile({share:g}, {count(f'{histogram}_bucket', *matchers, by=_and_le(by))})"


def ratio(part: str, whole: str) -> str:
    """Divide, where there is anything to divide by."""
    return f"{part} / ({whole} > 0)"


def availability(*matchers: str, by: str = "") -> str:
    """Tell the share of the runs of the time range that didn't end badly."""
    bad = count("outlive_runs_total", BAD, *matchers, by=by)
    return f"1 - {ratio(bad, count('outlive_runs_total', *matchers, by=by))}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _and_le(labels: str) -> str:
    return f"{labels}, le" if labels else "le"


def over_time(expr: str, legend: str = "", *, exemplar: bool = False) -> Target:
    """Ask over the time range."""
    return Target().expr(expr).legend_format(legend or "__auto").range().exemplar(exemplar)


def at_once(expr: str, legend: str = "") -> Target:
    """Ask at the end of the time range."""
    return Target().expr(expr).legend_format(legend or "__auto").instant()


def quantiles(histogram: str, *matchers: str, exemplar: bool = False) -> list[Target]:
    """Ask for p50, p95 and p99; exemplars come with the last, since they are the same for each."""
    return [
        over_time(quantile(share, histogram, *matchers), name, exemplar=exemplar and share == 0.99)
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
