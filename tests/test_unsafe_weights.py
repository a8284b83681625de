"""Weights that would run code, or that lie: refused by name wherever a run can be given, with nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import unsafe_makers as unsafe
from safetensors.torch import load_file, save_file

import medgan
from medgan.errors import Refused
from medgan.learning import checkpoints
from medgan.learning.checkpoints import check_weights, open_run
from medgan.metrics.features import encoder

PAYLOADS: dict[str, Callable[[Path, Path], Path]] = {
    "pickle": unsafe.pickled, "torch": unsafe.torch_zip, "legacy": unsafe.legacy_torch,
    "old pickle": lambda path, canary: unsafe.pickled(path, canary, protocol=2),
}


@pytest.fixture
def run(lesion_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, whose files can be exchanged."""
    return Path(shutil.copytree(lesion_run, tmp_path / "run"))


def refusals(run: Path, data: Path, out: Path, tiny: dict[str, object]) -> dict[str, str]:
    """The code of every way to give a run, each of which must leave nothing behind."""
    image = min((data / "imagesTr").glob("*.nii.gz"))
    ways: dict[str, Callable[[], object]] = {
        "load": lambda: open_run(run).generator(),
        "augment --model": lambda: medgan.augment(data, out=out, model=run, settings={"augment.seen": 0}),
        "synthesize RUN": lambda: medgan.synthesize(run, 1, out=out),
        "training.from": lambda: medgan.train(data, modality="mr", out=out,
                                              settings={**tiny, "training.from": str(run)}),
        "fill --model": lambda: medgan.fill(image, min((data / "labelsTr").glob("*.nii.gz")), model=run),
        "online": lambda: medgan.OnlineLesions(run, data),
    }
    codes = {}
    for name, way in ways.items():
        with pytest.raises(Refused) as refused:
            way()
        codes[name] = refused.value.code
        assert not out.exists(), f"{name} left something behind"
    told = medgan.inspect(run)
    assert told.status == "refused"
    return codes | {"inspect": told.codes[0]}


@pytest.fixture
def data(mr_set: Path) -> Path:
    """The data set of the run."""
    assert (mr_set / "imagesTr").is_dir()
    return mr_set


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_pickles_in_the_place_of_weights_are_refused(run: Path, data: Path, tmp_path: Path, kind: str, name: str,
                                                     tiny: dict[str, object]) -> None:
    canary = tmp_path / "canary"
    (run / "weights.safetensors").unlink()
    PAYLOADS[kind](run / name, canary)
    assert set(refusals(run, data, tmp_path / "out", tiny).values()) == {"CKPT_UNSAFE"}
    assert not canary.exists()


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.ckpt", "evil.pkl", "evil", "evil.bin",
                                  "evil.safetensors"])
def test_a_pickle_given_as_a_run_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    canary, path = tmp_path / "canary", PAYLOADS[kind](tmp_path / name, tmp_path / "canary")
    for way in (open_run, lambda p: medgan.upsample(p, model=p), lambda p: medgan.synthesize(p, 1),
                lambda p: medgan.train(out=p, resume=True)):
        with pytest.raises(Refused) as refused:
            way(path)  # type: ignore[operator]
        assert refused.value.code == "CKPT_UNSAFE"
    assert medgan.inspect(path).codes == ("CKPT_UNSAFE",)
    assert os.listdir(tmp_path) == [name] and not canary.exists()


def test_the_payloads_would_run(tmp_path: Path) -> None:
    import pickle

    pickle.loads(unsafe.pickled(tmp_path / "evil", tmp_path / "canary").read_bytes())
    assert (tmp_path / "canary").exists()
    with contextlib.suppress(EOFError):  # which comes after the gadget
        torch.load(unsafe.legacy_torch(tmp_path / "evil.pt", tmp_path / "canary2"), weights_only=False)
    assert (tmp_path / "canary2").exists()


@pytest.mark.parametrize("lie", unsafe.LYING)
def test_headers_that_lie_are_refused(tmp_path: Path, lie: str) -> None:
    with pytest.raises(Refused) as refused:
        check_weights(unsafe.safetensors(tmp_path / "w.safetensors", *unsafe.LYING[lie]))
    assert refused.value.code == "CKPT_CORRUPT"
    assert medgan.inspect(tmp_path / "w.safetensors").codes == ("CKPT_CORRUPT",)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**32, 0, 1, 101])
def test_header_lengths_that_lie_are_refused(tmp_path: Path, length: int) -> None:
    path = unsafe.safetensors(tmp_path / "w.safetensors", {"a": unsafe.tensor([4], 0, 16)}, b"\0" * 16, length=length)
    with pytest.raises(Refused) as refused:
        check_weights(path)
    assert refused.value.code == "CKPT_CORRUPT"


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_files_shorter_than_a_header_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\0" * size)
    with pytest.raises(Refused) as refused:
        check_weights(tmp_path / "w.safetensors")
    assert refused.value.code == "CKPT_CORRUPT"


def test_what_is_right_is_read(tmp_path: Path) -> None:
    header = {"b": unsafe.tensor([2, 2], 0, 16), "a": unsafe.tensor([0], 16, 16), "c": unsafe.tensor([], 16, 24, "I64")}
    path = unsafe.safetensors(tmp_path / "w.safetensors", header, b"\0" * 24)
    assert check_weights(path) == {"a": (0,), "b": (2, 2), "c": ()}
    assert {name: tuple(each.shape) for name, each in load_file(path).items()} == check_weights(path)


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Writes a file of weights anew, with its metadata kept."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    how(tensors)
    save_file(tensors, path, metadata=metadata)


def first(tensors: dict[str, torch.Tensor], prefix: str = "") -> str:
    return next(name for name, tensor in sorted(tensors.items()) if name.startswith(prefix) and tensor.ndim
                and tensor.is_floating_point())


def as_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors)] = tensors[first(tensors)].to(torch.int32)


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "not finite": (lambda t: t[first(t)].view(-1)[:1].fill_(float("nan")), "CKPT_NONFINITE"),
    "infinite": (lambda t: t[first(t)].view(-1)[-1:].fill_(float("inf")), "CKPT_NONFINITE"),
    "a tensor less": (lambda t: t.pop(first(t)), "CKPT_MISMATCH"),
    "a tensor more": (lambda t: t.update(extra=torch.zeros(2)), "CKPT_MISMATCH"),
    "another name": (lambda t: t.update(other=t.pop(first(t))), "CKPT_MISMATCH"),
    "another shape": (lambda t: t.update({first(t): torch.zeros(3, 5, 7)}), "CKPT_MISMATCH"),
    "another type": (as_integers, "CKPT_MISMATCH"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_of_another_model_or_not_finite_are_refused_everywhere(run: Path, data: Path, tmp_path: Path, what: str,
                                                                        tiny: dict[str, object]) -> None:
    how, code = CHANGES[what]
    change(run / "weights.safetensors", how)
    assert set(refusals(run, data, tmp_path / "out", tiny).values()) == {code}


def test_headers_that_lie_are_refused_everywhere(run: Path, data: Path, tmp_path: Path, tiny: dict[str, object]
                                                 ) -> None:
    whole = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(whole[:-1])
    assert set(refusals(run, data, tmp_path / "out", tiny).values()) == {"CKPT_CORRUPT"}
    (run / "weights.safetensors").write_bytes(whole + b"\0")
    assert set(refusals(run, data, tmp_path / "out", tiny).values()) == {"CKPT_CORRUPT"}


STATES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "not finite": (lambda t: t[first(t)].view(-1)[:1].fill_(float("nan")), "CKPT_NONFINITE"),
    "a tensor of the task less": (lambda t: t.pop(first(t, "task.")), "CKPT_MISMATCH"),
    "an average of another shape": (lambda t: t.update({first(t, "average."): torch.zeros(3)}), "CKPT_MISMATCH"),
    "an optimiser of another shape": (lambda t: t.update({first(t, "optimiser."): torch.zeros(3, 3)}), "CKPT_MISMATCH"),
    "a moment of no parameter": (lambda t: t.update({"optimiser.generator.99999.exp_avg": torch.zeros(3)}),
                                 "CKPT_MISMATCH"),
    "an index that is none": (lambda t: t.update({"optimiser.generator.x.exp_avg": torch.zeros(3)}), "CKPT_MISMATCH"),
}


def resumed(run: Path) -> str:
    """The code by which going on with an unfinished run is refused; its folder stays as it is."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(Refused) as refused:
        medgan.train(out=run, resume=True)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert before == after
    return refused.value.code


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_is_wrong_is_not_gone_on_with(run: Path, what: str) -> None:
    (run / "weights.safetensors").unlink()
    how, code = STATES[what]
    change(run / "state" / "state.safetensors", how)
    assert resumed(run) == code


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_state_that_is_a_pickle_is_not_gone_on_with(run: Path, tmp_path: Path, kind: str) -> None:
    (run / "weights.safetensors").unlink()
    PAYLOADS[kind](run / "state" / "state.safetensors", tmp_path / "canary")
    assert resumed(run) == "CKPT_UNSAFE" and not (tmp_path / "canary").exists()
    PAYLOADS[kind](run / "state" / "state.pt", tmp_path / "canary")
    (run / "state" / "state.safetensors").unlink()
    assert medgan.inspect(run).status != "ok" and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("numbers", ["[", "[" * 50_000, "{}", '{"step": -1}', '{"step": NaN}', '{"step": 1, "step": 2}',
                                     "[]"])
def test_counts_of_a_state_that_are_none_are_refused(run: Path, numbers: str) -> None:
    (run / "weights.safetensors").unlink()
    file = run / "state" / "state.safetensors"
    save_file(load_file(file), file, metadata={"numbers": numbers})
    assert resumed(run) == "CKPT_MISMATCH"


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an expression": (lambda c: c["settings"].update({"device": "$__import__('os').mkdir('canary')"}), "CFG_UNSAFE"),
    "a target": (lambda c: c["interface"].update({"_target_": "os.mkdir", "path": "canary"}), "CFG_UNSAFE"),
    "an unknown setting": (lambda c: c["settings"].update({"colour": "red"}), "CFG_UNKNOWN"),
    "an impossible setting": (lambda c: c["settings"]["network"].update({"width": 10**9}), "CFG_VALUE"),
    "countless channels": (lambda c: c["interface"].update({"channels": 10**12}), "CKPT_CORRUPT"),
    "no channels": (lambda c: c["interface"].update({"channels": 0}), "CKPT_CORRUPT"),
    "channels that are a text": (lambda c: c["interface"].update({"channels": "1"}), "CKPT_CORRUPT"),
    "labels that are a number": (lambda c: c["interface"].update({"labels": 5}), "CKPT_CORRUPT"),
    "no textures": (lambda c: c["interface"].update({"textures": {}}), "CKPT_CORRUPT"),
    "countless latents": (lambda c: c["interface"].update({"latent": 10**12}), "CKPT_CORRUPT"),
    "an interface that is a list": (lambda c: c.update({"interface": []}), "CKPT_CORRUPT"),
    "settings that are a list": (lambda c: c.update({"settings": []}), "CKPT_CORRUPT"),
    "a data set that is a number": (lambda c: c.update({"dataset": 5}), "CKPT_CORRUPT"),
    "a data set without a place": (lambda c: c["dataset"].update({"path": 5}), "CKPT_CORRUPT"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_descriptions_of_runs_that_are_wrong_are_refused(run: Path, tmp_path: Path, what: str) -> None:
    how, code = CONFIGS[what]
    data = json.loads((run / "config.json").read_text())
    how(data)
    (run / "config.json").write_text(json.dumps(data))
    with pytest.raises(Refused) as refused:
        open_run(run).generator()
    assert refused.value.code == code
    assert medgan.inspect(run).codes[0] == code
    assert not list(tmp_path.rglob("canary")) and not Path("canary").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{}", "", "5",
                                  '{"settings": {}, "settings": {}}', "\0", '{"settings": NaN}', "9" * 5000])
def test_descriptions_that_are_no_json_of_a_run_are_refused(run: Path, text: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(Refused) as refused:
        open_run(run)
    assert refused.value.code == "CKPT_CORRUPT"


def test_a_log_that_was_cut_or_is_none_is_passed_over(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    odd = "\n".join([lines[0], "[" * 50_000, "5", "null", '{"images": "x"}', '{"im'])
    (run / "log.jsonl").write_bytes(odd.encode() + b"\xff")
    assert [entry["images"] for entry in checkpoints.read_log(run)] == [json.loads(lines[0])["images"]]
    assert medgan.inspect(run).status == "ok"


def test_a_pickle_is_no_image_and_no_data_set(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for path in (unsafe.object_array(tmp_path / "image.npy", canary),):
        assert medgan.inspect(path).codes == ("FILE_UNSAFE",)
    with pytest.raises(Refused) as refused:
        medgan.train(unsafe.torch_zip(tmp_path / "set.pt", canary), modality="ct")
    assert refused.value.code == "CKPT_UNSAFE" and not canary.exists()


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.safetensors", "encoder.onnx", "../x.onnx", "os.system"])
def test_an_encoder_that_is_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / Path(name).name
    unsafe.torch_zip(path, tmp_path / "canary")
    with pytest.raises(Refused) as refused:
        encoder(str(path))
    assert refused.value.code in ("CFG_VALUE", "FILE_FORMAT", "CKPT_UNSAFE") and not (tmp_path / "canary").exists()
