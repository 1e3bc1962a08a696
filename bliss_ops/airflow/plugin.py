"""The explorer inside Airflow: an entry in the navigation and a tab on every DAG, behind Airflow's own authentication.

Airflow does not authenticate what plugins serve, so every request passes `authorize` first: whoever may see Airflow's pages and read the
DAG `bliss_round` may see the scores. Plugins are loaded in every process of Airflow, so the explorer itself (duckdb, pyarrow) is only
imported by the first request.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/bliss"
DAG = "bliss_round"  # who may read it may read the scores it makes


async def authorize(request: "Request") -> None:
    """Airflow's own checks, as its API makes them.

    Raises:
        HTTPException: 401 without a valid login, 403 where the user may not read the DAG.
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag, requires_access_view

    user = await get_user(request, None, await bearer_scheme(request))
    for check in (requires_access_view(AccessView.WEBSITE), requires_access_dag("GET", param_dag_id=DAG)):
        await asyncio.to_thread(check, request, user)  # may ask Airflow's database


class LazyExplorer:
    """The explorer of the lake of this server's environment (`BLISS_LAKE`), made when it is first asked for."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._lock: asyncio.Lock | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Hand the request on."""
        if self._app is None:
            self._lock = self._lock or asyncio.Lock()
            async with self._lock:
                if self._app is None:
                    self._app = await asyncio.to_thread(_make)
        app = self._app
        await app(scope, receive, send)


def _make() -> "ASGIApp":
    from bliss_ops.explorer.app import create_app
    from bliss_ops.lake import Lake

    return create_app(Lake.open(), authorize=authorize)


ICONS: dict[str, Any] = {"icon": f"{PREFIX[1:]}/static/icon.svg", "icon_dark_mode": f"{PREFIX[1:]}/static/icon-dark.svg"}


class BlissPlugin(AirflowPlugin):
    """Score explorer."""

    name = "bliss"
    fastapi_apps = [{"app": LazyExplorer(), "url_prefix": PREFIX, "name": "BLISS explorer"}]  # noqa: RUF012 - Airflow reads class attributes
    external_views = [  # noqa: RUF012
        # Without a leading slash, so that they hold where Airflow itself is served below a path.
        {
            "name": "Scores",
            "href": f"{PREFIX[1:]}/",
            "destination": "nav",
            "url_route": "bliss-scores",
            "nav_top_level": True,
            **ICONS,
        },
        {"name": "Scores", "href": f"{PREFIX[1:]}/dag/{{DAG_ID}}", "destination": "dag", "url_route": "bliss-dag-scores", **ICONS},
    ]
