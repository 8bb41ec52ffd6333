"""The path template of the route that took a connection."""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match, Mount

from outlive.connections import UNMATCHED

REST = "/{path}"
"""What a mount's template has at its end, for whatever the mounted app makes of it."""


def route_template(
    scope: MutableMapping[str, Any], routes: Callable[[], Iterable[BaseRoute]], root_path: str, *, final: bool
) -> str | None:
    """The template of a scope that the router has been through, or None if the router hasn't chosen yet.

    Never the raw path, which clients choose.

    Parameters:
        scope: the connection's, as the router has left it.
        routes: gives the whole app's.
        root_path: the scope's from before the router saw it; a mounted app's routes know nothing of their mount.
        final: whether the router has done what it can, so that a mount may be all there is to know.
    """
    mounted = scope.get("root_path", "")[len(root_path) :]
    prefix = _mount_template(routes(), mounted) if mounted else ""
    if prefix is None:
        return UNMATCHED
    template = _path_format(scope)
    if template is not None:
        return prefix + template
    return prefix + REST if mounted and final else None


def _path_format(scope: MutableMapping[str, Any]) -> str | None:
    # FastAPI leaves here what a router that was included under a prefix looks like from the app.
    effective = scope.get("fastapi", {}).get("effective_route_context")
    route = scope.get("route")
    if effective is not None and effective.original_route is route:
        route = effective
    if route is None and "endpoint" in scope:
        # FastAPI's router doesn't name a route of Starlette's own, such as that of its /docs.
        for context in iter_route_contexts(getattr(scope.get("app"), "routes", [])):
            if context.endpoint is scope["endpoint"] and context.matches(scope)[0] is not Match.NONE:
                return context.path_format
    return None if isinstance(route, Mount) else getattr(route, "path_format", None)


def _mount_template(routes: Iterable[BaseRoute], mounted: str) -> str | None:
    for context in iter_route_contexts(list(routes)):
        mount = context.original_route
        if not isinstance(mount, Mount):
            continue
        match = mount.path_regex.match(mounted + "/")
        if match is None:
            continue
        rest = match.group("path").rstrip("/")
        inner = _mount_template(mount.routes, "/" + rest) if rest else ""
        if inner is not None:
            return mount.path_format.removesuffix(REST) + inner
    return None
