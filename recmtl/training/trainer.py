"""The training loop. In: a model, a balancer, a loader, a config. Out: the trained model, resumable at every step.

One step is one backward: fetch, forward, losses, balance, step, maybe log, maybe save. The trainer does not know which
tower or which balancer it has.

Killed at any moment and started again, it ends at the same weights, bit for bit on a CPU, as if never killed: a step
depends on the checkpoint, on the loader's position and on randomness that is drawn from the seed and the step alone.

Several ranks run this same loop, each on its part of every batch. A rank's losses are its parts of the means over the
whole batch, so what the ranks have of a gradient is summed, never averaged; the dense parameters, which every rank
holds, then take the same step everywhere.

Legend: B batch, D width of the model's input, T tasks.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from recmtl.balancing import Balancer, Cut, task_cosines
from recmtl.batch import Batch
from recmtl.errors import RunError, UserError
from recmtl.features import Pieces
from recmtl.group import ONE, Group, join
from recmtl.metrics import METRICS
from recmtl.model import Model
from recmtl.progress import Bar, Progress
from recmtl.training.allocator import keep_freed_memory
from recmtl.training.checkpoint import Checkpoint, Checkpoints
from recmtl.training.compiled import compiled_decide
from recmtl.training.config import EarlyStoppingConfig, TrainingConfig, products_in, resolve_device, resolve_precision
from recmtl.training.optimizers import DenseOptimizer, sparse_optimizer
from recmtl.training.schedules import factor

__all__ = ["Batches", "Metrics", "TrackerLike", "Trained", "monitored_score", "train"]

Metrics = Mapping[str, Mapping[str, float | None]]
"""Task (or TASK_given_PARENT) to metric to value; None where it is not defined."""


class Batches(Protocol):
    """What the trainer asks of a loader."""

    rows: int
    """Of an epoch, over all ranks."""
    batches: int
    """Of an epoch; every rank has a part of each, perhaps one of no rows."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Epoch ``number`` from batch ``start`` on: the same batches however often it is asked."""


class TrackerLike(Protocol):
    """What the trainer asks of a tracker, which drops points that it had before (a resumed run repeats some steps)."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values at a step."""

    def flush(self) -> None:
        """Make what was recorded safe: a checkpoint is about to be saved, and these points will not come again."""


@dataclass
class Trained:
    """What came out of training."""

    model: Model
    """In evaluation mode, with the chosen weights."""
    best_epoch: int
    """The epoch, from 1, whose weights were chosen."""
    epochs: int
    """Epochs done."""
    steps: int
    """Steps done."""
    validation: dict[str, dict[str, float | None]]
    """Validation metrics of the chosen epoch."""
    history: list[dict[str, Any]]
    """One entry an epoch: ``epoch``, ``step``, ``train`` (task to mean loss), ``validation``, ``score`` and, where
    gradients were looked at, ``conflicts`` (ONE/OTHER to ``cosine``, the mean, ``looks`` and how many were
    ``negative``)."""
    seconds: float
    """Time in training and validation, over all processes that took part."""
    resumed: bool = False
    """Whether another process had begun."""


def train(
    model: Model,
    balancer: Balancer,
    loader: Batches,
    config: TrainingConfig,
    *,
    folder: Path,
    tracker: TrackerLike,
    validate: Callable[[Model], Metrics],
    progress: Progress,
    identity: str,
    group: Group = ONE,
) -> Trained:
    """Train to the end, from the newest checkpoint if there is one; a finished run is only loaded.

    Args:
        model: its tables made by :func:`recmtl.training.make_tables` from ``config.sparse``, at its initial values.
        balancer: made for the model's tasks.
        loader: the training split; of several ranks, this one's part of it.
        config: how.
        folder: where the checkpoints are kept; nothing else writes there.
        tracker: is told of losses, weights, rates and metrics.
        validate: the model, in evaluation mode, to its validation metrics, the same on every rank; called after every
            epoch.
        progress: shows rows per second, the time left and the loss.
        identity: of config and data: a checkpoint with another one is refused.
        group: the ranks that train together; all call this, and rank 0's clock and disk decide.

    Raises:
        UserError: a monitored metric that validation does not have; checkpoints of another run.
        RunError: a loss or gradient that is not finite; a disk that refuses.
    """
    if loader.batches == 0:
        raise UserError("training: the training split has no rows; see the manifest's rejected and masked counts")
    checkpoints = Checkpoints(folder, keep=config.checkpoint.keep, identity=identity, progress=progress, group=group)
    trainer = _Trainer(model, balancer, loader, config, checkpoints, tracker, validate, progress, group)
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        return trainer.run()


@dataclass
class _Position:
    """Where training stands; what a checkpoint's JSON holds."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done in this epoch."""
    step: int = 0
    """Steps done in all."""
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: str | None = None
    """Name of the best epoch's weights, with early stopping."""
    best_epoch: int = 0
    best_score: float | None = None
    epochs_since_best: int = 0
    conflicts: dict[str, list[float]] = field(default_factory=dict)
    """This epoch's cosines between tasks' gradients: ONE/OTHER to their sum, how many, how many below 0."""


class _Trainer:
    def __init__(
        self,
        model: Model,
        balancer: Balancer,
        loader: Batches,
        config: TrainingConfig,
        checkpoints: Checkpoints,
        tracker: TrackerLike,
        validate: Callable[[Model], Metrics],
        progress: Progress,
        group: Group,
    ) -> None:
        # Where, how and with whom
        keep_freed_memory()
        self.config = config
        self.group = group
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.steps = config.epochs * loader.batches

        # What is trained
        self.model = model.to(self.device)
        join(self.model, group)
        self.tasks = tuple(task for task, _ in model.heads.by_task.items())
        self.balancer = balancer
        self.balancer.to(self.device)
        dense = model.dense_parameters()
        shared = {id(parameter) for parameter in model.shared_parameters()}
        self.shared = tuple(p for p in dense.values() if id(p) in shared)
        self.specific = tuple(p for p in dense.values() if id(p) not in shared)
        self.alike = (*model.parameters(), *balancer.parameters())
        """What every rank has whole: plain tables are among it."""
        self.last_shared = tuple(p for p in model.last_shared_parameters() if p.requires_grad)

        self.decide = compiled_decide(self.model, progress=progress) if config.compile else self.model.decide

        # Who steps it
        self.sparse = sparse_optimizer(config.sparse, model.tables)
        self.dense = DenseOptimizer(config.dense, dense.items(), balancer.named_parameters(), balancer.lr)

        # What it reads, and who is told
        self.loader = loader
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.validate = validate
        self.progress = progress

        # Where it stands: this much is in a checkpoint
        self.position = _Position()
        self.sums = torch.zeros(2, len(self.tasks), dtype=torch.float64, device=self.device)
        """(2, T): this epoch's summed losses of observed rows, and their number; of this rank's rows."""
        self.logged = torch.zeros_like(self.sums)
        """The same as of the last point of the training curves."""

        # Of this process alone
        self.health = _Health(self.device, group)
        self.looks_at_clock = 1 if group.size == 1 else _LOOKS_AT_CLOCK
        self.rates: dict[str, float] = {}
        self.rows = self.rows_logged = 0
        self.clock = self.saved_at = self.logged_at = time.monotonic()

    def run(self) -> Trained:
        found = self.checkpoints.newest()
        if found is not None:
            self._restore(found)
        resumed = found is not None
        while not self.position.finished:
            self.train_epoch()
            self.end_epoch()
        return self._trained(resumed)

    def train_epoch(self) -> None:
        """The rest of the current epoch."""
        position = self.position
        title = f"epoch {position.epoch + 1} of {self.config.epochs}"
        done = min(position.batch * self.config.batch_size, self.loader.rows)
        self.model.train()
        with (
            self.progress.bar(title, self.loader.rows, done=done) as bar,
            products_in(self.config.precision),
            closing(self._batches()) as batches,
        ):
            for batch in batches:
                self.train_step(batch, bar)

    def train_step(self, batch: Batch, bar: Bar) -> None:
        """One batch: one backward, one step of every optimiser."""
        self._begin_step()
        self._give_rows(batch)
        own_T, rows_T = self._observed(batch)
        try:
            x_BD, leaf_BD, losses, auxiliary = self._forward(batch, rows_T)
            self.health.see({**losses, **auxiliary})
            cut = self._cut(x_BD, leaf_BD)
            self._look_at_conflicts(losses, cut)
            weights = self.balancer.backward(losses, auxiliary, cut)
            self._sum_gradients()
            gradient_norm = self._clip()
            self.health.see({_DENSE: gradient_norm}, alike=True)
        except _NotFiniteError as error:
            self._stop(error, batch)
        self.sparse.step()
        self.dense.step()
        bar.advance(self._count(losses, own_T, rows_T))
        if self.position.step % self.config.log_every == 0:
            self._log(weights, gradient_norm, bar)
        if self._save_is_due():
            self.save()

    def end_epoch(self) -> None:
        """Tell the balancer, validate, decide whether to go on, save."""
        position = self.position
        self._check_health()
        mean_losses = self._means(self.group.sum(self.sums))
        self.balancer.end_epoch(mean_losses)
        self.model.eval()
        metrics = {task: dict(values) for task, values in self.validate(self.model).items()}
        position.epoch += 1
        position.batch = 0
        self.sums = torch.zeros_like(self.sums)
        self.logged = torch.zeros_like(self.sums)
        score = self._judge(metrics)
        position.history.append(
            {
                "epoch": position.epoch,
                "step": position.step,
                "train": {task: loss for task, loss in mean_losses.items() if not math.isnan(loss)},
                "validation": metrics,
                "score": score,
                **self._conflicts_so_far(),
            }
        )
        position.conflicts = {}
        self._tell_epoch(position.history[-1])
        self.save()

    def save(self) -> None:
        """A checkpoint of everything; never after a step that was not finite."""
        self._check_health()
        self.tracker.flush()
        now = time.monotonic()
        self.position.seconds += now - self.clock
        self.clock = now
        self.sums, self.logged = self._at_rank_0(self.sums), self._at_rank_0(self.logged)
        self.checkpoints.save(self.position.step, self._tensors(), vars(self.position))
        self.saved_at = time.monotonic()

    # One step, in parts

    def _begin_step(self) -> None:
        """Learning rates and randomness of this step: both are functions of the config and the step alone."""
        step, config = self.position.step, self.config
        sparse = factor(config.sparse.schedule or config.schedule, step, self.steps)
        dense = factor(config.dense.schedule or config.schedule, step, self.steps)
        self.rates = {"sparse": config.sparse.lr * sparse, "dense": config.dense.lr * dense}
        self.sparse.set_lr(self.rates["sparse"])
        self.dense.set_factor(dense)
        self._seed(step)
        self.health.begin_step(step)
        self.sparse.zero_grad()
        self.dense.zero_grad()

    def _give_rows(self, batch: Batch) -> None:
        """Managed tables: rows that another id has from now on begin anew."""
        for table, rows in self.model.features.id_maps.observe(batch.sparse).items():
            self.sparse.reset_rows(table, rows)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(T,) each: in how many rows of this rank, and of all, each task is observed."""
        own_T = torch.stack([batch.observed[task].sum() for task in self.tasks])
        return own_T, self.group.sum(own_T)

    def _forward(self, batch: Batch, rows_T: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The input before and after the cut, the tasks' losses, the tower's own."""
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            x_BD = self.model.embed(batch)
            if x_BD.requires_grad:  # seen before the tables step, so that a gradient that is not finite spares them
                x_BD.register_hook(self._see_embedded)  # type: ignore[no-untyped-call]
            leaf_BD = x_BD.detach().requires_grad_() if self.balancer.at_cut else x_BD
            output = self.decide(leaf_BD)
            losses = self.model.losses(output, batch, dict(zip(self.tasks, rows_T.unbind(), strict=True)))
        return x_BD, leaf_BD, losses, output.auxiliary

    def _see_embedded(self, gradient_BD: Tensor) -> None:
        self.health.see({_EMBEDDED: gradient_BD.sum()})

    def _cut(self, x_BD: Tensor, leaf_BD: Tensor) -> Cut:
        learned = self.model.features.learned_dim
        return Cut(x_BD, leaf_BD, self.shared, self.specific, self.last_shared, learned, self.group)

    def _look_at_conflicts(self, losses: Mapping[str, Tensor], cut: Cut) -> None:
        """Every so many steps: the cosines between the tasks' gradients, told and kept for the epoch's entry."""
        every, step = self.config.log_conflicts_every, self.position.step + 1
        if not every or step % every or len(losses) < 2:
            return
        cosines = task_cosines(losses, cut).tolist()
        values = {
            f"{one}/{other}": cosines[row][column]
            for row, one in enumerate(losses)
            for column, other in enumerate(losses)
            if row < column and math.isfinite(cosines[row][column])
        }
        for pair, cosine in values.items():
            total, looks, negative = self.position.conflicts.get(pair, [0.0, 0, 0])
            self.position.conflicts[pair] = [total + cosine, looks + 1, negative + (cosine < 0)]
        self.tracker.metrics({f"conflict/{pair}": cosine for pair, cosine in values.items()}, step)

    def _conflicts_so_far(self) -> dict[str, Any]:
        found = {
            pair: {"cosine": total / looks, "looks": looks, "negative": negative}
            for pair, (total, looks, negative) in self.position.conflicts.items()
        }
        return {"conflicts": found} if found else {}

    def _sum_gradients(self) -> None:
        """Of all that every rank holds alike: dense parameters, a balancer's own, plain tables."""
        self.group.sum_([parameter.grad for parameter in self.alike if parameter.grad is not None])

    def _clip(self) -> Tensor:
        """The dense gradient's norm, before it is clipped."""
        gradients = [p.grad for p in self.dense.clipped if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.dense.clipped, self.config.clip_norm, norm)
        return norm

    def _count(self, losses: Mapping[str, Tensor], own_T: Tensor, rows_T: Tensor) -> int:
        """Add up what this step did; the rows of its batch, over all ranks."""
        losses_T = torch.stack([losses[task].detach() for task in self.tasks]).double()
        self.sums = self.sums + torch.stack([losses_T * rows_T, own_T])
        before = self.position.batch * self.config.batch_size
        rows = min(self.config.batch_size, self.loader.rows - before)
        self.position.batch += 1
        self.position.step += 1
        self.rows += rows
        return rows

    def _save_is_due(self) -> bool:
        when = self.config.checkpoint
        if when.every_steps is not None and self.position.step % when.every_steps == 0:
            return True
        if when.every_seconds is None or self.position.step % self.looks_at_clock:
            return False
        return self.group.broadcast(time.monotonic() - self.saved_at >= when.every_seconds)

    def _seed(self, step: int) -> None:
        """Dropout draws from torch's global generators, which :func:`train` borrows: on every rank something else."""
        whose = f" {self.group.rank}" if self.group.rank else ""
        digest = hashlib.blake2b(f"{self.config.seed} {step}{whose}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big") >> 1
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    # Batches

    def _batches(self) -> Generator[Batch, None, None]:
        """What is left of the epoch, on the device."""
        position = self.position
        if position.batch >= self.loader.batches:
            return
        batches = self.loader.epoch(position.epoch, position.batch)
        try:
            yield from batches if self.device.type == "cpu" else _ahead(batches, self.device)
        finally:  # ends a loader's background thread also when training stops in the middle
            if isinstance(batches, Generator):
                batches.close()

    # What goes wrong

    def _check_health(self) -> None:
        """Read back what was seen on the device since the last look."""
        try:
            self.health.check()
        except _NotFiniteError as error:
            self._stop(error, None)

    def _stop(self, error: "_NotFiniteError", batch: Batch | None) -> NoReturn:
        """Say where it went wrong. On a CPU nothing has stepped yet, so each task can be asked by itself."""
        names, what = error.names, "loss"
        if _DENSE in names or _EMBEDDED in names:
            names, what = (self._blame(batch) if batch is not None else []), "gradient"
        whose = f"of {', '.join(names)}" if names else "of the tasks together (each loss was finite)"
        number = self.position.batch - (self.position.step - error.step)
        raise RunError(
            f"training: the {what} {whose} is not finite at step {error.step} (epoch {self.position.epoch + 1}, batch "
            f"{number}, all but the epoch counted from 0). The last checkpoint is from before it. Look at that batch's "
            "labels, weights and numbers, lower training.dense.lr or training.sparse.lr, or set training.clip_norm"
        ) from None

    def _blame(self, batch: Batch) -> list[str]:
        """The losses whose own gradient is not finite: the step again, a backward for each."""
        self._seed(self.position.step)
        _, rows_T = self._observed(batch)
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            x_BD = self.model.embed(batch).detach().requires_grad_()
            output = self.model.decide(x_BD)
            rows = dict(zip(self.tasks, rows_T.unbind(), strict=True))
            losses = {**self.model.losses(output, batch, rows), **output.auxiliary}
        targets = (x_BD, *self.shared, *self.specific)
        guilty = torch.zeros(len(losses))
        for position, loss in enumerate(losses.values()):
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
            finite = all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
            guilty[position] = float(not finite)
        return [name for name, count in zip(losses, self.group.sum(guilty).tolist(), strict=True) if count]

    # What is told

    def _means(self, sums: Tensor) -> dict[str, float]:
        """Task to mean loss over the observed rows; NaN where there were none."""
        losses_T, observed_T = sums.tolist()
        return {
            task: loss / count if count else math.nan
            for task, loss, count in zip(self.tasks, losses_T, observed_T, strict=True)
        }

    def _log(self, weights: Mapping[str, Tensor], gradient_norm: Tensor, bar: Bar) -> None:
        """A point of the training curves: mean losses since the last one, weights, rates, speed."""
        self._check_health()
        losses = self._means(self.group.sum(self.sums - self.logged))
        self.logged = self.sums.clone()
        now = time.monotonic()
        values = {f"train/loss/{task}": loss for task, loss in losses.items() if not math.isnan(loss)}
        values |= {f"train/weight/{task}": float(weight) for task, weight in weights.items()}
        values |= {f"train/lr/{which}": rate for which, rate in self.rates.items()}
        values |= {"train/gradient_norm": float(gradient_norm)}
        values |= {"train/rows_per_second": (self.rows - self.rows_logged) / max(now - self.logged_at, 1e-9)}
        self.logged_at, self.rows_logged = now, self.rows
        self.tracker.metrics(values, self.position.step)
        bar.note("loss " + ", ".join(f"{task} {loss:.4f}" for task, loss in losses.items() if not math.isnan(loss)))

    def _tell_epoch(self, entry: dict[str, Any]) -> None:
        values = {f"train/epoch_loss/{task}": loss for task, loss in entry["train"].items()}
        defined = [
            (task, metric, value)
            for task, metrics in entry["validation"].items()
            for metric, value in metrics.items()
            if value is not None and math.isfinite(value)
        ]
        values |= {f"validation/{task}/{metric}": value for task, metric, value in defined}
        values |= {"epoch": float(entry["epoch"])}
        if entry["score"] is not None:
            values["validation/score"] = entry["score"]
        self.tracker.metrics(values, entry["step"])
        shown: dict[str, list[str]] = {}
        for task, metric, value in defined:
            if metric in _SHOWN:
                shown.setdefault(task, []).append(f"{metric} {value:.4f}")
        best = ", the best so far" if entry["score"] is not None and self.position.best_epoch == entry["epoch"] else ""
        figures = "; ".join(f"{task} {', '.join(values)}" for task, values in shown.items())
        self.progress.say(f"epoch {entry['epoch']} of {self.config.epochs}: validation {figures}{best}")

    # Which epoch is best

    def _judge(self, metrics: Metrics) -> float | None:
        """The monitored score of the epoch just validated; notes the best one and whether training is over."""
        position, stopping = self.position, self.config.early_stopping
        position.finished = position.epoch == self.config.epochs
        if stopping is None:
            position.best_epoch = position.epoch
            return None
        score = monitored_score(stopping, metrics)
        if position.best_score is None or score > position.best_score + stopping.min_delta:
            position.best_score, position.best_epoch, position.epochs_since_best = score, position.epoch, 0
            position.best = self.checkpoints.save_best(position.step, self.model.pieces())
        else:
            position.epochs_since_best += 1
        position.finished = position.finished or position.epochs_since_best >= stopping.patience
        return score

    def _trained(self, resumed: bool) -> Trained:
        position = self.position
        if position.best is not None and position.best_epoch != position.epoch:
            self.model.load_pieces(self.checkpoints.load_best(position.best))
        self.model.eval()
        return Trained(
            model=self.model,
            best_epoch=position.best_epoch,
            epochs=position.epoch,
            steps=position.step,
            validation=position.history[position.best_epoch - 1]["validation"],
            history=position.history,
            seconds=position.seconds,
            resumed=resumed,
        )

    # What is saved

    def _at_rank_0(self, sums: Tensor) -> Tensor:
        """Running sums of all ranks on rank 0, zeros on the others: a checkpoint's at any number of ranks."""
        total = self.group.sum(sums)
        return total if self.group.rank == 0 else torch.zeros_like(total)

    def _tensors(self) -> dict[str, Tensor | Pieces]:
        return {
            **{f"model/{name}": tensor for name, tensor in self.model.pieces().items()},
            **{f"sparse/{name}": tensor for name, tensor in self.sparse.state().items()},
            **{f"dense/{name}": tensor for name, tensor in self.dense.state().items()},
            **{f"balancer/{name}": tensor for name, tensor in self.balancer.state_dict().items()},
            **{f"managed/{name}": tensor for name, tensor in self.model.features.id_maps.state().items()},
            "running/sums": self.sums,
            "running/logged": self.logged,
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.tensors
        self.model.load_pieces(saved.part("model"))
        self.sparse.load_state(saved.part("sparse"))
        self.dense.load_state(saved.part("dense").whole())
        self.balancer.load_state_dict(saved.part("balancer").whole())
        self.model.features.id_maps.load_state(saved.part("managed").whole())
        running = saved.part("running").whole()
        mine = float(self.group.rank == 0)
        self.sums = running["sums"].to(self.device) * mine
        self.logged = running["logged"].to(self.device) * mine
        known = {entry.name for entry in fields(_Position)}
        self.position = _Position(**{key: value for key, value in checkpoint.state.items() if key in known})
        if self.position.finished:
            self.progress.say(f"training was finished at step {self.position.step}")
        else:
            at = f"epoch {self.position.epoch + 1}, batch {self.position.batch} of {self.loader.batches}"
            self.progress.say(f"resuming at step {self.position.step} ({at})")


def monitored_score(config: EarlyStoppingConfig, metrics: Metrics) -> float:
    """Σ importance · metric, negated for a metric that is better when lower.

    Args:
        config: what is monitored.
        metrics: of the validation split.

    Raises:
        UserError: a metric that is not among these, or is not defined on this split.
    """
    score = 0.0
    for key, weight in config.monitor.items():
        task, _, name = key.rpartition(".")
        where = f"training.early_stopping.monitor.{key}"
        if task not in metrics or name not in metrics[task]:
            known = ", ".join(f"{task}.{name}" for task, values in metrics.items() for name in values)
            raise UserError(f"{where}: validation has no such metric; it has {known}")
        value = metrics[task][name]
        if value is None or not math.isfinite(value):
            raise UserError(
                f"{where}: it is not defined on the validation split (no observed label, or all alike); monitor "
                "another metric, or make the validation split larger with data.split.validation"
            )
        score += weight * value if METRICS[name].higher_is_better else -weight * value
    return score


_LOOKS_AT_CLOCK = 16
"""Steps between two looks at rank 0's clock by all ranks, each an exchange."""
_DENSE = "the dense parameters"
_EMBEDDED = "the embeddings"
_SHOWN = ("auc", "rmse", "log_loss")


class _NotFiniteError(Exception):
    """What was not finite, and when."""

    def __init__(self, names: list[str], step: int) -> None:
        super().__init__(names, step)
        self.names, self.step = names, step


class _Health:
    """Watches for values that are not finite: at once on a CPU; on a GPU noted there, and read back when asked.

    What one rank sees all ranks learn, so that all stop at the same place for the same reason.

    Args:
        device: where the values are.
        group: who looks.
    """

    def __init__(self, device: torch.device, group: Group = ONE) -> None:
        self._group = group
        self._at_once = device.type == "cpu"
        self._step = 0
        self._values: dict[str, Tensor] = {}
        self._names: tuple[str, ...] = ()
        self._noted: Tensor | None = None
        """The step, and the values that were seen in it: of the first step that was not finite, else of the last."""

    def begin_step(self, step: int) -> None:
        """What is seen from now on belongs to this step."""
        if self._values:
            self._note()
        self._step = step

    def see(self, values: Mapping[str, Tensor], *, alike: bool = False) -> None:
        """Look at scalars.

        Args:
            values: by name; the same names on every rank.
            alike: they are the same on every rank.

        Raises:
            _NotFiniteError: on a CPU, one of them is not finite.
        """
        if not self._at_once:
            self._values.update({name: value.detach() for name, value in values.items()})
            return
        whole = torch.stack([value.detach() for value in values.values()])
        if not alike:
            whole = self._group.sum(whole)  # a sum with a value that is not finite is not finite either
        bad = [name for name, value in zip(values, whole.tolist(), strict=True) if not math.isfinite(value)]
        if bad:
            raise _NotFiniteError(bad, self._step)

    def check(self) -> None:
        """Read back what a GPU noted.

        Raises:
            _NotFiniteError: something was not finite.
        """
        if self._values:
            self._note()
        if self._noted is None:
            return
        notes = self._group.gather(self._noted.cpu().numpy()[None])
        bad = notes[~np.isfinite(notes).all(axis=1)]
        if len(bad):
            first = bad[bad[:, 0] == bad[:, 0].min()]
            wrong = ~np.isfinite(first[:, 1:]).all(axis=0)
            raise _NotFiniteError(
                [name for name, is_wrong in zip(self._names, wrong, strict=True) if is_wrong], int(first[0, 0])
            )

    def _note(self) -> None:
        self._names = tuple(self._values)
        values = [value.double() for value in self._values.values()]
        now = torch.stack([torch.full_like(values[0], self._step), *values])
        self._noted = now if self._noted is None else torch.where(self._noted.isfinite().all(), now, self._noted)
        self._values = {}


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a GPU, each copied from page-locked memory on a stream of its own while the one before computes."""
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return batch.pin_memory().to(device, non_blocking=True), copying.record_event()

    def wait(batch: Batch, copied: torch.cuda.Event) -> Batch:
        computing.wait_event(copied)
        batch.record_stream(computing)  # so that its memory is not used anew before the computation is over
        return batch

    following: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        current, following = following, copy(batch)
        if current is not None:
            yield wait(*current)
    if following is not None:
        yield wait(*following)
