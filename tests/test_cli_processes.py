"""The command in a process of its own: what it answers, and what an interruption leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import dataset_makers as make
from cli_makers import REFUSAL, everything, sets


def process(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    # Tests that a shell started in the background inherit an ignored SIGINT, and would hand it on.
    return subprocess.Popen([sys.executable, "-m", "medgan.cli", *map(str, arguments)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def test_the_program_itself_refuses_and_answers(tmp_path: Path) -> None:
    with process("inspect", "nowhere", cwd=tmp_path) as inspect:
        out, err = inspect.communicate()
    assert inspect.returncode == 3 and "error[FILE_MISSING] nowhere: " in out and err == ""
    with process("train", "nowhere", "--modality", "ct", cwd=tmp_path) as train:
        out, err = train.communicate()
    assert train.returncode == 3 and out == "" and REFUSAL.fullmatch(err) and everything(tmp_path) == []


def wait_for(line: str, child: subprocess.Popen[str]) -> None:
    assert child.stderr is not None
    for text in child.stderr:
        if text.startswith(line):
            return
    raise AssertionError(f"the program ended without saying {line!r}")


def test_an_interrupted_training_is_saved_and_goes_on(mr_set: Path, tiny: dict[str, object], tmp_path: Path) -> None:
    endless = sets(tiny | {"training.images": 10_000_000, "training.report_images": 8})
    with process("train", mr_set, "--modality", "mr", "--out", "run", *endless, cwd=tmp_path) as child:
        wait_for("training", child)
        log = tmp_path / "run/log.jsonl"
        while child.poll() is None and not log.is_file():
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode == 130, err
    assert "Traceback" not in err and "medgan train --out run --resume" in err
    assert (tmp_path / "run/state/state.safetensors").is_file() and not (tmp_path / "run/weights.safetensors").exists()
    with process("augment", mr_set, "--model", "run", "--out", "new", cwd=tmp_path) as augment:
        _, err = augment.communicate()
    assert augment.returncode == 3 and "error[RUN_UNFINISHED] run: " in err and not (tmp_path / "new").exists()


def test_ctrl_c_in_the_middle_of_steps_changes_no_bit_of_the_result(mr_set: Path, tiny: dict[str, object],
                                                                    tmp_path: Path) -> None:
    length = sets(tiny | {"training.images": 160, "training.report_images": 80})
    for name in ("whole", "stopped"):
        with process("train", mr_set, "--modality", "mr", "--out", name, *length, cwd=tmp_path) as child:
            if name == "stopped":
                wait_for("training", child)
                time.sleep(0.15)
                child.send_signal(signal.SIGINT)
            _, err = child.communicate()
            assert child.returncode == (130 if name == "stopped" else 0), err
    for _ in range(3):
        with process("train", "--out", "stopped", "--resume", cwd=tmp_path) as child:
            wait_for("training", child)
            child.send_signal(signal.SIGINT)
            child.communicate()
    with process("train", "--out", "stopped", "--resume", cwd=tmp_path) as child:
        assert child.wait() == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_an_interrupted_augmentation_keeps_its_cases_and_ends_with_the_same_bytes(mr_set: Path, tmp_path: Path) -> None:
    arguments = ("augment", mr_set, "--method", "paste", "--factor", "8", "--set", "augment.seen=0", "--out")
    with process(*arguments, "new", cwd=tmp_path) as child:
        wait_for("synthesizing", child)
        while child.poll() is None and not list(tmp_path.glob("new/imagesTr/*.provenance.json")):
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    assert not (tmp_path / "new/augmentation.csv").exists()
    for name in ("new", "other"):
        with process(*arguments, name, cwd=tmp_path) as again:
            assert again.wait() == 0
    assert make.tree(tmp_path / "new") == make.tree(tmp_path / "other")


def test_an_interruption_before_any_work_is_exit_code_130(tmp_path: Path) -> None:
    """Reading a large data set takes minutes; stopping it then must not look like a failure."""
    program = "import medgan.verbs.inspect as m\ndef stop(path): raise KeyboardInterrupt\nm.inspect = stop\n" \
              "import sys; sys.argv = ['medgan', 'inspect', 'x']\nfrom medgan.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "interrupted before there was anything to save\n"
