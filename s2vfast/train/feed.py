"""The input of each step: views and what the objective makes of them, made where the recordings lie."""

from __future__ import annotations

import contextlib
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.data.augment import ViewKey
from s2vfast.data.clips import clip_spec, moved_points, point_spec, shown, unmoved, view_steps, whole_recordings
from s2vfast.data.memory import MemoryPoints, MemoryStore
from s2vfast.data.performances import CameraPairs
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.report import main_bodies
from s2vfast.data.store import Store
from s2vfast.objectives import Bodies, Draw, MicroBatch, Objective
from s2vfast.ops.point_sample import frame_table
from s2vfast.reference import philox
from s2vfast.train.batch_norm import has_batch_norm
from s2vfast.train.distributed import Ranks
from s2vfast.train.order import Order

if TYPE_CHECKING:
    from s2vfast.data.point_store import PointStore
    from s2vfast.data.skeleton_store import SkeletonStore

AnyStore = Store | MemoryStore | MemoryPoints
CACHE_BYTES = 16 * 2**20
"""Of the largest activation of a micro-batch, on a CPU."""


@dataclass(frozen=True)
class Batch:
    """The input of one step."""

    micro_batches: list[MicroBatch]  # this rank's
    sample_ids: np.ndarray  # int64 [B], of all ranks
    epoch: int


class Recordings:
    """A store's sequences where clips are made of them, on a device or on the host; of either kind of store.

    Args:
        config: of the run, which says how clips are made.
        store: the sequences.
        device: where clips are needed.
        resident: as of data.resident.

    Raises:
        TrainingError: recordings that do not fit on the device they were to lie on.
    """

    joints: int
    """V of clips."""
    present: Tensor
    """bool [Q, M], on the host: which bodies a sequence has."""

    def __new__(cls, config: Config, store: AnyStore, *args: object, **options: object) -> Recordings:
        """Those of the store's kind."""
        return super().__new__(PointRecordings if store.layout.kind == PointLayout.kind else SkeletonRecordings)

    def __init__(self, config: Config, store: AnyStore, device: torch.device, resident: str = "auto") -> None:
        self.device, self.bodies, self.layout, self._data = device, config.data.bodies, store.layout, config.data
        tables, notes = self._open(store)
        size = max(table.nbytes for table in tables)
        on_host, note = _stays_on_host(resident, size, device)
        self.notes = [*notes, *([note] if note else [])]
        """What there is to say about the sequences and about where the recordings lie."""
        self.source = torch.device("cpu") if on_host else device
        try:
            self._tables = [table.to(self.source) for table in tables]
        except torch.OutOfMemoryError:
            raise errors.TrainingError(
                f"data.resident: device: the recordings ({size / 1e9:.1f} GB) do not fit on {device}; give host or auto"
            ) from None

    def _open(self, store: Any) -> tuple[list[Tensor], list[str]]:
        """The tables that clips are made from, on the host, and what there is to say."""
        raise NotImplementedError

    @property
    def sends(self) -> bool:
        """Whether clips are made on the host and needed on a device."""
        return self.source != self.device

    def _sent(self, ids: Tensor) -> Tensor:
        """Numbers of sequences, at `source`."""
        return ids.pin_memory().to(self.source, non_blocking=True) if self.source.type == "cuda" else ids

    def clips(
        self, ids: Tensor, *, epoch: int | None = None, seed: int = 0, window: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """Clips of sequences, [n * M, T, V, C] at `source`.

        Args:
            ids: int64 [n], on the host.
            epoch: of training; None: the deterministic clips.
            seed: of training's draws.
            window: (i, n), of deterministic clips of point clouds whose data.sampling is window: the i-th of n that
                begin at equal distances. Others have one.
        """
        raise NotImplementedError


class SkeletonRecordings(Recordings):
    """`Recordings` of skeletons: V joints."""

    def _open(self, store: SkeletonStore | MemoryStore) -> tuple[list[Tensor], list[str]]:
        data = self._data
        self.joints = store.layout.num_joints
        self.spec, self._steps = clip_spec(data, store.layout), view_steps(data, store.layout)
        row, count = map(torch.from_numpy, store.track_table(self.bodies))  # [Q, M]
        self._longest = int(count[:, 0].max())
        self.present = count > 0
        tables = [_readable(store.frames), torch.from_numpy(store.frame_index), row, count]
        tables += [_confidence_rows(store)] if data.confidence else []
        return tables, main_bodies(store, self.bodies)

    def clips(
        self, ids: Tensor, *, epoch: int | None = None, seed: int = 0, window: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """As of `Recordings.clips`."""
        source_ids, training, tables = self._sent(ids), epoch is not None, self._tables[:4]
        if self._steps is None:
            draws = {"seed": seed, "epoch": epoch or 0, "training": training}
            clips = ops.clip_sample(*tables, source_ids, self.spec, **draws)
            if self._data.stream != "joint":
                clips = shown(clips, self._data, self.layout)
            if not self._data.confidence:
                return clips
            # The same frames, by the same draws.
            sure = ops.clip_sample(self._tables[4], *tables[1:], source_ids, unmoved(self.spec), **draws)
            return torch.cat([clips, sure[..., :1]], dim=-1)
        # To ask a GPU for the longest of a batch would make the host wait for it.
        on_host = self.source.type == "cpu"
        longest = int(tables[3][ids, 0].max()) if on_host and len(ids) else self._longest
        recorded, lengths = whole_recordings(*tables, source_ids, longest)
        view = self._steps[0 if training else 1]
        clips, _ = view(recorded, ViewKey(seed, epoch or 0, source_ids), lengths)
        return shown(clips.flatten(0, 1), self._data, self.layout)


class PointRecordings(Recordings):
    """`Recordings` of point clouds: M is 1, V is P, the points drawn of every frame."""

    def _open(self, store: PointStore | MemoryPoints) -> tuple[list[Tensor], list[str]]:
        self.spec, self.joints = point_spec(self._data), self._data.points
        self.present = torch.ones(len(store), 1, dtype=torch.bool)
        row, count = _readable(store.first_frame[:-1]), _readable(store.total_frames)
        begin, size = frame_table(_readable(store.frame_rows), row, count)
        # The store's points lie about their centre already.
        origin = torch.from_numpy(-store.centres if self._data.center == "none" else np.zeros_like(store.centres))
        notes = []
        least = self.spec.frames if self.spec.sampling == "even" else self.spec.span
        if short := int((count < least).sum()):
            notes.append(f"{short:,} of {len(store):,} sequences have less than {least} frames: clips repeat some")
        return [_readable(store.points), begin, size, row, count.to(torch.int32), origin], notes

    def clips(
        self, ids: Tensor, *, epoch: int | None = None, seed: int = 0, window: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """As of `Recordings.clips`."""
        ids, training = self._sent(ids), epoch is not None
        draws = {"seed": seed, "epoch": epoch or 0, "training": training, "window": window[0], "windows": window[1]}
        clips = ops.point_sample(*self._tables, ids, self.spec, **draws)
        return clips if epoch is None else moved_points(clips, self._data, ids, seed, epoch)


def _confidence_rows(store: SkeletonStore | MemoryStore) -> Tensor:
    """float16 [R, V, 3]: confidences as rows of x, whose frames are chosen like those of coordinates."""
    if store.confidence is None:
        raise errors.ConfigError(
            f"data.confidence: {store.path} has no confidences; import recordings that have them, or give false"
        )
    rows = torch.zeros((*store.confidence.shape, 3), dtype=torch.float16)
    rows[..., 0] = torch.from_numpy(np.asarray(store.confidence, dtype=np.float16))
    return rows


def view_seed(seed: int, view: int) -> int:
    """The seed of a view's draws: the run's own for the first, for each other one a function of it."""
    if view == 0:
        return seed
    low, high = philox.random_bits(seed, 0, torch.tensor([view]), philox.VIEW, 2)[0].tolist()
    return (high << 31 | low >> 1) & (2**63 - 1)


class Feed:
    """Batches by step: a function of the config, the store and the step.

    Args:
        config: the run.
        store: its sequences.
        objective: says how many views it needs, and what else.
        device: where the step runs.
        ranks: the processes that share a batch; None: this one alone.
        ids: int64 [n], the sequences; None: the training part of data.split.

    Raises:
        ConfigError: a batch that does not fit the sequences or the ranks.
        DataError: a split that the store does not have, or data.camera_pairs of a store that does not say what cameras
            saw.
        TrainingError: recordings that do not fit on the device they were to lie on.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        objective: Objective,
        device: torch.device,
        ranks: Ranks | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        self.ranks = ranks = ranks or Ranks()
        self.config, self.objective, self.device = config, objective, device
        if config.data.confidence and objective.pipelines:
            raise errors.ConfigError(
                f"data.confidence: the views of objective {config.objective.name} are made of coordinates alone; give "
                "false"
            )
        ids = torch.from_numpy(store.select(config.data.split, "train") if ids is None else ids)
        self._labels = _readable(store.labels) if objective.needs_labels else None
        if self._labels is not None:
            ids = ids[self._labels[ids] >= 0]
        batch, accumulate = config.train.batch, config.train.accumulate
        if batch > len(ids):
            raise errors.ConfigError(
                f"train.batch: {batch} is more than the {len(ids)} training sequences of split {config.data.split}"
            )
        total = ranks.world_size * (accumulate or 1)
        if batch < total:
            times = f" times train.accumulate = {accumulate}" if accumulate else ""
            raise errors.ConfigError(
                f"train.batch: {batch} is less than {total}, which is {ranks.world_size} ranks{times}; each of them "
                f"needs a clip"
            )
        self._cameras = _camera_pairs(config, store, objective, ids.numpy())
        if objective.gathers and batch % total:
            raise errors.ConfigError(
                f"train.batch: {batch} is no multiple of {total} ranks and micro-batches, as "
                f"objective.name: {config.objective.name} asks"
            )
        self.order = Order(ids, batch, config.train.seed)
        self.micro_batches = accumulate or micro_batches_for(config, objective, batch // ranks.world_size, device)
        # Views are augmented as coordinates; streams and velocities are those of what comes of it.
        coordinates = replace(config.data, velocity=0.0, stream="joint") if objective.pipelines else config.data
        self.recordings = Recordings(replace(config, data=coordinates), store, device, config.data.resident)
        if self._labels is not None:
            self._labels = self._labels.to(self.recordings.source)
        sends = self.recordings.sends
        self._threads = max(config.data.workers, 2) if sends else config.data.workers
        self.chooser: Any = None
        """What ``auto`` asks first, of a run that is calibrated: see `s2vfast.ops.use_chooser`."""
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}
        # Shapes that repeat can be captured or compiled once; exact ones save a little more.
        self._repeats = device.type == "cuda" or config.train.mode == "compile"

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's views, and what the objective makes of them."""
        ids, epoch = self.order.sample_ids(step), self.order.epoch(step)
        ids_of_batches = self.ids_of_micro_batches(ids)
        first = self.ranks.rank * self.micro_batches
        # What is chosen for the device may not run on the host.
        impl, capacity = "auto" if self.recordings.sends else self.config.train.impl, self._capacity(ids_of_batches)
        auto = impl == "auto" and not self.recordings.sends
        named = contextlib.nullcontext() if auto else ops.use_impl(impl, everywhere=False)
        with named, ops.use_chooser(self.chooser):
            batches = [
                self._micro_batch(batch_ids, epoch, capacity, len(batch_ids) / len(ids))
                for batch_ids in ids_of_batches[first : first + self.micro_batches]
            ]
        return Batch(batches, ids.numpy(), epoch)

    def ids_of_micro_batches(self, ids: Tensor) -> list[Tensor]:
        """The samples of every micro-batch of every rank, of those of a step; sizes differ by one at most."""
        of_ranks = ids.tensor_split(self.ranks.world_size)
        return [batch_ids for rank in of_ranks for batch_ids in rank.tensor_split(self.micro_batches)]

    def _capacity(self, ids_of_batches: list[Tensor]) -> int | None:
        """Tracks with a body that every micro-batch of every rank holds; None where each has what it needs.

        The same everywhere, so that all ranks have captured the same shapes, and these repeat.
        """
        if not self._repeats or self.objective.empty_bodies == "compute":
            return None
        present = self.recordings.present
        each = len(ids_of_batches[0]) * present.shape[1]
        round_to = max(1, each // 16)
        most = max(int(present[batch_ids].sum()) for batch_ids in ids_of_batches)
        return min(-(-most // round_to) * round_to, each)

    def _micro_batch(self, ids: Tensor, epoch: int, capacity: int | None, weight: float) -> MicroBatch:
        seed, objective, source = self.config.train.seed, self.objective, self.recordings.source
        labels = None
        if self._labels is not None:
            labels = self._labels[ids.to(source)]
        draw = Draw(seed, epoch, ids, labels, self._repeats)
        views = tuple(self._view(view, draw) for view in range(objective.views))
        inputs, bodies = objective.prepare(views, draw), None
        if objective.empty_bodies != "compute":
            bodies = Bodies.from_mask(self.recordings.present[ids].flatten(), capacity)
            if source.type == "cuda":
                bodies = replace(bodies, order=self._send(bodies.order), rank=self._send(bodies.rank))
        batch = MicroBatch(views, inputs, bodies, weight)
        return batch.map(self._send) if self.recordings.sends else batch

    def _view(self, view: int, draw: Draw) -> Tensor:
        ids, seed = draw.sample_ids, view_seed(draw.seed, view)
        if view and self._cameras is not None:
            ids = self._cameras(ids, seed, draw.epoch)
        clips = self.recordings.clips(ids, epoch=draw.epoch, seed=seed)
        if not self.objective.pipelines:
            return self.objective.augment(clips, view, draw)
        return shown(self.objective.augment(clips, view, draw), self.config.data, self.recordings.layout)

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def next(self, step: int, stop: int) -> Batch:
        """The batch of ``step``, made ahead where there are threads, which do not go beyond ``stop``."""
        if not self._threads:
            return self.batch(step)
        if self._pool is None:
            # A thread begins on the first GPU, whichever this process is on.
            first = (torch.cuda.set_device, (self.device,)) if self.device.type == "cuda" else (None, ())
            self._pool = ThreadPoolExecutor(self._threads, "s2vfast-data", *first)
        for ahead in range(step, min(step + self._threads + 1, stop)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._pool.submit(self.batch, ahead)
        return self._ahead.pop(step).result()

    def forget(self) -> None:
        """Drop what was made ahead: the next step is another one."""
        self._ahead.clear()


def _camera_pairs(config: Config, store: Store, objective: Objective, ids: np.ndarray) -> CameraPairs | None:
    """What data.camera_pairs asks for; None: every view is of the sequence itself."""
    fraction, name = config.data.camera_pairs, config.objective.name
    if not fraction:
        return None
    if objective.views == 1:
        raise errors.ConfigError(f"data.camera_pairs: {fraction}; objective {name} sees one view of a clip, give 0")
    if objective.empty_bodies != "compute":
        raise errors.ConfigError(
            f"objective.empty_bodies: {objective.empty_bodies}; compute is expected with data.camera_pairs, as one "
            "camera may miss a body that another saw"
        )
    if objective.views_by_body and config.data.bodies > 1:
        raise errors.ConfigError(
            f"data.camera_pairs: {fraction}; objective {name} compares views body by body, and cameras number bodies "
            "differently: give 0, or data.bodies 1"
        )
    return CameraPairs(store, ids, fraction)


def micro_batches_for(config: Config, objective: Objective, clips: int, device: torch.device) -> int:
    """Micro-batches for ``clips`` clips: one on a GPU; on a CPU the fewest whose widest activations fit into a cache.

    One for batch norm, whose statistics would be those of less than the batch, and for losses that compare the samples
    of a batch.
    """
    if device.type != "cpu" or objective.gathers or has_batch_norm(objective):
        return 1
    masks = config.mask.masks_per_clip if config.mask else 1
    each = config.data.bodies * masks * objective.encoder.activation_numbers() * 4  # bytes of a clip
    return next((n for n in range(1, clips) if clips % n == 0 and clips // n * each <= CACHE_BYTES), clips)


def _stays_on_host(wish: str, size: int, device: torch.device) -> tuple[bool, str | None]:
    """Whether recordings of ``size`` bytes stay in the host's memory, and what there is to say about it."""
    if device.type == "cpu" or wish == "device":
        return False, None
    if wish == "host":
        return True, None
    free = torch.cuda.mem_get_info(device)[0]
    if size <= free // 2:
        return False, None
    return True, (
        f"the recordings ({size / 1e9:.1f} GB) take more than half of the {free / 1e9:.1f} GB that are free on "
        f"{device}: they stay in the host's memory, from where clips are sent ahead"
    )


def _readable(array: np.ndarray) -> Tensor:
    """A tensor on the memory of a read-only array: the frames are read where the file maps them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
