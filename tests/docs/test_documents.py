"""Every command of README and guide, in their order, in an empty folder; and what the documents say of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hspace.catalog import SAMPLERS
from hspace.image import read_record
from PIL import Image

from . import documents
from .documents import IMAGES, ROOT

pytest.importorskip("torch", reason="the documents export, which needs the extra `export`")
pytest.importorskip("diffusers", reason="the documents export a diffusers folder, which needs the extra `diffusers`")
pytest.importorskip("sklearn", reason="the documents fit attributes, which needs the extra `fit`")


def difference(a: Path, b: Path) -> float:
    """The mean difference of two pictures, in grey levels of 255."""
    found = [np.asarray(Image.open(p).convert("RGB"), np.float64) for p in (a, b)]
    assert found[0].shape == found[1].shape, (a, found[0].shape, found[1].shape)
    return float(np.abs(found[0] - found[1]).mean())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    documents.clone_into(tmp_path)
    return tmp_path


def test_readme(clone: Path) -> None:
    done = documents.run(ROOT / "README.md", clone)
    assert done.returncode == 0, done.stderr[-2000:]
    here = clone / "try"
    record = json.loads(read_record(here / "out.png") or "")
    assert record["strengths"] == {"Blond_Hair": 0.9} and record["engine"]["precision"] == "fp32"
    by_command, by_python = (np.asarray(Image.open(here / n)) for n in ("out.png", "python.png"))
    assert np.array_equal(by_command, by_python)


def test_guide(clone: Path) -> None:
    """Its pictures are those that the page shows."""
    documents.own_files(clone / "try")
    done = documents.run(ROOT / "docs" / "guide.md", clone)
    assert done.returncode == 0, done.stderr[-2000:]
    made = documents.pictures(clone / "try")
    shown = set(re.findall(r"\]\(images/(\w+\.png)\)", (ROOT / "docs" / "guide.md").read_text()))
    assert shown - made.keys() == {"timeline_unconditional.png"}  # of a model that is not shipped
    found = {name: difference(path, IMAGES / name) for name, path in made.items()}
    assert max(found.values()) < 0.5, found
    blond, piped = (np.asarray(Image.open(clone / "try" / n)) for n in ("blond.png", "piped.png"))
    assert np.array_equal(blond, piped)
    here = clone / "try"
    images = sorted((here / "numbered").iterdir())
    assert len(images) == len(list((here / "photos").iterdir())) and {p.suffix for p in images} == {".jpg"}
    with Image.open(here / "between.gif") as gif:
        assert gif.n_frames == 24


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of README, from `make demo`."""
    import runpy
    import sys

    monkeypatch.setenv("HSPACE_ENGINE", "onnx")
    image = ROOT / "bundles" / "images" / "avatar016.png"
    monkeypatch.setattr(sys, "argv", ["demo.py", str(image), str(tmp_path / "demo.png")])
    runpy.run_path(str(ROOT / "bundles" / "demo.py"), run_name="__main__")
    assert difference(tmp_path / "demo.png", IMAGES / "demo.png") < 0.5


DOCUMENTS = ["README.md", "docs/guide.md", "docs/gpu.md", "docs/bundle-format.md", "docs/architecture.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_install_lines(name: str) -> None:
    """Extras that there are, by lines that work while the package is not published."""
    import tomllib

    text = (ROOT / name).read_text()
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for what in re.findall(r"pip install '([^']*)'", text):
        assert re.fullmatch(r"(\.|hspace-….whl)(\[[\w,]+\])?", what), what
    for said in re.findall(r"'(?:\.|hspace-….whl)\[([\w,]+)\]'", text):
        assert set(said.split(",")) <= extras, said
    assert "hspace[" not in text


def test_what_is_said_of_presets() -> None:
    """Evaluations and presets by name, read from the bundle that ships."""
    from hspace import Bundle
    from hspace.plans import Planner

    bundle = Bundle(ROOT / "bundles" / "avatars32")
    planner, readme = Planner(bundle), (ROOT / "README.md").read_text()
    guide = (ROOT / "docs" / "guide.md").read_text()
    runs = {n: (len(planner.encode(planner.plan(n))), planner.plan(n).decode_steps) for n in bundle.manifest.presets}
    assert bundle.manifest.default_preset == "balanced" and f"{runs['balanced'][0]} + {runs['balanced'][1]}" in readme
    assert f"# {sum(runs['fast'])} evaluations" in guide
    assert all(f"`{name}`" in guide for name in runs)
    assert f"papers' own {runs['official'][0]} + {runs['official'][1]}" in guide


WRAPPED = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/guide.md", "docs/results.md", "docs/quality.md"]


PAGES = ["docs/versioning.md", "docs/architecture.md", "docs/bundle-format.md", "docs/gpu.md", "bundles/README.md"]
DECISIONS = sorted(f"docs/decisions/{path.name}" for path in (ROOT / "docs/decisions").iterdir())


@pytest.mark.parametrize("name", [*WRAPPED, *PAGES, *DECISIONS])
def test_lines_wrap(name: str) -> None:
    """Prose wraps at 120 characters; tables, links and code may be longer."""
    code, long = False, []
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        code ^= line.startswith("```")
        if len(line) > 120 and not code and "](" not in line and not line.startswith(("|", "    ")):
            long.append(number)
    assert not long, f"{name}: lines {long}"


@pytest.mark.parametrize("name", [name for name in DECISIONS if not name.endswith("README.md")])
def test_decisions_have_one_form(name: str) -> None:
    """Status, context, choice, consequences; and the list of all has a line for each."""
    text = (ROOT / name).read_text()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith(f"# {int(Path(name).name[:4])}. ")
    assert [h for h in headings[1:] if h.startswith("## ")] == [
        "## Status",
        "## Context",
        "## Choice",
        "## Consequences",
    ]
    assert f"]({Path(name).name})" in (ROOT / "docs/decisions/README.md").read_text()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_what_is_said_of_samplers() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text()
    assert all(re.search(rf"\b{name}\b", text) for name in SAMPLERS)
