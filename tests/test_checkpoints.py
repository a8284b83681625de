"""Run folders: what loads, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medgan.errors import Refused
from medgan.learning.checkpoints import create_run, load_weights, newest_run, open_run, trim_log


def _code(call: object, *args: object) -> str:
    with pytest.raises(Refused) as refused:
        call(*args)  # type: ignore[operator]
    return refused.value.code


def test_a_run_folder_is_whole(lesion_run: Path) -> None:
    names = {p.name for p in lesion_run.iterdir()}
    assert {"config.json", "weights.safetensors", "state", "log.jsonl", "samples", "MODEL_CARD.md"} <= names
    run = open_run(lesion_run)
    assert run.finished and run.config.task == "lesion" and len(run.hash()) == 16
    lines = [json.loads(line) for line in (lesion_run / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32]
    assert all(0 <= line["waiting"] <= 1 and line["images_per_second"] > 0 for line in lines)
    assert len(list((lesion_run / "samples").glob("*.png"))) == 3
    generator = run.generator()
    assert not any(p.requires_grad for p in generator.parameters())


def test_the_weights_are_the_average_not_the_last_generator(lesion_run: Path) -> None:
    weights = load_file(lesion_run / "weights.safetensors")
    state = load_file(lesion_run / "state" / "state.safetensors")
    assert all(torch.equal(weights[name], state[f"average.{name}"]) for name in weights)
    assert any(not torch.equal(weights[name], state[f"task.generator.{name}"]) for name in weights)


def test_damaged_and_foreign_weights_are_refused(lesion_run: Path, tmp_path: Path) -> None:
    generator = open_run(lesion_run).generator()
    tensors = load_file(lesion_run / "weights.safetensors")
    first = next(iter(tensors))
    bad = tmp_path / "bad.safetensors"
    save_file({**tensors, first: tensors[first] * float("nan")}, bad)
    assert _code(load_weights, generator, bad) == "CKPT_NONFINITE"
    save_file({name: t for name, t in tensors.items() if name != first}, bad)
    assert _code(load_weights, generator, bad) == "CKPT_MISMATCH"
    save_file({**tensors, first: torch.zeros(3)}, bad)
    assert _code(load_weights, generator, bad) == "CKPT_MISMATCH"
    bad.write_bytes((lesion_run / "weights.safetensors").read_bytes()[:100])
    assert _code(load_weights, generator, bad) == "CKPT_CORRUPT"
    bad.write_bytes(b"")
    assert _code(load_weights, generator, bad) == "CKPT_CORRUPT"
    pickled = tmp_path / "weights.pt"
    torch.save(tensors, pickled)
    assert _code(load_weights, generator, pickled) == "CKPT_UNSAFE"


def test_descriptions_are_checked(lesion_run: Path, tmp_path: Path) -> None:
    assert _code(open_run, tmp_path) == "RUN_NOT_FOUND"
    copy = tmp_path / "run"
    shutil.copytree(lesion_run, copy)
    data = json.loads((copy / "config.json").read_text())
    data["settings"]["training"]["colour"] = "red"
    (copy / "config.json").write_text(json.dumps(data))
    assert _code(open_run, copy) == "CFG_UNKNOWN"
    (copy / "config.json").write_text("{")
    assert _code(open_run, copy) == "CKPT_CORRUPT"


def test_the_newest_run_on_the_same_data_is_found(lesion_run: Path, tmp_path: Path) -> None:
    fingerprint = open_run(lesion_run).dataset["fingerprint"]
    for name in ("a", "b"):
        shutil.copytree(lesion_run, tmp_path / name)
    found = newest_run(tmp_path, fingerprint, "lesion")
    assert found is not None and found.path.parent == tmp_path
    assert newest_run(tmp_path, "other", "lesion") is None
    assert newest_run(tmp_path, fingerprint, "image") is None


def test_log_lines_after_the_saved_state_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"images": 8}\n{"images": 16}\n{"images": 24}\n{"imag')
    trim_log(tmp_path, 16)
    assert (tmp_path / "log.jsonl").read_text() == '{"images": 8}\n{"images": 16}\n'


def test_phantoms_are_found_in_a_run_folder_that_was_moved(tmp_path: Path, lesion_run: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "phantoms").mkdir(parents=True)
    about = {"name": "phantoms", "path": str(old / "phantoms"), "fingerprint": "0"}
    create_run(old, open_run(lesion_run).config, {}, about)
    assert open_run(old).dataset == about
    old.rename(new)
    assert open_run(new).dataset == about | {"path": str(new / "phantoms")}
    shutil.rmtree(new / "phantoms")
    assert open_run(new).dataset == about
