"""Attributes from images: directions of z_sem, mean differences of h, averages of delta_blocks, principal components.

Needs scikit-learn, and no PyTorch: the networks run on an engine of the runtime.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hspace.arrays import Float32
from hspace.bundle import h_shape
from hspace.checks import check_whole
from hspace.deltas import DeltaBlock
from hspace.editor import Editor
from hspace.errors import ArgumentError
from hspace.image import load_images
from hspace.kinds import BranchName
from hspace.program import Branch, Program
from hspace.recorders import HRecorder
from hspace.runs import OnStep, Step
from hspace.tensors import tensor_bytes
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from threadpoolctl import threadpool_limits

_LEAST_HELD_OUT = 5  # images of a class; fewer would tell nothing, and none are held out
_SMALL = 2**20  # values in a matrix
_NONE_HELD_OUT = f"none: the share would be fewer than {_LEAST_HELD_OUT} images of a class"
_MOST_BYTES = 2**32  # of h that a PCA may keep


@dataclass(frozen=True)
class Fitted:
    """An attribute that was made, and what is known of it.

    kind: a name in `KINDS`. arrays: its tensors. report: what is known of the fit, by name; the file has it as its
    notes. chance_auc: what one worthless attribute in twenty reaches on these held-out images, None where none were
    held out.
    """

    kind: str
    branch: BranchName
    arrays: dict[str, NDArray[Any]]
    report: dict[str, Any] = field(default_factory=dict)
    n_train: int | None = None
    chance_auc: float | None = None

    @property
    def doubt(self) -> str | None:
        """Why it may be worth nothing, where its held-out AUC is one that chance gives."""
        if self.chance_auc is None or self.report["auc"] > self.chance_auc:
            return None
        return (
            f"AUC {self.report['auc']} on {self.report['held_out']} held-out images is no better than chance, "
            f"which reaches {self.chance_auc:.2f} one time in twenty"
        )

    def data(self) -> bytes:
        """The attribute's safetensors file; one text of notes, as the format keeps no order among several."""
        notes = "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in self.report.items())
        return tensor_bytes(self.arrays, {"notes": notes})


def fit_direction(
    z_sem: Float32,
    labels: NDArray[np.bool_],
    statistics: tuple[Float32, Float32] | None,
    *,
    few_shot: bool = False,
    held_out: float = 0.2,
    seed: int = 0,
) -> Fitted:
    """A z_direction by logistic regression on normalised z_sem, its C chosen by 5-fold cross-validation of the AUC.

    z_sem: float32 [N, D]; labels: bool [N]; statistics: mean and std that normalise, each float32 [D], or None for
    those of z_sem itself. held_out: the share of images that accuracy and AUC are measured on, after a fit to the
    others, where it is at least 5 of each class; the attribute itself is fitted to all. few_shot: the images without
    the attribute are merely unlabelled, so both classes count alike, however few the positives are.
    Source: Preechakul et al. 2022, sections 5.2 and 5.6.
    """
    with_it, without = int(labels.sum()), int((~labels).sum())
    if min(with_it, without) < 2:
        raise ArgumentError(f"labels: found {with_it} images with the attribute and {without} without, expected 2 each")
    mean, std = statistics if statistics is not None else (z_sem.mean(axis=0), z_sem.std(axis=0) + np.float32(1e-6))
    normalised = (z_sem.astype(np.float64) - mean) / std
    report: dict[str, Any] = {
        "fitted_to": f"{with_it} images with, {without} {'unlabelled' if few_shot else 'without'}"
    }
    if _can_hold_out(min(with_it, without), held_out):
        train, test = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
        model = _logistic(normalised[train], labels[train], few_shot)
        report |= _measured(model.decision_function(normalised[test]), labels[test])
        chance = chance_auc(labels[test])
        model.fit(normalised, labels)  # with the C that was measured
    else:
        report["held_out"], chance = _NONE_HELD_OUT, None
        model = _logistic(normalised, labels, few_shot)
    _check_apart(model.coef_[0], 1e-6)
    arrays = {"weight": model.coef_[0], "bias": model.intercept_, "mean": mean, "std": std}
    made = {k: np.asarray(v, dtype=np.float32) for k, v in arrays.items()}
    return Fitted("z_direction", "none", made, report, chance_auc=chance)


def _check_apart(direction: NDArray[Any], least: float) -> None:
    """Raises ArgumentError where a direction is but rounding: edits, which divide by its length, would be noise."""
    if not np.linalg.norm(direction) > least:
        raise ArgumentError(
            "the images with the attribute and those without do not differ: found the same ones in both, or equal ones"
        )


def _logistic(x: NDArray[np.float64], y: NDArray[np.bool_], balanced: bool) -> Any:
    # of scikit-learn's solvers the quickest by far where there are more images than dimensions
    model = LogisticRegression(solver="newton-cholesky", max_iter=1000, class_weight="balanced" if balanced else None)
    fewest = int(min(y.sum(), (~y).sum()))
    with warnings.catch_warnings(), threadpool_limits(1 if x.size < _SMALL else None):  # threads cost more there
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a C that cross-validation will not choose
        if fewest < 10:  # too few to choose by
            return model.fit(x, y)
        search = GridSearchCV(model, {"C": [0.01, 0.1, 1.0, 10.0, 100.0]}, scoring="roc_auc", cv=5)
        return search.fit(x, y).best_estimator_


def _can_hold_out(fewest: int, share: float) -> bool:
    """Whether that share of the rarer class is enough to measure on."""
    return int(fewest * share) >= _LEAST_HELD_OUT


def _measured(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> dict[str, Any]:
    """What held-out scores, positive for yes, are worth. chance: the accuracy of always guessing the commoner."""
    return {
        "held_out": len(labels),
        "accuracy": round(float(((scores > 0) == labels).mean()), 4),
        "chance": round(float(max(labels.mean(), 1 - labels.mean())), 4),
        "auc": round(float(roc_auc_score(labels, scores)), 4),
    }


def chance_auc(labels: NDArray[np.bool_]) -> float:
    """The AUC that one in twenty random scores of such images reach: the 95th percentile of its normal approximation.

    AUC times the number of pairs is the statistic of Mann and Whitney (1947), whose variance under chance this is.
    """
    with_it, without = int(labels.sum()), int((~labels).sum())
    return float(0.5 + 1.645 * np.sqrt((with_it + without + 1) / (12 * with_it * without)))


# --- h over inversions ------------------------------------------------------------------------------------


@dataclass
class Inversions:
    """How images are inverted for their h: preset, steps and resize as `Editor.encode` takes them."""

    editor: Editor
    preset: str | None = None
    steps: int | None = None
    resize: bool = False
    on_step: OnStep | None = None

    @property
    def program(self) -> Program:
        return self.editor.program("encode", preset=self.preset, steps=self.steps)

    def run(self, files: Sequence[Path], record: Callable[[Step], None]) -> Iterator[int]:
        """Inverts the files a batch at a time, with `record` called at every step; yields each batch's size."""

        def on_step(step: Step) -> bool | None:
            record(step)
            return None if self.on_step is None else self.on_step(step)

        for chunk in batches(files, self.editor.batch_size):
            x = load_images(chunk, self.editor.size, resize=self.resize)
            self.editor.encode(x, preset=self.preset, steps=self.steps, on_step=on_step)
            yield len(chunk)


def batches(files: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """The files, `size` at a time."""
    return (list(files[i : i + size]) for i in range(0, len(files), size))


class _Mean:
    """The mean h at every timestep of an inversion, float64 [K, C, h, w]."""

    def __init__(self, timesteps: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self._timesteps, self._count = timesteps, 0
        self._total = np.zeros((len(timesteps), *shape))

    def __call__(self, step: Step) -> None:
        assert step.h is not None  # an inversion runs the U-Net
        each = np.searchsorted(self._timesteps, step.t)
        for k in np.unique(each):
            self._total[k] += step.h[each == k].sum(axis=0, dtype=np.float64)
        self._count += int((each == 0).sum())

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._total / self._count


class _Projection:
    """How far each image's h lies along `direction` from `middle` (float64 [K, C, h, w] each), over all timesteps."""

    def __init__(
        self, timesteps: NDArray[np.int64], direction: NDArray[np.float64], middle: NDArray[np.float64]
    ) -> None:
        self._timesteps, self._middle = timesteps, middle
        norms = np.sqrt(np.square(direction).sum(axis=(1, 2, 3), keepdims=True))
        self._unit = direction / np.maximum(norms, 1e-30)
        self._batch: dict[int, float] = {}

    def __call__(self, step: Step) -> None:
        assert step.h is not None  # an inversion runs the U-Net
        k = np.searchsorted(self._timesteps, step.t)
        scores = ((step.h - self._middle[k]) * self._unit[k]).sum(axis=(1, 2, 3))
        for i, score in zip(step.image.tolist(), scores, strict=True):
            self._batch[i] = self._batch.get(i, 0.0) + float(score)

    def take(self, count: int) -> list[float]:
        """The scores of the batch that has ended."""
        scores = [self._batch[i] for i in range(count)]
        self._batch = {}
        return scores


def pairs(positives: Sequence[Path], negatives: Sequence[Path]) -> tuple[list[Path], list[Path]] | None:
    """The files of both lists whose names, less the suffix, are in both, in the same order.

    None where they are fewer than half of the longer list, or a name is twice in one: then names match by accident.
    """
    a, b = ({p.stem: p for p in files} for files in (positives, negatives))
    common = sorted(a.keys() & b.keys())
    if 2 * len(common) < max(1, len(positives), len(negatives)) or (len(a), len(b)) != (len(positives), len(negatives)):
        return None
    return [a[s] for s in common], [b[s] for s in common]


def fit_delta_h(
    inversions: Inversions,
    positives: Sequence[Path],
    negatives: Sequence[Path],
    *,
    branch: Literal["asymmetric", "symmetric"] = "symmetric",
    held_out: float = 0.2,
    seed: int = 0,
) -> Fitted:
    """A delta_h: at every timestep of an inversion, the mean h of images with the attribute less that of those without.

    Where names match across the two lists (`pairs`), only those are used, so that all else is alike. held_out: the
    share of images whose projection on a direction from the others gives accuracy and AUC; the attribute itself is the
    mean over all. Source: Haas et al. 2024, section 3.2 (supervised directions); Kwon et al. 2023, section 3.5.
    """
    matched = pairs(positives, negatives)
    with_it, without = matched or (list(positives), list(negatives))
    if not with_it or not without:
        raise ArgumentError(f"found {len(with_it)} images with the attribute and {len(without)} without, expected both")
    what = f"{len(with_it)} images with, {len(without)} without"
    if matched:
        left_out = len(positives) + len(negatives) - 2 * len(with_it)
        what = f"{len(with_it)} pairs" + (f", {left_out} others left out" if left_out else "")
    report: dict[str, Any] = {"fitted_to": what}
    timesteps = np.unique(inversions.program.rows["t"].astype(np.int64))
    means = [_Mean(timesteps, h_shape(inversions.editor.bundle)[:3]) for _ in range(2)]
    rng = np.random.default_rng(seed)
    some = _can_hold_out(min(len(with_it), len(without)), held_out)
    order = [rng.permutation(len(files)) for files in (with_it, without)]
    if matched:
        order[1] = order[0]
    cuts = [round(len(files) * held_out) if some else 0 for files in (with_it, without)]
    for files, mean, indices, cut in zip((with_it, without), means, order, cuts, strict=True):
        for _ in inversions.run([files[i] for i in indices[cut:]], mean):
            pass
    if some:
        a, b = means[0].mean, means[1].mean
        projection, scores, labels = _Projection(timesteps, a - b, (a + b) / 2), [], []
        for files, mean, indices, cut, label in zip((with_it, without), means, order, cuts, (True, False), strict=True):

            def record(step: Step, mean: _Mean = mean) -> None:
                projection(step)
                mean(step)

            for size in inversions.run([files[i] for i in indices[:cut]], record):
                scores += projection.take(size)
                labels += [label] * size
        report |= _measured(np.array(scores), np.array(labels))
        chance = chance_auc(np.array(labels))
    else:
        report["held_out"], chance = _NONE_HELD_OUT, None
    delta = (means[0].mean - means[1].mean).astype(np.float32)
    _check_apart(delta, 1e-6 * float(np.linalg.norm(means[0].mean)))
    return Fitted("delta_h", branch, {"timesteps": timesteps, "delta_h": delta}, report, chance_auc=chance)


# --- averages of delta_blocks -----------------------------------------------------------------------------


class _Recorded:
    """A delta_block that sums up what it gives, by timestep."""

    def __init__(self, block: DeltaBlock) -> None:
        self._block = block
        self.branch: Branch = block.branch
        self.n_train = block.n_train
        self.totals: dict[int, tuple[NDArray[np.float64], int]] = {}

    def delta_h(self, h: Float32, temb: Float32, t: NDArray[np.int32]) -> Float32:
        deltas = self._block.delta_h(h, temb, t)
        for timestep, delta in zip(t.tolist(), deltas, strict=True):
            total, count = self.totals.get(timestep, (np.zeros(delta.shape), 0))
            self.totals[timestep] = total + delta, count + 1
        return deltas


def average_block(
    editor: Editor, name: str, files: Sequence[Path], *, resize: bool = False, on_step: OnStep | None = None, **run: Any
) -> Fitted:
    """A delta_h from a delta_block: what f_t gives while the files are edited with it, averaged over them.

    At the timesteps where the edits inject; run: as `Editor.edit` takes it. Source: Kwon et al. 2023, section 3.5.
    """
    block = editor.attributes.get(name)
    if not isinstance(block, DeltaBlock):
        has = [n for n, a in editor.attributes.items() if isinstance(a, DeltaBlock)]
        raise ArgumentError(
            f"{name}: expected a delta_block of the bundle, one of: {', '.join(has) or '(it has none)'}"
        )
    recorded = _Recorded(block)
    recording = editor.with_attributes({**editor.attributes, name: recorded})
    done = 0
    for chunk in batches(files, editor.batch_size):
        numbers = range(done, done + len(chunk))  # so that draws do not depend on the batches
        recording.edit(chunk, {name: 1.0}, image_numbers=numbers, resize=resize, on_step=on_step, **run)
        done += len(chunk)
    if not recorded.totals:
        raise ArgumentError("t_edit: no step of this run injects anything to average")
    timesteps = sorted(recorded.totals)
    table = np.stack([recorded.totals[t][0] / recorded.totals[t][1] for t in timesteps]).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {"timesteps": np.array(timesteps, dtype=np.int64), "delta_h": table}
    report = {"averaged_from": f"{name}, over {len(files)} images"}
    return Fitted("delta_h", "asymmetric", arrays, report, recorded.n_train)


# --- principal components ---------------------------------------------------------------------------------


def principal_components(table: Float32, timesteps: NDArray[np.int64], count: int, *, seed: int = 0) -> list[Fitted]:
    """The first `count` principal components of h as symmetric delta_h's; strength 1 is one standard deviation.

    table: float32 [N, K, C, h, w], the h of N images at K timesteps. One decomposition over all timesteps at once, so
    that a component is the same thing at each of them. Source: Haas et al. 2024, section 3.1.
    """
    check_whole("count", count, 1, len(table) - 1)  # n images differ in n - 1 directions
    pca = PCA(count, svd_solver="randomized", random_state=seed).fit(table.reshape(len(table), -1))
    components = []
    for component, variance, ratio in zip(
        pca.components_, pca.explained_variance_, pca.explained_variance_ratio_, strict=True
    ):
        delta = (component * np.sqrt(variance)).reshape(table.shape[1:]).astype(np.float32)
        report = {"fitted_to": f"{len(table)} images", "explained_variance": round(float(ratio), 4)}
        arrays: dict[str, NDArray[Any]] = {"timesteps": timesteps, "delta_h": delta}
        components.append(Fitted("delta_h", "symmetric", arrays, report))
    return components


def record_h(editor: Editor, phase: Literal["encode", "decode"], count: int, run: dict[str, Any]) -> HRecorder:
    """A recorder for the h of `count` images, refused where it would not fit into memory."""
    program = editor.program(phase, **run)
    c, height, width, _ = h_shape(editor.bundle)
    size = 4 * count * len(program) * c * height * width
    if size > _MOST_BYTES:
        raise ArgumentError(
            f"h of {count} images at {len(program)} steps takes {size / 2**30:.1f} GiB, expected at most "
            f"{_MOST_BYTES / 2**30:.0f}; fewer of either will do"
        )
    return HRecorder(phase, program, count, (c, height, width))
