"""A fault is one image's: the call names it, and has the results of the others, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace import Latent
from hspace.engines.null import NullEngine
from hspace.errors import ArgumentError, NotFinite

from ..conftest import relative_error


class Breaking(NullEngine):
    """The null engine, one of whose components gives values that are not finite for images that are bright."""

    component = ""

    def run(self, component: str, inputs: Any) -> Any:
        outputs = super().run(component, inputs)
        if component == self.component:
            bright = inputs["x" if "x" in inputs else "z_sem"].reshape(len(outputs[0]), -1).mean(axis=1) > 0.9
            outputs[0] = outputs[0].copy()
            outputs[0][bright] = np.inf
        return outputs


def images(*values: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([np.full((3, 8, 8), v, np.float32) + rng.uniform(-0.05, 0, (3, 8, 8)).astype("f4") for v in values])


def breaking(editor: hspace.Editor, component: str, batch_size: int | None = None) -> hspace.Editor:
    engine = Breaking(editor.bundle)
    engine.component = component
    return hspace.Editor(editor.bundle, engine, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("component", ["encoder", "trunk"])
@pytest.mark.parametrize("call", ["edit", "encode"])
def test_one_image_fails(call: str, component: str, batch_size: int, null_diffae: hspace.Editor) -> None:
    x = images(0.0, 1.0, 0.3, 1.0, -0.5)
    editor, whole = breaking(null_diffae, component, batch_size), hspace.Editor(null_diffae.bundle, null_diffae.engine)
    totals: list[tuple[int, int]] = []

    def run(editor: hspace.Editor, x: np.ndarray) -> Any:
        if call == "encode":
            return editor.encode(x, on_step=lambda s: totals.append((s.index, s.total)))
        return editor.edit(x, {"block": 1.0}, output="float32", on_step=lambda s: totals.append((s.index, s.total)))

    with pytest.raises(NotFinite, match=r"^images\[1\] and 1 more: encode(r)?: .*not finite") as told:
        run(editor, x)
    assert totals[-1][0] == totals[-1][1]
    assert sorted(told.value.images) == [1, 3] and sorted(told.value.others) == [0, 2, 4]
    for i, other in told.value.others.items():
        expected = run(whole, x[i : i + 1])
        if call == "encode":
            np.testing.assert_array_equal(other.x_T, expected.x_T)
            np.testing.assert_array_equal(other.z_sem, expected.z_sem)
        else:
            np.testing.assert_array_equal(other, expected[0])


def test_a_decode_names_its_image(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(0.1, 0.2, 0.3))
    latent.x_T[:] = images(0.1, 1.0, 0.3)
    with pytest.raises(NotFinite, match=r"^images\[1\]: decode: the result is not finite") as told:
        breaking(null_diffae, "trunk").decode(latent)
    assert told.value.others[2].dtype == np.uint8
    for i in (0, 2):
        np.testing.assert_array_equal(told.value.others[i], null_diffae.decode(latent[i])[0])


def test_an_image_alone_is_told_as_ever(null_diffae: hspace.Editor) -> None:
    for call in ("edit", "reconstruct", "encode"):
        arguments = [images(1.0)] + [{"block": 1.0}] * (call == "edit")
        with pytest.raises(NotFinite, match=r"^encode: the result is not finite") as told:
            getattr(breaking(null_diffae, "trunk"), call)(*arguments)
        assert list(told.value.images) == [0] and not told.value.others


def test_content_that_fails(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(0.1, 0.2))
    with pytest.raises(NotFinite, match=r"^content\[1\]|^encode"):
        breaking(null_diffae, "trunk").inject(latent, images(0.1, 1.0))


def test_codes_and_logits(null_diffae: hspace.Editor) -> None:
    x, editor = images(0.1, 1.0, 0.2), breaking(null_diffae, "encoder")
    for call in ("encode_z", "classify"):
        with pytest.raises(NotFinite, match=r"^images\[1\]: encoder: z_sem is not finite") as told:
            getattr(editor, call)(x)
        expected = getattr(null_diffae, call)(x)
        assert sorted(told.value.others) == [0, 2]
        for i in (0, 2):
            assert relative_error(told.value.others[i], expected[i]) < 1e-6


def test_seeds_of_their_own_share_a_batch(null_diffae: hspace.Editor) -> None:
    """Each image as alone, with its own seed and number; a sweep's variants share their image's."""
    x, seeds = images(0.1, 0.2, 0.3), [7, 2**64 - 1, 0]
    run = {"sampler": "ddpm", "output": "float32"}
    together = null_diffae.edit(x, {"block": 1.0}, seed=seeds, image_numbers=[4, 4, 9], **run)
    for i in range(3):
        numbers = [[4, 4, 9][i]]
        alone = null_diffae.edit(x[i : i + 1], {"block": 1.0}, seed=seeds[i], image_numbers=numbers, **run)
        np.testing.assert_array_equal(together[i], alone[0])
    latent = null_diffae.encode(x)
    swept = null_diffae.sweep(latent, {"block": [0.0, 1.0]}, seed=seeds, **run)
    one = null_diffae.decode(latent[1], {"block": 1.0}, seed=seeds[1], image_numbers=[1], **run)
    np.testing.assert_array_equal(swept[1, 1], one[0])
    with pytest.raises(ArgumentError, match=r"seed: found 2 seeds, expected one, or one for each of 3 images"):
        null_diffae.decode(latent, seed=[1, 2])
    with pytest.raises(ArgumentError, match=r"seed: found -1"):
        null_diffae.decode(latent, seed=[1, 2, -1])


def exact(folder: Path, editor: hspace.Editor) -> hspace.Editor:
    """Another editor of the bundle, whose default preset inverts exactly and draws at low timesteps."""
    import shutil

    import msgspec
    from hspace.amend import set_preset
    from hspace.bundle import Bundle

    shutil.copytree(editor.bundle.folder, folder)
    bundle = Bundle(folder)
    name, preset = bundle.preset(None)
    changes = {"sampler": "bdia", "spacing": "logsnr", "encode_steps": 9, "decode_steps": 9, "t_boost": 300}
    set_preset(bundle, name, msgspec.structs.replace(preset, **changes), replace=True)
    return hspace.open(folder, engine="null", batch_size=2)


def test_programs_of_two_lengths_in_one_call(null_diffae: hspace.Editor, tmp_path: Path) -> None:
    """An exact decode has a row less than an edit that draws: totals, arrays and results are right for both."""
    editor, x = exact(tmp_path / "b", null_diffae), images(0.1, 0.2, 0.3, 0.4, 0.5)
    edits = [{"block": 1.0}, {}, {"block": -1.0}, {}, {}]
    steps: list[Any] = []
    kept: dict[tuple[str, int, int], tuple[int, np.ndarray, np.ndarray]] = {}

    def on_step(step: hspace.Step) -> None:
        steps.append((step.index, step.total))
        for i, (image, row) in enumerate(zip(step.image.tolist(), step.row.tolist(), strict=True)):
            assert (step.phase, image, row) not in kept
            kept[step.phase, image, row] = int(step.t[i]), step.x[i].copy(), step.x_0[i].copy()

    together = editor.edit(x, edits, output="float32", on_step=on_step)
    assert [index for index, _ in steps] == list(range(1, steps[-1][1] + 1)) and len({total for _, total in steps}) == 1
    lengths = {image: 1 + max(row for phase, i, row in kept if (phase, i) == ("decode", image)) for image in range(5)}
    assert len(set(lengths.values())) == 2
    for i in range(5):
        seen: list[hspace.Step] = []
        alone = editor.edit(x[i : i + 1], edits[i], output="float32", image_numbers=[i], on_step=seen.append)
        np.testing.assert_array_equal(together[i], alone[0])
        decode = [step for step in seen if step.phase == "decode"]
        assert len(decode) == lengths[i] == decode[0].rows[0]
        for row, step in enumerate(decode):
            t, x_t, x_0 = kept["decode", i, row]
            assert t == step.t[0]
            np.testing.assert_array_equal(x_t, step.x[0])
            np.testing.assert_array_equal(x_0, step.x_0[0])


def test_a_timeline_of_programs_of_two_lengths(null_diffae: hspace.Editor, tmp_path: Path) -> None:
    editor = exact(tmp_path / "b", null_diffae)
    latent = editor.encode(images(0.1, 0.2, 0.3))
    edits = [{}, {"block": 1.0}, {}]
    timesteps, frames = editor.timeline(latent, 3, edits=edits, output="float32")
    assert frames.shape == (3, 3, 3, 8, 8) and len(timesteps) == 3
    for i in range(3):
        _, alone = editor.timeline(latent[i], 3, edits=edits[i], output="float32")
        if edits[i]:  # draws by number, which is another one here
            np.testing.assert_array_equal(frames[0, i], alone[0, 0])
        else:
            np.testing.assert_array_equal(frames[:, i], alone[:, 0])


def test_unknown_options_are_refused_as_python_does(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(0.1))
    for call, arguments in (("decode", [latent]), ("edit", [images(0.1), {}]), ("sample", [1])):
        with pytest.raises(
            TypeError, match=rf"{call}\(\) got an unexpected keyword argument 'sede'; did you mean seed"
        ):
            getattr(null_diffae, call)(*arguments, sede=1)


def test_a_step_is_of_the_images_that_it_moved(null_diffae: hspace.Editor) -> None:
    seen: list[hspace.Step] = []
    latent = Latent(np.zeros((3, 3, 8, 8), np.float32), np.zeros((3, 6), np.float32))
    hspace.Editor(null_diffae.bundle, null_diffae.engine, batch_size=2).decode(latent, on_step=seen.append)
    rows = len(null_diffae.program("decode"))
    assert [step.image.tolist() for step in seen] == [[0, 1]] * rows + [[2]] * rows
    assert [step.row.tolist() for step in seen] == [[r] * 2 for r in range(rows)] + [[r] for r in range(rows)]
    assert {int(r) for step in seen for r in step.rows} == {rows}
