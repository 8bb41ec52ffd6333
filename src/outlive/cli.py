"""The command `outlive`."""

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

try:
    import typer
except ModuleNotFoundError as missing:  # the library without its extras
    sys.exit(f"the command line needs {missing.name}: pip install 'outlive[service]'")

if TYPE_CHECKING:
    from rich.console import RenderableType

    from outlive_service.demo import Demo
    from outlive_service.settings import Settings
    from outlive_service.storm import Aftermath

Named = TypeVar("Named")

logger = logging.getLogger("outlive_service")
app = typer.Typer(
    name="outlive",
    help="Async work that must outlive its connection: finished, bounded and visible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WRONG_SETTINGS = 2
"""The exit status for what is wrong with the caller's words or settings."""
LOOK_INTERVAL = 0.5
"""Seconds from one look at the service to the next."""

Clients = Annotated[int, typer.Option(min=1, max=20_000, help="Simulated people.")]
Seed = Annotated[int | None, typer.Option(help="Makes the people's choices repeatable.")]
Seconds = Annotated[
    float | None, typer.Option(min=0.1, help="End after so many seconds; without it, at Ctrl-C.")
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="BEHAVIOUR=N", help="How often a behaviour is chosen; repeatable."),
]


def fail(message: str, status: int = WRONG_SETTINGS) -> NoReturn:
    """Say what is wrong and leave."""
    typer.echo(message, err=True)
    raise typer.Exit(status)


def reserve_connections(settings: "Settings") -> None:
    """Make sure that the service may have as many connections as its settings allow.

    Raises:
        DescriptorsError: the system doesn't let it.
    """
    from outlive_service.descriptors import reserve

    outward = settings.http_max_connections + settings.database_pool
    reserve(
        settings.max_connections + outward,
        f"max_connections {settings.max_connections:,} (with {outward:,} to the partner and the database)",
    )


@app.command()
def serve() -> None:
    """Run the service. Its settings are environment variables: see `outlive check`."""
    from outlive.errors import OutliveError
    from outlive_service.app import service
    from outlive_service.descriptors import DescriptorsError
    from outlive_service.server import serve as run
    from outlive_service.settings import Settings, SettingsError, load_settings

    try:
        settings = load_settings(Settings)
        application = service(settings)
    except (SettingsError, OutliveError) as error:
        fail(str(error))
    try:
        reserve_connections(settings)
    except DescriptorsError as error:
        # It may never have so many connections; when it has, the system refuses the next one.
        logger.warning("%s", error)
    run(
        application,
        host=settings.host,
        port=settings.port,
        graceful_timeout=settings.graceful_timeout,
        shutdown_delay=settings.shutdown_delay,
        ws_ping_interval=settings.ws_ping_interval,
        ws_ping_timeout=settings.ws_ping_timeout,
        ws_max_size=settings.ws_max_size,
        keep_alive_timeout=settings.keep_alive_timeout,
        request_timeout=settings.request_timeout,
        max_head=settings.max_head,
        pages=None if settings.pages_port is None else (settings.pages_host, settings.pages_port),
    )


@app.command()
def partner() -> None:
    """Run the partner: the outside API that the service calls, with faults to order (PARTNER_* variables)."""
    from outlive.errors import OutliveError
    from outlive_service.partner import service as application
    from outlive_service.server import serve as run
    from outlive_service.settings import PartnerSettings, SettingsError, load_settings

    try:
        settings = load_settings(PartnerSettings)
        run(application(settings), host=settings.host, port=settings.port, graceful_timeout=1)
    except (SettingsError, OutliveError) as error:
        fail(str(error))


@app.command()
def check() -> None:
    """Check the settings and the budgets of a stop. The exit status is 0 only if they can work."""
    from prometheus_client import CollectorRegistry

    from outlive.errors import OutliveError
    from outlive_service.app import create_app
    from outlive_service.descriptors import DescriptorsError
    from outlive_service.settings import Settings, SettingsError, load_settings

    try:
        settings = load_settings(Settings)
        outlive = create_app(settings, registry=CollectorRegistry()).state.outlive
    except (SettingsError, OutliveError) as error:
        fail(str(error))
    server_grace = float(settings.graceful_timeout or 0)
    typer.echo(
        f"a stop takes at most {settings.shutdown_delay + server_grace + settings.drain_timeout:g} s: shutdown_delay "
        f"{settings.shutdown_delay:g} s + graceful_timeout {server_grace:g} s + drain_timeout {settings.drain_timeout:g} s; "
        f"the process is killed after {settings.stop_grace:g} s (stop_grace)"
    )
    for task in outlive.tasks:
        typer.echo(f"task {task.name}: timeout {task.timeout:g} s")
    host, port = (
        (settings.host, settings.port)
        if settings.pages_port is None
        else (settings.pages_host, settings.pages_port)
    )
    typer.echo(
        f"Outlive's pages are at {host}:{port}, health and readiness "
        + ("with the token too" if settings.pages_protect_health else "for anybody who reaches it")
    )
    if settings.pages_token is None:
        typer.echo(
            f"note: pages_token is unset, so whoever reaches {host}:{port} may read the metrics"
            + (" and the live page" if settings.shows_live else "")
        )
    try:
        reserve_connections(settings)
    except DescriptorsError as error:
        typer.echo(f"note: {error}")
    warnings = outlive.warnings()
    if settings.graceful_timeout is None:
        typer.echo("note: graceful_timeout is unset, so uvicorn waits for open streams without a limit")
    for warning in warnings:
        typer.echo(f"wrong: {warning}", err=True)
    if warnings:
        raise typer.Exit(1)
    typer.echo("the settings are fine")


@app.command()
def dashboards(
    out: Annotated[
        Path, typer.Option(help="The folder of the dashboards' files.", metavar="DIR", file_okay=False)
    ] = Path("grafana/dashboards"),
    datasource: Annotated[
        str, typer.Option(help="The uid of your Prometheus data source in Grafana.", metavar="UID")
    ] = "outlive-prometheus",
    compare: Annotated[
        bool,
        typer.Option("--check", help="Write nothing, and exit with 1 if the folder has anything else in it."),
    ] = False,
) -> None:
    """Write the Grafana dashboards, one JSON file each."""
    try:
        from outlive.dashboards import check_dashboards, write_dashboards
    except ModuleNotFoundError as missing:
        fail(f"the dashboards need {missing.name}: pip install 'outlive[dashboards]'")
    if compare:
        problems = check_dashboards(out, datasource)
        for problem in problems:
            typer.echo(problem, err=True)
        if problems:
            fail(
                f"run `outlive dashboards --out {out} --datasource {datasource}` and commit what it writes", 1
            )
        typer.echo(f"the dashboards in {out} are what the code makes")
        return
    try:
        files = write_dashboards(out, datasource)
    except OSError as error:
        fail(f"can't write the dashboards: {error}", 1)
    for file in files:
        typer.echo(file)


@app.command()
def traffic(
    url: Annotated[str, typer.Argument(help="Where the service is, such as http://127.0.0.1:8000.")],
    clients: Clients = 40,
    seed: Seed = None,
    seconds: Seconds = None,
    weight: Weights = None,
    storm: Annotated[
        int | None,
        typer.Option(min=1, help="Instead: open so many WebSockets, and drop them all at the same moment."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --storm: print nothing but what came of it, as JSON.")
    ] = False,
) -> None:
    """Send clients that come, talk and vanish in every way.

    With --storm the exit status is 0 only if everybody was let in and every run that is owed to those who have gone
    has an outcome.
    """
    from outlive_service.traffic import Traffic

    if storm is not None:
        break_storm(url, storm, as_json=as_json)
        return

    async def run() -> None:
        people = Traffic(url, clients, seed, weights=read_weights(weight), remember=False)
        on_signals(people.stop)
        await people.run(seconds)
        numbers = people.numbers
        for behaviour in sorted(numbers.started):
            typer.echo(
                f"{behaviour}: {numbers.started[behaviour]} visits, {numbers.unstarted[behaviour]} not let in"
            )
        if people.gone:
            fail(f"{url} doesn't answer; is the service running?", 1)

    try:
        asyncio.run(run())
    except ValueError as error:
        fail(str(error))


def break_storm(url: str, size: int, *, as_json: bool) -> None:
    """Let one storm break over a service, and tell what came of it."""
    import httpx

    from outlive_service.descriptors import DescriptorsError
    from outlive_service.storm import Storm

    async def run() -> "Aftermath":
        return await Storm(url, size).run()

    try:
        after = asyncio.run(run())
    except (DescriptorsError, ValueError) as error:
        fail(str(error))
    except httpx.HTTPError as error:
        fail(f"{url}/metrics doesn't answer ({type(error).__name__}); is the service running?", 1)
    if as_json:
        typer.echo(json.dumps(after.as_json()))
    else:
        for line in after.lines():
            typer.echo(line)
    for problem in after.errors:
        typer.echo(f"wrong: {problem}", err=True)
    if not after.accounted:
        raise typer.Exit(1)


@app.command()
def demo(
    clients: Clients = 40,
    seed: Seed = None,
    seconds: Seconds = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print nothing but the account, as JSON.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Save the last picture of the terminal as SVG.", dir_okay=False)
    ] = None,
    weight: Weights = None,
) -> None:
    """Run the service, its partner and traffic, look at them live, and draw up the account at the end.

    The exit status is 0 only if every run has its outcome and nothing that the clients are owed is missing or
    doubled in the database and the partner's records.
    """
    from outlive_service.demo import Demo, DemoError

    try:
        play = Demo(clients, seed, read_weights(weight))
        asyncio.run(perform(play, seconds, quiet=as_json, picture=picture))
    except (DemoError, ValueError) as error:
        fail(str(error), 1)
    account = play.account
    if account is None:
        fail("the demo was stopped before there was an account", 1)
    if as_json:
        typer.echo(json.dumps(account.as_json()))
    if not account.balanced:
        raise typer.Exit(1)


@app.command()
def conformance(
    server: Annotated[
        list[str] | None, typer.Option(help="Only servers with this in their names; repeatable.")
    ] = None,
    end: Annotated[
        list[str] | None, typer.Option(help="Only ends with this in their names; repeatable.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Show the other ways at each stop, too, which takes minutes longer."),
    ] = False,
    at_once: Annotated[int, typer.Option(min=1, max=32, help="Servers that run at the same time.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print nothing but the numbers, as JSON.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Play the conformance matrix on real servers: who loses the work after a disconnect, and who doesn't.

    The exit status is 0 only if Outlive keeps every promise in every cell.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    try:
        from outlive_conformance.matrix import End, groups
        from outlive_conformance.play import play
        from outlive_conformance.report import Report
        from outlive_conformance.servers import SERVERS
    except ModuleNotFoundError as missing:
        fail(f"the matrix needs {missing.name}: pip install 'outlive[conformance]'")

    servers = chosen("--server", server, SERVERS)
    missing_servers = [one for one in servers if one.missing]
    for one in missing_servers:
        typer.echo(
            f"left out: {one} needs {', '.join(one.missing)}: pip install 'outlive[conformance]'", err=True
        )
    there = tuple(one for one in servers if one not in missing_servers)
    wanted = list(groups(there, chosen("--end", end, tuple(End)), full=full))
    if not wanted:
        fail("there are no such cells: not every server has every end", 1)
    console = Console(stderr=as_json)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("groups of cells", total=len(wanted))
        verdicts = asyncio.run(play(wanted, at_once=at_once, tell=lambda _: progress.advance(bar)))
    report = Report(verdicts)
    if markdown is not None:
        markdown.write_text(report.markdown())
    if as_json:
        typer.echo(json.dumps(report.numbers()))
    else:
        console.print(report.table())
        console.print(report.summary(), highlight=False)
    for problem in report.problems:
        typer.echo(problem, err=True)
    if report.problems:
        raise typer.Exit(1)


def chosen(option: str, words: list[str] | None, known: tuple[Named, ...]) -> tuple[Named, ...]:
    """Those whose names have one of the words in them; all without words."""
    for word in words or ():
        if not any(word.lower() in str(one).lower() for one in known):
            fail(f"{option} {word}: there are {', '.join(map(str, known))}")
    return tuple(one for one in known if not words or any(word.lower() in str(one).lower() for word in words))


async def perform(play: "Demo", seconds: float | None, *, quiet: bool, picture: Path | None) -> None:
    """Play the demo, with or without a live view."""
    import httpx
    from rich.console import Console
    from rich.live import Live

    from outlive_service.demo import Observatory
    from outlive_service.terminal import account_view, save_picture, view

    console = Console(stderr=quiet)
    last: RenderableType | None = None
    async with play.running():
        on_signals(play.traffic.stop)
        addresses = play.addresses
        began = time.monotonic()
        console.print(
            f"service {addresses.service} (process {addresses.service_pid}), partner {addresses.partner}, "
            f"seed {play.traffic.seed}",
            highlight=False,
        )
        console.print(f"\nopen [bold]{addresses.live}[/bold] in a browser to see it live\n", highlight=False)
        visits = asyncio.create_task(play.traffic.run(seconds))
        observatory = Observatory(addresses.service)
        async with httpx.AsyncClient() as client:
            if quiet:
                await visits
            else:
                flows = max(1, (console.height - 14) // 5)
                with Live(console=console, auto_refresh=False, transient=True) as live:
                    while not visits.done():
                        look = await observatory.look(client)
                        elapsed = time.monotonic() - began
                        live.update(view(addresses, look, elapsed, seconds, flows), refresh=True)
                        if seconds is None or elapsed < seconds:
                            last = view(addresses, look, elapsed, seconds, 4)
                        await asyncio.wait([visits], timeout=LOOK_INTERVAL)
                look = await observatory.look(client)
                console.print(view(addresses, look, time.monotonic() - began, seconds, 3))
            await visits
        console.print(
            "draining …" if not play.traffic.gone else "the service has gone; drawing up the account …"
        )
    if play.account is not None:
        console.print(account_view(play.account))
        if picture is not None and last is not None:
            save_picture(picture, last, account_view(play.account))


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first Ctrl-C or SIGTERM; the second one does what it always does."""
    loop = asyncio.get_running_loop()

    def once() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # no such handlers on Windows
            loop.add_signal_handler(number, once)


def read_weights(words: list[str] | None) -> dict[str, float]:
    """Read BEHAVIOUR=N.

    Raises:
        ValueError: what isn't of that form.
    """
    weights = {}
    for word in words or ():
        name, equals, number = word.partition("=")
        if not equals:
            raise ValueError(f"--weight takes BEHAVIOUR=N, such as room-abort=3, not {word!r}")
        weights[name] = float(number)
    return weights


def main() -> None:
    """Run the command line."""
    app()
