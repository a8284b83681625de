"""Disks that are full, or may only be read: a clear refusal, nothing half-written, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dataset_makers as make
import pytest

import medgan
from medgan.errors import Refused
from medgan.storage import PARTIAL
from medgan.verbs.evaluate import _write
from medgan.verbs.fill import fill_file
from medgan.verbs.upsample import upsample_file
from medgan.verbs.upsample_folder import upsample_folder

#: Nothing is drawn so small that a gate would stop it.
OPEN = {"augment.seen": 0, "augment.visibility": -1e9, "augment.sigmas": 1e9}


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


class Disk:
    """A file system of a size that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", path)

    def resize(self, size: int) -> None:
        mount("-o", f"remount,size={size}", self.path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", str(made.path)], check=True)


@contextlib.contextmanager
def read_only(folder: Path, where: Path) -> Iterator[Path]:
    """A folder as it is seen on a disk that may only be read."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that may only be read")
    where.mkdir()
    mount("--bind", folder, where)
    try:
        mount("-o", "remount,ro,bind", where)
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def size_of(folder: Path) -> int:
    """Bytes on a disk of pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def no_half_file(out: Path, whole: Path) -> None:
    """What is there has the bytes that it should have at last."""
    for path in out.rglob("*"):
        assert not path.name.startswith(PARTIAL), f"{path} is left over"
        if path.is_file() and path.name not in ("upsample.csv", "log.jsonl", "state.safetensors", "MODEL_CARD.md"):
            assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes(), path


def full(call: Callable[[], Any]) -> None:
    with pytest.raises(Refused) as refused:
        call()
    assert refused.value.code == "OUT_FULL" and "the disk is full" in str(refused.value), refused.value
    assert "Make room" in refused.value.fix


def test_an_augmentation_on_a_full_disk_keeps_its_cases_and_goes_on(mr_set: Path, disk: Disk, tmp_path: Path) -> None:
    def augment(out: Path) -> Any:
        return medgan.augment(mr_set, factor=2, method="paste", modality="mr", out=out, settings=OPEN)

    augment(tmp_path / "new")
    out, finished = disk.path / "new", 0
    for share in (0.05, 0.4, 0.8):
        disk.resize(int(share * size_of(tmp_path / "new")))
        full(lambda: augment(out))
        no_half_file(out, tmp_path / "new")
        assert len(list(out.rglob("*.nii.gz"))) >= finished
        finished = len(list(out.rglob("*.nii.gz")))
    assert finished > 0
    disk.resize(4 * size_of(tmp_path / "new"))
    augment(out)
    assert make.tree(out) == make.tree(tmp_path / "new")


def test_training_on_a_full_disk_is_refused_and_resumes(mr_set: Path, tiny: dict[str, object], lesion_run: Path,
                                                        disk: Disk) -> None:
    run = disk.path / "run"
    stopped = 0
    for share in (0.002, 0.5, 0.8):
        disk.resize(max(4096, int(share * size_of(lesion_run))))
        begun = (run / "config.json").is_file()
        full(partial(medgan.train, None if begun else mr_set, modality="mr", out=run, resume=begun,
                     settings={} if begun else tiny))
        assert not list(disk.path.rglob(f"{PARTIAL}*")) and not (run / "weights.safetensors").exists()
        stopped += begun
    assert stopped > 0
    disk.resize(4 * size_of(lesion_run))
    medgan.train(out=run, resume=True)
    assert (run / "weights.safetensors").read_bytes() == (lesion_run / "weights.safetensors").read_bytes()
    assert len((run / "log.jsonl").read_text().splitlines()) == len((lesion_run / "log.jsonl").read_text().splitlines())


def test_one_volume_on_a_full_disk_is_not_there_at_all(mr_set: Path, disk: Disk) -> None:
    source = sorted((mr_set / "imagesTr").iterdir())[0]
    mask = sorted((mr_set / "labelsTr").iterdir())[0]
    for call in (lambda: upsample_file(source, disk.path / "up.nii", method="linear", factor=2),
                 lambda: upsample_file(source, disk.path / "up.nii.gz", method="linear", factor=2),
                 lambda: fill_file(source, mask, disk.path / "filled.nii", method="smooth")):
        full(call)
        assert list(disk.path.iterdir()) == []


def test_a_folder_on_a_full_disk_goes_on(mr_set: Path, disk: Disk, tmp_path: Path) -> None:
    def upsample(out: Path) -> Any:
        return upsample_folder(mr_set, out, method="linear", factor=2)

    upsample(tmp_path / "fine")
    out = disk.path / "fine"
    for share in (0.01, 0.6):
        disk.resize(max(4096, int(share * size_of(tmp_path / "fine"))))
        full(lambda: upsample(out))
        no_half_file(out, tmp_path / "fine")
    disk.resize(4 * size_of(tmp_path / "fine"))
    upsample(out)
    assert make.tree(out) == make.tree(tmp_path / "fine")


def test_synthetic_cases_and_figures_on_a_full_disk_are_whole_or_not_there(lesion_run: Path, disk: Disk) -> None:
    full(lambda: medgan.synthesize(lesion_run, 2, out=disk.path / "new"))
    assert not list(disk.path.rglob("*.nii.gz")) and not list(disk.path.rglob(f"{PARTIAL}*"))
    full(lambda: _write(disk.path, {"verdict": {}}, "x" * 10**6))
    assert not list(disk.path.glob("evaluation.json")) and not list(disk.path.glob("report.html"))


@pytest.mark.slow
def test_data_on_a_disk_that_may_only_be_read_serves_every_verb(mr_set: Path, tiny: dict[str, object], tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = make.tree(mr_set)
    with read_only(mr_set, tmp_path / "data") as data:
        source, mask = (sorted((data / name).iterdir())[0] for name in ("imagesTr", "labelsTr"))
        medgan.train(data, modality="mr", out="run", settings=tiny)
        medgan.augment(data, method="paste", modality="mr", factor=1.34, out="new", settings=OPEN)
        upsample_folder(data, "fine", method="linear", factor=2)
        upsample_file(source, "up.nii.gz", method="linear", factor=2)
        fill_file(source, mask, "filled.nii.gz", method="smooth")
        medgan.synthesize("run", 1, out="more", settings=OPEN)
        assert medgan.inspect(data).status != "refused"
        with pytest.raises(Refused, match=r"OUT_DENIED.*may only be read.*--out"):
            medgan.train(data, out=data / "run", modality="mr", settings=tiny)
    assert make.tree(mr_set) == before


def test_an_output_beside_data_that_may_only_be_read_names_the_option(mr_set: Path, tmp_path: Path) -> None:
    shutil.copytree(mr_set, tmp_path / "disk" / "data")
    with read_only(tmp_path / "disk", tmp_path / "seen") as seen:
        with pytest.raises(Refused) as refused:
            medgan.augment(seen / "data", method="paste", modality="mr", factor=2)
        assert refused.value.code == "OUT_DENIED" and refused.value.where.endswith("data-x2")
        assert "--out" in refused.value.fix
