"""`train`: defaults, refusals before any work, interruption and resume."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import medgan
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.learning.checkpoints import open_run
from medgan.verbs.progress import Progress
from medgan.verbs.train import default_task


def test_without_a_data_set_phantoms_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              tiny: dict[str, object]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medgan.verbs.train.PHANTOMS", 2)
    told: list[Progress] = []
    run = medgan.train(modality="ct", settings=tiny, progress=told.append)
    assert run.path == Path("runs/ct-phantoms-lesion") and run.finished
    assert len(open_dataset(run.path / "phantoms").cases) == 2
    assert "phantom" in told[0].text
    assert run.config.training.limit_minutes is not None and run.config.training.limit_minutes < 3
    again = medgan.train(modality="ct", settings=tiny)
    assert again.path == Path("runs/ct-phantoms-lesion-2")


def test_the_task_follows_from_the_data(mr_set: Path, xray_classes: Path, tmp_path: Path) -> None:
    from medgan.datasets.phantoms import phantom
    from medgan.imaging.files import write

    assert default_task(open_dataset(mr_set)) == "lesion"
    assert default_task(open_dataset(xray_classes)) == "image"
    for index in range(2):
        image, _ = phantom("mr", index, shape=(24, 24, 12))
        write(image, tmp_path / "plain" / f"{index}.nii.gz")
    assert default_task(open_dataset(tmp_path / "plain")) == "upscale"


@pytest.mark.parametrize(("arguments", "code"), [
    ({"modality": "ctt"}, "CFG_VALUE"),
    ({"modality": "mr", "settings": ["training.colour=1"]}, "CFG_UNKNOWN"),
    ({"modality": "mr", "settings": ["training.batch=0"]}, "CFG_VALUE"),
    ({"modality": "mr", "task": "segment"}, "CFG_VALUE"),
    ({"modality": "mr", "config": "missing.toml"}, "FILE_MISSING"),
    ({"modality": "mr", "device": "tpu"}, "CFG_VALUE"),
    ({"modality": "mr", "resume": True}, "CFG_VALUE"),
])
def test_wrong_arguments_are_refused_and_nothing_is_written(mr_set: Path, tmp_path: Path, arguments: dict[str, object],
                                                           code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        medgan.train(mr_set, **arguments)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert not list(tmp_path.iterdir())


def test_data_without_masks_is_refused_for_the_lesion_task(xray_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        medgan.train(xray_classes, modality="xray", task="lesion", out=tmp_path / "run")
    assert refused.value.code == "LABEL_MISSING" and not (tmp_path / "run").exists()


def test_an_output_with_other_content_is_refused(mr_set: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused) as refused:
        medgan.train(mr_set, modality="mr", out=tmp_path / "run")
    assert refused.value.code == "OUT_EXISTS"
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_run_goes_on_to_the_same_weights(mr_set: Path, tmp_path: Path, lesion_run: Path,
                                                        tiny: dict[str, object]) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "training" and progress.done >= 24:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="--resume"):
        medgan.train(mr_set, modality="mr", out=tmp_path / "run", settings=tiny, progress=stop)
    assert not open_run(tmp_path / "run").finished
    medgan.train(out=tmp_path / "run", resume=True)
    whole, resumed = (load_file(path / "weights.safetensors") for path in (lesion_run, tmp_path / "run"))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(log) == 2
    again = medgan.train(out=tmp_path / "run", resume=True)
    assert again.finished


def test_resume_refuses_changed_data(mr_set: Path, tmp_path: Path, tiny: dict[str, object]) -> None:
    import shutil

    copy = tmp_path / "set"
    shutil.copytree(mr_set, copy)
    medgan.train(copy, modality="mr", out=tmp_path / "run", settings=tiny | {"training.images": 8})
    with next((copy / "imagesTr").glob("*.nii.gz")).open("ab") as file:
        file.write(b"\0" * 64)
    with pytest.raises(Refused) as refused:
        medgan.train(out=tmp_path / "run", resume=True)
    assert refused.value.code == "CKPT_MISMATCH"


@pytest.mark.slow
def test_loading_does_not_starve_training_on_real_data(shared_data: Path, tmp_path: Path) -> None:
    import json

    run = medgan.train(shared_data / "glioma", out=tmp_path / "run",
                       settings={"training.images": 192, "training.report_images": 96})
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert max(line["waiting"] for line in lines) < 0.1


def test_resume_refuses_what_the_run_was_not_begun_with(mr_set: Path, xray_classes: Path, tmp_path: Path,
                                                        tiny: dict[str, object]) -> None:
    medgan.train(mr_set, modality="mr", out=tmp_path / "run", settings=tiny | {"training.images": 8})
    for change, code in (({"settings": ["nonsense=1"]}, "CFG_UNKNOWN"),
                         ({"settings": ["training.batch=4"]}, "CFG_VALUE"),
                         ({"task": "image"}, "RUN_TASK"), ({"modality": "ct"}, "RUN_TASK"),
                         ({"dataset": xray_classes}, "CKPT_MISMATCH"), ({"seed": 9}, "CFG_VALUE")):
        with pytest.raises(Refused) as refused:
            medgan.train(out=tmp_path / "run", resume=True, **change)  # type: ignore[arg-type]
        assert refused.value.code == code
    told: list[Progress] = []
    medgan.train(mr_set, out=tmp_path / "run", resume=True, minutes=1, device="cpu", progress=told.append)
    assert "finished" in told[-1].text


def test_a_run_killed_before_its_first_state_begins_anew_and_so_does_its_log(image_run: Path, tmp_path: Path) -> None:
    whole = (image_run / "log.jsonl").read_text().splitlines()
    shutil.copytree(image_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state")
    (tmp_path / "run" / "weights.safetensors").unlink()
    (tmp_path / "run" / "log.jsonl").write_text("\n".join([*whole[:1], ""]))
    medgan.train(out=tmp_path / "run", resume=True)
    again = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in again] == [json.loads(line)["images"] for line in whole]
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (image_run / "weights.safetensors").read_bytes()
