"""The command in a process of its own: what it answers, and what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as make
import pytest
from cli_makers import REFUSAL, everything, sets

import medgan
from medgan.errors import Interrupted, Refused
from medgan.storage import PARTIAL, claimed, held
from medgan.verbs.fill import fill_file
from medgan.verbs.pool import in_parallel
from medgan.verbs.progress import Progress
from medgan.verbs.upsample import upsample_file
from medgan.verbs.upsample_folder import upsample_folder


def process(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    # Tests that a shell started in the background inherit an ignored SIGINT, and would hand it on.
    return subprocess.Popen([sys.executable, "-m", "medgan.cli", *map(str, arguments)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
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
    program = "import medgan.verbs.inspect as m\ndef stop(path, **_): raise KeyboardInterrupt\nm.inspect = stop\n" \
              "import sys; sys.argv = ['medgan', 'inspect', 'x']\nfrom medgan.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "interrupted before there was anything to save\n"


def test_a_second_interruption_ends_at_once_and_does_not_say_that_there_was_nothing(tmp_path: Path) -> None:
    program = "import medgan.verbs.inspect as m\n" \
              "def stop(path, **_):\n    try: raise KeyboardInterrupt\n    finally: raise KeyboardInterrupt\n" \
              "m.inspect = stop\nimport sys; sys.argv = ['medgan', 'inspect', 'x']\n" \
              "from medgan.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "interrupted twice: stopped at once; what was finished is kept\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_ends_the_program_as_ctrl_c_does_unless_told_not_to_hear(number: int, tmp_path: Path) -> None:
    program = "import os, signal, sys, threading\nfrom medgan.verbs.stopping import stoppable\n" \
              "import medgan.verbs.inspect as m\n" \
              "def work(path, **_):\n    with stoppable('at once') as stopped:\n" \
              f"        os.kill(os.getpid(), {int(number)})\n        print(stopped(), flush=True)\n" \
              f"    os.kill(os.getpid(), {int(number)})\n    print('not heard')\n    sys.exit(5)\n" \
              "m.inspect = work\nsys.argv = ['medgan', 'inspect', 'x']\n" \
              "from medgan.cli import main\nmain()\n"

    def end(heard: bool) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, preexec_fn=
                              lambda: signal.signal(number, signal.SIG_DFL if heard else signal.SIG_IGN))
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    assert end(True) == (130, "True\n")
    assert end(False) == (5, "False\nnot heard\n")


def alive(group: int) -> bool:
    """Whether a process of a group lives; what is dead and not yet waited for does not."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            return True
    return False


@pytest.mark.slow
def test_workers_hear_no_ctrl_c_and_outlive_nobody(mr_set: Path, tmp_path: Path) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of the group; SIGKILL may reach the first alone."""
    arguments = ("augment", mr_set, "--method", "paste", "--factor", "8", "--workers", "2", "--set", "augment.seen=0",
                 "--out")
    for send in (lambda child: os.killpg(child.pid, signal.SIGINT), lambda child: os.killpg(child.pid, signal.SIGTERM),
                 lambda child: child.kill()):
        with process(*arguments, "new", cwd=tmp_path) as child:
            done = len(list(tmp_path.glob("new/imagesTr/*.provenance.json")))
            while child.poll() is None and len(list(tmp_path.glob("new/imagesTr/*.provenance.json"))) == done:
                time.sleep(0.02)
            with process(*arguments, "new", cwd=tmp_path) as second:
                _, err = second.communicate()
            assert second.returncode == 3 and "error[OUT_BUSY] new: " in err
            assert child.poll() is None, "the case was over before it could be stopped"
            send(child)
            _, err = child.communicate()
        if child.returncode != -signal.SIGKILL:
            assert child.returncode == 130 and "the same command goes on" in err and "Traceback" not in err, err
            assert not list(tmp_path.rglob(f"{PARTIAL}*"))
        for _ in range(500):
            if not alive(child.pid):
                break
            time.sleep(0.02)
        assert not alive(child.pid), "a worker outlives the process that began it"
    for name in ("new", "other"):
        with process(*arguments, name, cwd=tmp_path) as again:
            assert again.wait() == 0
    assert make.tree(tmp_path / "new") == make.tree(tmp_path / "other")


def _nothing() -> None:
    pass


def _refuse() -> None:
    raise Refused("CKPT_CORRUPT", "x", "it is damaged", "Restore it")


def _die_at_two(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.slow
def test_a_worker_that_dies_or_cannot_begin_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        list(in_parallel(_die_at_two, [1, 2, 3], 2, _nothing, (), where=tmp_path))
    assert refused.value.code == "WORKER_DIED" and "--workers" in refused.value.fix
    with pytest.raises(Refused, match="CKPT_CORRUPT"):
        list(in_parallel(_die_at_two, [1, 3], 2, _refuse, (), where=tmp_path))
    assert sorted(in_parallel(_die_at_two, [1, 3, 4], 2, _nothing, (), where=tmp_path)) == [1, 3, 4]


@pytest.fixture(scope="module")
def calls(mr_set: Path, xray_classes: Path, lesion_run: Path, tiny: dict[str, object],
          tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[Path, Any], object]]:
    """Verb -> a call of it with an output and what is to be told of its progress."""
    made = shutil.copytree(xray_classes, tmp_path_factory.mktemp("sets") / "made")
    image, mask = (sorted((mr_set / name).iterdir())[0] for name in ("imagesTr", "labelsTr"))
    return {
        "train": lambda out, tell: medgan.train(mr_set, modality="mr", out=out, settings=tiny, progress=tell),
        "augment": lambda out, tell: medgan.augment(mr_set, method="paste", modality="mr", out=out, progress=tell),
        "augment auto": lambda out, tell: medgan.augment(mr_set, method="paste", modality="mr", out=out, factor="auto",
                                                         progress=tell),
        "synthesize": lambda out, tell: medgan.synthesize(lesion_run, 2, out=out, progress=tell),
        "upsample a folder": lambda out, tell: upsample_folder(mr_set, out, method="linear", progress=tell),
        "evaluate": lambda out, tell: medgan.evaluate(xray_classes, made, out=out, modality="xray", progress=tell),
        "upsample": lambda out, tell: upsample_file(image, out, method="linear", progress=tell),
        "fill": lambda out, tell: fill_file(image, mask, out, method="smooth", progress=tell),
    }


VERBS = ("train", "augment", "augment auto", "synthesize", "upsample a folder", "evaluate", "upsample", "fill")


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_that_another_one_writes_to_is_refused_before_any_work(
        verb: str, calls: dict[str, Callable[[Path, Any], object]], tmp_path: Path) -> None:
    call = calls[verb]
    single = verb in ("upsample", "fill")
    out, hold = tmp_path / ("new.nii.gz" if single else "new"), held if single else claimed
    told: list[Progress] = []
    with hold(out):
        before = everything(tmp_path)
        with pytest.raises(Refused) as refused:
            call(out, told.append)
        assert refused.value.code == "OUT_BUSY" and everything(tmp_path) == before
        assert [each.stage for each in told] in ([], ["training"])


def test_a_run_that_another_one_resumes_is_refused(mr_set: Path, tiny: dict[str, object], tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "training" and progress.done:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match="--resume"):
            medgan.train(mr_set, modality="mr", out=tmp_path / "run", settings=tiny, progress=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    with claimed(tmp_path / "run"), pytest.raises(Refused, match="OUT_BUSY"):
        medgan.train(out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("verb", ["synthesize", "upsample", "fill"])
def test_what_cannot_go_on_says_what_there_is(verb: str, calls: dict[str, Callable[[Path, Any], object]],
                                              tmp_path: Path) -> None:
    call = calls[verb]

    def stop(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    if verb == "synthesize":
        with pytest.raises(Interrupted, match=r"stopped after 1 of 2 cases; those finished are in .*new; all of them"):
            call(tmp_path / "new", stop)
        assert len(list((tmp_path / "new").rglob("*.provenance.json"))) == 1
    else:
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path / "new.nii.gz", stop)
        assert everything(tmp_path) == []
    assert not list(tmp_path.rglob(f"{PARTIAL}*"))


@pytest.mark.parametrize("left", [f"{PARTIAL}-1-config.json", f"{PARTIAL}-1-medgan-augment.json"])
def test_what_was_killed_at_its_very_first_file_begins_anew(left: str, mr_set: Path, tiny: dict[str, object],
                                                           tmp_path: Path) -> None:
    out = tmp_path / "new"
    out.mkdir()
    (out / left).write_text("half")
    if "config" in left:
        with pytest.raises(Refused, match=r"RUN_NOT_FOUND.*without --resume"):
            medgan.train(out=out, resume=True)
        medgan.train(mr_set, modality="mr", out=out, settings=tiny)
    else:
        medgan.augment(mr_set, method="paste", modality="mr", factor=1.34, out=out, settings=tiny)
    assert not list(tmp_path.rglob(f"{PARTIAL}*"))
