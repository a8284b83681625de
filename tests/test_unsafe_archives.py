"""Archives are not unpacked, and those that would climb out of their folder are named as such."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import unsafe_makers as unsafe

import medgan
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.imaging import archives
from medgan.imaging.files import read

CLIMBING = ["../x.nii", "a/../../x", "/etc/x", "..", "a/..", "..\\x.nii", "C:\\x", "c:x", "\\x"]
HARMLESS = {"a/image.nii.gz": b"x", "a/label.nii.gz": b"x", "..a/b..": b"x", "...": b"x"}


def code(path: Path) -> str:
    """The one code by which every way in refuses it; nothing is written beside it."""
    before = sorted(os.listdir(path.parent))
    codes = set()
    for way in (read, open_dataset, lambda p: medgan.upsample(p), lambda p: medgan.train(p, modality="ct")):
        with pytest.raises(Refused) as refused:
            way(path)  # type: ignore[operator]
        codes.add(refused.value.code)
    told = medgan.inspect(path)
    assert told.status == "refused"
    assert sorted(os.listdir(path.parent)) == before
    assert codes == set(told.codes) and len(codes) == 1
    return told.codes[0]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_zip_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    assert code(unsafe.zipped(tmp_path / "set.zip", {"a/image.nii": b"x", name: b"x"})) == "ARCHIVE_ESCAPE"


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_a_tar_that_climbs_out_is_refused(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / f"set.tar{mode[1:].replace(':', '.')}"
    unsafe.tarred(path, {"a/image.nii": b"x", name: b"x"}, mode=mode)
    with pytest.raises(Refused) as refused:
        open_dataset(path)
    assert refused.value.code == "ARCHIVE_ESCAPE" and "unpacked" in refused.value.why


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "../../x", "b/../../../x", "..\\..\\x", "sub/../x"])
def test_links_out_of_an_archive_are_refused(tmp_path: Path, target: str) -> None:
    assert code(unsafe.tarred(tmp_path / "set.tar", {}, {"a": target})) == "ARCHIVE_ESCAPE"
    assert code(unsafe.zipped(tmp_path / "set.zip", {}, {"a": target})) == "ARCHIVE_ESCAPE"
    hard = unsafe.tarred(tmp_path / "hard.tar", {}, hard={"a": target.replace("sub/", "../")})
    assert code(hard) == "ARCHIVE_ESCAPE"


def test_harmless_archives_are_not_unpacked_either_and_it_is_said_what_to_do(tmp_path: Path) -> None:
    inside = {"a/link": "image.nii.gz", "b/c/link": "../../a/image.nii.gz"}
    for path in (unsafe.zipped(tmp_path / "set.zip", HARMLESS, inside),
                 unsafe.tarred(tmp_path / "set.tar", HARMLESS, inside),
                 unsafe.tarred(tmp_path / "set.tgz", HARMLESS, inside, "w:gz"),
                 unsafe.zipped(tmp_path / "no_suffix", HARMLESS), unsafe.tarred(tmp_path / "other", HARMLESS),
                 unsafe.tarred(tmp_path / "x.tar.xz", HARMLESS, mode="w:xz")):
        assert code(path) == "FILE_FORMAT"
        assert "Unpack" in medgan.inspect(path).notes[0]["fix"]


def test_damaged_archives_are_told_apart(tmp_path: Path) -> None:
    whole = unsafe.zipped(tmp_path / "a.zip", HARMLESS).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert code(tmp_path / "cut.zip") == "FILE_CORRUPT"
    (tmp_path / "noise.zip").write_bytes(b"noise" * 200)
    assert code(tmp_path / "noise.zip") == "FILE_CORRUPT"
    packed = unsafe.tarred(tmp_path / "a.tar.gz", {"a": os.urandom(5000)}, mode="w:gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[:2000])
    assert code(tmp_path / "cut.tar.gz") == "FILE_CORRUPT"


def test_a_tar_that_is_a_bomb_is_looked_through_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_LOOKED_THROUGH", 2**20)
    unsafe.tarred(tmp_path / "plain.tar", {"big": bytes(2**22), "../x": b"x"})
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as packed:
        packed.write((tmp_path / "plain.tar").read_bytes())
    assert code(tmp_path / "bomb.tar.gz") == "FILE_FORMAT"  # refused all the same
    (tmp_path / "bomb.tar.gz").unlink()
    monkeypatch.setattr(archives, "_LOOKED_THROUGH", 2**23)
    assert code(tmp_path / "plain.tar") == "ARCHIVE_ESCAPE"


@pytest.mark.parametrize("name", ["../image.npy", "/image.npy", "..\\image.npy", "a/../../image.npy"])
def test_an_npz_of_which_a_member_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    image = unsafe.array_bytes(np.arange(48, dtype=np.int16).reshape(6, 8))
    assert code(unsafe.zipped(tmp_path / "a.npz", {"image.npy": image, name: image})) == "ARCHIVE_ESCAPE"
    split = {"train_images.npy": unsafe.array_bytes(np.zeros((4, 8, 8), np.uint8)),
             "train_labels.npy": unsafe.array_bytes(np.arange(4))}
    assert code(unsafe.zipped(tmp_path / "set.npz", {**split, name: image})) == "ARCHIVE_ESCAPE"


def test_an_npz_with_two_arrays_of_one_name_is_refused(tmp_path: Path) -> None:
    import warnings
    import zipfile

    image = unsafe.array_bytes(np.arange(48, dtype=np.int16).reshape(6, 8))
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("image.npy", image)
        archive.writestr("image.npy", unsafe.array_bytes(np.ones((6, 8), np.int16)))
    assert code(tmp_path / "a.npz") == "FILE_CORRUPT"
