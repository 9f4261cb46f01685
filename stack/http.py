"""HTTP requests to the services on loopback."""

from __future__ import annotations

import requests

TIMEOUT_S = 10.0


def session() -> requests.Session:
    """Return a session that ignores proxies and ~/.netrc, which are not for loopback services."""
    new = requests.Session()
    new.trust_env = False
    return new


def answers(url: str) -> bool:
    """Return True when the server answers without an error."""
    try:
        return session().get(url, timeout=TIMEOUT_S).ok
    except requests.RequestException:
        return False
