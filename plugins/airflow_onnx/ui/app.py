"""The page that starts a release with a form filled in from its address: ``/onnx-release/trigger?conf=<JSON>``.

Airflow's own form cannot be filled in from an address. The page only shows a form: it reads the DAG's parameters from
Airflow's API and posts to it, as the user who is signed in and with his rights, and never before a click.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

URL_PREFIX = "/onnx-release"
STATIC = Path(__file__).parent / "static"
# Nothing but this page's own files; what an address carries is data and can never become code.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Pages:
    """An ASGI app that is built with the first request: every process of Airflow loads plugins, one serves them."""

    def __init__(self) -> None:
        self._app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._app is None:
            self._app = make_app()
        await self._app(scope, receive, send)


def make_app() -> FastAPI:
    """Return the pages as an app; whoever is not signed in is sent to Airflow's login and comes back."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response

    app = FastAPI(title="ONNX release", docs_url=None, redoc_url=None, openapi_url=None)
    files = {f"/{path.name}": path for path in STATIC.iterdir()} | {"/trigger": STATIC / "trigger.html"}

    def serving(path: Path) -> Callable[[], Response]:
        return lambda: FileResponse(path, headers=HEADERS)

    for route, path in files.items():
        app.add_api_route(route, serving(path), response_model=None, dependencies=[Depends(get_user)])

    async def sign_in(request: Request, error: Any) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(login_address(request.scope, str(request.url)))
        return JSONResponse({"detail": error.detail}, status_code=error.status_code)

    # 403 is Airflow's answer to a cookie that it did not sign, say from before its secret was changed.
    app.add_exception_handler(401, sign_in)
    app.add_exception_handler(403, sign_in)
    return app


def login_address(scope: Any, page: str) -> str:
    """Return where to sign in and come back from, below the path that Airflow itself is served at."""
    base = str(scope.get("root_path", "")).removesuffix(URL_PREFIX)
    return f"{base}/api/v2/auth/login?{urlencode({'next': page})}"
