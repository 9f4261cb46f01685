"""Hooks of the documentation site: pages from the repository's root, pages of the API, links that leave `docs/`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# The theme must not have it: its script would ask the host for figures of the repository.
REPOSITORY: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
# Pages of the site that are files of the root, which a code host shows too.
ROOT_PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security-policy.md": "SECURITY.md",
}
_OPERATORS = "airflow_onnx.operators"
_RECORDS = "onnx_release.records"


@dataclass(frozen=True, slots=True)
class ApiPage:
    """One page of the API: the names that this package keeps stable, made from their docstrings.

    :param question: the question that the page answers.
    :param names: modules, classes or functions.
    :param style: the form of their docstrings, ``sphinx`` or ``google``.
    :param members: show the methods too. Airflow calls those of operators, and no other code does.
    """

    title: str
    question: str
    names: tuple[str, ...]
    style: str = "sphinx"
    members: bool = True

    def text(self) -> str:
        """Return the page as Markdown."""
        options = f"    options:\n      docstring_style: {self.style}\n"
        if not self.members:
            options += "      members: false\n"
        return f"# {self.title}\n\n{self.question}\n" + "".join(f"\n::: {name}\n{options}" for name in self.names)


API = {
    "dags": ApiPage(
        "DAGs",
        "Which arguments do the factories of a DAG file take?",
        ("airflow_onnx.dag.release_dag", "airflow_onnx.dag.release_task_group", "airflow_onnx.dag.watch_dag",
         "airflow_onnx.alias_dag.move_alias_dag", "airflow_onnx.leftovers_dag.collect_leftovers_dag",
         "airflow_onnx.rehearsal_dag.rehearse_runtime_dag",
         "airflow_onnx.verification_dag.verify_releases_dag", "airflow_onnx.retirement_dag.retire_versions_dag"),
    ),
    "operators": ApiPage(
        "Operators and sensors",
        "Which arguments does each operator take?",
        ("airflow_onnx.sensors.mlflow_run.MlflowTrainingRunSensor",
         f"{_OPERATORS}.work_folder.PrepareWorkFolderOperator",
         f"{_OPERATORS}.export.OnnxExportOperator", f"{_OPERATORS}.tune.OnnxTuneOperator",
         f"{_OPERATORS}.check.OnnxCheckOperator", f"{_OPERATORS}.parity_latency.OnnxParityLatencyOperator",
         f"{_OPERATORS}.upload.OnnxUploadToS3Operator", f"{_OPERATORS}.register.MlflowRegisterOnnxOperator",
         f"{_OPERATORS}.approve.OnnxApproveVersionOperator", f"{_OPERATORS}.promote.MlflowPromoteModelOperator",
         f"{_OPERATORS}.work_folder.CleanWorkFolderOperator", f"{_OPERATORS}.start_releases.StartReleasesOperator",
         f"{_OPERATORS}.collect_leftovers.CollectLeftoversOperator",
         f"{_OPERATORS}.retire_versions.RetireVersionsOperator",
         f"{_OPERATORS}.rehearse_runtime.ChooseRehearsalOperator",
         f"{_OPERATORS}.rehearse_runtime.RehearseVersionOperator",
         f"{_OPERATORS}.rehearse_runtime.ReportRehearsalOperator",
         f"{_OPERATORS}.verify_releases.ListReleasedVersionsOperator",
         f"{_OPERATORS}.verify_releases.VerifyReleasedVersionsOperator",
         f"{_OPERATORS}.roll_back_failed.RollBackFailedVersionsOperator",
         f"{_OPERATORS}.summarize_verification.SummarizeVerificationOperator",
         f"{_OPERATORS}.release_step.ReleaseStepOperator", f"{_OPERATORS}.release_step.AcceptedStepOperator",
         f"{_OPERATORS}.measuring_step.MeasuringStepOperator"),
        members=False,
    ),
    "hooks": ApiPage(
        "Hooks",
        "How does your own code reach MLflow and the object store?",
        ("airflow_onnx.hooks.mlflow.MlflowHook", "airflow_onnx.hooks.s3_store.S3StoreHook",
         "airflow_onnx.hooks.s3_store.s3_hook"),
    ),
    "events": ApiPage(
        "Events",
        "Which assets and notifications can other DAGs use?",
        ("airflow_onnx.events.model_assets.model_asset", "airflow_onnx.events.notifications.Notifier",
         "airflow_onnx.events.release_end.ReleaseEnd", "airflow_onnx.events.figures.Figures"),
        style="google",
        members=False,
    ),
    "core": ApiPage(
        "Core",
        "How do you run a step of a release without Airflow?",
        ("onnx_release.run_step.export", "onnx_release.run_step.compare", "onnx_release.run_step.benchmark",
         "onnx_release.run_step.tune", "onnx_release.export.export_model.ExportStepOptions",
         "onnx_release.benchmark.setup.BenchmarkOptions", "onnx_release.tuning.options.TuneOptions",
         "onnx_release.cli.main.main"),
        style="google",
        members=False,
    ),
    "records": ApiPage(
        "Records",
        "Which fields do the results of the steps have?",
        (f"{_RECORDS}.artifact", f"{_RECORDS}.reports", f"{_RECORDS}.release", f"{_RECORDS}.gates",
         f"{_RECORDS}.measures", f"{_RECORDS}.tensors"),
        style="google",
    ),
    "errors": ApiPage(
        "Errors",
        "Which errors does a step raise?",
        ("onnx_release.errors.ReleaseError", "onnx_release.errors.Refused", "onnx_release.errors.Transient"),
    ),
}  # fmt: skip
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?!https?:|#|mailto:)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
# The pictures of README.md are below `docs/`.
_IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/([^)]+\))")
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)"(?P<width> width="[^"]+")? alt="(?P<alt>[^"]+)">\s*</picture>'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and of the API."""
    for uri, name in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    for name, page in API.items():
        files.append(File.generated(config, f"api/{name}.md", content=page.text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page with links and pictures of the site."""
    source = page.file.src_uri
    folder = ROOT if source in ROOT_PAGES else ROOT / "docs"
    text = _PICTURE.sub(_both_pictures, markdown)
    text = _IMAGE.sub(r"\1\2", text)
    return _LINK.sub(lambda found: _link(found, folder, REPOSITORY), text)


def _both_pictures(found: re.Match[str]) -> str:
    """Return the two pictures of a `<picture>`: the site's switch of colours shows one of them."""
    width = f"{{{found['width'].strip()}}}" if found["width"] else ""
    return "\n".join(f"![{found['alt']}]({found[kind]}#only-{kind}){width}" for kind in ("light", "dark"))


def _link(found: re.Match[str], folder: Path, repository: str) -> str:
    """Return a link to a page of the site, or to the repository for a file without a page."""
    path, anchor = (folder / found["path"]).resolve(), found["anchor"] or ""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else found["path"]
    for page, source in ROOT_PAGES.items():
        if name == source:
            return f"[{found['text']}]({page}{anchor})"
    if name.startswith("docs/"):
        return f"[{found['text']}]({name.removeprefix('docs/')}{anchor})"
    if path.exists():
        return f"[{found['text']}]({repository}/blob/main/{name})"
    # The strict build names it as a broken link.
    return found[0]
