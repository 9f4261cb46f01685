"""Output at the end of the demo: the released version and its figures, from the tasks' records."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from stack.context import Context
from stack.release import Outcome


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the released model, its parity per output and its latency per batch size."""
    console.print(_facts(outcome))
    console.print(_parity(outcome.benchmark["parity"]))
    if outcome.benchmark["latency"]:
        console.print(_latency(outcome.benchmark["latency"]))


def print_addresses(console: Console, context: Context) -> None:
    """Print the addresses and logins of the services."""
    secrets = context.credentials
    table = Table("address", "login", title="Services", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_row(f"Airflow  {context.airflow_url}", f"{secrets.airflow_username} / {secrets.airflow_password}")
    table.add_row(f"MLflow   {context.mlflow_url}", "")
    table.add_row(f"MinIO    {context.minio_url}", f"{secrets.minio_access_key} / {secrets.minio_secret_key}")
    console.print(table)
    console.print(f"Exports for a shell: source {context.layout.env_file}")


def _facts(outcome: Outcome) -> Table:
    artifact, version = outcome.artifact, outcome.version
    # Folded, never cut: people copy these values.
    table = Table(title="Released", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "training run": outcome.training_run_id,
        "sha256": artifact["sha256"],
        "size": f"{_size(artifact['size_bytes'])} in {len(artifact['files'])} files",
        "opset": f"{artifact['opset']} (IR {artifact['ir_version']})",
        "strategy": f"{artifact['strategy']} on {artifact['device']}, {artifact['export_wall_s']:.1f} s",
        "object": outcome.uploaded["uri"],
        "model": version["name"],
        "version": str(version["version"]),
        "alias": version["alias"] or version["alias_note"],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parity(parity: Any) -> Table:
    sizes = ", ".join(str(size) for size in parity["batch_sizes"])
    title = f"Parity with PyTorch, worst value of all samples (batch sizes {sizes})"
    table = Table(
        "output", "MAE", "max abs", "max rel", "cosine", title=title, title_justify="left", box=box.SIMPLE_HEAD
    )
    for output in dict.fromkeys(row["output"] for row in parity["comparisons"]):
        rows = [row for row in parity["comparisons"] if row["output"] == output]
        worst = [_extreme(rows, measure, max) for measure in ("mae", "max_abs", "max_rel")]
        table.add_row(
            output, *(_number(value, "{:.1e}") for value in worst), _number(_extreme(rows, "cosine", min), "{:.8f}")
        )
    return table


def _latency(latency: Any) -> Table:
    threads, device = latency["threads"], latency["device"]
    verdict = f"{latency['verdict']}, goal reached" if latency["goal_reached"] else latency["verdict"]
    title = f"Latency in ms, {threads} threads on {device}: {latency['host']['cpu_model']} (verdict: {verdict})"
    columns = ("batch", "PyTorch p50", "p95", "ONNX Runtime p50", "p95", "speedup", "interval", "rounds")
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for batch in latency["batches"]:
        sides = [batch[side][measure] for side in ("reference", "candidate") for measure in ("p50_ms", "p95_ms")]
        interval = f"{batch['speedup_low']:.2f} to {batch['speedup_high']:.2f} ({batch['confidence']:.0%})"
        times = [f"{value:.2f}" for value in sides]
        table.add_row(str(batch["batch_size"]), *times, f"{batch['speedup']:.2f}x", interval, str(batch["rounds"]))
    return table


def _extreme(rows: list[Any], measure: str, pick: Any) -> float | None:
    """Return the worst value; None when a sample was not measured."""
    values = [row["measures"][measure] for row in rows]
    return None if None in values else float(pick(values))


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.2f} kB"
