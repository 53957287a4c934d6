"""The steps of fine-tuning: clips, encoder, head, loss, one update.

Ranks share the encoder's work. What they made of their sequences is put together before the head, which every rank then
runs on the whole batch: its batch norm sees the same rows at any number of ranks, and no statistics need be exchanged.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.evaluate import classifier
from s2vfast.evaluate.features import Clips
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.evaluate.layered import LayeredAdamW
from s2vfast.nn import Encoder
from s2vfast.train.distributed import Ranks
from s2vfast.train.engine import operand_dtype
from s2vfast.train.order import Order
from s2vfast.train.schedule import learning_rate


@dataclass(frozen=True)
class Result:
    """What one step did, on the host."""

    step: int  # steps taken, this one included
    epoch: float  # passes over the labelled sequences
    loss: float
    top1: float  # per cent of the batch that was told right, clips and network being those of training
    lr: float  # of the head
    grad_norm: float
    clips: int
    stop: bool  # whether a rank wanted to stop when it began


class Tuner:
    """Network, optimizer and data of a fine-tuning; `run_step` moves it one step on.

    Args:
        encoder: where it starts from; it is changed.
        config: the run that the encoder is of, which says how clips are made.
        options: the recipe.
        store: the sequences.
        ids: int64 [n], those that are learned from.
        device: where it runs.
        ranks: the processes that share the steps; each of them makes one of these.

    Raises:
        DataError: fewer than two sequences.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: Config,
        options: FinetuneConfig,
        store: Store,
        ids: Tensor,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        if len(ids) < 2:
            raise errors.DataError(f"fine-tuning: {len(ids)} training sequence(s); its batch norm needs 2 or more")
        self.options, self.store, self.device, self.ranks = options, store, device, ranks or Ranks()
        self.order = Order(ids, min(options.batch, len(ids)), options.seed)
        length = options.epochs * self.order.steps_per_epoch
        self.total_steps = max(1, round(length), options.min_steps)
        self.warmup_steps = round(self.total_steps * min(1.0, options.warmup_epochs / options.epochs))
        joints = store.layout.num_joints
        self.width = joints * config.model.dim
        head = classifier.Head(self.width, options.hidden, len(store.classes), seed=options.seed)
        self.model = classifier.Classifier(encoder, head, joints).to(device).requires_grad_(True).train()
        operands = operand_dtype(options.precision, device)
        self.optimizer = LayeredAdamW(self.model.encoder, self.model.head, options, operands)
        self.rates = classifier.drop_rates(config.model.depth, options.drop_path)
        self.clips = Clips(config, store, device)
        self.labels = torch.from_numpy(store.labels).to(device)
        self.step = 0
        self.stopping = False
        """Set where this rank wants to stop; a result's ``stop`` says so on all ranks alike."""
        self._of_encoder = len(list(self.model.encoder.parameters()))
        self._pending: list[tuple[int, float, int, Tensor]] = []

    def run_step(self) -> None:
        """Start the next step; `drain` tells what came of it."""
        step, options = self.step, self.options
        ids, epoch = self.order.sample_ids(step), self.order.epoch(step)
        share = ids.tensor_split(self.ranks.world)
        mine, before = share[self.ranks.rank], sum(len(part) for part in share[: self.ranks.rank])
        parts = [part for part in mine.tensor_split(options.accumulate) if len(part)]
        # Several parts go through the encoder twice: what the first pass keeps for gradients would be the whole.
        with contextlib.nullcontext() if len(parts) == 1 else torch.no_grad():
            pooled = [self._pooled(part, epoch) for part in parts]
        whole, stop = self._gather([part.detach() for part in pooled], before, len(ids))

        encoder, head = self._split(self.optimizer.parameters)
        kept = classifier.draw_dropout(options.dropout, options.seed, epoch, ids.to(self.device), self.width)
        logits, labels = self.model.head(whole, kept), self.labels[ids.to(self.device)]
        loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        upstream, *of_head = torch.autograd.grad(loss, [whole, *head])
        of_encoder = [torch.zeros_like(parameter) for parameter in encoder]
        for number, rows in enumerate(upstream[before : before + len(mine)].split([len(part) for part in parts])):
            output = pooled[number] if len(parts) == 1 else self._pooled(parts[number], epoch)
            gradients = torch.autograd.grad(output, encoder, rows, materialize_grads=True)
            torch._foreach_add_(of_encoder, gradients)
        if not self.ranks.first:  # the head's are the same everywhere, and count once
            of_head = [torch.zeros_like(gradient) for gradient in of_head]
        self.ranks.sum(self.optimizer.collect([*of_encoder, *of_head]))
        lr = learning_rate(step, self.total_steps, self.warmup_steps, options.lr, options.lr_min)
        norm = self.optimizer.step(step + 1, lr)
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        self._pending.append((step + 1, lr, len(ids), torch.stack([loss.detach(), norm, right, stop])))
        self.step = step + 1

    @property
    def due(self) -> bool:
        """Whether what came of the steps is to be asked for now: on a GPU the host asks when a line is due."""
        return self.device.type == "cpu" or self.ranks.world > 1 or self.step % self.options.log_every == 0

    def drain(self) -> list[Result]:
        """Results of the steps that have not been told yet, in order.

        Raises:
            TrainingError: loss or gradient is not finite; no checkpoint has been saved since.
        """
        results = []
        pending, self._pending = self._pending, []
        for step, lr, clips, report in pending:
            loss, norm, right, stop = report.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                error = errors.TrainingError(
                    f"fine-tuning: step {step}: loss {loss}, gradient's norm {norm}; checkpoints are as they were. "
                    f"Lower finetune.lr, or look at the sequences with `s2vfast data show`"
                )
                error.elsewhere = not self.ranks.first
                raise error
            epoch = step / self.order.steps_per_epoch
            results.append(Result(step, epoch, loss, 100.0 * right, lr, norm, clips, stop > 0))
        return results

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that the next step depends on: views, not copies."""
        buffers = {f"head.{name}": buffer for name, buffer in self.model.head.named_buffers()}
        return {"model": self.optimizer.weights() | buffers, "optimizer": self.optimizer.moments()}

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        """Continue from what `state` gave after ``step`` steps.

        Raises:
            CheckpointError: tensors that are missing, superfluous or of another shape.
        """
        mine = self.state()
        for group, tensors in mine.items():
            given = state.get(group, {})
            odd = sorted(set(tensors) ^ set(given)) or [n for n, t in tensors.items() if given[n].shape != t.shape]
            if odd:
                raise errors.CheckpointError(f"{group}: {odd[0]}: not of this network ({len(odd)} tensors differ)")
        with torch.no_grad():
            for group, tensors in mine.items():
                for name, tensor in tensors.items():
                    tensor.copy_(state[group][name])
        self.optimizer.flat.refresh()
        self.step = step
        self._pending.clear()

    def _pooled(self, ids: Tensor, epoch: int) -> Tensor:
        """Per-joint means [b, V * D] of sequences, with a gradient where one is wanted."""
        bodies = self.clips.bodies
        tracks = self.clips.make(ids, epoch=epoch, seed=self.options.seed)
        paths = classifier.draw_paths(self.rates, self.options.seed, epoch, ids.to(self.device), bodies)
        return self.model.pool(classifier.encode(self.model.encoder, tracks, paths, self.rates), bodies).float()

    def _gather(self, parts: list[Tensor], before: int, count: int) -> tuple[Tensor, Tensor]:
        """The rows of all ranks, [count, V * D], asking for a gradient, and how many ranks want to stop."""
        buffer = torch.zeros(count * self.width + 1, device=self.device)
        rows = buffer[:-1].view(count, self.width)
        for part in parts:
            rows[before : before + len(part)] = part
            before += len(part)
        buffer[-1] = float(self.stopping)
        self.ranks.sum(buffer)
        return rows.requires_grad_(), buffer[-1].detach()

    def _split(self, tensors: list) -> tuple[list, list]:
        return tensors[: self._of_encoder], tensors[self._of_encoder :]
