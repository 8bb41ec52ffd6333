"""The path template of the route that took a connection."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Match, Mount

from outlive.connections import UNMATCHED


class RouteTemplates:
    """Finds the template of a scope that the router has been through. Never the raw path, which clients choose."""

    def __init__(self) -> None:
        self._contexts: dict[int, list[RouteContext]] = {}

    def of(self, scope: MutableMapping[str, Any], routes: Iterable[BaseRoute], root_path: str) -> str | None:
        """The template, or None if the router hasn't chosen (yet).

        `routes` are the whole app's, and `root_path` is the scope's from before the router saw it: a mounted app's
        routes know nothing of the mount.
        """
        route = scope.get("route")
        mounted = scope.get("root_path", "")[len(root_path) :]
        if route is None and not mounted:
            return None
        prefix = _mount_template(routes, mounted) if mounted else ""
        if prefix is None:
            return UNMATCHED
        if route is None or isinstance(route, Mount):
            return prefix + "/{path}"
        return prefix + self._path(route, scope)

    def _path(self, route: BaseRoute, scope: MutableMapping[str, Any]) -> str:
        # A router can be included several times, under other prefixes; its route object is the same each time.
        contexts = self._contexts.get(id(route))
        if contexts is None:
            app_routes = getattr(scope.get("app"), "routes", [])
            contexts = [c for c in iter_route_contexts(app_routes) if c.original_route is route]
            contexts = self._contexts[id(route)] = contexts or [RouteContext(route)]
        if len(contexts) > 1:
            contexts = [c for c in contexts if c.matches(scope)[0] is not Match.NONE] or contexts
        return contexts[0].path_format or UNMATCHED


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
            return mount.path + inner
    return None
