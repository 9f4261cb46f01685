"""Command `export`: the folder, its report, refusals, and nothing half-done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml

from onnx_release.artifact.digests import require_bytes
from onnx_release.cli.main import main
from onnx_release.limits import BILL_FILE, SIGNATURE_FILE, STATEMENT_FILE
from onnx_release.report.release_report import read_report
from onnx_release.serving.runtime_environment import installed_version
from tests.core.cli.command import ROOT, document
from tests.core.models import FreezesBatch, TwoHeads, save
from tests.core.provenance import keys
from tests.services import Services

QUICK = ("--limit", "measure_max_s=1", "--limit", "measure_min_s=0.2", "--limit", "on_miss=warn", "--batch-sizes", "1")


def test_a_logged_model_becomes_a_tested_folder(
    server: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as run:
        # A model of another program: no names, no example, a signature that MLflow infers.
        values = np.random.default_rng(3).random((5, 4), dtype=np.float32)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(dim=1)).eval()
        signature = mlflow.models.infer_signature(values, model(torch.tensor(values)).detach().numpy())
        more = {"signature": signature, "input_example": values, "pip_requirements": ["torch"]}
        mlflow.pytorch.log_model(model, name="model", **more)
    out = tmp_path / "out"
    found = document(capsys, "export", f"runs:/{run.info.run_id}/model", "-o", out, *QUICK)
    report = read_report(out / "report.json")
    assert report.artifact
    require_bytes(out, report.artifact)
    assert found["sha256"] == report.artifact.sha256
    assert (report.status, report.trained_model.training_run_id) == ("accepted", run.info.run_id)
    assert {"speedup", "mae", "check"} <= {gate["name"] for gate in found["gates"]}
    assert {"report.html", "report.md", "reference.npz", "model.onnx"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_model_leaves_its_report_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = save(FreezesBatch().eval(), tmp_path / "model", serialization_format="pickle")
    out, work = tmp_path / "work" / "<b>a&b; rm -rf ~\x1b[31m", tmp_path / "work"
    work.mkdir()
    found = document(capsys, "export", trained, "-o", out, "--allow-pickle", "--no-latency", code=1)
    assert found["reason_code"]
    (refused,) = work.iterdir()
    assert refused.name == f"{out.name}.refused"
    assert (refused / "report.html").is_file()
    assert not (refused / "model.onnx").exists()
    # The evidence of the failed attempt goes when the export succeeds.
    assert main(["export", str(save(TwoHeads().eval(), tmp_path / "good")), "-o", str(out), "--no-latency", "-q"]) == 0
    assert [path.name for path in work.iterdir()] == [out.name]
    assert "warning: the latency was not measured" in capsys.readouterr().out


def test_only_an_own_folder_is_replaced(released_folder: Path, tmp_path: Path, trained_pt2: Path) -> None:
    export = ["export", str(trained_pt2), "--no-latency", "-q", "-o"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("three years")
    assert main([*export, str(foreign), "--overwrite"]) == 2
    assert main([*export, str(released_folder)]) == 2
    assert main([*export, "/"]) == 2
    (tmp_path / "link").symlink_to(foreign)
    assert main([*export, str(tmp_path / "link"), "--overwrite"]) == 2
    assert main([*export, str(tmp_path / "foreign" / "thesis.txt" / "out")]) in (2, 3)
    assert (foreign / "thesis.txt").read_text() == "three years"
    (released_folder / "notes.txt").write_text("mine")
    assert main([*export, str(released_folder), "--overwrite"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--limit", "speed=2"),
        ("--limit", "mae_max=often"),
        ("--limit", "speedup_min=-1"),
        ("--batch-sizes", "1,0"),
        ("--precision", "int8"),
        ("--serving-layout", "kserve"),
        ("--serving-layout", "triton", "--model-name", "../x"),
        ("--target-runtime", "1.20.1", "--no-latency"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_work(
    arguments: tuple[str, ...], trained_pt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "export", trained_pt2, "-o", tmp_path / "out", *arguments, code=2)
    assert found["error"]["code"] == "wrong_argument"
    assert list(tmp_path.iterdir()) == []


def test_the_files_for_those_who_serve_are_written_as_in_a_release(
    trained_pt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, version = tmp_path / "net", installed_version()
    arguments = ("export", trained_pt2, "-o", out, "--batch-sizes", "1,4", "--single-file-max-bytes", "0")
    layouts = ("--serving-layout", "kserve", "--serving-uri", "s3://models/net-serving/")
    found = document(capsys, *arguments, *layouts, "--target-runtime", version, *QUICK[:-2])
    report = read_report(out / "report.json")
    assert report.artifact
    assert report.benchmark
    assert [one.version for one in report.benchmark.runtimes] == [version]
    assert (out / "model.onnx.data").is_file()
    assert found["serving"] == [layout.uri for layout in report.serving]
    place = tmp_path / "net-serving"
    entry = place / "triton" / "net"
    assert {path.name for path in (entry / "1").iterdir()} == {"model.onnx", "model.onnx.data"}
    assert "max_batch_size: 4" in (entry / "config.pbtxt").read_text()
    manifest = yaml.safe_load((place / "kserve" / "inference_service.yaml").read_text())
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == "s3://models/net-serving/triton"
    require_bytes(out, report.artifact)

    # Another export replaces both, unless another program wrote there. A limit of 0 leaves the reference outputs out.
    again = (*arguments, *layouts, "--no-latency", "--reference-max-bytes", "0", "--overwrite")
    document(capsys, *again)
    assert not (out / "reference.npz").exists()
    verified = document(capsys, "verify", out)["checks"]
    assert [check["verdict"] for check in verified if check["name"] == "reference"] == ["skipped"]
    (place / "triton" / "thesis.txt").write_text("three years")
    assert document(capsys, *again, code=2)["error"]["code"] == "output_exists"


def test_the_evidence_is_that_of_a_release_and_the_stock_tool_accepts_it(
    server: Services,
    trained_pt2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_params({"lr": "0.1", "api_key": "of-the-script"})
        mlflow.log_artifacts(str(trained_pt2), "model")
    root, signer = keys.new_key(), keys.new_key()
    for name, text in {
        "key.pem": keys.private_pem(signer, "of-the-key"),
        "public.pem": keys.public_pem(signer),
        "signer.pem": keys.certificate("release", signer, "root", root),
        "root.pem": keys.certificate("root", root, "root", root),
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("ONNX_RELEASE_SIGNING_PASSWORD", "of-the-key")
    out = tmp_path / "out"
    key = ("--signing-key", tmp_path / "key.pem")
    quick = ("export", f"runs:/{run.info.run_id}/model", "-o", out, "--no-latency", *key)
    document(capsys, *quick)
    report = read_report(out / "report.json")
    assert report.artifact
    statement = json.loads((out / STATEMENT_FILE).read_text())
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        file.path: file.sha256 for file in report.artifact.files
    }
    bill = (out / BILL_FILE).read_text()
    assert ('param:lr"' in bill, "of-the-script" in bill) == (True, False)
    stock = [sys.executable, "-m", "model_signing", "verify"]
    signature = ["--signature", str(out / SIGNATURE_FILE)]
    public = ["--public_key", str(tmp_path / "public.pem")]
    subprocess.run([*stock, "key", *signature, *public, str(out)], check=True, capture_output=True)
    assert document(capsys, "verify", out, "--public-key", tmp_path / "public.pem")["exit_code"] == 0

    chain = ("--certificate", tmp_path / "signer.pem", "--certificate-chain", tmp_path / "root.pem")
    document(capsys, *quick, *chain, "--overwrite")
    roots = ["--certificate_chain", str(tmp_path / "root.pem")]
    subprocess.run([*stock, "certificate", *signature, *roots, str(out)], check=True, capture_output=True)
    # Without a key the folder has no signature of the one before.
    document(capsys, *quick[:-2], "--overwrite")
    assert {BILL_FILE, STATEMENT_FILE} <= {path.name for path in out.iterdir()}
    assert not (out / SIGNATURE_FILE).exists()


def test_a_key_that_cannot_sign_is_refused_before_the_work(
    trained_pt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pem").write_text("three years")
    (tmp_path / "broken.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    out = tmp_path / "out"
    for arguments, code, exit_code in (
        (("--signing-key", tmp_path / "absent.pem"), "wrong_argument", 2),
        (("--signing-key", tmp_path / "text.pem"), "wrong_argument", 2),
        (("--certificate", tmp_path / "text.pem"), "wrong_argument", 2),
        (("--signing-key", tmp_path / "broken.pem"), "unusable_key", 3),
    ):
        found = document(capsys, "export", trained_pt2, "-o", out, *arguments, code=exit_code)
        assert found["error"]["code"] == code
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(number: int, trained_pt2: Path, tmp_path: Path) -> None:
    scratch, work = tmp_path / "tmp", tmp_path / "work"
    scratch.mkdir()
    work.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "onnx_release.cli.main", "export", str(trained_pt2), "-o", str(work / "out"), "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "include"), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The background job of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while child.poll() is None and not list(work.iterdir()):
        time.sleep(0.05)
    child.send_signal(number)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert json.loads(out) == {"command": "export", "exit_code": 130}
    assert "Traceback" not in err
    assert list(work.iterdir()) == []
    assert list(scratch.iterdir()) == []
