"""The settings of the service and of its partner, read from the environment."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import httpx
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from outlive_service.origins import Origin, read_origin
from outlive_service.store import database_url

S = TypeVar("S", bound=BaseSettings)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(ValueError):
    """One or more settings are wrong; the message names each, its value, and what would be right."""


def _http_url(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL:
        raise ValueError("not a URL") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError("not an address such as http://127.0.0.1:8001")
    return value.rstrip("/")


def _known_database(value: str) -> str:
    database_url(value)
    return value


def _origins(value: object) -> object:
    if not isinstance(value, str):
        return value
    origins = {text.strip(): read_origin(text.strip()) for text in value.split(",")}
    wrong = [text for text, origin in origins.items() if origin is None]
    if wrong:
        raise ValueError(f"not an origin such as https://chat.example.org: {', '.join(map(repr, wrong))}")
    return frozenset(origins.values())


def _folder(value: str) -> str:
    if not re.fullmatch(r"/(\w[\w.~-]*/)+", value, re.ASCII):
        raise ValueError("not a path such as /outlive/")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
DatabaseUrl = Annotated[str, AfterValidator(_known_database)]
Origins = Annotated[frozenset[Origin], NoDecode, BeforeValidator(_origins)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Pause = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class Settings(BaseSettings):
    """The service's settings. Each is read from the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    # Where it listens, and how long the world around it waits.
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: Port = Field(default=8000, description="The TCP port to listen on; 0 takes a free one.")
    graceful_timeout: int | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="Whole seconds that uvicorn lets open connections end by themselves before it cancels"
        " their handlers; unset: without a limit.",
    )
    stop_grace: Seconds = Field(
        default=30.0,
        description="Seconds between the orchestrator's SIGTERM and its SIGKILL (Docker's stop_grace_period,"
        " Kubernetes' terminationGracePeriodSeconds).",
    )
    shutdown_delay: Pause = Field(
        default=0.0,
        description="Seconds to serve on after SIGTERM with a red readiness, so that load balancers can go"
        " elsewhere first.",
    )
    ws_ping_interval: Seconds = Field(
        default=20.0, description="Seconds between two pings to a WebSocket client."
    )
    ws_ping_timeout: Seconds = Field(
        default=20.0,
        description="Seconds without an answer to a ping after which a WebSocket client counts as lost.",
    )
    keep_alive_timeout: int = Field(
        default=5, ge=1, le=86_400, description="Whole seconds that a client may idle between two requests."
    )
    request_timeout: Seconds = Field(
        default=30.0,
        description="Seconds that a client has to send a whole request, or the handshake of a WebSocket.",
    )
    max_head: Count = Field(default=65_536, description="Bytes of the head of a request, at most.")
    ws_max_size: Count = Field(
        default=65_536,
        description="Bytes of one WebSocket message, at most; who sends more is closed with 1009.",
    )
    allowed_origins: Origins = Field(
        default=frozenset(),
        description="Other origins whose pages may open WebSockets, such as https://chat.example.org, with"
        " commas in between; pages of this service's own host always may.",
    )

    # Outlive's pages (/metrics, /healthz, /readyz, /outlive/), and who may read them.
    pages_host: str = Field(
        default="127.0.0.1", description="The address of Outlive's pages, where PAGES_PORT is set."
    )
    pages_port: Port | None = Field(
        default=None,
        description="The TCP port of Outlive's pages, which then aren't at PORT any more; 0 takes a free one.",
    )
    pages_token: SecretStr | None = Field(
        default=None,
        description="The token that /metrics and the live page ask for, of at least 16 characters;"
        " unset: whoever reaches them may read them.",
    )
    pages_protect_health: bool = Field(
        default=False, description="Whether /healthz and /readyz ask for PAGES_TOKEN too."
    )

    # Outlive's bounds.
    drain_timeout: Seconds = Field(default=20.0, description="Seconds that the whole drain may take.")
    cancel_grace: Seconds = Field(
        default=1.0, description="Seconds that a cancelled run gets to end before it counts as stuck."
    )
    max_running: Count = Field(default=1_000, description="Runs that execute at once, at most.")
    max_pending: int = Field(
        default=10_000, ge=0, le=10_000_000, description="Runs that wait for a slot, at most."
    )
    max_connections: Count = Field(
        default=20_000,
        description="WebSockets, streams and requests that are open at once, at most; what comes on top is"
        " answered 503. Each needs a file descriptor (ulimit -n).",
    )

    # How long the runs of each task wait and execute.
    max_wait: Seconds = Field(
        default=60.0,
        description="Seconds that a run which saves, tells or charges waits for its slot, at most: time to work"
        " off what thousands leave behind who go at once.",
    )
    save_timeout: Seconds = Field(
        default=10.0,
        description="Seconds for save_transcript and save_answer, each; more than SQLite's 4 s for a lock.",
    )
    notify_timeout: Seconds = Field(default=3.0, description="Seconds for notify_partner.")
    bill_timeout: Seconds = Field(
        default=18.0,
        description="Seconds for bill_tokens: the wait for the save, every attempt, and the note of it.",
    )
    page_timeout: Seconds = Field(default=10.0, description="Seconds to read one page of an export.")
    release_timeout: Seconds = Field(default=10.0, description="Seconds for release_export.")

    # Rooms.
    departure_grace: Pause = Field(
        default=3.0,
        description="Seconds that a user has to come back before the room is told that they left.",
    )
    departures_max_running: Count = Field(
        default=100,
        description="Departures that wait for a user's return in a slot of their own, at most; of more, the"
        " time in line counts.",
    )
    room_max_members: Count = Field(default=1_000, description="Sessions in one room, at most.")
    room_max_lines: Count = Field(
        default=1_000, description="Lines of one session, at most; it is closed after them."
    )
    room_queue: Count = Field(
        default=256,
        description="Messages that wait for one member, at most; who falls further behind is closed"
        " with 1013.",
    )

    # Completions.
    upstream_url: HttpUrl = Field(
        default="http://127.0.0.1:8001", description="The address of an OpenAI-compatible API, without /v1."
    )
    upstream_api_key: SecretStr | None = Field(
        default=None, description="The API key for the upstream, if it wants one."
    )
    upstream_model: str = Field(default="outlive-demo", description="The model to ask the upstream for.")
    upstream_read_timeout: Seconds = Field(
        default=30.0, description="Seconds between two tokens of the upstream, at most."
    )
    max_tokens: Count = Field(default=1_024, description="Tokens of one answer, at most.")
    max_prompt: Count = Field(default=16_000, description="Characters of one prompt, at most.")

    # The partner and the HTTP client for it and the upstream.
    partner_url: HttpUrl = Field(default="http://127.0.0.1:8001", description="The address of the partner.")
    partner_max_running: Count = Field(
        default=100,
        description="Runs of each task that calls the partner which execute at once, at most, so that a"
        " hanging partner can't take every connection.",
    )
    charge_timeout: Seconds = Field(default=2.0, description="Seconds for one attempt to charge.")
    charge_attempts: int = Field(default=3, ge=1, le=20, description="Attempts to charge, at most.")
    http_connect_timeout: Seconds = Field(
        default=2.0, description="Seconds to connect to the upstream or the partner."
    )
    http_read_timeout: Seconds = Field(default=10.0, description="Seconds without a byte from the partner.")
    http_write_timeout: Seconds = Field(default=5.0, description="Seconds to send a part of a request.")
    http_pool_timeout: Seconds = Field(default=5.0, description="Seconds to wait for a free connection.")
    http_max_connections: Count = Field(
        default=500, description="Connections to the upstream and the partner together, at most."
    )
    http_max_keepalive: Count = Field(
        default=100, description="Idle connections kept for the next request, at most."
    )
    http_keepalive: Seconds = Field(
        default=2.0,
        description="Seconds that an idle connection is kept; less than the partner keeps it, or a request may"
        " meet its end.",
    )

    # Exports and the database.
    export_page: Count = Field(
        default=500, description="Rows that an export reads from the database at once."
    )
    export_page_interval: Pause = Field(
        default=0.0, description="Seconds between two pages of an export, to spare the database."
    )
    database_url: DatabaseUrl = Field(
        default="sqlite+aiosqlite:///outlive.db",
        description="The database: sqlite:///file or postgresql://user:password@host/name.",
        repr=False,
    )
    database_pool: Count = Field(
        default=5,
        description="Connections to the database, at most, and so runs of each task that saves which execute at once.",
    )

    # Telemetry.
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="json, console, or auto: console on a terminal and json elsewhere."
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
    ] = Field(default="info", description="The lowest level that is logged.")
    final_metrics_file: Path | None = Field(
        default=None,
        description="A file for the metrics as they are when the process has closed, since its last seconds"
        " are never scraped.",
    )
    live: bool | None = Field(
        default=None,
        description="Whether there is a live page; unset: only in development, which is where the log goes to"
        " a terminal and the address can't be reached from another machine.",
    )
    live_path: Annotated[str, AfterValidator(_folder)] = Field(
        default="/outlive/", description="Where the live page is, such as /outlive/."
    )
    live_viewers: Count = Field(default=20, description="Viewers of the live page at once, at most.")
    jaeger_ui_url: HttpUrl | None = Field(
        default=None,
        description="The address that browsers have for Jaeger, for a link from each disconnect flow to its trace.",
    )
    trust_clients: bool = Field(
        default=False,
        description="Whether to continue the traces that clients tell (traceparent), instead of linking to them.",
    )
    flows_kept: Count = Field(
        default=200, description="Finished disconnect flows that stay in memory for the live page, at most."
    )

    @property
    def shows_live(self) -> bool:
        """Whether there is a live page."""
        if self.live is not None:
            return self.live
        host = self.host if self.pages_port is None else self.pages_host
        return host in LOOPBACK and sys.stdout.isatty()


class PartnerSettings(BaseSettings):
    """The partner's settings. Each is read from the variable PARTNER_ and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="PARTNER_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: Port = Field(default=8001, description="The TCP port to listen on; 0 takes a free one.")
    seed: int = Field(default=0, description="The seed of the faults.")
    max_records: Count = Field(
        default=100_000, description="Requests kept in the record, at most; one more is answered with 507."
    )
    hang_limit: Seconds = Field(
        default=60.0, description="Seconds after which a hang ends although the caller waits on."
    )
    max_tokens: Count = Field(default=4_096, description="Tokens of one completion, at most.")

    token_interval: Pause = Field(default=0.02, description="Seconds between two tokens of a completion.")
    completions_latency: Pause = Field(
        default=0.0, description="Seconds before the first token of a completion."
    )
    completions_error_rate: Rate = Field(default=0.0, description="Share of completions that fail, 0 to 1.")
    completions_hang_rate: Rate = Field(default=0.0, description="Share of completions that hang, 0 to 1.")
    completions_reset_rate: Rate = Field(
        default=0.0, description="Share of completions that end by a TCP reset, 0 to 1."
    )
    notices_latency: Pause = Field(default=0.0, description="Seconds before a notice is answered.")
    notices_error_rate: Rate = Field(default=0.0, description="Share of notices that fail, 0 to 1.")
    notices_hang_rate: Rate = Field(default=0.0, description="Share of notices that hang, 0 to 1.")
    notices_reset_rate: Rate = Field(
        default=0.0, description="Share of notices that end by a TCP reset, 0 to 1."
    )
    charges_latency: Pause = Field(default=0.0, description="Seconds before a charge is answered.")
    charges_error_rate: Rate = Field(default=0.0, description="Share of charges that fail, 0 to 1.")
    charges_hang_rate: Rate = Field(default=0.0, description="Share of charges that hang, 0 to 1.")
    charges_reset_rate: Rate = Field(
        default=0.0, description="Share of charges that end by a TCP reset, 0 to 1."
    )


def load_settings(kind: type[S]) -> S:
    """Read settings of the given kind from the environment.

    Raises:
        SettingsError: at least one is wrong; its message is meant to be shown as it is.
    """
    try:
        return kind()
    except ValidationError as error:
        problems = [_problem(kind, details) for details in error.errors(include_url=False)]
    # Outside the except block: the ValidationError repeats every value, also those that must stay secret.
    raise SettingsError("\n".join(problems))


def _problem(kind: type[BaseSettings], details: ErrorDetails) -> str:
    name = str(details["loc"][0])
    field = kind.model_fields[name]
    # An address may hold a password too, before its "@".
    hidden = field.annotation == SecretStr | None or not field.repr or "@" in str(details["input"])
    value = "has a wrong value (not shown)" if hidden else f"is {json.dumps(details['input'], default=str)}"
    message = details["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return f"{kind.model_config['env_prefix']}{name}".upper() + f" {value}: {message}. {field.description}"
