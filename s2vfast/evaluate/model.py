"""A run's network for sequences in memory: their features, and, of a run that has classes, their classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast import models
from s2vfast.data.formats.base import find_absurd
from s2vfast.data.formats.poses import in_three
from s2vfast.data.layout import Layout
from s2vfast.data.memory import MemoryStore, memory_store
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.store import Body, Recording
from s2vfast.data.store import Sequence as Skeletons
from s2vfast.data.tracks import Sighting, arrange, link
from s2vfast.data.units import LIMITS
from s2vfast.evaluate import features, finetune, runs
from s2vfast.evaluate.checks import check_counts
from s2vfast.train.feed import Recordings

Ranking = list[tuple[str, float]]
"""(class, probability), the most probable first."""
NOT_FINITE = "a frame: the network's numbers of the frames up to it are not finite"
"""What is wrong with a frame of a `Stream` whose coordinates seemed right."""
_ONE_OF = {"bodies": "body", "frames": "frame"}


class Model:
    """A pretrained, fine-tuned or supervised run, ready for arrays.

    A sequence is an array [T, V, 3] of one body or [M, T, V, 3] of M, the main one first: T frames, the V joints of
    `layout` in its order, coordinates of the unit that the run was trained on. NumPy or PyTorch; a joint of zeros, or
    with a NaN, was not seen. Of a run whose recordings have 2 coordinates it may be [..., 2]. Of a run on point clouds
    it is a list of T arrays [n, 3], the points of each frame in metres, n of which may be 0. Clips are made of it as
    evaluation makes them.

    Args:
        run_dir: the run's folder or file, or another name of a model (`s2vfast.models.locate`).
        device: auto, cpu, cuda or cuda:N.
        log: told of damaged checkpoints that were passed over.

    Raises:
        CheckpointError: no run there, or no intact checkpoint.
    """

    def __init__(self, run_dir: str | Path, device: str = "auto", log: Callable[[str], object] = print) -> None:
        run_dir = models.locate(run_dir, log)
        self.run_dir, self.device = Path(run_dir), features.resolve_device(device)
        self.config, about = runs.read(run_dir)
        self.layout: Layout | PointLayout = runs.layout_of(about)
        """The skeleton, or that the run is of point clouds."""
        self.unit: str | None = about.get("unit")
        """Of the coordinates that the run was trained on; None where that is not known."""
        self.min_confidence: float = about.get("min_confidence", 0.0)
        """Joints that a detector was less sure of were not seen in training."""
        self.classes: list[str] | None = None
        """Names of the classes; None of a pretrained run."""
        self._classifier = None
        if finetune.has_classes(self.config):
            self._classifier, _, about = finetune.load_classifier(run_dir, log=log)
            self._encoder, self.classes = self._classifier.encoder, list(about["classes"])
            self._classifier.to(self.device)
        else:
            self._encoder, _, _ = features.load_encoder(run_dir, log=log)

    def encode(self, sequences: Iterable[Any], pool: features.Pool = "mean") -> np.ndarray:
        """Features of sequences: float32 [n, F], those that the probes of an evaluation see.

        Args:
            sequences: arrays, see the class.
            pool: as of `s2vfast.evaluate.features.pool_tracks`.

        Raises:
            DataError: an array of another shape, without a body, or whose features are not finite.
        """
        return self._features(list(map(self.recording, sequences)), pool).numpy()

    def probabilities(self, sequences: Iterable[Any]) -> np.ndarray:
        """Of every class: float32 [n, classes], a row a sequence; arguments and errors as of `encode`."""
        return self.probabilities_of(list(map(self.recording, sequences))).numpy()

    def predict(self, sequences: Iterable[Any], top: int = 5) -> list[Ranking]:
        """The ``top`` most probable classes of each sequence; arguments and errors as of `encode`."""
        check_counts(top=top)
        return [self.ranked(row, top) for row in self.probabilities_of(list(map(self.recording, sequences)))]

    def stream(self, window: int | None = None, step: int = 1, smooth: float = 0.0, top: int = 5) -> Stream:
        """Classes of frames as they come, see `Stream`."""
        return Stream(self, window, step, smooth, top)

    def recording(self, sequence: Any) -> Recording:
        """An array as a recording; recordings as they are."""
        if isinstance(sequence, Recording):
            return sequence
        if self.layout.kind == PointLayout.kind:
            return point_recording(sequence)
        return _skeletons(self.checked(sequence, ("bodies", "frames")))

    def checked(self, values: Any, axes: tuple[str, ...]) -> np.ndarray:
        """Numbers [axes, V, 3], zeros where a joint was not seen.

        Args:
            values: [axes, V, C]. The first axis, the bodies, may be left out where there is one. C is 3, or 2 of a run
                whose recordings have 2 coordinates.
            axes: names of those before V and C.

        Raises:
            DataError: values of another kind or shape, or that no recording of the run's unit can have.
        """
        array, V = np.asarray(values.cpu() if isinstance(values, Tensor) else values), self.layout.num_joints
        what, dimensions, planar = "sequence" if "frames" in axes else "frame", len(axes) + 2, self.layout.planar
        shapes = {(V, 3), (V, 2)} if planar else {(V, 3)}
        fits = array.ndim in (dimensions - 1, dimensions) and array.shape[-2:] in shapes
        if not fits or array.dtype.kind not in "fiu":
            one, several = (f"[{', '.join([*names, str(V), '2' if planar else '3'])}]" for names in (axes[1:], axes))
            raise errors.DataError(
                f"a {what}: numbers {one} or {several} are expected for layout {self.layout.name}, found {array.dtype} "
                f"{list(array.shape)}"
            )
        array = in_three(array[None] if array.ndim < dimensions else array)
        array = np.where(np.isnan(array).any(axis=-1, keepdims=True), 0, array)
        if planar and array[..., 2].any():
            raise errors.DataError(f"a {what}: a third coordinate that is not 0; the run's recordings have 2")
        if self.unit is not None and (absurd := find_absurd(array.reshape(-1, V, 3), LIMITS[self.unit])):
            at = zip(axes, np.unravel_index(absurd[0], array.shape[:-2]), strict=True)
            where = ", ".join(f"{_ONE_OF[name]} {number}" for name, number in at)
            raise errors.DataError(f"a {what}: {where}, {absurd[2]}; the run was trained on coordinates in {self.unit}")
        return array

    def ranked(self, probabilities: Tensor, top: int) -> Ranking:
        """The ``top`` most probable classes of a row [classes]."""
        values = probabilities.sort(descending=True, stable=True)
        names = [(self.classes or [])[i] for i in values.indices.tolist()[:top]]
        return list(zip(names, values.values.tolist(), strict=False))

    def probabilities_of(self, recordings: Sequence[Recording], strict: bool = True) -> Tensor:
        """float32 [n, classes] on the CPU.

        Args:
            recordings: of the run's layout.
            strict: False: a row is not finite where the network's numbers are not, in place of an error for all.
        """
        if self._classifier is None:
            raise errors.CheckpointError(
                f"{self.run_dir}: a pretrained run, which has no classes; make one that has with "
                f"`s2vfast evaluate {self.run_dir} --protocol finetune --out DIR`"
            )
        pooled = self._features(recordings, self._classifier.head_pool, strict)
        with torch.no_grad():
            return torch.softmax(self._classifier.head(pooled.to(self.device)), dim=1).cpu()

    def _features(self, recordings: Sequence[Recording], pool: features.Pool, strict: bool = True) -> Tensor:
        store = memory_store(recordings, self.layout)
        sure = isinstance(store, MemoryStore) and store.confidence is not None
        if self.config.data.confidence and not sure and len(store):
            raise errors.DataError(f"{self.run_dir}: the run takes confidences of joints, and a sequence has none")
        if not len(store):
            return torch.zeros(0, features.feature_width(self._encoder, pool))
        clips = Recordings(self.config, store, self.device)

        def extract(ids: np.ndarray) -> Tensor:
            try:
                return features.extract(
                    self._encoder, self.config, store, ids, pool=pool, device=self.device, recordings=clips
                )
            except errors.DataError:
                if strict:
                    raise
                if len(ids) > 1:  # some are not finite; the others are to have their features
                    return torch.cat([extract(one) for one in np.split(ids, len(ids))])
                return torch.full((1, features.feature_width(self._encoder, pool)), torch.nan)

        return extract(np.arange(len(store), dtype=np.int64))


class Stream:
    """Frames one after the other to classes: a window over the newest of them, looked at every so many frames.

    Args:
        model: of a run that has classes.
        window: frames that are looked at; None: as many as a clip has. Fewer where fewer have come.
        step: frames from one look to the next.
        smooth: share of the probabilities that the look before has in these, in [0, 1).
        top: classes to name.

    Raises:
        ConfigError: an impossible number, or a run on point clouds.
        CheckpointError: a run without classes.
        DataError: a run that takes confidences of joints, which frames do not have.
    """

    def __init__(
        self, model: Model, window: int | None = None, step: int = 1, smooth: float = 0.0, top: int = 5
    ) -> None:
        window = model.config.data.frames if window is None else window
        check_counts(window=window, step=step, top=top)
        check_smooth(smooth)
        self._layout = refuse_points(model, "frames as they come")
        model.probabilities_of([])
        if model.config.data.confidence:
            raise errors.DataError(f"{model.run_dir}: the run takes confidences of joints, and a stream has none")
        self.model, self.window, self.step, self.smooth, self.top = model, window, step, smooth, top
        self.frames = 0
        """Frames that have come."""
        self._window: deque[np.ndarray | list[Sighting]] = deque(maxlen=window)  # []: nobody is seen
        self._before: Tensor | None = None

    def push(self, frame: Any) -> Ranking | None:
        """Take the next frame.

        Args:
            frame: [V, 3] of one body, [M, V, 3] of M (C as in `Model`), or None where nobody is seen. Or people whom a
                detector found anew, a list of `s2vfast.data.tracks.Sighting`: they are followed through the window, and
                its bodies are those of an import.

        Returns:
            Classes, where it is time to look and the window holds a body; else None.

        Raises:
            DataError: a frame of another shape, that no recording of the run's unit can have, or whose classes are not
                finite.
        """
        window = self.take(frame)
        if window is None:
            return None
        [ranking] = self.rank([window])
        if ranking is None:
            raise errors.DataError(NOT_FINITE)
        return ranking

    def take(self, frame: Any) -> Recording | None:
        """The first half of `push`: the window to look at, where it is time to look and it holds a body; else None."""
        self._window.append(self._checked(frame))
        self.frames += 1
        if self.frames % self.step or not any(map(len, self._window)):
            return None
        if any(isinstance(entry, list) and entry for entry in self._window):
            return self._followed()
        array = np.zeros((max(map(len, self._window)), len(self._window), self.model.layout.num_joints, 3), np.float32)
        for number, entry in enumerate(self._window):
            if isinstance(entry, np.ndarray):
                array[: len(entry), number] = entry
        return _skeletons(array)

    def _checked(self, frame: Any) -> np.ndarray | list[Sighting]:
        """A frame as the window has it: [] where nobody is seen."""
        if frame is None:
            return []
        if not isinstance(frame, list) or not all(isinstance(person, Sighting) for person in frame):
            bodies = self.model.checked(frame, ("bodies",))
            return bodies if bodies.any() else []
        if not frame:
            return []
        people = []
        poses = self.model.checked(np.stack([person.joints for person in frame]), ("bodies",))
        for person, joints in zip(frame, poses, strict=True):
            if person.confidence is not None:
                unsure = np.nan_to_num(person.confidence) < self.model.min_confidence
                joints = np.where(unsure[:, None], 0.0, joints)
            if joints.any():
                people.append(replace(person, joints=joints))
        return people

    def _followed(self) -> Skeletons:
        """The window's people as an import would have them: followed from frame to frame, the main one first."""
        people = [
            entry if isinstance(entry, list) else [Sighting(joints) for joints in entry] for entry in self._window
        ]
        bodies, _ = arrange(link(enumerate(people)), self._layout, len(people))
        bodies = [replace(body, body_id=str(slot), confidence=None) for slot, body in enumerate(bodies)]
        return Skeletons(name="a sequence", label=-1, total_frames=len(people), bodies=bodies)

    def rank(self, windows: Sequence[Recording]) -> list[Ranking | None]:
        """The second half of `push`: classes of windows that `take` gave one after the other, by one pass.

        None in place of those of a window for which the network's numbers are not finite; it smooths nothing.
        """
        rankings: list[Ranking | None] = []
        for probabilities in self.model.probabilities_of(windows, strict=False) if windows else ():
            if probabilities.isfinite().all():
                self._before = smoothed(probabilities, self._before, self.smooth)
                rankings.append(self.model.ranked(self._before, self.top))
            else:
                rankings.append(None)
        return rankings


def _skeletons(array: np.ndarray) -> Skeletons:
    """Bodies [M, T, V, 3] as a recording."""
    at = np.arange(array.shape[1], dtype=np.int32)
    bodies = [Body(str(slot), at, joints.astype(np.float32)) for slot, joints in enumerate(array)]
    return Skeletons(name="a sequence", label=-1, total_frames=array.shape[1], bodies=bodies)


def point_recording(frames: Any) -> PointSequence:
    """A list of T arrays [n, 3], or an array [T, P, 3], as a recording.

    Raises:
        DataError: arrays of another shape.
    """
    arrays = [np.asarray(frame.cpu() if isinstance(frame, Tensor) else frame) for frame in frames]
    for array in arrays:
        if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "fiu":
            raise errors.DataError(
                f"a sequence of points: numbers [n, 3] are expected for every frame, found {array.dtype} "
                f"{list(array.shape)}"
            )
    points = np.concatenate([np.zeros((0, 3), np.float32), *arrays]).astype(np.float32)
    counts = np.array([len(array) for array in arrays], np.int64)
    return PointSequence(name="a sequence", label=-1, total_frames=len(arrays), points=points, counts=counts)


def refuse_points(model: Model, what: str) -> Layout:
    """A run's skeleton; `ConfigError` of a run on point clouds, which does not take ``what``."""
    if isinstance(model.layout, PointLayout):
        raise errors.ConfigError(f"{model.run_dir}: a run on point clouds takes whole recordings, not {what}")
    return model.layout


def smoothed(probabilities: Tensor, before: Tensor | None, smooth: float) -> Tensor:
    """smooth * before + (1 - smooth) * probabilities; where nothing was before, the probabilities."""
    return probabilities if before is None else smooth * before + (1.0 - smooth) * probabilities


def check_smooth(smooth: float) -> None:
    """Raise `ConfigError` unless ``smooth`` is in [0, 1)."""
    if not 0 <= smooth < 1:
        raise errors.ConfigError(f"smooth: {smooth}; a number in [0, 1) is expected")


load = Model
"""``s2vfast.load(RUN)``: a `Model`."""
