"""Checkpoints of training scripts: wrappers' names, other dtypes, shared tensors, several networks, foreign values."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import distributed, nn

from onnx_release.limits import MODEL_FILE
from onnx_release.trained.mapped_weights import pages_of
from onnx_release.trained.state_dict import format_of_file
from tests.core.judging import judge
from tests.core.models import Payload
from tests.core.trained import checkpoints
from tests.core.trained.checkpoints import (
    Gain,
    Lightning,
    Mixed,
    Net,
    Normed,
    OldNormed,
    RandomTable,
    Scaled,
    Setting,
    Settings,
    Tied,
    assert_released,
    assert_same,
    load,
    options,
    renamed,
    scaled,
    stored,
)
from tests.refusals import refused

ROW = [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
IDS = [{"name": "ids", "dtype": "int64", "shape": ["batch", 6], "vocabulary_size": 4000}]


ROWS = np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.enc[1].running_mean.normal_()  # type: ignore[operator, union-attr]
    return model.eval()


def test_a_lightning_checkpoint_with_a_compiled_network_and_its_command_line_is_released(
    net: Net, tmp_path: Path
) -> None:
    names = renamed(Lightning(net), lambda name: name.replace("model.", "model._orig_mod."))
    content = {
        "state_dict": names,
        "hyper_parameters": {"width": np.int64(16), "data": Path("data")},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 3,
    }
    path = stored(tmp_path / "last.ckpt", content)
    judged = judge(path, tmp_path / "onnx", factory=f"{checkpoints.__name__}:Net", input_spec=ROW, allow_pickle=False)
    assert_released(judged, net, x=ROWS)
    assert judged.artifact is not None
    assert "loss_fn.weight" in next(f.message for f in judged.artifact.findings if f.code == "unused_weights")


def test_half_precision_weights_of_a_float32_model_are_released_in_float32(net: Net, tmp_path: Path) -> None:
    half = copy.deepcopy(net).half()
    path = stored(tmp_path / "w.pt", half.state_dict() | {"enc.1.running_var": torch.ones(16).double()})
    judged = judge(path, tmp_path / "onnx", factory=f"{checkpoints.__name__}:Net", input_spec=ROW)
    assert_released(judged, half.float(), x=ROWS)
    assert judged.artifact is not None
    messages = [f.message for f in judged.artifact.findings if f.code == "weights_dtype"]
    assert ["float16" in messages[0], "float64" in messages[1]] == [True, True]


@pytest.mark.parametrize("once", [False, True])
def test_a_shared_tensor_is_stored_once(tmp_path: Path, once: bool) -> None:
    model = Tied()
    path = tmp_path / "w.safetensors"
    if once:
        save_model(model, str(path))
    else:
        path = stored(tmp_path / "w.pth", model.state_dict())
    judged = judge(path, tmp_path / "onnx", factory=f"{checkpoints.__name__}:Tied", input_spec=IDS)
    assert_released(judged, model, ids=np.arange(12).reshape(2, 6))
    assert judged.artifact is not None
    model_bytes = sum(file.size_bytes for file in judged.artifact.files if file.path.startswith(MODEL_FILE))
    assert model_bytes < 1.2 * 4000 * 16 * 4


@pytest.mark.parametrize("name", ["Values", "Lazy", "Gain"])
def test_a_model_with_values_lazy_layers_or_extra_state_is_released(tmp_path: Path, name: str) -> None:
    model: nn.Module = getattr(checkpoints, name)()
    model(torch.randn(4, 8))
    if isinstance(model, Gain):
        model.gain = 3.5
    path = stored(tmp_path / "w.pth", model.state_dict())
    judged = judge(path, tmp_path / "onnx", factory=f"{checkpoints.__name__}:{name}", input_spec=ROW)
    assert_released(judged, model, x=ROWS)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"net.module._orig_mod.{name}",
        lambda name: f"anything.at.all.{name}",
        lambda name: name.replace("enc.", "enc._orig_mod."),
        lambda name: f"_fsdp_wrapped_module.{name.replace('enc.', 'enc._checkpoint_wrapped_module.')}",
    ],
)
def test_the_names_of_wrappers_are_removed_at_any_depth(net: Net, tmp_path: Path, rename: Callable[[str], str]) -> None:
    model, findings = load(stored(tmp_path / "w.ckpt", {"state_dict": renamed(net, rename)}), options("Net"))
    assert_same(model, net)
    assert not findings


def test_missing_counters_of_batches_are_filled_in(net: Net, tmp_path: Path) -> None:
    weights = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    assert_same(load(tmp_path / "w.safetensors", options("Net"))[0], net)


@pytest.mark.parametrize("make", [OldNormed, Normed, Mixed])
def test_the_models_own_hooks_and_dtypes_are_kept(tmp_path: Path, make: type[nn.Module]) -> None:
    trained = make()
    trained(torch.randn(4, 8))
    weights = renamed(trained, lambda name: f"module.{name}")
    model, findings = load(stored(tmp_path / "w.pth", weights), options(make.__name__))
    assert_same(model, trained)
    assert not findings
    assert {name: value.dtype for name, value in model.state_dict().items()} == {
        name: value.dtype for name, value in trained.state_dict().items()
    }


def test_a_hook_of_the_model_reads_older_names(tmp_path: Path) -> None:
    trained = Normed()
    older = {"linear.bias": trained.linear.bias}
    older["linear.weight_g"] = trained.linear.parametrizations.weight.original0  # type: ignore[union-attr]
    older["linear.weight_v"] = trained.linear.parametrizations.weight.original1  # type: ignore[union-attr]
    model, _ = load(stored(tmp_path / "w.ckpt", {"model": older, "epoch": 3}), options("Normed"))
    assert_same(model, trained)


def test_values_of_usual_classes_and_stand_ins_for_others_need_no_pickle(net: Net, tmp_path: Path) -> None:
    lists = collections.defaultdict(list, {"a": [1]})
    others = [datetime.datetime.now(), lists, np.float32(1.5), np.arange(4), np.dtype("f4"), Setting(), b""]
    others += [Settings(a=1), collections.deque([1.0], maxlen=5)]
    content = {"model": net.state_dict(), "args": argparse.Namespace(path=Path("a")), "others": others}
    for archive in (True, False):
        path = stored(tmp_path / "w.pth", content, _use_new_zipfile_serialization=archive)
        assert format_of_file(path) == "state_dict"
        assert_same(load(path, options("Net"))[0], net)


def test_weights_as_arrays_of_numpy_are_loaded(net: Net, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in net.state_dict().items()} | {"epoch": 3}
    assert_same(load(stored(tmp_path / "w.pth", arrays), options("Net"))[0], net)


def test_code_beside_weights_does_not_run(net: Net, tmp_path: Path) -> None:
    path = stored(tmp_path / "w.pth", {"model": net.state_dict(), "payload": Payload(tmp_path / "ran")})
    with refused("pickle", "posix.mkdir"):
        load(path, options("Net"))
    assert not (tmp_path / "ran").exists()


def test_an_opaque_hyperparameter_is_refused_only_if_the_factory_needs_it(net: Net, tmp_path: Path) -> None:
    content = {"state_dict": net.state_dict(), "hyper_parameters": {"width": [Setting()], "loss": Setting()}}
    path = stored(tmp_path / "w.ckpt", content)
    with refused("opaque_argument", "width has tests.core.trained.checkpoints.Setting"):
        load(path, options("Net"))
    assert_same(load(path, options("Net", kwargs={"width": 16}))[0], net)


@pytest.mark.parametrize(
    ("key", "expected", "warned"),
    [
        ("", 1.0, "averaged weights under the key 'state_dict_ema'"),
        ("state_dict_ema", 2.0, "Released are the averaged weights"),
    ],
)
def test_averaged_weights_are_released_by_their_key(
    net: Net, tmp_path: Path, key: str, expected: float, warned: str
) -> None:
    content = {"state_dict": scaled(net, 1.0), "state_dict_ema": scaled(net, 2.0)}
    model, findings = load(stored(tmp_path / "w.pth.tar", content), options("Net", weights_key=key))
    torch.testing.assert_close(model.state_dict()["head.bias"], net.head.bias * expected)
    assert warned in findings["chosen_weights"]


def test_the_trained_weights_come_before_averaged_ones_of_the_same_state_dict(net: Net, tmp_path: Path) -> None:
    both = renamed(net, lambda name: f"online_model.{name}")
    both |= {f"ema_model.module.{name}": value for name, value in scaled(net, 2.0).items()}
    model, findings = load(stored(tmp_path / "w.pth", both), options("Net"))
    assert_same(model, net)
    assert "averaged weights under the key 'ema_model'" in findings["chosen_weights"]


def test_an_averaged_model_is_loaded_with_a_finding(net: Net, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net)
    model, findings = load(stored(tmp_path / "w.pth", averaged.state_dict()), options("Net"))
    assert_same(model, net)
    assert "averaged" in findings["chosen_weights"]


def test_of_two_networks_the_fitting_or_the_named_one_is_taken(net: Net, tmp_path: Path) -> None:
    other = stored(tmp_path / "a.pth", {"generator": net.state_dict(), "discriminator": Tied().state_dict()})
    assert_same(load(other, options("Net"))[0], net)
    alike = stored(tmp_path / "b.pth", {"nets": {"generator": net.state_dict(), "critic": scaled(net, 2.0)}})
    with refused("several_networks", "'nets.generator', 'nets.critic'", "weights_key"):
        load(alike, options("Net"))
    assert_same(load(alike, options("Net", weights_key="nets.generator"))[0], net)
    with refused("weights_key", "'nets.nothing'", "nets.generator (9)"):
        load(alike, options("Net", weights_key="nets.nothing"))


def test_names_that_match_below_two_prefixes_are_refused(net: Net, tmp_path: Path) -> None:
    twice = renamed(net, lambda name: f"policy.{name}") | renamed(net, lambda name: f"target.{name}")
    path = stored(tmp_path / "w.ckpt", {"state_dict": twice})
    with refused("several_networks", "'state_dict.policy', 'state_dict.target'"):
        load(path, options("Net"))
    assert_same(load(path, options("Net", weights_key="state_dict.policy"))[0], net)
    with refused("several_networks", "'module'"):
        load(stored(tmp_path / "v.pth", net.state_dict() | renamed(net, lambda n: f"module.{n}")), options("Net"))


@pytest.mark.parametrize(
    ("name", "change", "code", "part"),
    [
        ("Net", lambda w: {n.replace("head", "heads"): v for n, v in w.items()}, "weights_differ",
         "lacks head.bias (it has heads.bias)"),
        ("Net", lambda w: {f"model.{n}": v for n, v in w.items()} | {"model.extra.weight": torch.ones(3)},
         "weights_differ", "also has extra.weight"),
        ("Net", lambda w: w | {"head.bias": torch.ones(3) * 1j}, "weights_differ", "'head.bias' as complex64"),
        ("Scaled", lambda _: Scaled().state_dict() | {"linear.bias": torch.ones(3).double() * 1e300}, "weights_differ",
         "'linear.bias' as float64"),
        ("Tied", lambda _: Tied().state_dict() | {"head.weight": torch.ones(4000, 16)}, "weights_differ",
         "'e.weight' and 'head.weight'"),
        ("RandomTable", lambda _: RandomTable().state_dict(), "random_factory", "table, more.0.weight"),
        ("Net", lambda _: {"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "sharded_weights", "flat_param"),
        ("Net", lambda _: {"optimizer": torch.optim.SGD(Net().parameters(), 0.1).state_dict()}, "no_weights",
         "the state of an optimizer (optimizer)"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_loaded_whole_are_refused(
    net: Net, tmp_path: Path, name: str, change: Callable[[Any], Any], code: str, part: str
) -> None:
    with refused(code, part):
        load(stored(tmp_path / "w.pth", change(net.state_dict())), options(name))


def test_a_pickle_with_the_name_of_a_program_is_not_run(net: Net, tmp_path: Path) -> None:
    """Files with these names are loaded in the process of the task."""
    path = stored(tmp_path / "w.pt2", {"model": net, "payload": Payload(tmp_path / "ran")})
    with refused("pickle"):
        load(path, options(""), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"not a file of torch" * 9, None])
def test_a_damaged_file_is_not_called_a_pickle(net: Net, tmp_path: Path, content: bytes | None) -> None:
    path = stored(tmp_path / "w.pth", net.state_dict())
    path.write_bytes(content or path.read_bytes()[:-300])
    with refused("load_failed", "not a complete file"):
        load(path, options("Net"))


def _sharded(folder: Path, model: nn.Module, suffix: str) -> Path:
    weights = model.state_dict()
    files = {name: f"model-{1 + name.startswith('head')}-of-2.{suffix}" for name in weights}
    for file in set(files.values()):
        part = {name: weights[name] for name in weights if files[name] == file}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_with_an_index_and_its_files_is_one_model(net: Net, tmp_path: Path, suffix: str) -> None:
    _sharded(tmp_path, net, suffix)
    judged = judge(tmp_path, tmp_path / "onnx", factory=f"{checkpoints.__name__}:Net", input_spec=ROW)
    assert_released(judged, net, x=ROWS)


def test_a_missing_file_and_a_path_outside_the_folder_are_refused(net: Net, tmp_path: Path) -> None:
    index = _sharded(tmp_path, net, "safetensors")
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with refused("missing_shards", "model-2-of-2.safetensors"):
        load(index, options("Net"))
    index.write_text(json.dumps({"weight_map": {"a": "../a.bin"}}))
    with refused("path_outside_folder", "../a.bin"):
        load(index, options("Net"))


@pytest.mark.parametrize(
    ("name", "mapped"), [("Net", True), ("Mixed", True), ("Values", False), ("Tied", False), ("Lazy", False)]
)
def test_a_large_model_is_mapped_only_if_that_is_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mapped: bool
) -> None:
    trained: nn.Module = getattr(checkpoints, name)()
    inputs = torch.arange(12).reshape(2, 6) if name == "Tied" else torch.randn(2, 8)
    trained(inputs)
    monkeypatch.setattr("onnx_release.limits.META_MODEL_MIN_BYTES", 0)
    model, _ = load(stored(tmp_path / "w.pth", trained.state_dict()), options(name))
    torch.testing.assert_close(model(inputs), trained.eval()(inputs))
    assert bool(pages_of(model).ranges) == mapped


def test_a_large_file_of_safetensors_is_mapped(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.limits.META_MODEL_MIN_BYTES", 0)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    model, _ = load(tmp_path / "w.safetensors", options("Net"))
    assert_same(model, net)
    assert pages_of(model).ranges


def _in_ddp(model: nn.Module) -> nn.Module:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return nn.parallel.DistributedDataParallel(model)


def test_a_tensor_that_is_spread_over_processes_is_refused(tmp_path: Path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
    path = stored(tmp_path / "w.pth", {"model": {"weight": distribute_tensor(torch.ones(3, 8), mesh, [Shard(0)])}})
    distributed.destroy_process_group()
    with refused("sharded_weights", "DTensor", "full_state_dict"):
        load(path, options("Net"))


def _compiled_part(model: Net) -> nn.Module:
    model.enc = torch.compile(model.enc)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        _in_ddp,
        torch.optim.swa_utils.AveragedModel,
        _compiled_part,
        lambda model: {"model": None, "ema": model, "epoch": 3},
        lambda model: {"model": model, "ema": nn.Linear(8, 3), "criterion": nn.CrossEntropyLoss()},
    ],
)
def test_a_pickled_model_is_found_without_its_wrappers(net: Net, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    path = stored(tmp_path / "w.pt", wrap(copy.deepcopy(net)))
    if distributed.is_initialized():
        distributed.destroy_process_group()
    model, _ = load(path, options(""), allow_pickle=True)
    assert type(model) is Net
    assert not any("_orig_mod" in name for name, _ in model.named_parameters())
    assert_same(model, net)


def test_of_several_pickled_models_one_is_named(net: Net, tmp_path: Path) -> None:
    path = stored(tmp_path / "w.pt", {"generator": net, "critic": nn.Linear(8, 3)})
    with refused("several_networks", "'generator', 'critic'"):
        load(path, options(""), allow_pickle=True)
    assert_same(load(path, options("", weights_key="generator"), allow_pickle=True)[0], net)


def test_a_checkpoint_of_another_pickle_protocol_is_loaded_where_pickles_are_allowed(net: Net, tmp_path: Path) -> None:
    path = stored(tmp_path / "w.pt", {"model": net.state_dict(), "args": argparse.Namespace()}, pickle_protocol=4)
    assert_same(load(path, options("Net"), allow_pickle=True)[0], net)
