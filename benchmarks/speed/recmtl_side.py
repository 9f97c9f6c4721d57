"""recmtl's side: what a user gets from ``recmtl.training.train``, called as ``recmtl train`` calls it.

Nothing of the trainer is copied or left out: the turns are taken by what the trainer asks for anyway. In ``steps`` the
loader hands out batches from memory for ever and the progress bar, which is told of every step, waits for turns; in
``epochs`` the loader is recmtl's own and waits before each epoch. ``infer`` scores as a package does: plain tables,
evaluation mode, predictions. ``load`` reads and nobody trains.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import recmtl  # isort: skip  # before torch: it sets OMP_WAIT_POLICY, which OpenMP reads once

import data
import numpy as np
import torch
import yaml
from turns import Stopwatch, Turns, arguments, forget_peak, memory, repeat, versions
from work import RESERVED, Work

from recmtl.balancing import build_balancer
from recmtl.batch import Batch
from recmtl.config import RunConfig, parse_config
from recmtl.loading import Loader
from recmtl.manifest import Manifest
from recmtl.model import Model, build_model
from recmtl.package import Package
from recmtl.progress import Silent
from recmtl.schema import Schema
from recmtl.statistics import Statistics
from recmtl.tracking import NullTracker
from recmtl.training import TrainingConfig, make_tables, train

_FOREVER = 1 << 28
"""Batches of an epoch that never ends."""


def main() -> None:
    """Take turns until there are no more."""
    options = _options()
    torch.set_num_threads(options.threads)
    turns = Turns()
    side = _Side(options)
    try:
        {"steps": side.steps, "epochs": side.epochs, "infer": side.infer, "load": side.load}[options.mode](turns)
    except Exception as error:
        turns.say(error=f"{type(error).__name__}: {error}")
        raise


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, "fp32", "tf32", "bf16")
    parser.add_argument("mode", choices=["steps", "epochs", "infer", "load"])
    parser.add_argument("--scratch", type=Path, required=True, help="for checkpoints")
    parser.add_argument("--shards-times", type=int, default=1, help="load: read every shard so many times")
    parser.add_argument("--balancer", default="fixed")
    parser.add_argument("--exact", action="store_true", help="exact Adam over the tables")
    parser.add_argument("--compile", help="value of training.compile")
    return parser.parse_args()


class _Side:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        manifest = Manifest.read_from(options.data / "prepared")
        train_split = manifest.splits["train"]
        longer = train_split.model_copy(update={"shards": train_split.shards * options.shards_times})
        manifest = manifest.model_copy(update={"splits": {**manifest.splits, "train": longer}})
        self.folder, self.manifest = options.data / "prepared", manifest
        work = replace(Work(), dim=options.dim).times(options.times)
        self.config = _config(options, work)
        self.schema = Schema(self.config.explicit_features or ())
        self.statistics = Statistics.load(self.folder / "statistics")
        self._pools: dict[int, list[Batch]] = {}

    @property
    def clock(self) -> dict[str, Any]:
        return {"synchronize": torch.cuda.synchronize if self.cuda else None, "every": 16}

    def pool(self, size: int) -> list[Batch]:
        """Batches of one size in memory: on the CPU, where the trainer takes them from."""
        if size not in self._pools:
            self._pools.clear()
            wanted = max(self.options.pool // size, 2)
            whole = (batch for batch in self.loader(size).epoch(0) if batch.size == size)
            rng = np.random.default_rng(1)
            for batch in itertools.islice(whole, wanted):
                own = batch._map(torch.clone)  # the loader reads its next window into the same memory
                own = _longer(own, self.options.times, rng)
                self._pools.setdefault(size, []).append(own.pin_memory() if self.cuda else own)
            if size not in self._pools:
                raise ValueError(f"the data have fewer rows than a batch of {size}")
        return self._pools[size]

    def loader(self, size: int, *, prefetch: int = 0) -> Loader:
        return Loader(
            self.folder,
            self.manifest,
            "train",
            batch_size=size,
            shuffle_seed=1,
            window_rows=self.config.training.window_rows,
            prefetch=prefetch,
        )

    def model(self, **kinds: Any) -> Model:
        return build_model(
            self.config.model,
            self.schema,
            self.manifest.tasks_,
            self.statistics,
            seed=self.config.training.seed,
            **kinds,
        ).to(self.device)

    def train(self, batches: Any, progress: Silent) -> None:
        training = self.config.training
        train(
            self.model(
                tables=make_tables(
                    training.sparse, self.device, sharding=training.sharding, batch_size=training.batch_size
                )
            ),
            build_balancer(self.config.balancing, tasks=tuple(self.manifest.tasks_), seed=training.seed),
            batches,
            training,
            folder=self.options.scratch,
            tracker=NullTracker(),
            validate=lambda _: {},
            progress=progress,
            identity="benchmark",
        )

    def steps(self, turns: Turns) -> None:
        """The trainer's step, from memory."""
        source = _Endless(self)
        self.train(source, _Watched(_StepClock(turns, source, self)))

    def epochs(self, turns: Turns) -> None:
        """The trainer's epoch, from Parquet."""
        source = _Epochs(self, turns)
        self.train(source, _Watched(source))

    def infer(self, turns: Turns) -> None:
        """The forward pass to predictions, of the model as a package holds it."""
        contents: Any = None  # of a package on disk: for raw rows, which are not scored here
        model = Package(contents, self.statistics, self.model(), device=self.device).model

        def infer(batch: int, seconds: float) -> Mapping[str, Any]:
            pool = [each.to(self.device) for each in self.pool(batch)]

            def step(number: int) -> int:
                model.predictions(model(pool[number % len(pool)]))
                return batch

            with torch.inference_mode():
                return repeat(step, seconds, **self.clock)

        turns.serve(infer=infer)

    def load(self, turns: Turns) -> None:
        """An epoch that nobody trains on."""

        loader = self.loader(self.options.batch, prefetch=self.config.training.prefetch)
        before = memory().get("resident_bytes")

        def load(seconds: float) -> Mapping[str, Any]:
            forget_peak()
            watch = Stopwatch(seconds)
            for number in itertools.count():
                over = [watch.over(batch.size) for batch in loader.epoch(number)]
                if over[-1]:
                    break
            return {**watch.result, "epoch_rows": loader.rows, "resident_before_bytes": before}

        turns.serve(load=load)


def _config(options: argparse.Namespace, work: Work) -> RunConfig:
    training: dict[str, Any] = {
        "batch_size": options.batch,
        "device": options.device,
        "precision": "float32" if options.precision == "fp32" else options.precision,
        "epochs": 10_000,
    }
    if options.exact:
        training["sparse"] = {"optimizer": "exact_adam", "lr": 0.001}
    if options.compile is not None:
        assert "compile" in TrainingConfig.model_fields, "this recmtl has no training.compile"
        training["compile"] = yaml.safe_load(options.compile)
    return parse_config({**data.config(options.data, training, work), "balancing": {"kind": options.balancer}})


def _longer(batch: Batch, times: int, rng: np.random.Generator) -> Batch:
    """Ids of tables so many times as long: each one is spread over as many rows."""
    if times == 1:
        return batch
    values = batch.sparse.values
    spread = torch.from_numpy(rng.integers(0, times, values.numel())).to(values.dtype)
    longer = torch.where(values < RESERVED, values, RESERVED + (values - RESERVED) * times + spread)
    return replace(batch, sparse=replace(batch.sparse, values=longer))


class _Endless:
    """Batches from memory, for ever, of the size that was asked for last."""

    rows, batches = _FOREVER * 4096, _FOREVER

    def __init__(self, side: _Side) -> None:
        self._side = side
        self.size = side.options.batch

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for position in itertools.count():
            pool = self._side.pool(self.size)
            yield pool[position % len(pool)]


_WARM = 2
"""Steps before the clock starts: on a GPU the trainer has one batch of the size before in its hands."""


class _StepClock:
    """The progress bar of the endless epoch. Steps of the new size come before the clock starts."""

    def __init__(self, turns: Turns, source: _Endless, side: _Side) -> None:
        self._turns, self._source, self._side = turns, source, side
        self._seconds = 0.0
        self._watch: Stopwatch | None = None
        self._profiler: Any = None
        self._ready = False
        self._since = 0

    def advance(self, amount: int = 1) -> None:
        if not self._ready:
            self._ready = True
            self._turns.say(ready=["step", "profile"], versions=versions())
            self._await()
        elif self._watch is None:
            self._since += 1
            if self._since == _WARM:
                if self._profiler is not None:
                    self._profiler.start()
                self._watch = Stopwatch(self._seconds, **self._side.clock)
        elif self._watch.over(self._source.size):  # the trainer reckons with the config's batch size
            if self._profiler is not None:
                self._profiler.stop()
                table = self._profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=60)
                self._turns.say(**self._watch.result, table=table)
            else:
                self._turns.say(**self._watch.result)
            self._await()

    def note(self, text: str) -> None: ...

    def _await(self) -> None:
        command = self._turns.next()
        self._source.size, self._seconds, self._watch, self._since = command["batch"], command["seconds"], None, 0
        self._profiler = torch.profiler.profile() if command["do"] == "profile" else None


class _Epochs:
    """recmtl's loader, waiting for a turn before each epoch; as a progress bar, told of every step.

    An epoch's time runs from the first request for a batch to the end of the last step. What follows (the checkpoint at
    the end, of all tables and their state) is reported beside it: the other side saves nothing.
    """

    def __init__(self, side: _Side, turns: Turns) -> None:
        self._side, self._turns = side, turns
        self._loader = side.loader(side.options.batch, prefetch=side.config.training.prefetch)
        self.rows, self.batches = self._loader.rows, self._loader.batches
        self._watch: Stopwatch | None = None

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        if self._watch is None:  # two steps to warm up, as everyone has before the first turn
            self._watch = Stopwatch(0.0)
            yield from itertools.islice(self._loader.epoch(number, start), 2)
            return
        if number == 1:
            self._turns.say(ready=["epoch"], versions=versions())
        else:
            self._turns.say(**self._watch.result)
        self._turns.next()
        self._watch = Stopwatch(0.0, torch.cuda.synchronize if self._side.cuda else None, every=64)
        yield from self._loader.epoch(number, start)

    def advance(self, amount: int = 1) -> None:
        assert self._watch is not None
        self._watch.over(amount)
        if self._watch.rows == self.rows:
            self._watch.look()

    def note(self, text: str) -> None: ...


class _Watched(Silent):
    """A progress that shows training to a clock of ours."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self._clock = clock

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Any]:
        yield self._clock


if __name__ == "__main__":
    assert recmtl
    main()
