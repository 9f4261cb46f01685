"""Command ``airflow onnx-release retire``: old versions without an alias, listed or deleted with their objects."""

from __future__ import annotations

import argparse
import getpass
import os
import sys

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_onnx.cli import dag_run_states, printed
from airflow_onnx.deployment import settings
from airflow_onnx.retirement import table
from airflow_onnx.retirement.records import RetirementRules
from airflow_onnx.retirement.retire import Reason
from airflow_onnx.retirement.retire import retire as retire_versions
from onnx_release.errors import ReleaseError

# As of `airflow onnx-release gc`.
NOTHING_LEFT, LEFT, NOT_MADE = 0, 1, 2


@suppress_logs_and_warning
@providers_configuration_loaded
def retire(args: argparse.Namespace) -> None:
    """Print the versions. The exit status is 0 if none is left to retire, 1 if some are, 2 if the search failed."""
    # As in `cli.plan`.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    given = {name: getattr(args, name) for name in ("min_age_days", "keep_newest", "keep_previous")}
    try:
        found = retire_versions(
            bucket=args.bucket or settings.bucket(),
            prefix=args.prefix.strip("/") if args.prefix is not None else settings.prefix(),
            mlflow_conn_id=args.mlflow_conn_id,
            s3_conn_id=args.s3_conn_id,
            rules=RetirementRules.from_dict(
                given | {"models": args.model or [], "made_before": args.made_before or ""}
            ),
            reason=Reason(by=_user(), why=args.reason or ""),
            dry_run=not args.delete,
            dag_state=dag_run_states.state,
        )
    except (ReleaseError, AirflowNotFoundException) as error:
        sys.stderr.write(f"retire: {error}\nNothing was deleted.\n")
        sys.exit(NOT_MADE)
    hint = ["To delete them: --delete."] if found.dry_run and found.left else []
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


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run as an account without a name.
        return f"uid {os.getuid()}"
