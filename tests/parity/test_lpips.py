"""LPIPS as ONNX against a straightforward computation, with random weights in the published files' formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("skimage", reason="distances need the extra `fit`")

import torch
from hspace.errors import ArgumentError, CheckpointError, OutputError
from hspace_export.calibrate import Lpips
from hspace_export.lpips import export_lpips

LAYERS = {"0": (3, 64, 11), "3": (64, 192, 5), "6": (192, 384, 3), "8": (384, 256, 3), "10": (256, 256, 3)}
SIZE = 48


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict, dict]:
    """torchvision's alexnet-owt….pth and lpips's alex.pth, with random numbers, and what is in them."""
    rng, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("lpips")
    alexnet = {}
    for index, (channels, out, kernel) in LAYERS.items():
        alexnet[f"features.{index}.weight"] = torch.randn(out, channels, kernel, kernel, generator=rng) / (
            channels**0.5 * kernel
        )
        alexnet[f"features.{index}.bias"] = torch.randn(out, generator=rng) * 0.1
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, out, 1, 1, generator=rng)
        for i, (_, out, _) in enumerate(LAYERS.values())
    }
    torch.save({**alexnet, "classifier.6.bias": torch.zeros(1000)}, folder / "alexnet.pth")
    torch.save(linear, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth", alexnet, linear


@pytest.fixture(scope="session")
def exported(weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("onnx") / "lpips.onnx"
    assert export_lpips(weights[0], output, size=SIZE, linear=weights[1]) <= 1e-5
    return output


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """x [C, H, W] → [O, …], then ReLU."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.maximum(np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4])) + bias[:, None, None], 0)


def pool(x: np.ndarray) -> np.ndarray:
    """Maxima of 3×3 windows, 2 apart."""
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))


def lpips(a: np.ndarray, b: np.ndarray, alexnet: dict, linear: dict) -> float:
    """Zhang et al. 2018, equation 1, in float64; AlexNet's layers one by one (Krizhevsky 2014)."""

    def features(x: np.ndarray) -> list[np.ndarray]:
        x = (x.astype(np.float64) - np.reshape([-0.030, -0.088, -0.188], (3, 1, 1))) / np.reshape(
            [0.458, 0.448, 0.450], (3, 1, 1)
        )
        w = {k.removeprefix("features."): v.numpy().astype(np.float64) for k, v in alexnet.items()}
        one = convolve(x, w["0.weight"], w["0.bias"], 4, 2)
        two = convolve(pool(one), w["3.weight"], w["3.bias"], 1, 2)
        three = convolve(pool(two), w["6.weight"], w["6.bias"], 1, 1)
        four = convolve(three, w["8.weight"], w["8.bias"], 1, 1)
        return [one, two, three, four, convolve(four, w["10.weight"], w["10.bias"], 1, 1)]

    total = 0.0
    for i, pair in enumerate(zip(features(a), features(b), strict=True)):
        x, y = (f / (np.sqrt((f**2).sum(axis=0)) + 1e-10) for f in pair)
        weight = linear[f"lin{i}.model.1.weight"].numpy().astype(np.float64)[0]
        total += float((weight * (x - y) ** 2).sum(axis=0).mean())
    return total


def test_against_a_direct_computation(weights, exported: Path) -> None:
    """Relative tolerance 1e-5."""
    distance, rng = Lpips(exported, SIZE), np.random.default_rng()  # fresh inputs every time
    a = rng.uniform(-1, 1, (3, 3, SIZE, SIZE)).astype(np.float32)
    b = np.clip(a + np.reshape([0.01, 0.3, 2.0], (3, 1, 1, 1)) * rng.standard_normal(a.shape), -1, 1).astype(np.float32)
    found = distance(a, b)
    expected = [lpips(x, y, *weights[2:]) for x, y in zip(a, b, strict=True)]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-8) and found[0] < found[1] < found[2]
    assert np.allclose(distance(a, a), 0, atol=1e-10)
    assert np.allclose(distance(b[:1], a[:1]), found[:1], rtol=1e-6)  # symmetric, and whatever the batch


def test_refusals(weights, tmp_path: Path) -> None:
    backbone, linear, alexnet, layers = weights
    wrong, output = tmp_path / "wrong.pth", tmp_path / "out.onnx"
    cases: list[tuple[dict, dict, str]] = [
        ({k: v for k, v in alexnet.items() if k != "features.3.bias"}, layers, "1 missing: features.3.bias"),
        ({**alexnet, "features.0.weight": torch.zeros(64, 3, 3, 3)}, layers, "1 of another shape: features.0.weight"),
        ({**alexnet, "features.12.weight": torch.zeros(1)}, layers, "1 unexpected: features.12.weight"),
        ({**alexnet, "features.0.bias": torch.full((64,), torch.nan)}, layers, "1 not finite: features.0.bias"),
        (layers, layers, "its tensors are not those of AlexNet"),
        (alexnet, alexnet, "not those of LPIPS's linear layers"),
        (alexnet, {**layers, "lin0.model.1.weight": torch.zeros(1, 128, 1, 1)}, "another shape: lin0.model.1.weight"),
    ]
    for first, second, message in cases:
        torch.save(first, wrong)
        torch.save(second, tmp_path / "lin.pth")
        with pytest.raises(CheckpointError) as caught:
            export_lpips(wrong, output, size=SIZE, linear=tmp_path / "lin.pth")
        assert message in str(caught.value)
    wrong.write_bytes(b"garbage")
    for files in ((wrong, linear), (backbone, wrong), (tmp_path / "nowhere.pth", linear)):
        with pytest.raises(CheckpointError, match=r"expected a PyTorch checkpoint|no such file"):
            export_lpips(files[0], output, size=SIZE, linear=files[1])
    with pytest.raises(ArgumentError, match="image_size: found 31, expected a whole number from 32 to 4096"):
        export_lpips(backbone, output, size=31, linear=linear)
    assert not output.exists()
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        export_lpips(backbone, output, size=SIZE, linear=linear)
    assert output.read_bytes() == b"mine"


def test_the_packages_own_layers(weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `lpips` is looked for without importing it; where it is missing, the option is named."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"give --linear alex\.pth"):
        export_lpips(weights[0], tmp_path / "out.onnx", size=SIZE)
