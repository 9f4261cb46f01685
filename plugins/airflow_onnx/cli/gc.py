"""Command ``airflow onnx-release gc``: files and records that a crash left behind, listed or removed."""

from __future__ import annotations

import argparse
import os
import sys

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_onnx.cli import dag_run_states, printed
from airflow_onnx.deployment import settings
from airflow_onnx.leftovers import table
from airflow_onnx.leftovers.collect import collect
from onnx_release.errors import ReleaseError

# As of `airflow onnx-release check`.
NOTHING_LEFT, LEFT, NOT_MADE = 0, 1, 2


@suppress_logs_and_warning
@providers_configuration_loaded
def gc(args: argparse.Namespace) -> None:
    """Print the leftovers. The exit status is 0 if none is left, 1 if some are, and 2 if the search failed."""
    # As in `cli.plan`.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        found = collect(
            bucket=args.bucket or settings.bucket(),
            prefix=args.prefix.strip("/") if args.prefix is not None else settings.prefix(),
            mlflow_conn_id=args.mlflow_conn_id,
            s3_conn_id=args.s3_conn_id,
            grace_h=args.grace_hours,
            dry_run=not args.delete,
            dag_state=dag_run_states.state,
        )
    except (ReleaseError, AirflowNotFoundException) as error:
        sys.stderr.write(f"gc: {error}\nNothing was removed.\n")
        sys.exit(NOT_MADE)
    hint = ["To remove them: --delete."] if found.dry_run and found.leftovers else []
    printed.write(
        printed.Result(
            document=found.to_dict(),
            lines=[*table.lines(found), *hint],
            rows=table.rows(found),
            total=table.result(found),
        ),
        "json" if args.json else args.output,
    )
    sys.exit(LEFT if found.left else NOTHING_LEFT)
