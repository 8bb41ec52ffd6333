"""The live page as its readers have it: in Chromium, on running services."""

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, expect
from programs import ROOT, free_ports, until
from prometheus_client.parser import text_string_to_metric_families as parse

from outlive import Outcome
from outlive.dashboards.panels import COLOURS

pytestmark = pytest.mark.xdist_group("browser")

GRAFANA = {"green": "#73bf69", "orange": "#ff9830", "blue": "#5794f2", "red": "#f2495c", "purple": "#b877d9"}
"""What Grafana draws for these names."""
HEADS = [
    "task", "running", "p50", "p95", "timeout", "timeout used",
    "completed", "timed out", "cancelled", "failed", "rejected", "absorbed",
]  # fmt: skip


def figure(page: Page, name: str) -> int:
    """The number of a tile."""
    tile = page.locator(".tile", has=page.locator("dt", has_text=name))
    return int(tile.locator(".number").inner_text().replace(",", ""))


def cells(page: Page, table: str) -> dict[tuple[str, ...], dict[str, str]]:
    """A table's rows by their names, all read at the same moment."""
    rows: list[list[str]] = page.locator(f"{table} tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    heads, *others = rows
    named = 2 if heads[1] == "transport" else 1
    return {tuple(row[:named]): dict(zip(heads, row, strict=True)) for row in others}


def counted(service: str) -> Counter[tuple[str, ...]]:
    """What /metrics says of runs, absorbed cancellations and disconnects."""
    numbers: Counter[tuple[str, ...]] = Counter()
    for family in parse(httpx.get(f"{service}/metrics").text):
        for sample in family.samples:
            labels = sample.labels
            match sample.name:
                case "outlive_runs_total":
                    numbers[labels["task"], labels["outcome"].replace("_", " ")] = int(sample.value)
                case "outlive_absorbed_cancellations_total":
                    numbers[labels["task"], "absorbed"] = int(sample.value)
                case "outlive_disconnects_total":
                    key = (labels["route"], labels["transport"], labels["cause"].replace("_", " "))
                    numbers[key] = int(sample.value)
    return numbers


def shown(page: Page) -> Counter[tuple[str, ...]]:
    """What the page says of the same."""
    numbers: Counter[tuple[str, ...]] = Counter()
    for (task,), row in cells(page, "#tasks").items():
        for head in HEADS[6:]:
            numbers[task, head] = int(row[head].replace(",", ""))
    for (route, transport), row in cells(page, "#disconnects").items():
        for cause in ("client closed", "client lost", "server shutdown", "error"):
            numbers[route, transport, cause] = int(row[cause].replace(",", ""))
    return numbers


def next_news(page: Page, many: int = 1) -> None:
    """Wait until the page has heard that much more from the server."""
    page.evaluate(
        """many => new Promise((done) => {
            new MutationObserver((_, observer) => { if (--many === 0) { observer.disconnect(); done(); } })
                .observe(document.querySelector("#tasks tbody"), { childList: true });
        })""",
        many,
    )


def is_within(
    lower: Counter[tuple[str, ...]], middle: Counter[tuple[str, ...]], upper: Counter[tuple[str, ...]]
) -> bool:
    return all(lower[key] <= middle[key] <= upper[key] for key in {*lower, *middle, *upper})


def test_the_numbers_of_the_running_demo_are_those_of_its_metrics(
    look: Callable[..., Any], demo: Any
) -> None:
    reader = look(demo.live)
    expect(reader.page.locator("#process-state")).to_have_text("open")
    expect(reader.page.locator("#flow-list li").first).to_be_visible()
    for _ in range(3):
        # What the page shows was counted after the first look and before the second one.
        before = counted(demo.service)
        next_news(reader.page, 2)
        seen = shown(reader.page)
        after = counted(demo.service)
        assert sum(seen.values()) > 0
        assert is_within(before, seen, after), (before, seen, after)
    assert list(next(iter(cells(reader.page, "#tasks").values()))) == HEADS
    assert reader.complaints == []
    assert {urlsplit(url).netloc for url in reader.asked} == {urlsplit(demo.live).netloc}


def test_at_rest_the_numbers_are_exactly_those_of_the_metrics(look: Callable[..., Any], quiet: Any) -> None:
    page = look(quiet.live).page
    for _ in range(3):
        quiet.leave_a_room()
    state = quiet.at_rest()
    until(lambda: shown(page) == counted(quiet.url), why="the page shows what the metrics say")
    assert sum(shown(page).values()) > 0
    assert figure(page, "Running") == figure(page, "Pending") == figure(page, "Stuck") == 0
    open_now = sum(
        sample.value
        for family in parse(httpx.get(f"{quiet.url}/metrics").text)
        for sample in family.samples
        if sample.name == "outlive_connections"
    )
    # The reader's own feed is none of them.
    assert figure(page, "Connections") == open_now == 0
    legend = [text.replace(",", "") for text in page.locator(".legend li").all_inner_texts()]
    sums = {re.sub(r"\s*\d+$", "", text): int(re.findall(r"\d+$", text)[0]) for text in legend}
    assert sums == {outcome.replace("_", " "): number for outcome, number in state["outcomes"].items()}


def test_a_timeout_is_there_within_two_seconds_and_its_waterfall_shows_the_deadline(
    look: Callable[..., Any], own: Callable[..., Any]
) -> None:
    service = own(NOTIFY_TIMEOUT="0.5")
    service.let_notices_hang()
    page = look(service.live).page
    expect(page.locator("#process-state")).to_have_text("open")
    page.evaluate(
        """() => new MutationObserver(() => {
            if (window.appeared === undefined && document.querySelector("#flow-list li")) window.appeared = Date.now();
        }).observe(document.querySelector("#flow-list"), { childList: true })"""
    )
    service.leave_a_room()
    row = page.locator("#flow-list a", has_text="/rooms/{room}").first
    expect(row).to_contain_text("1 timed out")
    (flow,) = httpx.get(f"{service.live}flows").json()["flows"]
    assert page.evaluate("window.appeared") / 1000 - (flow["at"] + flow["tail"]) <= 2.0

    row.click()
    span = page.locator("#waterfall .spans li", has_text="notify_partner")
    expect(span).to_contain_text(re.compile(r"timed out · deadline at 5\d\d ms"))
    expect(span.locator(".mark.deadline")).to_have_count(1)
    expect(page.locator("#waterfall .spans li")).to_have_count(len(flow["spans"]))
    assert [text.split("\n")[0] for text in page.locator("#waterfall .name").all_inner_texts()] == [
        "tail", "save_transcript", "notify_partner", "POST", "announce_departure",
    ]  # fmt: skip
    deadline = span.locator(".mark.deadline").evaluate("mark => mark.x.baseVal.valueAsString")
    (event,) = [
        event for each in flow["spans"] for event in each["events"] if event["name"] == "outlive.deadline"
    ]
    length = max([flow["tail"], *(each["start"] + each["duration"] for each in flow["spans"])])
    assert float(deadline.removesuffix("%")) == pytest.approx(100 * event["at"] / length, abs=0.01)

    # Attributes on demand.
    expect(span.locator(".attributes")).to_be_hidden()
    span.locator("summary").click()
    expect(span.locator(".attributes")).to_contain_text("outlive.timeout")
    expect(span.locator(".attributes")).to_contain_text("outlive.deadline")


def test_a_flow_has_an_address_and_a_text_and_leads_to_jaeger(
    look: Callable[..., Any], demo: Any, browser: Any
) -> None:
    reader = look(demo.live, permissions=["clipboard-read", "clipboard-write"])
    page = reader.page
    page.locator("#flow-list a").first.click()
    expect(page.locator("#waterfall h3")).to_contain_text("disconnect /")
    trace = page.locator("#waterfall header code").nth(1).inner_text()
    assert f"flow={trace}" in page.url
    jaeger = page.get_by_role("link", name="Open in Jaeger")
    assert jaeger.get_attribute("href") == f"http://jaeger.invalid:16686/trace/{trace}"
    assert "noopener" in str(jaeger.get_attribute("rel"))

    page.get_by_role("button", name="Copy as text").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("disconnect /")
    assert trace in text
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied").nth(1)).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")

    elsewhere = look(link).page
    expect(elsewhere.locator("#waterfall header code").nth(1)).to_have_text(trace)
    expect(elsewhere.locator("#waterfall .spans li")).to_have_count(
        page.locator("#waterfall .spans li").count()
    )
    unknown = look(f"{demo.live}#flow=0123").page
    expect(unknown.locator("#waterfall")).to_contain_text("isn't kept any more")
    unknown.get_by_role("button", name="Back to the flows").click()
    expect(unknown.locator("#waterfall")).to_be_hidden()


def test_a_flow_from_before_the_page_is_asked_for(look: Callable[..., Any], quiet: Any) -> None:
    quiet.leave_a_room("before")
    quiet.at_rest()
    trace = until(lambda: httpx.get(f"{quiet.live}flows?most=1").json()["flows"])[0]["trace_id"]
    page = look(f"{quiet.live}#flow={trace}").page
    expect(page.locator("#waterfall header")).to_contain_text(trace)


def test_flows_are_filtered(look: Callable[..., Any], demo: Any) -> None:
    page = look(demo.live).page

    def chosen() -> list[str]:
        return list(page.locator("#flow-list a").all_inner_texts())

    def choose(name: str, value: str) -> None:
        select = page.locator(f"select[name={name}]")
        expect(select.locator(f"option[value='{value}']")).to_have_count(1, timeout=60_000)
        select.select_option(value)

    choose("route", "/rooms/{room}")
    choose("cause", "client_lost")
    expect(page.locator("#flow-list li").first).to_be_visible()
    assert all("/rooms/{room}" in text and "client lost" in text for text in chosen())
    assert "route=%2Frooms%2F%7Broom%7D" in page.url
    assert "cause=client_lost" in page.url

    # The choice is in the address, so it survives a reload.
    page.reload()
    expect(page.locator("select[name=cause]")).to_have_value("client_lost")
    expect(page.locator("#flow-list li").first).to_be_visible()
    assert all("client lost" in text for text in chosen())

    page.get_by_role("button", name="Clear filters").click()
    expect(page.get_by_role("button", name="Clear filters")).to_be_hidden()
    assert "cause" not in page.url

    choose("outcome", "cancelled")
    choose("task", "announce_departure")
    expect(page.locator("#flow-list li").first).to_contain_text("cancelled")
    assert all("cancelled" in text for text in chosen())
    # An outcome and a task are those of one and the same run.
    page.locator("select[name=outcome]").evaluate("select => select.add(new Option('rejected', 'rejected'))")
    page.locator("select[name=outcome]").select_option("rejected")
    expect(page.locator("#no-flows")).to_contain_text("No flow that is kept matches")


def test_tables_are_sorted_by_their_heads(look: Callable[..., Any], demo: Any) -> None:
    page = look(demo.live).page
    expect(page.locator("#tasks tbody tr").nth(3)).to_be_visible()
    head = page.locator("#tasks th", has_text="timeout").first

    def timeouts() -> list[float]:
        return [float(row["timeout"].removesuffix(" s")) for row in cells(page, "#tasks").values()]

    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    assert timeouts() == sorted(timeouts(), reverse=True)
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    next_news(page)
    assert timeouts() == sorted(timeouts())


def test_the_keyboard_is_enough(look: Callable[..., Any], quiet: Any) -> None:
    quiet.leave_a_room()
    quiet.at_rest()
    page = look(quiet.live).page
    first = page.locator("#flow-list a").first
    expect(first).to_be_visible()

    def focused() -> str:
        return str(page.evaluate("document.activeElement.innerText || document.activeElement.name || ''"))

    page.keyboard.press("Tab")
    assert focused() == "Skip to the disconnect flows"
    page.keyboard.press("Enter")
    for name in ("outcome", "task", "route", "cause"):
        page.keyboard.press("Tab")
        expect(page.locator(f"select[name={name}]")).to_be_focused()
    page.keyboard.press("Tab")
    if "newer" in focused():
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#waterfall")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Close this flow")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#waterfall summary").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#waterfall .attributes").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#waterfall")).to_be_hidden()
    expect(first).to_be_focused()


def test_what_is_looked_at_does_not_move_away(look: Callable[..., Any], quiet: Any) -> None:
    quiet.leave_a_room("first")
    quiet.at_rest()
    page = look(quiet.live).page
    row = page.locator("#flow-list a").first
    expect(row).to_be_visible()
    trace = row.get_attribute("data-trace")
    row.focus()
    quiet.leave_a_room("second")
    newer = page.get_by_role("button", name="Show 1 newer")
    expect(newer).to_be_visible()
    assert row.get_attribute("data-trace") == trace
    newer.click()
    expect(newer).to_be_hidden()
    assert page.locator("#flow-list a").nth(1).get_attribute("data-trace") == trace
    quiet.at_rest()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_it_fits_and_axe_finds_nothing_serious(
    look: Callable[..., Any], demo: Any, axe: str, scheme: str, width: int
) -> None:
    page = look(demo.live, width=width, color_scheme=scheme, bypass_csp=True).page
    expect(page.locator("#flow-list li").first).to_be_visible()
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert lightness < 60 if scheme == "dark" else lightness > 200
    page.evaluate(axe)

    def serious() -> list[str]:
        # One moment of the page: it must not change while it is looked at.
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{violation['id']}: {node['html']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
            if violation["impact"] in ("serious", "critical")
        ]

    def sideways() -> int:
        return int(page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))

    assert serious() == []
    assert sideways() <= 0
    page.locator("#flow-list a").first.click()
    expect(page.locator("#waterfall .spans li").first).to_be_visible()
    page.locator("#waterfall summary").nth(1).click()
    assert serious() == []
    assert sideways() <= 0
    page.locator("#outcomes summary").click()
    page.locator("#tail summary").click()
    assert serious() == []
    assert sideways() <= 0


def test_outcomes_have_the_colours_of_grafana_and_are_told_apart_without(
    look: Callable[..., Any], demo: Any
) -> None:
    page = look(demo.live).page
    expect(page.locator(".legend li")).to_have_count(5)
    patterns, marks = set(), set()
    for outcome in Outcome:
        sign = page.locator(f".legend .sign.{outcome}")
        colour = sign.locator("rect").evaluate("rect => getComputedStyle(rect).fill")
        assert (
            "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour))
            == GRAFANA[COLOURS[outcome]]
        )
        marks.add(page.locator(f"#mark-{outcome}").inner_html())
        patterns.add(page.locator(f"#pattern-{outcome}").inner_html())
    assert len(marks) == len(patterns) == 5


def test_an_empty_page_says_what_to_do(look: Callable[..., Any], own: Callable[..., Any]) -> None:
    service = own()
    page = look(service.live).page
    expect(page.locator("#no-flows")).to_contain_text("No disconnect flow has ended yet")
    expect(page.locator("#no-flows pre")).to_have_text(f"outlive traffic {service.url}")
    expect(page.locator("#disconnects")).to_contain_text("no connection yet")
    expect(page.locator("#outcomes")).to_contain_text("No run has ended")
    expect(page.locator("#tail")).to_contain_text("No disconnect flow has ended")
    for select in page.locator("#filters select").all():
        assert select.locator("option").all_inner_texts() == ["any"]


def test_a_lost_feed_is_told_and_comes_back_by_itself(
    look: Callable[..., Any], own: Callable[..., Any]
) -> None:
    service = own()
    service.leave_a_room()
    service.at_rest()
    page = look(service.live).page
    expect(page.locator("#flow-list li")).to_have_count(1)

    service.service.hang()  # the transport is there, and nothing comes
    expect(page.get_by_role("alert")).to_contain_text("The feed is broken")
    service.service.go_on()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#process-state")).to_have_text("open")

    service.service.crash()
    expect(page.get_by_role("alert")).to_contain_text("The feed is broken")
    expect(page.locator("#process-state")).to_have_text("lost")
    service.service.start()
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#process-state")).to_have_text("open")
    service.leave_a_room()
    expect(page.locator("#flow-list li")).to_have_count(2)


def test_a_drain_is_shown_while_it_happens(look: Callable[..., Any], own: Callable[..., Any]) -> None:
    service = own(NOTIFY_TIMEOUT="3")
    service.let_notices_hang()
    page = look(service.live).page
    expect(page.locator("#process-state")).to_have_text("open")
    page.evaluate(
        """() => {
            const seen = window.seen = [];
            new MutationObserver(() => seen.push([
                document.querySelector("#process-state").textContent,
                document.querySelectorAll(".tile .number")[1].textContent,
            ])).observe(document.querySelector("#tasks tbody"), { childList: true });
        }"""
    )
    service.leave_a_room()
    until(lambda: service.state()["running"], why="the notice is under way")
    process = service.service._process
    process.send_signal(signal.SIGTERM)
    expect(page.locator("#process-state")).to_have_text("draining")
    expect(page.locator("#process-state")).to_have_text("closed")
    expect(page.get_by_role("alert")).to_contain_text("drained and closed")
    seen = page.evaluate("window.seen")
    assert ["draining", "1"] in seen
    process.wait(20)
    assert service.last_event("closed")["outcomes"]["timed_out"] == 1
    assert service.last_event("drain ended")["cancelled_runs"] == 0

    service.service.start()
    expect(page.locator("#process-state")).to_have_text("open")
    expect(page.locator("#banner")).to_be_hidden()


def test_hostile_names_are_shown_as_text(look: Callable[..., Any], hostile: Any) -> None:
    reader = look(hostile.live)
    page = reader.page
    expect(page.locator("#tasks")).to_contain_text(hostile.task)
    expect(page.locator("#disconnects")).to_contain_text(hostile.route)
    row = page.locator("#flow-list a").first
    expect(row).to_contain_text(hostile.route)
    row.click()
    expect(page.locator("#waterfall h3")).to_contain_text(hostile.route)
    span = page.locator("#waterfall .spans li", has_text=hostile.task)
    expect(span).to_contain_text(hostile.error)
    span.locator("summary").click()
    expect(span.locator(".attributes")).to_contain_text(hostile.error)
    page.locator("select[name=task]").select_option(hostile.task)
    expect(row).to_be_visible()
    page.reload()
    expect(page.locator("#waterfall .spans li", has_text=hostile.task)).to_be_visible()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main :is(img, script, b, iframe)").count() == 0
    assert reader.complaints == []
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0


TOKEN = "a-token-of-a-test-and-of-nothing-else"


def test_without_the_token_nothing_is_told_and_a_browser_asks_for_it(
    look: Callable[..., Any], own: Callable[..., Any]
) -> None:
    service = own(PAGES_TOKEN=TOKEN)
    own_files = [file.name for file in (ROOT / "src" / "outlive" / "live" / "static").iterdir()]
    for name in ("", "state", "flows", "feed", "package.json", *own_files):
        for authorization in ({}, {"authorization": "Bearer another-token-than-that"}):
            refused = httpx.get(f"{service.live}{name}", headers=authorization)
            known = name not in ("package.json", "index.html")
            assert (refused.status_code, refused.content) == (
                (401, b"") if known else (404, refused.content)
            ), name
            assert "outlive" not in refused.text.lower()
    told = httpx.get(f"{service.live}state", headers={"authorization": f"Bearer {TOKEN}"})
    assert told.json()["state"] == "open"

    for wrong in ({}, {"http_credentials": {"username": "ann", "password": "another-token-than-that"}}):
        # Chromium's own page for an answer without a word.
        with pytest.raises(
            PlaywrightError, match=r"ERR_HTTP_RESPONSE_CODE_FAILURE|ERR_INVALID_AUTH_CREDENTIALS"
        ):
            look(service.live, **wrong)

    reader = look(service.live, http_credentials={"username": "ann", "password": TOKEN})
    expect(reader.page.locator("#process-state")).to_have_text("open")
    service.leave_a_room()
    expect(reader.page.locator("#flow-list li")).to_have_count(1)
    assert reader.complaints == []


def test_the_page_is_at_the_address_of_the_pages_and_nowhere_else(
    look: Callable[..., Any], own: Callable[..., Any]
) -> None:
    service = own(PAGES_PORT=str(free_ports(1)[0]))
    assert service.pages != service.url
    assert httpx.get(f"{service.url}/outlive/").status_code == 404
    page = look(service.live).page
    expect(page.locator("#process-state")).to_have_text("open")
    service.leave_a_room()
    expect(page.locator("#flow-list li")).to_have_count(1)


def test_the_pictures_in_the_docs_are_small() -> None:
    pictures = sorted((ROOT / "docs" / "live").glob("*.png"))
    assert len(pictures) == 8
    for picture in pictures:
        assert picture.stat().st_size < 300_000, picture.name
    assert json.dumps([picture.stem for picture in pictures]) == json.dumps(
        sorted(
            f"{view}-{scheme}-{width}"
            for view in ("overview", "waterfall")
            for scheme in ("light", "dark")
            for width in (1200, 400)
        )
    )
