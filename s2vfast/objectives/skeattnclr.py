"""SkeAttnCLR: contrast of whole clips and of what is salient in them and what is not (IJCAI 2023, arXiv 2305.00666).

Two views of a clip are cropped in time and sheared. The first makes the query. A third view is the first with a block
of another sample's body parts and frames; a mask of attention over its tokens weighs them into a salient and a
non-salient embedding. The second view goes through a key encoder, an average of the network, and is weighed by the same
mask. Each of the three embeddings is to be like its key and unlike a queue of keys; salient and non-salient ones of a
clip are to be unlike one another.

Where the published code cannot run, or does what it does not mean to, the defaults are its repair, and a field has the
code's way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.data.augment import Compose
from s2vfast.data.augment.spatial import Swap
from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, build_network, linear_weights
from s2vfast.networks.stgcn import initialise
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, register
from s2vfast.objectives.bodies import Bodies, has_body, mean_over_tracks
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config

KINDS = ("z", "s", "ns")
"""Embeddings: of whole clips, salient, non-salient."""
INIT_STD = 0.02
"""Of the maps beside the network (published)."""
QUERY, MIXED, KEY = range(3)
"""The passes through the networks, each of which has noise of its own."""


@dataclass
class SkeAttnCLRConfig:
    """Views, embeddings, queue and losses of SkeAttnCLR."""

    mu: float = option(0.5, ge=0, le=1)
    """Weight of the salient loss; 1 - mu is the non-salient one's. The published joint configs of NTU 60 have 1.0."""
    temperature: float = option(0.2, gt=0)
    """tau of the softmax over key, queue and the other part's embedding."""
    queue: int = option(32768, ge=1)
    """Keys that are kept; a multiple of train.batch."""
    queues: Literal["one", "own", "published"] = "one"
    """Which keys are kept, and what each loss has as negatives. ``one``: keys of whole clips, for all three losses (the
    published loss). ``own``: keys of each kind, for the loss of that kind. ``published``: keys of each kind are kept,
    and those of whole clips are all that is read."""
    momentum: float = option(0.996, ge=0, le=1)
    """The key encoder's average begins with this factor, which grows to 1 along a half cosine."""
    key_start: Literal["copied", "independent"] = "copied"
    """Weights that the key encoder starts from: the network's, or others (which the published code comes to by
    initialising again after it has copied)."""
    key_mask: Literal["query", "own"] = "query"
    """Which mask weighs the key's tokens: that of the mixed ``query`` clip, by position (published), or the key's
    ``own``."""
    dim: int = option(128, ge=1)
    """Numbers of an embedding."""
    hidden: int = option(256, ge=1)
    """Width of projector and predictors between their two maps."""
    heads: int = option(8, ge=1)
    """H of the mask's attention; divides the network's width."""
    empty_bodies: Literal["compute", "drop"] = "compute"
    """``compute``: the second body of a sample of one person is a clip of zeros, which counts in batch norms and means
    over bodies (published). ``drop``: it is left out of both. On a GPU the tracks that fill up a captured shape still
    count in batch norms."""
    crop_ratio: int = option(6, ge=1)
    """A view begins within the mirrored 1 / crop_ratio of a clip before its start or after it."""
    shear: float = option(0.5, ge=0)
    """Largest entry beside the diagonal of a view's shear."""
    swap_parts: tuple[int, int] = (3, 4)
    """Fewest and most body parts of the block that comes from another sample."""
    swap_cells: tuple[int, int] = (4, 7)
    """Shortest and longest stretch of the block, in segments of the network."""
    swap_block: Literal["batch", "sample"] = "batch"
    """Whether the ``batch`` shares one block (published), or every ``sample`` draws its own."""


class MLP(nn.Module):
    """Linear, batch norm, ReLU, linear; without biases."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, out] of [n, features]."""
        return self.fc2(F.relu(self.norm(self.fc1(x))))


class SaliencyMask(nn.Module):
    """Self-attention over tokens that says how salient each number of each token is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.qkv)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L, D], numbers in (0, 1), of tokens [N, L, D]."""
        return torch.sigmoid(2.0 * self.proj(ops.attention(self._qkv(tokens)).to(tokens.dtype).flatten(2)))

    def attention(self, tokens: Tensor) -> Tensor:
        """What each token attends to, [N, H, L, L]."""
        q, k, _ = self._qkv(tokens).permute(2, 0, 3, 1, 4)  # each [N, H, L, d]
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)

    def _qkv(self, tokens: Tensor) -> Tensor:
        norm, qkv = self.norm, self.qkv
        packed = ops.norm_linear(tokens, norm.weight, norm.bias, qkv.weight, qkv.bias, norm.eps)
        return packed.unflatten(2, (3, self.heads, -1))


@dataclass(frozen=True)
class Inputs:
    """What the loss needs beside the views."""

    swap: Tensor  # int64 [n, draws], of the block
    noise: tuple[Any, ...]  # of each pass, see `Network.draw_noise`


@dataclass(frozen=True)
class Embeddings:
    """Embeddings [n, dim] of a pass: of whole clips, of what is salient, of what is not."""

    z: Tensor
    s: Tensor
    ns: Tensor

    def normalised(self) -> Embeddings:
        """Of length 1."""
        return Embeddings(*(F.normalize(each, dim=1) for each in (self.z, self.s, self.ns)))


@register("skeattnclr")
class SkeAttnCLR(Objective):
    """A network, its key encoder, the mask, projector, predictors and a queue.

    Args:
        encoder: the network.
        options: the section.
        bodies: M, tracks a sample.
        layout: the skeleton.
    """

    Section = SkeAttnCLRConfig
    averages = {"key_encoder": "encoder", "key_projector": "projector"}  # noqa: RUF012 - replaced, never changed
    averages_train = True
    gathers = True
    views = 2
    terms = ("loss_z", "loss_s", "loss_ns", "accuracy")

    def __init__(self, encoder: Network, options: SkeAttnCLRConfig, bodies: int, layout: Layout) -> None:
        super().__init__(encoder)
        self.options, self.bodies, self.layout = options, bodies, layout
        self.empty_bodies = options.empty_bodies
        view = [{"name": "mirror_crop", "ratio": options.crop_ratio}, {"name": "shear", "amplitude": options.shear}]
        self.pipelines = [Compose(view, layout, "objective") for _ in range(2)]
        cell = encoder.segment_frames or 1
        self.swap = Swap(options.swap_parts, options.swap_cells, cell, options.swap_block)
        self.projector = MLP(encoder.width, options.hidden, options.dim)
        self.mask = SaliencyMask(encoder.width, options.heads)
        for name in KINDS:
            self.register_module(f"predictor_{name}", MLP(options.dim, options.hidden, options.dim))
        self.key_encoder, self.key_projector = self.average_of(encoder), self.average_of(self.projector)
        for name in self._queues:
            self.register_buffer(f"queue_{name}", F.normalize(torch.randn(options.queue, options.dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> SkeAttnCLR:
        """The objective of a config, as it stands before the first step."""
        objective = cls(build_network(config, layout), config.objective, config.data.bodies, layout)
        modules = ("projector", "mask", "predictor_z", "predictor_s", "predictor_ns")
        for name in modules:
            initialise(getattr(objective, name), INIT_STD)
        if config.objective.key_start == "independent":
            # Drawn from the objective's own seed: other weights than the network's.
            objective.key_encoder.load_state_dict(config.network_class.build(config, layout).state_dict())
            initialise(objective.key_projector, INIT_STD)
        else:
            objective.key_projector.load_state_dict(objective.projector.state_dict())
        return objective

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Whole batches in the queue, and a block that fits the clip."""
        options, train = config.objective, config.train
        if options.queue % train.batch:
            raise ConfigError(f"objective.queue: {options.queue} is no multiple of train.batch = {train.batch}")
        if train.batch < 2:
            raise ConfigError(f"train.batch: {train.batch}; 2 or more is expected, for batch norms")
        if config.network_class.segments(config) is None:
            raise ConfigError(
                f"objective.name: skeattnclr weighs joints in segments; model.name: {config.model.name} has none"
            )
        try:
            swap = Swap(options.swap_parts, options.swap_cells)
            if layout is not None:
                swap.check_layout(layout)
        except ConfigError as error:
            raise ConfigError(f"objective.swap_{str(error).removeprefix('swap.')}") from None

    def ema_decay(self, step: int, total_steps: int) -> float:
        """m, from ``momentum`` at the first step to 1; the published code begins one epoch in and overruns the end."""
        return 1.0 - (1.0 - self.options.momentum) * (math.cos(math.pi * step / total_steps) + 1.0) / 2.0

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> Inputs:
        """Draws of the block and the networks' noise."""
        ids = draw.sample_ids.to(views[0].device, non_blocking=True)
        swap = philox.random_bits(draw.seed, draw.epoch, ids, philox.SWAP, self.swap.draw_count(self.layout))
        noise = []
        for number in (QUERY, MIXED, KEY):
            draws = draw.words(philox.CONTRAST_NOISE, self.bodies, views[0].device, number)
            noise.append(self.encoder.draw_noise(views[number == KEY], draws))
        return Inputs(swap, tuple(noise))

    def mix(self, clips: Tensor, draws: Tensor) -> Tensor:
        """This rank's clips [n * M, T, V, C] with a block of other samples of all ranks' batch; draws [n, P]."""
        samples = clips.unflatten(0, (-1, self.bodies))
        n, rank = len(samples), self.ranks.rank
        exchanged = self.swap.exchange(self.ranks.all_gather(samples), self.ranks.all_gather(draws), self.layout)
        return exchanged[rank * n : (rank + 1) * n].flatten(0, 1)

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """The three losses; keys go into the queue."""
        query, key = batch.views
        mixed = self.mix(query, batch.inputs.swap)
        queries, keys, _ = self.embed(query, mixed, key, batch.inputs.noise, batch.bodies)
        return self.contrast(queries.normalised(), keys.normalised())

    def embed(
        self,
        query: Tensor,
        mixed: Tensor,
        key: Tensor,
        noise: Sequence[Any] = (None, None, None),
        bodies: Bodies | None = None,
    ) -> tuple[Embeddings, Embeddings, Tensor]:
        """Embeddings of queries and keys before they are normalised, and the mask.

        Args:
            query: [n * M, T, V, C], the first view.
            mixed: [n * M, T, V, C], the first view with blocks of others.
            key: [n * M, T, V, C], the second view.
            noise: of each pass.
            bodies: which tracks hold one, where empty ones are dropped.
        """
        pool = _Pool(self.bodies, bodies, has_body(query) if bodies is not None else None)
        clip = self.predictor_z(self.projector(pool(self._tokens(self.encoder, query, noise[QUERY], bodies))))
        tokens = self._tokens(self.encoder, mixed, noise[MIXED], bodies)
        mask = self.mask(tokens)
        everything, salient = pool(tokens), pool(tokens * mask)
        with torch.no_grad():  # for running statistics alone, in the published order
            unused = self.projector(everything)
        salient, remainder = self.projector(salient), self.projector(everything - salient)
        with torch.no_grad():
            self.predictor_z(unused)
        queries = Embeddings(clip, self.predictor_s(salient), self.predictor_ns(remainder))
        with torch.no_grad():
            tokens = self._tokens(self.key_encoder, key, noise[KEY], bodies)
            weights = mask if self.options.key_mask == "query" else self.mask(tokens)
            everything, salient = pool(tokens), pool(tokens * weights)
            keys = Embeddings(*map(self.key_projector, (everything, salient, everything - salient)))
        return queries, keys, mask

    def contrast(self, queries: Embeddings, keys: Embeddings) -> Loss:
        """The loss of embeddings of length 1; keys go into the queue."""
        losses, accuracy = self.losses(queries, keys)
        self._enqueue(keys)
        terms = {f"loss_{name}": value.detach() for name, value in losses.items()}
        return Loss(self.total(losses), len(keys.z), terms={**terms, "accuracy": accuracy})

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """L_z + mu L_s + (1 - mu) L_ns."""
        return losses["z"] + self.options.mu * losses["s"] + (1.0 - self.options.mu) * losses["ns"]

    def losses(self, queries: Embeddings, keys: Embeddings) -> tuple[dict[str, Tensor], Tensor]:
        """The losses z, s and ns, and how often a whole clip's key is the most similar of all."""
        # The queue changes before the gradient asks for it.
        queues = {name: getattr(self, f"queue_{name}").clone() for name in KINDS if self._reads(name)}
        losses, hits = {}, []
        for name, other in (("z", None), ("s", queries.ns), ("ns", queries.s)):
            embedding = getattr(queries, name)
            logits = [
                (embedding * getattr(keys, name)).sum(1, keepdim=True),
                embedding @ queues.get(name, queues["z"]).t(),
            ]
            if other is not None:
                logits.append((embedding * other.detach()).sum(1, keepdim=True))
            scores = torch.cat(logits, dim=1) / self.options.temperature
            losses[name] = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
            hits.append((scores.detach().argmax(dim=1) == 0).to(torch.float32).mean())
        return losses, hits[0]

    def token_weights(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """How salient each token of clips [N, T, V, C] is, [N, L], and the attention that says so, [N, H, L, L]."""
        tokens = self.encoder(clips)
        return self.mask(tokens).mean(dim=2), self.mask.attention(tokens)

    @property
    def _queues(self) -> tuple[str, ...]:
        """Kinds of keys that are kept."""
        return KINDS[:1] if self.options.queues == "one" else KINDS

    def _reads(self, name: str) -> bool:
        return name == "z" or self.options.queues == "own"

    @torch.no_grad()
    def _enqueue(self, keys: Embeddings) -> None:
        """The keys of all ranks in the place of the oldest."""
        count = self.options.queue
        for name in self._queues:
            rows = self.ranks.all_gather(getattr(keys, name))
            at = (self.oldest + torch.arange(len(rows), device=rows.device)) % count
            getattr(self, f"queue_{name}").index_copy_(0, at, rows)
        self.oldest.add_(len(rows)).remainder_(count)

    @staticmethod
    def _tokens(network: Network, clips: Tensor, noise: Any, bodies: Bodies | None) -> Tensor:
        """Tokens [N, L, D] of tracks, of those that hold a body where ``bodies`` says which do."""
        if bodies is not None:
            tracks = bodies.order[: bodies.capacity]
            clips = clips[tracks]
            noise = None if noise is None else tuple(part[tracks] for part in noise)
        return network(clips) if noise is None else network.with_noise(clips, noise)


class _Pool:
    """Means over tokens, then over bodies.

    Args:
        count: M, tracks a sample.
        bodies: which tracks tokens are of; None: all.
        present: bool [n * M], which hold a body, where there is ``bodies``.
    """

    def __init__(self, count: int, bodies: Bodies | None, present: Tensor | None) -> None:
        self.count, self.bodies, self.present = count, bodies, present

    def __call__(self, tokens: Tensor) -> Tensor:
        """[n, D] of tokens [N, L, D]."""
        if self.bodies is None:
            return mean_over_tracks(tokens, self.count)
        means = tokens.mean(dim=1)
        tracks = self.bodies.order[: self.bodies.capacity]
        weights = self.present.to(means.dtype)[:, None]  # [n * M, 1]
        tracks_in_place = means.new_zeros(len(weights), means.shape[1]).index_copy(0, tracks, means * weights[tracks])
        total, present = (part.unflatten(0, (-1, self.count)).sum(dim=1) for part in (tracks_in_place, weights))
        return total / present.clamp(min=1.0)
