"""What can be wrong with a request."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PURGE", "MKCOL", "FOO", "get", "G\x01T", "X" * 2_000)
TOKEN = "a-token-of-a-test-and-of-nothing-else"


@pytest.mark.reliability(
    "abuse", "3,000 requests with made-up paths and methods, each with 30 headers of made-up names"
)
async def test_floods_of_names_make_neither_series_nor_span_names(
    attacked: Any, result: Callable[[str], None]
) -> None:
    choice = random.Random(1)

    def request(number: int) -> bytes:
        path = "/".join(f"{choice.getrandbits(64):x}" for _ in range(choice.randrange(1, 6)))
        headers = "".join(f"x-{choice.getrandbits(64):x}: {target.secret}\r\n" for _ in range(30))
        return (
            f"{choice.choice(METHODS)} /{path}?q={target.secret} HTTP/1.1\r\nhost: h{number}\r\n"
            f"cookie: {target.secret}\r\nauthorization: Bearer {target.secret}\r\n{headers}connection: close\r\n\r\n"
        ).encode("latin-1")

    async with attacked() as target:
        # Each method that a label can have, once, since what is legitimate makes its series.
        known = [request.encode() for request in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PURGE")]
        await target.say_all(
            [method + b" /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" for method in known]
        )
        before = await target.series()
        statuses = Counter(answer.status for answer in await target.say_all(map(request, range(3_000))))
        assert set(statuses) == {400, 404}
        after = await target.series()
        assert after == before
    result(
        f"{statuses[404]:,} answered 404 and {statuses[400]:,} 400; no series more than the {len(before)} there were, "
        f"and {target.spans:,} spans under the names of routes and methods"
    )


TRICKS = (
    "//metrics", "/./metrics", "/x/../metrics", "/%2e/metrics", "/x/%2e%2e/metrics", "/x/..%2fmetrics", "/%2fmetrics",
    "/metrics/", "/metrics;x", "/metrics%00", "/metrics%20", "/metrics%0d%0aset-cookie:x", "/METRICS", "/%6detrics",
    "/rooms/../metrics", "/rooms/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
    "/%c0%ae%c0%ae/metrics", "/%ff%fe", "/%", "/%zz", "/%u002e", "/\\..\\metrics", "/..;/metrics", "/exports/%2e%2e/metrics",
    "/exports/usage.csv%00.html?user=a", "/exports/usage.csv/../../metrics", "/outlive/flows%2f", "/" + "a/" * 20_000, "/" + "%2e%2e/" * 8_000,
    "http://127.0.0.1/metrics", "http://evil.example/metrics", "https://evil.example:1/metrics", "//evil.example/metrics",
    "http://[::1/metrics", "*", "metrics", "", "?", "/\xff\xfe", "/\x00metrics", "/\tmetrics", "/metrics#x", "/metrics?token=" + TOKEN,
)  # fmt: skip


@pytest.mark.reliability("abuse", "45 path tricks, with four methods, against a protected page")
async def test_no_trick_with_a_path_opens_a_page(attacked: Any, result: Callable[[str], None]) -> None:
    assert len(TRICKS) == 45
    async with attacked(PAGES_TOKEN=TOKEN) as target:
        requests = [
            f"{method} {trick} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode("latin-1")
            for trick in TRICKS
            for method in ("GET", "HEAD", "POST", "OPTIONS")
        ]
        answers = await target.say_all(requests)
        statuses = Counter(answer.status for answer in answers)
        for request, answer in zip(requests, answers, strict=True):
            assert answer.status in (0, 400, 401, 404, 405, 422), request
            for leak in (b"outlive_", b"root:", b"set-cookie"):
                assert leak not in answer.raw.lower(), request
    told = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    result(f"{len(requests)} requests: {told}; none of the page came out")


CONTEXTS = [
    ("traceparent", value)
    for value in (
        "", "00", "00-", "garbage", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01", "00-" + "G" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 31 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-zz", "00-" + "1" * 32 + "-" + "1" * 16 + "-01-{secret}", "cc-" + "1" * 32 + "-" + "1" * 16 + "-01-{secret}",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01" + " " * 4_000, "\xff" * 55, "{secret}" * 500,
    )
]  # fmt: skip
STATES = ("", "{secret}", "a={secret}", "=,=,=", ",".join(f"k{n}=v" for n in range(500)), "k=" + "v" * 8_000)
BAGGAGE = (
    "{secret}",
    "user={secret}",
    "=;=,;",
    ",".join(f"k{n}=v" for n in range(2_000)),
    "k=%ff%00",
    "\xff\xfe",
)


@pytest.mark.reliability("abuse", "Invalid traceparent, tracestate and baggage headers, alone and together")
async def test_trace_context_of_strangers_does_no_harm(
    attacked: Any, receiver: Any, result: Callable[[str], None]
) -> None:
    valid = ("traceparent", "00-" + "2" * 32 + "-" + "3" * 16 + "-01")
    cases = [
        *([each] for each in CONTEXTS),
        *([valid, ("tracestate", state)] for state in STATES),
        *([valid, ("baggage", baggage)] for baggage in BAGGAGE),
        [valid, valid],
        [valid, ("traceparent", "00-" + "4" * 32 + "-" + "5" * 16 + "-01")],
        [*CONTEXTS, *(("tracestate", state) for state in STATES), *(("baggage", each) for each in BAGGAGE)],
    ]
    async with attacked() as target:
        requests = []
        for headers in cases:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
            text = f"GET / HTTP/1.1\r\nhost: a\r\n{lines}connection: close\r\n\r\n"
            requests.append(text.replace("{secret}", target.secret).encode("latin-1"))
        answers = await target.say_all(requests)
        assert Counter(answer.status for answer in answers) == {200: len(requests)}
    roots = [span for span in receiver.spans if span.name == "GET /"]
    assert len(roots) == len(requests)
    strange = {"1" * 32, "2" * 32, "4" * 32}
    assert not strange & {span.trace_id for span in receiver.spans}, "nobody chooses our trace's id"
    linked = sum(bool(span.links) for span in roots)
    result(
        f"all {len(requests)} answered 200, each in a trace of its own; {linked} of them linked to what was valid"
    )


@pytest.mark.reliability("abuse", "Huge query strings and bodies, bodies without an end, lengths that lie")
async def test_too_much_is_refused(attacked: Any, result: Callable[[str], None]) -> None:
    async with attacked(REQUEST_TIMEOUT=3) as target:
        secret: bytes = target.secret.encode()

        def post(headers: bytes, body: bytes) -> bytes:
            return (
                b"POST /completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
                + headers
                + b"\r\n"
                + body
            )

        def query(size: int) -> bytes:
            filler = (secret * (size // len(secret) + 1))[:size]
            return (
                b"GET /exports/usage.csv?user="
                + filler
                + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            )

        big = b'{"user": "ann", "prompt": "' + secret * 20_000 + b'"}'
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        chunked = b"transfer-encoding: chunked\r\n"
        cases: dict[str, tuple[bytes, set[int]]] = {
            "a query of 60 KB": (query(60_000), {422}),
            "a query of 1 MB": (query(1_000_000), {0, 400}),
            "a body of 440 KB": (post(b"content-length: %d\r\n" % len(big), big), {0, 413}),
            "20 MB in chunks": (post(chunked, chunk * 300), {0, 413}),
            "chunks without an end": (post(chunked, b"1\r\nx\r\n"), {0}),
            "a chunk of a bad size": (post(chunked, b"zz\r\nx\r\n"), {0, 400}),
            "a chunk of 2^64 bytes": (post(chunked, b"ffffffffffffffff0\r\nx"), {0, 400}),
            "less than its length": (post(b"content-length: 100\r\n", b"{"), {0}),
            "a length below 0": (post(b"content-length: -1\r\n", b""), {400}),
            "a length of 30 digits": (post(b"content-length: " + b"9" * 30 + b"\r\n", b"x"), {400}),
            "two lengths": (post(b"content-length: 1\r\ncontent-length: 2\r\n", b"xx"), {400}),
            "a length and chunks": (post(b"content-length: 4\r\n" + chunked, b"0\r\n\r\n"), {400}),
            "deep JSON": (post(b"content-length: 200000\r\n", b"[" * 200_000), {400, 422}),
            "no JSON": (post(b"content-length: 8\r\n", b"\xff\xfe\x00\x01\xff\xfe\x00\x01"), {400, 422}),
            "a huge number": (post(b"content-length: 100000\r\n", b"9" * 100_000), {400, 422}),
        }
        answers = await target.say_all(request for request, _ in cases.values())
        seen = dict(zip(cases, answers, strict=True))
        wrong = {name: seen[name].raw[:200] for name in cases if seen[name].status not in cases[name][1]}
        assert wrong == {}
    assert target.account["submitted"] == 0
    counted = Counter("cut" if answer.status == 0 else str(answer.status) for answer in answers)
    told = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
    result(f"{len(cases)} requests: {told}; no run was started")
