"""Web page with a release form that is filled in from its address: ``/onnx-release/trigger?conf=<JSON>``.

Airflow's own form cannot be filled in from an address. The page reads the parameters of the DAG from Airflow's API.
On a click it triggers the release over the same API, with the rights of the user who is signed in.
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
    """Return the app. A user who is not signed in is redirected to Airflow's login, and from there back to the page."""
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

    # Airflow answers 403 to a cookie that it did not sign, for example after a change of its secret.
    app.add_exception_handler(401, sign_in)
    app.add_exception_handler(403, sign_in)
    return app


def login_address(scope: Any, page: str) -> str:
    """Return the address of Airflow's login that leads back to `page`, below the path that Airflow is served at."""
    base = str(scope.get("root_path", "")).removesuffix(URL_PREFIX)
    return f"{base}/api/v2/auth/login?{urlencode({'next': page})}"
