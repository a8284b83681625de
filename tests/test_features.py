"""Encoders of images, and the space in which their features are compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.metrics.features import FARTHEST, FEATURES, RandomConvolutions, encoder, standardised
from medgan.metrics.fidelity import frechet

onnx: Any = pytest.importorskip("onnx")
#: The format's version that the oldest supported onnxruntime reads, and operators that it has.
FORMAT, OPSET = 8, 17


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-1, 1, (5, 1, 12, 10)).astype(np.float32)


def model(path: Path, nodes: list[Any], weights: dict[str, NDArray[Any]], shape: list[Any], *, outputs: int = 1,
          **saving: Any) -> Path:
    """An ONNX file whose nodes lead from "images" to "features"."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in ("features", "more")[:outputs]],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("own", 1)])
    made.ir_version = FORMAT
    onnx.save(made, path, **saving)
    return path


def convolution(path: Path, shape: list[Any], channels: int, *, pooled: bool = False, **saving: Any
                ) -> tuple[Path, Any]:
    """A file with one convolution, and its weights (4, channels, 3, 3[, 3])."""
    weight = np.random.default_rng(1).normal(size=(4, channels, *[3] * (len(shape) - 2))).astype(np.float32)
    node = onnx.helper.make_node
    nodes = [node("Conv", ["images", "weight"], ["maps" if pooled else "features"])]
    if pooled:
        nodes += [node("GlobalAveragePool", ["maps"], ["mean"]), node("Flatten", ["mean"], ["features"])]
    return model(path, nodes, {"weight": weight}, shape, **saving), torch.from_numpy(weight)


def test_names() -> None:
    assert {name: encoder(name).name for name in FEATURES} == {"radiomics": "radiomics-93",
                                                               "random": "random-convolutions"}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 9, 7), (2, 1, 8, 10, 6), (2, 2, 1, 5)])
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).uniform(-1.1, 1.1, shape).astype(np.float32)
    values[-1] = 0.25
    found = encoder(name)(values)
    assert found.dtype == np.float64
    assert found.shape == (shape[0], 93 * shape[1] if name == "radiomics" else 480)
    assert np.isfinite(found).all()
    # An image has the same features in any company.
    np.testing.assert_allclose(encoder(name)(values[1:]), found[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FEATURES)
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        encoder(name)(np.zeros((3, 28, 28), np.float32))
    with pytest.raises(Refused, match="PIX_NONFINITE"):
        encoder(name)(np.full((1, 1, 8, 8), np.nan, np.float32))


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"CFG_VALUE.*radiomics or random"):
        encoder("inception")
    with pytest.raises(Refused, match="FILE_MISSING"):
        encoder(str(tmp_path / "none.onnx"))
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(Refused, match="FILE_EMPTY"):
        encoder(str(tmp_path / "empty.onnx"))
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    with pytest.raises(Refused, match="FILE_FORMAT"):
        encoder(str(tmp_path / "wrong.onnx"))


def test_random_convolutions_come_from_the_seed(images: NDArray[np.float32]) -> None:
    state = torch.get_rng_state()
    first = RandomConvolutions()(images)
    torch.manual_seed(77)
    assert (RandomConvolutions()(images) == first).all()
    assert not np.allclose(RandomConvolutions(seed=1)(images), first)
    torch.set_rng_state(state)
    RandomConvolutions()(images)
    assert (torch.get_rng_state() == state).all(), "no draw from the global generator"


def test_random_convolutions_keep_the_scale() -> None:
    """He initialisation: maps neither die out nor grow from level to level."""
    noise = np.random.default_rng(0).normal(size=(4, 1, 64, 64)).astype(np.float32)
    deviations = RandomConvolutions()(noise)
    widths = [16, 32, 64, 128]
    starts = np.cumsum([0, *(2 * width for width in widths)])
    sizes = [np.sqrt((deviations[:, at : at + 2 * width] ** 2).sum(axis=1).mean() / width)
             for at, width in zip(starts, widths, strict=False)]
    assert 0.1 < min(sizes) <= max(sizes) < 3


def test_random_convolutions_by_hand(images: NDArray[np.float32]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 1, 3, 3, generator=generator) * np.sqrt(2 / (1.04 * 9))
    bias = torch.randn(16, generator=generator) * 0.1
    padded = torch.from_numpy(np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge"))
    maps = torch.nn.functional.conv2d(padded, weight, bias)
    maps = torch.where(maps > 0, maps, 0.2 * maps).flatten(2)
    found = RandomConvolutions()(images)
    np.testing.assert_allclose(found[:, :16], maps.mean(dim=2), atol=1e-5)
    np.testing.assert_allclose(found[:, 16:32], maps.std(dim=2, correction=0), atol=1e-5)


def test_onnx_is_named_by_its_content(tmp_path: Path, images: NDArray[np.float32]) -> None:
    path, weight = convolution(tmp_path / "mine.onnx", ["n", 1, "h", "w"], 1, pooled=True)
    found = encoder(str(path))
    other = encoder(str(convolution(tmp_path / "other.ONNX", ["n", 1, 9, 9], 1)[0]))
    assert found.name.startswith("mine-") and len(found.name) == 17 and found.name[5:] != other.name[6:]
    wanted = torch.nn.functional.conv2d(torch.from_numpy(images), weight).mean(dim=(2, 3))
    np.testing.assert_allclose(found(images), wanted, atol=1e-5)


def test_onnx_maps_are_pooled(tmp_path: Path) -> None:
    path, weight = convolution(tmp_path / "maps.onnx", ["n", 1, "x", "y", "z"], 1)
    volumes = np.random.default_rng(3).normal(size=(3, 1, 6, 7, 5)).astype(np.float32)
    wanted = torch.nn.functional.conv3d(torch.from_numpy(volumes), weight).mean(dim=(2, 3, 4))
    np.testing.assert_allclose(encoder(str(path))(volumes), wanted, atol=1e-5)


def test_onnx_tokens_are_pooled(tmp_path: Path, images: NDArray[np.float32]) -> None:
    node, order = onnx.helper.make_node, {"perm": [0, 2, 1]}
    path = model(tmp_path / "tokens.onnx", [node("Reshape", ["images", "shape"], ["flat"]),
                                            node("Transpose", ["flat"], ["features"], **order)],
                 {"shape": np.array([0, 12, 10])}, ["n", 1, 12, 10])
    np.testing.assert_allclose(encoder(str(path))(images), images[:, 0].mean(axis=2), atol=1e-6)


def test_onnx_of_three_channels_and_a_fixed_size_and_batch(tmp_path: Path, images: NDArray[np.float32]) -> None:
    path, weight = convolution(tmp_path / "rgb.onnx", [2, 3, 24, 20], 3, pooled=True)
    large = torch.nn.functional.interpolate(torch.from_numpy(images), size=(24, 20), mode="bilinear")
    wanted = torch.nn.functional.conv2d(large.repeat(1, 3, 1, 1), weight).mean(dim=(2, 3))
    np.testing.assert_allclose(encoder(str(path))(images), wanted, atol=1e-5)


def test_onnx_of_one_channel_sees_each(tmp_path: Path, images: NDArray[np.float32]) -> None:
    path, _ = convolution(tmp_path / "grey.onnx", ["n", 1, "h", "w"], 1, pooled=True)
    found = encoder(str(path))
    both = np.concatenate([images, -images], axis=1)
    np.testing.assert_allclose(found(both), np.concatenate([found(images), found(-images)], axis=1))


def test_a_coarser_grid_has_no_aliases(tmp_path: Path) -> None:
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 2.0 - 1).astype(np.float32)
    for name, shape, values in (("2d.onnx", ["n", 1, 8, 8], board[None, None]),
                                ("3d.onnx", ["n", 1, 8, 8, 4], np.repeat(board[None, None, :, :, None], 4, axis=4))):
        path = model(tmp_path / name, [onnx.helper.make_node("Flatten", ["images"], ["features"])], {}, shape)
        assert np.abs(encoder(str(path))(values)).max() < 0.5


@pytest.mark.parametrize(("shape", "channels", "images_shape", "why"), [
    (["n", 3, "h", "w"], 3, (2, 2, 8, 8), "takes 3 channels"),
    (["n", 1, "h", "w"], 1, (2, 1, 8, 8, 8), "takes 2D images"),
    (["n", 1, "h", "w"], 1, (2, 1, 2, 2), "failed on images of shape"),
])
def test_images_that_a_model_cannot_take(shape: list[Any], channels: int, images_shape: tuple[int, ...], why: str,
                                         tmp_path: Path) -> None:
    found = encoder(str(convolution(tmp_path / "m.onnx", shape, channels)[0]))
    with pytest.raises(Refused, match=f"CFG_VALUE.*{why}"):
        found(np.zeros(images_shape, np.float32))


def test_models_that_are_no_encoders(tmp_path: Path, images: NDArray[np.float32]) -> None:
    node = onnx.helper.make_node
    path = model(tmp_path / "own.onnx", [node("Mine", ["images"], ["features"], domain="own")], {}, ["n", 1, 12, 10])
    with pytest.raises(Refused, match=r"FILE_FORMAT.*Mine.*standard operators"):
        encoder(str(path))
    path = model(tmp_path / "flat.onnx", [node("Identity", ["images"], ["features"])], {}, ["n", 7])
    with pytest.raises(Refused, match=r"CFG_VALUE.*one input of images"):
        encoder(str(path))
    average = node("ReduceMean", ["images"], ["features"], keepdims=0)
    path = model(tmp_path / "sum.onnx", [average], {}, ["n", 1, 12, 10])
    with pytest.raises(Refused, match=r"CFG_VALUE.*its output for 5 images"):
        encoder(str(path))(images)
    path = model(tmp_path / "log.onnx", [node("Log", ["images"], ["features"])], {}, ["n", 1, 12, 10])
    with pytest.raises(Refused, match="PIX_NONFINITE"):
        encoder(str(path))(images)


@pytest.mark.parametrize("here", [True, False])
def test_weights_in_another_file_are_refused(here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = convolution(tmp_path / "out.onnx", ["n", 1, "h", "w"], 1, save_as_external_data=True, size_threshold=0,
                          location="weights.bin")
    assert (tmp_path / "weights.bin").is_file()
    if here:  # onnxruntime would find them
        monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"FILE_UNSAFE.*another file"):
        encoder(str(path))


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = convolution(tmp_path / "m.onnx", ["n", 1, "h", "w"], 1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Refused, match=r"pip install 'medgan\[onnx\]'"):
        encoder(str(path))


def test_standardised_is_pca_of_z_scores() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) * [1, 10, 1e3, 1e-3, 1, 1] + 5
    real = np.hstack([real, np.full((200, 1), 3.0)])
    made = real[:50] + rng.normal(size=(50, 7)) * real.std(axis=0) / 10
    one, other = standardised(real, made)
    assert one.shape == (200, 6) and other.shape == (50, 6), "a constant feature is dropped"
    np.testing.assert_allclose(one.mean(axis=0), 0, atol=1e-9)
    covariance = np.cov(one, rowvar=False, ddof=0)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)
    assert (np.diff(np.diag(covariance)) < 0).all()
    scaled = (real[:, :6] - real[:, :6].mean(axis=0)) / real[:, :6].std(axis=0)
    assert np.abs(scaled).max() < FARTHEST, "nothing is cut"
    np.testing.assert_allclose(np.linalg.norm(one[3] - one[4]), np.linalg.norm(scaled[3] - scaled[4]))
    moved = (made[:, :6] - real[:, :6].mean(axis=0)) / real[:, :6].std(axis=0)
    np.testing.assert_allclose(np.linalg.norm(other, axis=1), np.linalg.norm(moved, axis=1))


def test_standardised_by_the_reference_alone() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(100, 40)), rng.normal(size=(80, 40))
    alone, = standardised(real)
    one, near, far = standardised(real, made, made * 2)
    assert (alone == one).all() and one.shape == (100, 20)
    assert far.std() > 1.8 * near.std(), "the spread of what is compared is kept"
    assert standardised(rng.normal(size=(500, 40)))[0].shape == (500, 32)


def test_one_image_far_off_does_not_make_the_distance_of_like_sets() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 40))
    features[250, 7] = 1e4
    one, same, other = standardised(features[:100], features[100:200], features[200:])
    assert np.abs(other).max() <= FARTHEST * 40**0.5
    assert frechet(one, other) < 1.5 * frechet(one, same)
    assert frechet(one, standardised(features[:100], features[200:] + 3)[1]) > 20 * frechet(one, same)


def test_standardised_of_odd_references() -> None:
    one, other = standardised(np.full((10, 4), 0.1), np.ones((3, 4)))
    assert one.shape == (10, 1) and other.shape == (3, 1) and not one.any() and not other.any()
    low = np.outer(np.arange(100.0), np.ones(8))
    assert standardised(low)[0].shape == (100, 1)
    assert standardised(np.random.default_rng(0).normal(size=(4, 8)))[0].shape == (4, 1)
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        standardised(np.zeros((10, 4)), np.zeros((10, 5)))
    with pytest.raises(Refused, match="DATASET_EMPTY"):
        standardised(np.zeros((1, 4)))
