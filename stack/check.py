"""Check of the deployment as one line: the API server makes it, which has loaded everything that it needs."""

from __future__ import annotations

import requests
from rich.console import Console

from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.errors import StackError

PATH = "/onnx-release/check"
# The command for the whole table, in a shell that has sourced the stack's variables.
COMMAND = "airflow onnx-release check"


def print_check(console: Console, context: Context) -> None:
    """Print the number of checks that are ok, or the first problem and the command that lists all."""
    try:
        response = AirflowApi(context).call_page("POST", PATH, {})
        answer = response.json() if response.ok else {}
    except (StackError, requests.RequestException, ValueError):
        answer = {}
    if "short" not in answer:
        console.print(f"check: not made. Run: {COMMAND}")
        return
    more = "" if answer["state"] == "ok" else f". Run: {COMMAND}"
    console.print(f"check: {answer['short']}{more}", markup=False, highlight=False, soft_wrap=True)
