"""Web app of the package below ``/onnx-release``: the pages of releases, and the trigger page.

Airflow's own form cannot be filled in from an address, so ``/onnx-release/trigger?conf=<JSON>`` is another one. All
changes go through Airflow's API, with the rights of the user who is signed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from airflow_onnx.deployment import settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

URL_PREFIX = "/onnx-release"
NO_RIGHT = {
    "title": "You may not see the releases",
    "text": "These pages need the right to read the DAG runs of a release DAG. Ask an administrator.",
}
STATIC = Path(__file__).parent / "static"
# The browser loads only this page's own files: text from the address cannot run as code.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Pages:
    """ASGI app that is built at the first request.

    Every process of Airflow loads the plugins, but only the API server serves pages. The others skip FastAPI's import.
    """

    def __init__(self) -> None:
        self._app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._app is None:
            self._app = make_app()
        await self._app(scope, receive, send)


def make_app() -> FastAPI:
    """Return the app.

    A user who is not signed in is redirected to Airflow's login, and from there back to the page. Each page needs read
    access to the DAG runs of a release DAG, and shows no release of a DAG without it. The static files contain no data
    and need only a signed-in user.
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response

    from airflow_onnx.ui.access import may_read, may_read_moves
    from airflow_onnx.ui.pages import Templates, release_pages
    from airflow_onnx.ui.preflight_page import PreflightPage
    from onnx_release.report.html import TEMPLATES as REPORT_TEMPLATES

    app = FastAPI(title="ONNX release", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.may_read = may_read
    app.state.may_read_its_dag = requires_access_dag("GET", DagAccessEntity.RUN)
    app.state.may_read_moves = may_read_moves
    templates = Templates()

    def serving(path: Path) -> Callable[[], Response]:
        return lambda: FileResponse(path)

    for path in (*STATIC.iterdir(), REPORT_TEMPLATES / "release.css"):
        app.add_api_route(f"/{path.name}", serving(path), response_model=None, dependencies=[Depends(get_user)])
    rights = [Depends(app.state.may_read), Depends(app.state.may_read_moves)]
    app.add_api_route("/trigger", serving(STATIC / "trigger.html"), response_model=None, dependencies=rights)
    app.include_router(PreflightPage(templates).router(), dependencies=rights)
    app.include_router(release_pages(templates).router(app.state.may_read_its_dag), dependencies=rights)

    async def refuse(request: Request, error: Any) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "")
        # Airflow answers 403 also to a cookie that it did not sign, for example after a change of its secret.
        if wants_page and (error.status_code == 401 or error.detail == "Invalid JWT token"):
            return RedirectResponse(login_address(request.scope, str(request.url)))
        if wants_page:
            return templates.page(request, "message.html", error.status_code, can_read=False, **NO_RIGHT)
        return JSONResponse({"detail": error.detail}, status_code=error.status_code)

    app.add_exception_handler(401, refuse)
    app.add_exception_handler(403, refuse)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Any) -> Any:
        if problem := foreign_request(request.method, request.headers):
            answer: Response = JSONResponse({"detail": problem}, status_code=403)
        else:
            answer = await call_next(request)
        answer.headers.update(HEADERS)
        return answer

    return app


def foreign_request(method: str, headers: Mapping[str, str]) -> str:
    """Return the reason why a request that changes something may come from another site, or an empty text.

    A browser sends the user's cookie along. Another site can send forms without the user's knowledge, and no JSON.
    """
    if method in ("GET", "HEAD"):
        return ""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "Send JSON."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "Send the request from the pages of this server."
    origin = headers.get("origin")
    hosts = {headers.get("host", ""), urlsplit(settings.airflow_url()).netloc}
    if origin is not None and urlsplit(origin).netloc not in hosts - {""}:
        return "Send the request from the pages of this server."
    return ""


def login_address(scope: Any, page: str) -> str:
    """Return the address of Airflow's login that leads back to `page`, below the path that Airflow is served at."""
    base = str(scope.get("root_path", "")).removesuffix(URL_PREFIX)
    return f"{base}/api/v2/auth/login?{urlencode({'next': page})}"
