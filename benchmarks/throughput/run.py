"""Rows per second: recmtl's training step beside plain PyTorch, its balancers beside each other, and its loader.

One process, one set of threads, the same batches, MMoE of the same shape; the contenders take turns, in another order
every round, so that what else the machine does falls on all of them. A ratio is taken within a round; the table gives
medians and quartiles over the rounds.

In: sizes. Out, in ``--output``: ``throughput.json`` and the tables as Markdown, which are printed as well.

The plain side is what one writes without a library: an ``nn.EmbeddingBag`` per feature, an ``nn.Sequential`` per
expert, torch's optimisers (the dense parameters' fused, as recmtl's is). recmtl's side is the trainer's whole step,
health checks, running means and the points of the training curves included, without checkpoints.

Dimensions: B batch, D width of the tower's input, E experts, S width of an expert's output.
"""

import argparse
import itertools
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import recmtl  # isort: skip  # before torch: it sets OMP_WAIT_POLICY, which OpenMP reads once, for both sides

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.balancing import BALANCERS, build_balancer
from recmtl.batch import Batch
from recmtl.config import RunConfig, parse_config
from recmtl.etl.prepare import Prepared
from recmtl.loading import Loader
from recmtl.model import build_model
from recmtl.progress import Silent
from recmtl.statistics import Statistics
from recmtl.training import make_tables
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.trainer import _Trainer  # the loop's single step, which nobody but a benchmark calls alone

TASKS = ("click", "like", "purchase")
Step = Callable[[Batch], None]


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _write_log(work / "log.parquet", options)
        configs = {kind: _config(work, options, kind) for kind in BALANCERS}
        prepared = recmtl.prepare(configs["fixed"])
        batches = _batches(prepared, options)
        load = [os.getloadavg()[0]]
        tables = _race(_tables(work, configs["fixed"], prepared, options), batches, options)
        balancers = _race(_balancers(work, configs, prepared), batches, options)
        loader = _loader(prepared, options)
        load.append(os.getloadavg()[0])
    result = {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "machine": _machine() | {"load_1min_begin_end": load},
        "tables": _summary(tables, reference="recmtl: fused row-wise Adagrad"),
        "balancers": _summary(balancers, reference="fixed"),
        "loader": _summary(loader, reference="prefetch 0"),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    text = _markdown(result)
    (options.output / "throughput.md").write_text(text)
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/throughput"))
    parser.add_argument("--features", type=int, default=10, help="id features, a table each")
    parser.add_argument("--table-rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16, help="width of an embedding")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--expert-widths", type=int, nargs="+", default=[64])
    parser.add_argument("--head-widths", type=int, nargs="+", default=[32])
    parser.add_argument("--log-rows", type=int, default=400_000, help="rows of the synthetic log, for the loader too")
    parser.add_argument("--batches", type=int, default=40, help="different batches, in memory")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contender")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


# The data: one synthetic log, prepared by recmtl, read by both sides


def _write_log(path: Path, options: argparse.Namespace) -> None:
    """Ids by Zipf's law with exponent 1 over ``--table-rows`` values; labels by two of them, with noise."""
    rng = np.random.default_rng(options.seed)
    rows = options.log_rows
    shares = rng.random((options.features, rows))
    ids = np.floor(np.exp(shares * np.log(options.table_rows))).astype(np.int64)
    likely = 0.1 + 0.3 * (ids[0] % 2) + 0.3 * (ids[-1] % 2)
    frame = {f"id_{i}": column for i, column in enumerate(ids)}
    frame |= {
        task: (rng.random(rows) < likely * share).astype(np.int64)
        for task, share in zip(TASKS, (1, 0.5, 0.2), strict=True)
    }
    pl.DataFrame(frame).write_parquet(path, row_group_size=1 << 17)


def _config(work: Path, options: argparse.Namespace, balancer: str) -> RunConfig:
    tower = {
        "kind": "mmoe",
        "num_experts": options.experts,
        "expert_widths": options.expert_widths,
        "head_widths": options.head_widths,
    }
    return parse_config(
        {
            "name": "throughput",
            "data": {
                "source": {"kind": "table", "path": str(work / "log.parquet"), "outcomes": list(TASKS)},
                "prepared": str(work / "prepared"),
                "split": {"by": "random", "validation": 0.01, "test": 0.01},
            },
            "features": [
                {
                    "name": f"id_{i}",
                    "kind": "id",
                    "embedding_dim": options.dim,
                    "hash_buckets": options.table_rows,  # a table of exactly this size
                }
                for i in range(options.features)
            ],
            "tasks": [{"name": task, "kind": "binary", "label": task} for task in TASKS],
            "model": {"tower": tower, "inputs": {"interactions": "none"}},
            "balancing": {"kind": balancer},
            "training": {
                "batch_size": options.batch_size,
                "device": "cpu",
                "checkpoint": {"every_seconds": None},
                "seed": options.seed,
            },
            "tracking": {"enabled": False},
        }
    )


def _batches(prepared: Prepared, options: argparse.Namespace) -> list[Batch]:
    """Whole batches, in memory before any clock runs."""
    loader = Loader(
        prepared.folder, prepared.manifest, "train", batch_size=options.batch_size, shuffle_seed=1, prefetch=0
    )
    whole = (batch for batch in loader.epoch(0) if batch.size == options.batch_size)
    return [batch for _, batch in zip(range(options.batches), whole, strict=False)]


# The contenders


def _tables(work: Path, config: RunConfig, prepared: Prepared, options: argparse.Namespace) -> dict[str, Step]:
    exact = config.model_copy(
        update={
            "training": config.training.model_copy(
                update={"sparse": config.training.sparse.model_copy(update={"optimizer": "exact_adam", "lr": 0.001})}
            )
        }
    )
    return {
        "recmtl: fused row-wise Adagrad": _recmtl(work / "fused", config, prepared),
        "recmtl: exact Adam over plain tables": _recmtl(work / "exact", exact, prepared),
        "plain: dense gradients, Adam": _plain(options, sparse=False, optimizer=torch.optim.Adam, lr=0.001),
        "plain: dense gradients, Adam(fused=True)": _plain(
            options, sparse=False, optimizer=partial(torch.optim.Adam, fused=True), lr=0.001
        ),
        "plain: sparse gradients, SparseAdam": _plain(options, sparse=True, optimizer=torch.optim.SparseAdam, lr=0.001),
        "plain: sparse gradients, Adagrad": _plain(options, sparse=True, optimizer=torch.optim.Adagrad, lr=0.02),
        "plain: sparse gradients, SGD": _plain(options, sparse=True, optimizer=torch.optim.SGD, lr=0.1),
    }


def _balancers(work: Path, configs: Mapping[str, RunConfig], prepared: Prepared) -> dict[str, Step]:
    return {kind: _recmtl(work / "balancers" / kind, config, prepared) for kind, config in configs.items()}


class _NoTracker:
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def flush(self) -> None: ...


class _NoBar:
    def advance(self, amount: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


class _NoBatches:
    """The trainer asks how long an epoch is; batches are handed to its step."""

    rows, batches = 1 << 40, 1 << 28

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        raise NotImplementedError


def _recmtl(folder: Path, config: RunConfig, prepared: Prepared) -> Step:
    manifest, training = prepared.manifest, config.training
    model = build_model(
        config.model,
        manifest.schema_,
        manifest.tasks_,
        Statistics.load(prepared.folder / "statistics"),
        seed=training.seed,
        tables=make_tables(training.sparse, "cpu"),
    )
    trainer = _Trainer(
        model,
        build_balancer(config.balancing, tasks=tuple(manifest.tasks_), seed=training.seed),
        _NoBatches(),
        training,
        Checkpoints(folder, keep=1, identity="benchmark", progress=Silent()),
        _NoTracker(),
        lambda _: {},
        Silent(),
    )
    model.train()
    return lambda batch: trainer.train_step(batch, _NoBar())


class PlainMMoE(nn.Module):
    """MMoE over embedding bags, module by module."""

    def __init__(self, options: argparse.Namespace, *, sparse: bool) -> None:
        super().__init__()
        rows = options.table_rows + 2  # recmtl's rows for missing and unseen ids
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows, options.dim, mode="sum", sparse=sparse) for _ in range(options.features)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.01)
        width = options.features * options.dim
        self.experts = nn.ModuleList(_mlp((width, *options.expert_widths)) for _ in range(options.experts))
        self.gates = nn.ModuleList(nn.Linear(width, options.experts) for _ in TASKS)
        self.towers = nn.ModuleList(
            nn.Sequential(
                *_mlp((options.expert_widths[-1], *options.head_widths)), nn.Linear(options.head_widths[-1], 1)
            )
            for _ in TASKS
        )

    def forward(self, values: Sequence[Tensor], offsets: Sequence[Tensor]) -> list[Tensor]:
        """(B,) logit per task."""
        x_BD = torch.cat([table(v, o) for table, v, o in zip(self.tables, values, offsets, strict=True)], dim=1)
        experts_BES = torch.stack([expert(x_BD) for expert in self.experts], dim=1)
        shares_BE = [torch.softmax(gate(x_BD), dim=1) for gate in self.gates]
        mixed_BS = [(share.unsqueeze(2) * experts_BES).sum(1) for share in shares_BE]
        return [tower(mixed).squeeze(1) for tower, mixed in zip(self.towers, mixed_BS, strict=True)]


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _plain(
    options: argparse.Namespace, *, sparse: bool, optimizer: Callable[..., torch.optim.Optimizer], lr: float
) -> Step:
    torch.manual_seed(options.seed)
    model = PlainMMoE(options, sparse=sparse)
    tables = list(model.tables.parameters())
    held = {id(table) for table in tables}
    optimizers = [
        optimizer(tables, lr=lr),
        torch.optim.AdamW([p for p in model.parameters() if id(p) not in held], lr=0.001, fused=True),
    ]

    def step(batch: Batch) -> None:
        lengths = batch.sparse.lengths.view(options.features, -1).long()
        values = torch.split(batch.sparse.values, lengths.sum(1).tolist())
        offsets = [length.cumsum(0) - length for length in lengths]
        for each in optimizers:
            each.zero_grad()
        logits = model(values, offsets)
        losses = [
            F.binary_cross_entropy_with_logits(logit, batch.labels[task])
            for task, logit in zip(TASKS, logits, strict=True)
        ]
        torch.stack(losses).sum().backward()
        for each in optimizers:
            each.step()

    return step


# The measuring


def _race(contenders: Mapping[str, Step], batches: list[Batch], options: argparse.Namespace) -> dict[str, list[float]]:
    """Rows per second of every contender in every round."""
    order = random.Random(options.seed)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():  # what allocates, allocates before the clock runs
        for batch in batches[:2]:
            step(batch)
    for number in range(options.rounds):
        turn = [batches[(number * options.steps + k) % len(batches)] for k in range(options.steps)]
        for name in order.sample(list(contenders), len(contenders)):
            began = time.perf_counter()
            for batch in turn:
                contenders[name](batch)
            speeds[name].append(sum(batch.size for batch in turn) / (time.perf_counter() - began))
    return speeds


def _loader(prepared: Prepared, options: argparse.Namespace) -> dict[str, list[float]]:
    """Rows per second of an epoch that nobody trains on: reading, shuffling and batching."""
    speeds: dict[str, list[float]] = {}
    for number in range(max(options.rounds // 3, 3)):
        for prefetch in (0, 4):
            loader = Loader(
                prepared.folder,
                prepared.manifest,
                "train",
                batch_size=options.batch_size,
                shuffle_seed=options.seed,
                prefetch=prefetch,
            )
            began = time.perf_counter()
            rows = sum(batch.size for batch in loader.epoch(number))
            speeds.setdefault(f"prefetch {prefetch}", []).append(rows / (time.perf_counter() - began))
    return speeds


# The report


def _summary(speeds: Mapping[str, list[float]], *, reference: str) -> dict[str, dict[str, Any]]:
    base = np.asarray(speeds[reference])
    return {
        name: {
            "rows_per_second": _quartiles(np.asarray(values)),
            "ratio": _quartiles(np.asarray(values) / base),
            "rounds": len(values),
        }
        for name, values in speeds.items()
    }


def _quartiles(values: np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def _machine() -> dict[str, Any]:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }


def _markdown(result: Mapping[str, Any]) -> str:
    options, machine = result["options"], result["machine"]
    load = " to ".join(f"{value:.1f}" for value in machine["load_1min_begin_end"])
    lines = [
        f"{options['features']} tables of {options['table_rows']:,} rows by {options['dim']}, batch "
        f"{options['batch_size']:,}, MMoE of {options['experts']} experts {options['expert_widths']} and heads "
        f"{options['head_widths']}, {len(TASKS)} tasks; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} thread(s), torch {machine['torch']}, load {load}."
    ]
    for title, heading in (
        ("tables", "training step"),
        ("balancers", "balancer (recmtl, fused tables)"),
        ("loader", "loader alone"),
    ):
        lines += [
            "",
            f"| {heading} | rows/s, median (quartiles) | ratio to the first, median (quartiles) |",
            "|---|---|---|",
        ]
        for name, row in result[title].items():
            low, middle, high = row["rows_per_second"]
            ratio = "{1:.2f} ({0:.2f}–{2:.2f})".format(*row["ratio"])
            lines.append(f"| {name} | {middle:,.0f} ({low:,.0f}–{high:,.0f}) | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
