"""The injected faults make the alerts fire that should, and no other; every recording rule has a value."""

import pytest
import yaml
from programs import OTEL
from scraped_names import ScrapedNames
from story import AFTER_DRAIN, EXPECTED, Drained, Stack, Trouble

pytestmark = pytest.mark.xdist_group("stack")


def test_exactly_the_alerts_of_the_injected_faults_fire(trouble: Trouble) -> None:
    assert trouble.firing == EXPECTED


def test_a_drain_without_a_return_is_told(drained: Drained) -> None:
    assert drained.firing == EXPECTED | AFTER_DRAIN


def test_every_alert_of_the_rules_was_seen(stack: Stack, drained: Drained) -> None:
    # Or one more alert would be one that nobody has seen fire.
    rules = {rule["name"] for rule in stack.prometheus.rules() if rule["type"] == "alerting"}
    assert rules == {name for name, _, _ in drained.firing}


def test_every_recording_rule_has_a_value(stack: Stack, trouble: Trouble) -> None:
    rules = stack.prometheus.rules()
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    written = yaml.safe_load((OTEL / "rules" / "recording.yml").read_text())["groups"]
    assert recorded == {rule["record"] for group in written for rule in group["rules"]}
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    for name in sorted(recorded):
        values = [float(each["value"][1]) for each in stack.prometheus.query(name, trouble.moment)]
        assert any(value > 0 for value in values), name


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_the_names_in_the_rules_exist(file: str, names: ScrapedNames) -> None:
    groups = yaml.safe_load((OTEL / "rules" / file).read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [problem for rule in rules for problem in names.wrong(rule["expr"])] == []


def test_no_run_is_lost_in_all_this(drained: Drained) -> None:
    account = drained.account
    assert account.errors == ()
    assert account.lost == account.doubled == 0
    assert account.submitted == sum(account.outcomes.values()) > 1_000
    for outcome in ("completed", "timed_out", "failed", "cancelled"):
        assert account.outcomes[outcome] > 0, outcome
