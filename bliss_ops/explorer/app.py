"""The explorer as an application: its routes, and how a page becomes HTML.

Made by `create_app` for two places: inside Airflow's API server, behind its authentication, and alone on 127.0.0.1. Handlers of pages run
in the server's threads and take milliseconds; statements of the console run outside the server and only wait here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from bliss_ops import __version__
from bliss_ops.explorer import figures
from bliss_ops.explorer.console import BusyError, Console, Limits
from bliss_ops.explorer.guard import Authorize, Guard, is_own_page
from bliss_ops.explorer.pages import FILTERS, NotFoundError, Page, Pages
from bliss_ops.explorer.snapshots import NoSnapshotError, Snapshots
from bliss_ops.lake import Lake

HERE = Path(__file__).parent
STATIC = {"explorer.css": "text/css", "explorer.js": "text/javascript", "icon.svg": "image/svg+xml", "icon-dark.svg": "image/svg+xml"}
OLDER = "The store was published by another version of this package and lacks what this page reads: run `bliss store rebuild`."
EVERY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
Order = Literal["score", "worst", "documents", "tokens", "kept", "name"]  # facts.LEADERBOARD_ORDERS
PageNumber = Query(1, ge=1, le=100_000)
Part = Query("", max_length=200)
Least = Query(0, ge=0, le=10**9)


def create_app(
    lake: Lake, *, authorize: Authorize | None = None, hosts: tuple[str, ...] | None = None, limits: Limits | None = None
) -> FastAPI:
    """The explorer of one lake.

    Args:
        lake: what it shows.
        authorize: raises for whoever may not come in; None where the server is on loopback only.
        hosts: names the server answers to; None for all (a server behind Airflow's own).
        limits: what one statement of the console may take.
    """
    import duckdb

    limits = limits or Limits()
    snapshots = Snapshots(lake)
    pages, console = Pages(lake, snapshots), Console(snapshots, limits)
    show = _renderer(lake)
    # No self-description for strangers, and no redirects that answer before the guard's 404 would.
    app = FastAPI(title="BLISS explorer", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, authorize=authorize, hosts=hosts)

    @app.get("/")
    def home(request: Request, corpus: str = "", kind: str = "", page: int = PageNumber) -> Response:
        return show(request, "home.html", pages.home(corpus or None, kind or None, page))

    @app.get("/run/{score_run_id:path}")
    def run(request: Request, score_run_id: str) -> Response:
        return show(request, "run.html", pages.run(score_run_id))

    @app.get("/examples/{score_run_id:path}")
    def examples(request: Request, score_run_id: str, category: str = "sides") -> Response:
        return show(request, "examples.html", pages.examples(score_run_id, category))

    @app.get("/sources/{score_run_id:path}")
    def sources(
        request: Request, score_run_id: str, order: Order = "score", part: str = Part, least: int = Least, page: int = PageNumber
    ) -> Response:
        return show(request, "places.html", pages.places(score_run_id, "source", order, part, least, page))

    @app.get("/domains/{score_run_id:path}")
    def domains(
        request: Request, score_run_id: str, order: Order = "score", part: str = Part, least: int = Least, page: int = PageNumber
    ) -> Response:
        return show(request, "places.html", pages.places(score_run_id, "domain", order, part, least, page))

    @app.get("/rounds/{score_run_id:path}")
    def rounds(request: Request, score_run_id: str) -> Response:
        return show(request, "rounds.html", pages.rounds(score_run_id))

    @app.get("/beside/{score_run_id:path}")
    def beside(request: Request, score_run_id: str, other: str = "") -> Response:
        return show(request, "beside.html", pages.beside(score_run_id, other or None))

    @app.get("/overlap")
    def overlap(request: Request) -> Response:
        return show(request, "overlap.html", pages.overlap())

    @app.get("/document/{corpus}/{document_id}")
    def document(request: Request, corpus: str, document_id: int, whole: bool = False) -> Response:
        return show(request, "document.html", pages.document(corpus, document_id, whole=whole))

    @app.get("/dag/{dag_id}")
    def dag(request: Request, dag_id: str) -> Response:
        return show(request, "dag.html", pages.of_dag(dag_id))

    @app.get("/sql")
    def sql(request: Request) -> Response:
        return show(request, "sql.html", pages.sql() | {"limits": limits})

    @app.post("/sql/{action}")
    async def ask(request: Request, action: Literal["run", "csv", "cancel"]) -> Response:
        if not is_own_page(request):
            raise HTTPException(403, "Statements are only taken from the console's own page")
        statement, identifier = await _read_question(request, limits.statement_bytes)
        if action == "cancel":
            return JSONResponse({"cancelled": console.cancel(identifier)})
        answer = await console.run(statement, identifier, as_csv=action == "csv", is_gone=request.is_disconnected)
        if answer.csv is not None:
            headers = {"content-disposition": 'attachment; filename="scores.csv"', "x-bliss-cut": str(answer.fields["is_cut"]).lower()}
            return Response(answer.csv, media_type="text/csv; charset=utf-8", headers=headers)
        return JSONResponse(answer.fields, 400 if "error" in answer.fields else 200)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise NotFoundError(f"there is no file {name}")
        return FileResponse(HERE / "static" / name, media_type=STATIC[name], headers={"cache-control": "private, max-age=3600"})

    @app.api_route("/{path:path}", methods=EVERY_METHOD, include_in_schema=False)
    def nothing(path: str) -> Response:
        raise NotFoundError(f"there is no page /{path}")

    def refuse(request: Request, status: int, title: str, message: str) -> Response:
        if request.method == "POST":
            return JSONResponse({"error": message}, status)
        return show(request, "error.html", {"title": title, "message": message}, status)

    app.add_exception_handler(duckdb.CatalogException, lambda request, error: refuse(request, 500, "An older store", f"{OLDER}\n{error}"))
    app.add_exception_handler(NoSnapshotError, lambda request, error: refuse(request, 404, "No scores yet", str(error)))
    app.add_exception_handler(NotFoundError, lambda request, error: refuse(request, 404, "Not here", f"{error}."))
    app.add_exception_handler(BusyError, lambda request, error: refuse(request, 429, "Busy", str(error)))
    app.add_exception_handler(ValueError, lambda request, error: refuse(request, 400, "Not possible", f"{error}."))
    app.add_exception_handler(RequestValidationError, lambda request, error: refuse(request, 400, "Not possible", _first_error(error)))
    app.add_exception_handler(HTTPException, lambda request, error: refuse(request, error.status_code, "Not possible", f"{error.detail}."))
    return app


def _renderer(lake: Lake) -> Callable[..., Response]:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    environment.globals |= {"share_bar": figures.share, "version": __version__, "lake": str(lake.root)}

    def show(request: Request, template: str, page: Page, status: int = 200) -> Response:
        base = request.scope.get("root_path", "").rstrip("/")
        context = {"base": base, "path": request.url.path.removeprefix(base), **page}
        return HTMLResponse(environment.get_template(template).render(context), status)

    return show


async def _read_question(request: Request, most_bytes: int) -> tuple[str, str]:
    """(statement, identifier) of a POST; the body is bounded before it is parsed."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise HTTPException(413, f"A statement has at most {most_bytes:,} bytes")
    try:
        question: Any = json.loads(body)
        statement, identifier = question.get("statement", ""), question["id"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise HTTPException(400, 'The body is not {"id": ..., "statement": ...}') from None
    if not isinstance(statement, str) or not isinstance(identifier, str):
        raise HTTPException(400, "The statement and its id are text")
    return statement, identifier


def _first_error(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{first['loc'][-1]}: {first['msg']}."
