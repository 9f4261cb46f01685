"""Tools of the bench: costs of processes, failures of parts, results and pages."""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench import __main__ as command
from bench import airflow_parts, cpu, document, latency_steps, profile, results, sides
from bench.figure import Figure, NotMeasured, Part, Result, Setting
from bench.gemm_steps import Gemm, products_of
from bench.models import contract
from bench.parts import PARTS, chosen
from bench.sides import Cost, Side, Step, interleave, ratio
from onnx_release.samples.generate import make_samples
from stack.errors import StackError

MB = 10**6


def result(name: str = "one", value: float = 1.0, **changes: Any) -> Result:
    fields: dict[str, Any] = {"unit": "x", "goal": "<= 2", "met": True, "n": 5, "spread": (0.9, 1.1)}
    return Result(name=name, value=value, **fields | changes)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Any]:
    """Write a module whose function `run` is the step."""

    def write(name: str, text: str) -> Step:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        root = Path(__file__).parents[2]
        return Step(f"{name}:run", (), {"PYTHONPATH": f"{tmp_path}:{root}:{root / 'include'}"})

    return write


@pytest.mark.alone
def test_memory_counts_from_the_imports_on_and_time_where_it_is_marked(module: Any) -> None:
    step = module(
        "spender",
        """
        import time
        bytearray(200_000_000)   # an import that needs more memory than it keeps
        kept = bytearray(60_000_000)
        def run(meter):
            with meter.aside("load_s"):
                time.sleep(1.0)
            with meter.work():
                time.sleep(0.1)
                bytearray(120_000_000)
            return {"answer": 42}
        """,
    )
    found = step.run()
    assert 0.1 <= found["wall_s"] < 1.0 <= found["load_s"]
    assert 119 * MB < found["peak_bytes"] < 130 * MB
    assert found["imports_bytes"] > 60 * MB
    assert found["answer"] == 42


def test_a_childs_memory_is_that_of_its_own_and_is_part_of_the_sides_peak(module: Any) -> None:
    step = module(
        "parent",
        """
        import subprocess, sys
        def run(meter):
            meter.start()
            kept = bytearray(50_000_000)
            with meter.work():
                work = "import time; kept = bytearray(150_000_000); time.sleep(0.5)"
                subprocess.run([sys.executable, "-c", work], check=True)
        """,
    )
    cost = Side(name="one", steps=lambda: [step]).run()
    assert 49 * MB < cost.steps[0]["peak_bytes"] < 70 * MB
    assert 150 * MB < cost.peak_bytes < 190 * MB


def test_a_child_that_has_ended_and_is_not_yet_waited_for_keeps_its_peak(module: Any) -> None:
    module("holder", "import time; kept = bytearray(150_000_000); time.sleep(0.4)")
    step = module(
        "forgetful",
        """
        import subprocess, sys, time
        def run(meter):
            meter.start()
            child = subprocess.Popen([sys.executable, "-m", "holder"])
            time.sleep(1.5)
            child.wait()
        """,
    )
    (child,) = step.run()["children"]
    assert child["module"] == "holder"
    assert child["peak_bytes"] > 150 * MB


def test_a_failed_side_raises_with_its_output_and_is_reset(module: Any) -> None:
    step, cleaned = module("broken", "def run(meter): raise SystemExit('the disk is full')"), []
    side = Side(name="one", steps=lambda: [step], reset=lambda: cleaned.append(True))
    with pytest.raises(StackError, match=r"broken:run ended with status 1:\nthe disk is full"):
        side.run()
    assert cleaned


def test_the_order_of_sides_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(self: Side) -> Cost:
        order.append(self.name)
        return Cost(wall_s=1.0, peak_bytes=1, steps=[])

    monkeypatch.setattr(sides.Side, "run", run)
    interleave([Side(name=name, steps=list) for name in "ab"], 3)
    assert "".join(order) == "abbaab"


def test_the_ratio_is_of_medians_and_lies_within_the_rounds() -> None:
    ours, theirs = ([Cost(wall_s=s, peak_bytes=0, steps=[]) for s in times] for times in ((1, 9, 2), (2, 3, 4)))
    assert ratio(ours, theirs) == (2 / 3, (0.5, 3.0))


def test_every_figure_has_a_unique_name_and_is_chosen_by_it() -> None:
    names = [name for part in PARTS for name in (part.name, *(figure.name for figure in part.figures))]
    assert len(names) == len(set(names))
    assert [part.name for part in chosen(["export_peak_over_model", "own"])] == ["own", "export"]
    assert [part.name for part in chosen(["release", "dag_parse"])] == ["release", "dag_parse"]
    assert chosen([]) == list(PARTS)
    with pytest.raises(KeyError, match="speedup_int8: not a part"):
        chosen(["own", "speedup_int8"])


def test_the_goal_of_a_figure_decides_whether_it_is_met() -> None:
    figure = Figure("one", at_most=1.3, condition="released")
    assert figure.goal == "<= 1.3, released"
    assert figure.result(1.3, {}).met is True
    assert figure.result(1.31, {}).met is False
    assert figure.result(1.0, {}, condition=False).met is False
    assert Figure("two", at_least=1.5).result(1.4, {}, (1.3, 1.6), n=3).met is False
    plain = Figure("three", "s").result(2.0, {})
    assert (plain.met, plain.goal, plain.spread) == (None, "", (2.0, 2.0))
    assert "host" in plain.detail


def test_an_exported_program_is_timed_against_its_eager_model() -> None:
    sample = make_samples(contract().inputs, None, (3,))[0]
    with latency_steps.sides_of("pt2", "nano", Path("not-used"), sample) as pair:
        eager, program = pair.reference.run(sample.inputs), pair.candidate.run(sample.inputs)
    assert set(eager) == set(program) == {"positions", "uncertainties"}
    for name, values in eager.items():
        np.testing.assert_allclose(program[name], values, atol=1e-5)


def test_other_parts_run_after_a_failed_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Setting) -> Iterator[Result]:
        yield result("first")
        raise NotMeasured("no compiler here")

    parts = (
        Part("sad", 1, (Figure("first"),), broken),
        Part("glad", 1, (Figure("last"),), lambda _: iter([result("last")])),
    )
    monkeypatch.setattr(command, "chosen", lambda _: list(parts))
    monkeypatch.setattr(command, "write", lambda new: results.write(new, tmp_path / "results.json"))
    monkeypatch.setattr(command.interrupts, "install", lambda: None)
    assert command.main([]) == 1
    output = capsys.readouterr()
    assert "NOT MEASURED sad: no compiler here" in output.err
    assert {entry["name"] for entry in results.read(tmp_path / "results.json")} == {"first", "last"}
    assert "last" in output.out


def test_results_of_another_call_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write([result("one"), result("two")], path)
    results.write([result("two", 3.0, met=None)], path)
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())}
    assert entries["one"]["value"] == 1.0
    assert set(entries["two"]) == {"name", "value", "unit", "goal", "met", "n", "spread", "detail"}
    assert (entries["two"]["value"], entries["two"]["met"]) == (3.0, None)


def test_the_page_takes_the_figures_between_its_marks() -> None:
    page = f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n"
    new = document.with_figures(page, [results.asdict(result("upload_ratio", 1.234, met=False))])
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert "| `upload_ratio` | 1.23 x | 0.9 to 1.1 | <= 2 | **no** | 5 |" in new
    assert document.with_figures(new, [results.asdict(result("upload_ratio", 1.234, met=False))]) == new
    with pytest.raises(ValueError, match="has no"):
        document.with_figures("a page", [])


def test_the_page_takes_the_profile_where_one_was_measured() -> None:
    page = f"before\n{document.PROFILE_BEGIN}\nnone\n{document.PROFILE_END}\nafter\n"
    assert document.with_profile(page, []) == page
    row = {"step": "check", "span": "onnx.checker, by path", "wall_s": 0.254, "cpu_s": 0.25, "peak_bytes": 20}
    entry = results.asdict(result("release_profile_s", detail={"model_bytes": 100, "rows": [row]}))
    new = document.with_profile(page, [entry])
    assert "| check | onnx.checker, by path | 0.25 | 0.25 | 0.20 |" in new
    assert "none" not in new
    assert document.with_profile(new, [entry]) == new


def test_a_profile_charges_each_moment_once_to_the_innermost_span(module: Any) -> None:
    step = module(
        "profiled",
        """
        import time
        from bench.profile import Clock
        def inner():
            time.sleep(0.2)
        def outer():
            time.sleep(0.1)
            kept = bytearray(80_000_000)
            del kept
            inner()
        def run(meter):
            clock = Clock()
            clock.attach("profiled:outer", "outer")
            clock.attach("profiled:inner", "inner")
            outer()
            clock.charge()
            return {"spans": {name: vars(span) for name, span in clock.spans.items()}}
        """,
    )
    spans = step.run()["spans"]
    assert set(spans) == {"the rest", "outer", "inner"}
    assert spans["inner"]["wall_s"] >= 0.2
    assert spans["outer"]["wall_s"] >= 0.1
    assert spans["outer"]["cpu_s"] < spans["outer"]["wall_s"]
    assert 78 * MB < spans["outer"]["peak_bytes"] < 100 * MB
    assert spans["inner"]["peak_bytes"] < 40 * MB, "memory that was freed before does not count"


@pytest.mark.parametrize("step", profile.SPANS)
def test_the_timed_functions_of_a_profile_exist(step: str) -> None:
    for target in profile.SPANS[step]:
        module, _, path = target.partition(":")
        assert callable(operator.attrgetter(path)(import_module(module))), target


def test_cpu_time_of_a_process_includes_its_ended_children() -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert 0.3 <= cpu.tree_s(process.pid) < 30.0
    before = cpu.ended_children_s()
    process.communicate(b"\n")
    assert cpu.ended_children_s() - before >= 0.3
    assert cpu.tree_s(process.pid) == 0.0


def test_the_use_between_two_readings_is_their_difference_by_name() -> None:
    assert cpu.difference({"tasks": 3.0, "new": 1.0}, {"tasks": 1.0, "old": 5.0}) == {"tasks": 2.0, "new": 1.0}


def test_the_page_explains_every_figure() -> None:
    page = document.PAGE.read_text()
    described = page.partition(document.BEGIN)[0] + page.partition(document.END)[2]
    for part in PARTS:
        assert f"`{part.name}`" in described, part.name
        for name in (figure.name for figure in part.figures):
            general = re.sub(r"_(tiny|large)_b\d+$", "_SIZE_bN", name)
            assert f"`{name}`" in described or f"`{general}`" in described, name


def test_the_picture_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    from bench.picture import draw

    entries = [
        results.asdict(result("speedup_fp32_tiny_b1", 1.7, goal=">= 1.5")),
        results.asdict(result("upload_ratio", 2.5, met=False)),
        results.asdict(result("task_overhead_s", 1.0, goal="", met=None)),
    ]
    for name in ("one.svg", "two.svg"):
        draw(entries, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "speedup_fp32_tiny_b1" in drawn
    assert "upload_ratio" in drawn
    assert "task_overhead_s" not in drawn


def convolutional() -> onnx.ModelProto:
    """Return a dense and a depthwise convolution, and a product over all places, with a batch that may vary."""
    nodes = [
        helper.make_node("Conv", ["x", "dense"], ["patches"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["patches", "deep"], ["mixed"], kernel_shape=[3, 3], pads=[1] * 4, group=8),
        helper.make_node("Transpose", ["mixed"], ["places"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["places", "linear"], ["y"]),
    ]
    shapes = {"dense": (8, 3, 2, 2), "deep": (8, 1, 3, 3), "linear": (8, 5)}
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])]
        for name, shape in (("x", (3, 8, 8)), ("y", (4, 4, 5)))
    ]
    graph = helper.make_graph(nodes, "graph", *ends, initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_products_are_read_from_the_graph_at_any_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(convolutional(), path)
    products = products_of(path, 32)
    assert products.gemms == {Gemm(32 * 16, 3 * 4, 8): 1, Gemm(32 * 16, 8, 5): 1}
    assert products.grouped_flop == 2 * 32 * 8 * 16 * 9
    assert products.flop == 2 * 32 * 16 * (12 * 8 + 8 * 5)


def test_work_of_an_operator_lies_between_the_marks_of_its_log() -> None:
    lines = [
        {"event": "::group::Log message source details"},
        {"event": "::endgroup::"},
        {"event": "::group::Pre Execute", "timestamp": "2026-01-01T00:00:01Z"},
        {"event": "::endgroup::", "timestamp": "2026-01-01T00:00:02Z"},
        {"event": "at work", "timestamp": "2026-01-01T00:00:03Z"},
        {"event": "::group::Post Execute", "timestamp": "2026-01-01T00:00:05Z"},
        {"event": "::endgroup::", "timestamp": "2026-01-01T00:00:06Z"},
    ]
    zero = 1767225600.0
    assert airflow_parts.work_of(lines, zero, zero + 7) == (zero + 1, zero + 2, zero + 5)
    assert airflow_parts.work_of(lines[:4], zero, zero + 7) == (zero + 1, zero + 2, zero + 7)
    assert airflow_parts.work_of([], zero, zero + 7) == (zero, zero, zero + 7)


def test_parts_of_the_overhead_add_up_to_it() -> None:
    def times(at: float) -> airflow_parts.Times:
        return airflow_parts.Times(
            scheduled=at, queued=at + 1, started=at + 3, entered=at + 4, begins=at + 6, ends=at + 16, ended=at + 17
        )

    found = airflow_parts.summary(0.0, 42.0, {"one": times(2.0), "two": times(22.0)})
    assert found["overhead_s"] == (42.0 - 20.0) / 2
    assert sum(found["made_of_s"].values()) == found["overhead_s"]
    assert found["made_of_s"]["until_scheduled"] == (2.0 + 3.0) / 2
