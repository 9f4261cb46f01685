"""Files of weights among the artifacts of a run: the search and the choice, without a server."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest

from onnx_release.training_runs import weight_files
from tests.refusals import refused


def found(*paths: str) -> weight_files.Artifacts:
    """Search a tree of these files."""
    entries: dict[str, dict[str, bool]] = {"": {}}
    for path in paths:
        entries.setdefault(str(PurePosixPath(path).parent).removeprefix("."), {})[path] = False
        for folder in list(PurePosixPath(path).parents)[:-1]:
            entries.setdefault(str(folder.parent).removeprefix("."), {})[str(folder)] = True
    return weight_files.search(lambda folder: entries.get(folder, {}).items())


HYDRA = "outputs/2026-01-05/10-11-12/lightning_logs/version_0/checkpoints"


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["model_best.pth.tar", "checkpoint.pth.tar"], "model_best.pth.tar"),
        (["MODEL.PT"], "MODEL.PT"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin"], "pytorch_model.bin"),
        (["checkpoint.tar", "data.tar", "code.tar"], "checkpoint.tar"),
        (["weights/dernière époque 3.ckpt"], "weights/dernière époque 3.ckpt"),
        ([f"{HYDRA}/last.ckpt", f"{HYDRA}/../../config.bin"], f"{HYDRA}/last.ckpt"),
        (["best_model.pt", "best_optimizer.pth", "bestScheduler.pt"], "best_model.pt"),
        (["model.pt", "optim.pt", "grad_scaler.pt", "random_states_0.pt", "rng_state.pth"], "model.pt"),
        (["optimizer.pt"], "optimizer.pt"),
        (["model.safetensors", "model_ema.safetensors"], "model.safetensors"),
        (["best.pt", "best.onnx", "last.pt"], "best.pt"),
        (["bestiary/a.pt", "bestiary/last.pt"], "bestiary/last.pt"),
        (["best/model.pt", "last/model.pt"], "best/model.pt"),
        (["best/model.pt", "final_best.pt"], "final_best.pt"),
        (["BestModel.pth", "model.pth"], "BestModel.pth"),
        (["model.pt2", "model.pt", "model.safetensors"], "model.pt2"),
        (["exported.pt2", "checkpoints/last.ckpt"], "exported.pt2"),
        ([*(f"checkpoints/epoch={n}-step={100 * n}.ckpt" for n in range(5)), "checkpoints/last.ckpt"],
         "checkpoints/last.ckpt"),
        ([f"epoch={n}-val_loss={1 / (n + 1):.2f}.ckpt" for n in range(12)], "epoch=11-val_loss=0.08.ckpt"),
        (["checkpoint-500/pytorch_model.bin", "checkpoint-1000/pytorch_model.bin", "checkpoint-1000/optimizer.pt"],
         "checkpoint-1000/pytorch_model.bin"),
        (["onnx_release/m/reproduction/best.pt", "model.pt"], "model.pt"),
    ],
)  # fmt: skip
def test_the_file_of_the_model_is_chosen(paths: list[str], chosen: str) -> None:
    assert weight_files.choose(found(*paths).files, "r") == chosen


@pytest.mark.parametrize(
    "paths",
    [
        ["a.pt", "b.pt"],
        ["generator.ckpt", "discriminator.pth"],
        ["best_generator.pt", "best_discriminator.pt", "last.pt"],
        ["fold_1.pt", "fold_2.pt"],
        ["version_0/checkpoints/epoch=3.ckpt", "version_1/checkpoints/epoch=2.ckpt"],
        ["loss_0.1_epoch_3.pt", "loss_0.2_epoch_3.pt"],
        ["best_ema.pt", "best_raw.pt"],
    ],
)
def test_files_that_match_equally_well_are_refused_by_name(paths: list[str]) -> None:
    with refused("several_model_files", *(path for path in paths if path != "last.pt"), "model_uri"):
        weight_files.choose(found(*paths).files, "r")


@pytest.mark.parametrize("form", ["model-0000{}-of-00002.safetensors", "hf/pytorch_model-0000{}-of-00002.bin"])
def test_weights_in_shards_are_released_by_their_index(form: str) -> None:
    index = form.partition("-0000")[0] + form[form.rindex(".") :] + ".index.json"
    shards = [form.format(1), form.format(2)]
    assert weight_files.choose(found(*shards, index, "optimizer.pt").files, "r") == index
    with refused("weights_in_shards", shards[1], "index"):
        weight_files.choose(found(*shards).files, "r")
    with refused("weights_in_shards"):
        weight_files.refuse_shards([f"runs:/r/{shards[0]}"], "The model")


def test_an_index_names_files_beside_it_only() -> None:
    weight_map = {
        "a": "m-1.safetensors",
        "b": "m-2.safetensors",
        "c": "../x.safetensors",
        "d": "run.sh",
        "e": "m-1.safetensors",
    }
    assert weight_files.indexed_files(json.dumps({"weight_map": weight_map})) == ["m-1.safetensors", "m-2.safetensors"]
    assert [weight_files.indexed_files(text) for text in ("{}", "no json", "[1]", '{"weight_map": 3}')] == [[]] * 4


def test_other_files_and_the_folders_of_models_are_no_candidates() -> None:
    artifacts = found("model.xml", "model.bin", "vectors.bin", "notes.txt", "a/b/MLmodel", "a/b/data/model.pth")
    assert (artifacts.files, artifacts.model_folders, artifacts.complete) == ([], ["a/b"], True)


def test_a_search_ends_at_its_limits() -> None:
    assert not found("/".join("abcdefghijklmno") + "/last.ckpt").complete
    wide = found(*(f"f{n:04}/x.txt" for n in range(weight_files.FOLDERS_MAX + 5)), "best.pt")
    assert (wide.files, wide.complete) == (["best.pt"], False)
