"""Engine openvino against ONNX Runtime in float32, on the trained bundle; and what it keeps in the cache."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.engines import cache, open_engine, precisions, unavailable, unet
from hspace.errors import BundleError

from ..conftest import BUNDLES, relative_error

if unavailable("openvino") is not None:
    pytest.skip(str(unavailable("openvino")), allow_module_level=True)

AVATARS = BUNDLES / "avatars32"
TOLERANCE = 2e-2  # of one evaluation in bfloat16: ‖ε − ε_float32‖/‖ε‖ is 4e-3 to 1e-2
FASTEST = precisions("openvino", hspace.Bundle(AVATARS))[-1]


@pytest.fixture(scope="module")
def editors() -> tuple[hspace.Editor, hspace.Editor]:
    return hspace.open(AVATARS, engine="openvino", precision=FASTEST), hspace.open(AVATARS, engine="onnx")


def drawn(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x, z = (rng.standard_normal(s, dtype=np.float32) for s in ((n, 3, 32, 32), (n, 128)))
    return {"x": x, "t": rng.integers(0, 1000, n), "z_sem": z}


def evaluate(engine: Any, inputs: dict[str, Any], source: list[int]) -> Any:
    """h, and ε where h is scaled anew for every sample of the head."""
    with unet.trunk(engine, **inputs) as features:
        return features.h, unet.head(engine, features, scaled(features.h, source), np.array(source))


def scaled(h: np.ndarray, source: list[int]) -> np.ndarray:
    return h[source] * (1 + 0.1 * np.arange(len(source), dtype=np.float32)[:, None, None, None])


def as_arrays(engine: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The trunk's outputs by name, by `run`."""
    h, temb, *skips = engine.run("trunk", inputs)
    return {"h": h, "temb": temb, **{f"skip_{i}": s for i, s in enumerate(skips)}, "z_sem": inputs["z_sem"]}


# source: plain, edits of some samples and of all, in any order, of more branches than two, of a part of the trunk
SOURCES = [[0], [0, 0], [0, 1, 2], [0, 1, 2, 1], [2, 1, 0, 0, 1, 2], [0, 0, 0, 0, 0], [4, 2], [0, 1, 2, 3, 4, 3]]


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_evaluations_agree_with_onnx_runtime(editors, source: list[int]) -> None:
    seed = secrets.randbelow(2**31)
    inputs = drawn(max(source) + 1, seed)
    (h, eps), (h_expected, eps_expected) = (evaluate(e.engine, inputs, source) for e in editors)
    errors = relative_error(h, h_expected), relative_error(eps, eps_expected)
    print(f"{editors[0].engine.precision}: h {errors[0]:.1e}, eps {errors[1]:.1e}")
    limit = TOLERANCE if editors[0].engine.precision == "bf16" else 1e-5
    assert max(errors) <= limit, f"seed {seed}"


def test_float32(editors) -> None:
    ours = hspace.open(AVATARS, engine="openvino", precision="fp32")
    assert ours.engine.precision == "fp32"
    inputs, source = drawn(3, secrets.randbelow(2**31)), [0, 1, 2, 1]
    for got, expected in zip(*(evaluate(e.engine, inputs, source) for e in (ours, editors[1])), strict=True):
        assert relative_error(got, expected) <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["diffae-tiny", "asyrp-ddpm-tiny", "asyrp-iddpm-tiny"])
def test_every_layout_of_network(golden_bundles, name: str, precision: str) -> None:
    """Random weights, in graphs of either type, against ONNX Runtime on the float32 one."""
    bundle = hspace.Bundle(golden_bundles(name, precision, precision))
    made = hspace.open(bundle.folder, engine="openvino", precision=precisions("openvino", bundle)[-1])
    reference = hspace.open(golden_bundles(name), engine="onnx")
    rng = np.random.default_rng(secrets.randbelow(2**31))
    inputs: dict[str, Any] = {"x": rng.standard_normal((3, 3, 32, 32), dtype=np.float32), "t": np.array([3, 500, 999])}
    if reference.bundle.manifest.z_sem is not None:
        inputs["z_sem"] = rng.standard_normal((3, reference.bundle.manifest.z_sem.size), dtype=np.float32)
    eps = []
    for editor in (made, reference):
        with unet.trunk(editor.engine, **inputs) as features:
            eps.append(unet.head(editor.engine, features, features.h, np.arange(3)))
    error = relative_error(eps[0].astype(np.float32), eps[1])
    print(f"{name} {precision}: {error:.1e}")
    assert error <= 3e-2


def test_skips_may_come_as_arrays(editors) -> None:
    """Those of another engine, as a program that only runs the head gives them."""
    ours, reference = editors
    inputs, source = drawn(3, 1), [0, 1, 2, 1]
    expected = evaluate(reference.engine, inputs, source)[1]
    given = as_arrays(reference.engine, inputs)
    given |= {"h": scaled(given["h"], source), "source": np.array(source)}
    assert relative_error(ours.engine.run("head", given)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_run_gives_arrays_of_which_the_head_makes_the_same(editors, precision: str | None) -> None:
    """Between trunk and head nothing is lost, nor moved: the form of an array and the engine's own say the same."""
    for engine in (hspace.open(AVATARS, engine="openvino", precision=precision).engine, editors[1].engine):
        inputs, source = drawn(3, 5), [0, 1, 2, 1]
        h, expected = evaluate(engine, inputs, source)
        given = as_arrays(engine, inputs)
        trunk = editors[0].bundle.manifest.components["trunk"]
        for tensor in trunk.outputs:
            array = given[tensor.name]
            assert isinstance(array, np.ndarray) and array.dtype == tensor.dtype
            assert array.shape == (3, *(int(d) for d in tensor.shape[1:]))
        assert np.array_equal(given["h"], h)
        given |= {"h": scaled(h, source), "source": np.array(source)}
        assert np.array_equal(engine.run("head", given)[0], expected)


def test_a_result_does_not_depend_on_the_batch(editors) -> None:
    inputs, source = drawn(7, 2), list(range(7))
    h, eps = evaluate(editors[0].engine, inputs, source)
    for i in (0, 3, 6):
        alone = editors[0].engine.run("trunk", {k: v[i : i + 1] for k, v in inputs.items()})[0]
        assert relative_error(alone, h[i : i + 1]) <= 1e-5
    x = np.random.default_rng(3).uniform(-1, 1, (5, 3, 32, 32)).astype(np.float32)
    run = {"steps": 4, "output": "float32"}
    together = editors[0].edit(x, {"Blond_Hair": 0.5}, **run)
    assert relative_error(editors[0].edit(x[3:4], {"Blond_Hair": 0.5}, **run), together[3:4]) <= 1e-5
    assert np.isfinite(eps).all()


def test_whole_edits(editors) -> None:
    """Of the avatars that ship, at the preset balanced, against float32: edits of z_sem and of h."""
    images = sorted((BUNDLES / "images").glob("*.png"))[:6]
    for edits in ({"Blond_Hair": 0.5}, {"hair_length": 1.0}):
        a, b = (e.edit(images, edits, preset="balanced", output="float32") for e in editors)
        psnr = 10 * np.log10(4 / np.mean((a - b) ** 2, axis=(1, 2, 3)))
        print(f"{edits}: {psnr.min():.1f} dB at least, {psnr.mean():.1f} dB on average")
        assert psnr.min() >= 29 and psnr.mean() >= 37  # seen: 32.6 and 40.5


@pytest.mark.usefixtures("in_this_process")
def test_compiled_graphs_are_cached_and_damage_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editors
) -> None:
    import openvino as ov

    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    compiled = []
    original = ov.Core.compile_model
    monkeypatch.setattr(ov.Core, "compile_model", lambda *a, **k: (compiled.append(1), original(*a, **k))[1])
    hspace.open(AVATARS, engine="openvino", precision=FASTEST)
    assert len(compiled) == 3 and len(list((tmp_path / "openvino").iterdir())) == 3
    again = hspace.open(AVATARS, engine="openvino", precision=FASTEST)
    assert len(compiled) == 3
    inputs = drawn(1, 4)
    expected = evaluate(editors[0].engine, inputs, [0])[1]
    assert relative_error(evaluate(again.engine, inputs, [0])[1], expected) <= 1e-5
    one = sorted((tmp_path / "openvino").iterdir())[0]
    for damaged in (one.read_bytes()[:-1] + b"x", b"x" + one.read_bytes()[1:], one.read_bytes()[:-1], b"x", b""):
        one.unlink()  # a mapped file is replaced, never changed
        one.write_bytes(damaged)
        assert cache.Entry("openvino", one.stem).read() is None
    hspace.open(AVATARS, engine="openvino", precision=FASTEST)
    assert len(compiled) == 4 and cache.Entry("openvino", one.stem).read() is not None
    again.draw(1)  # the latent DDIM's network is compiled when it is first used
    assert len(compiled) == 5 and len(list((tmp_path / "openvino").iterdir())) == 4
    expected = evaluate(editors[0].engine, inputs, [0])[1]
    assert relative_error(evaluate(again.engine, inputs, [0])[1], expected) <= 1e-5


def test_an_altered_bundle_is_refused_whatever_the_cache_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "bundle"
    shutil.copytree(AVATARS, copy)
    for engine in ("openvino", "onnx"):
        hspace.open(copy, engine=engine)
    for name in ("latent.onnx", "head.onnx"):
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        for engine in ("openvino", "onnx"):
            with pytest.raises(BundleError, match=rf"{name}: altered"):
                hspace.open(copy, engine=engine)
        (copy / name).write_bytes((AVATARS / name).read_bytes())


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "file" / "cache"))
    for engine in ("openvino", "onnx", "auto"):
        assert hspace.open(AVATARS, engine=engine).engine.name in ("openvino", "onnx")


@pytest.mark.parametrize("layout", ["ddpm", "guided"])
def test_heads_that_share_their_skips(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 128×128 on: groups that straddle the border of h and skip, and skips of every level."""
    torch = pytest.importorskip("torch", reason="exports need the extra `export`")
    from hspace_export.asyrp import load_model
    from hspace_export.exporter import Settings, export
    from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
    from hspace_export.models.guided import GuidedConfig, GuidedUNet

    seed = secrets.randbelow(2**31)
    torch.manual_seed(seed)
    network = {
        "ddpm": lambda: DdpmUNet(DdpmConfig(32, (1.0, 2.0), 1, (1,), 3, True)),
        "guided": lambda: GuidedUNet(GuidedConfig(32, (1.0, 2.0), 1, (1,), 128, 6, 0, True, True, 1, 16)),
    }[layout]()
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=p[0].numel() ** -0.5) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    torch.save(network.state_dict(), tmp_path / "unet.ckpt")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    settings = Settings(image_size=128, num_head_channels=16)
    export(lambda: load_model(tmp_path / "unet.ckpt", attributes={}, settings=settings), tmp_path / "bundle")
    bundle = hspace.Bundle(tmp_path / "bundle")
    ours, reference = (open_engine(e, bundle, precision=precisions(e, bundle)[-1]) for e in ("openvino", "onnx"))
    x = np.random.default_rng(seed).standard_normal((2, 3, 128, 128), dtype=np.float32)
    found = []
    for engine in (ours, reference):
        source = np.array([0, 1, 1])
        with unet.trunk(engine, x, np.array([7, 931], dtype=np.int32)) as features:
            found.append(unet.head(engine, features, features.h[source] * np.float32(1.1), source))
    error = relative_error(*found)
    print(f"{layout}, {ours.precision}: {error:.1e}")
    assert error <= (TOLERANCE if ours.precision == "bf16" else 1e-5), f"seed {seed}"
