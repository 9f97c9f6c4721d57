"""Rows scored per second: `recmtl predict` by processes, with a top k, one request at a time, and what bounds them.

In: sizes. Out: one line of JSON, and the same in ``--output``. The package is untrained (its values do not matter for
time) and large in its tables; the raw rows are Parquet. Beside each rate stands the ceiling of the same run: the bare
model on ready batches, with torch's own threads over a large batch and with a thread a batch, whichever is faster.

    python benchmarks/scoring/run.py                       # 2 million rows, a million users
    python benchmarks/scoring/run.py --rows 100000 --users 10000 --items 5000
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recmtl.answering import answer
from recmtl.batch import Batch
from recmtl.exporting import quantised
from recmtl.features.quantised import Quantised
from recmtl.loading import to_batch
from recmtl.manifest import Columns
from recmtl.model import ModelConfig, build_model
from recmtl.package import Package, load_package, save_package, with_quantised
from recmtl.progress import Silent
from recmtl.schema import Feature, Schema
from recmtl.scoring import predict_files
from recmtl.scoring.pieces import cores
from recmtl.statistics import LabelStatistics, NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks


def main() -> None:
    """Make package and rows, time everything in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured; the median counts")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-rows", type=int, default=16384)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/scoring/scoring.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as temporary:
        result = measure(options, Path(temporary))
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    make_package(folder / "package", options.users, options.items)
    make_rows(folder / "rows", options.rows, options.users, options.items)
    package = load_package(folder / "package")
    small, tensors = quantised(package, "int8")
    about = Quantised(precision="int8", source=package.contents.digest, bytes_before=1, bytes_after=1)
    with_quantised(folder / "package", about, tensors, output=folder / "int8")
    del small, tensors
    int8 = load_package(folder / "int8")
    jobs: dict[str, Callable[[], Any]] = {}
    for workers in options.workers:
        jobs[f"predict, {workers} workers"] = lambda n=workers: predict(package, folder, options, workers=n)
        jobs[f"top 10, {workers} workers"] = lambda n=workers: predict(
            package, folder, options, workers=n, top_k=10, score="click"
        )
    jobs["predict int8, 1 workers"] = lambda: predict(int8, folder, options)
    batches = ready_batches(package, folder, options)
    jobs["ceiling, torch's threads"] = lambda: whole(package, batches)
    jobs["ceiling, a thread a batch"] = lambda: by_threads(package, batches)
    jobs["encode"] = lambda: encode(package, folder, options)
    timed: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):  # in turns, so that a slow spell falls on all
        for name, job in jobs.items():
            begun = time.perf_counter()
            rows = job()
            timed[name].append((rows or options.rows) / (time.perf_counter() - begun))
    rates = {name: round(statistics.median(each)) for name, each in timed.items()}
    ceiling = max(rates["ceiling, torch's threads"], rates["ceiling, a thread a batch"])
    return {
        "rows": options.rows,
        "users": options.users,
        "items": options.items,
        "rows_per_second": rates,
        "all_rounds": {name: [round(rate) for rate in each] for name, each in timed.items()},
        "share_of_ceiling": {
            name: round(rate / ceiling, 3) for name, rate in rates.items() if name.startswith(("predict", "top"))
        },
        "request_ms": {str(n): requests(package, folder, n, options.requests) for n in (1, 100)},
        "weights_bytes": {name: (folder / name / "model.safetensors").stat().st_size for name in ("package", "int8")},
        "cores": cores(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
    }


def make_package(folder: Path, users: int, items: int) -> None:
    schema = Schema(
        [
            Feature(name="user_id", kind="id", embedding_dim=32),
            Feature(name="item_id", kind="id", embedding_dim=32),
            Feature(name="category", kind="id", embedding_dim=16),
            Feature(name="tags", kind="bag", embedding_dim=16),
            Feature(name="price", kind="number", transform="log1p"),
            Feature(name="age", kind="number"),
        ]
    )
    tasks = Tasks(
        [
            Task(name="click", kind="binary", label="click"),
            Task(name="purchase", kind="binary", label="purchase", parent="click"),
            Task(name="rating", kind="ordinal", label="rating", levels=(1, 2, 3, 4, 5)),
        ]
    )
    tables = {"user_id": ("", users), "item_id": ("item-", items), "category": ("c", 300), "tags": ("t", 2000)}
    statistics_ = Statistics(
        tables={
            name: Vocabulary(tuple(f"{prefix}{value}" for value in range(size)), (1,) * size)
            for name, (prefix, size) in tables.items()
        },
        numbers={
            "price": NumberStatistics(100, 0, 1.0, 1.0, 0.0, 5.0),
            "age": NumberStatistics(100, 0, 40.0, 15.0, 10.0, 80.0),
        },
        labels={
            "click": LabelStatistics(100, 0.2, 0.4),
            "purchase": LabelStatistics(100, 0.02, 0.14),
            "rating": LabelStatistics(100, 3.0, 1.0, (0.2,) * 5),
        },
        conditional_labels={"purchase": LabelStatistics(20, 0.1, 0.3)},
        columns={
            "user_id": "Int64",
            "item_id": "String",
            "category": "String",
            "tags": "List(String)",
            "price": "Float64",
            "age": "Int64",
        },
        train_rows=100,
    )
    config = ModelConfig()
    save_package(
        folder,
        build_model(config, schema, tasks, statistics_, seed=1),
        schema=schema,
        tasks=tasks,
        statistics=statistics_,
        columns=Columns(user="user_id", item="item_id"),
        config={"name": "benchmark", "model": config.model_dump(mode="json")},
        data="0" * 64,
    )


def make_rows(folder: Path, rows: int, users: int, items: int) -> None:
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, 1 << 20)):
        n = min(1 << 20, rows - start)
        tags = pl.Series(draws.integers(0, 2000, 3 * n)).cast(pl.String)
        pl.DataFrame(
            {
                "user_id": draws.integers(0, users, n),
                "item_id": "item-" + pl.Series(draws.integers(0, items, n)).cast(pl.String),
                "category": "c" + pl.Series(draws.integers(0, 300, n)).cast(pl.String),
                "tags": ("t" + tags).reshape((n, 3)).arr.to_list(),
                "price": draws.lognormal(1.0, 1.0, n),
                "age": draws.integers(10, 80, n),
            }
        ).write_parquet(folder / f"{number:03}.parquet", row_group_size=1 << 17)


def predict(package: Package, folder: Path, options: argparse.Namespace, **asked: Any) -> int:
    output = folder / "scores"
    shutil.rmtree(output, ignore_errors=True)
    done = predict_files(
        package, str(folder / "rows" / "*.parquet"), output, batch_rows=options.batch_rows, progress=Silent(), **asked
    )
    assert done.rows == options.rows
    return done.rows


def frames_of(folder: Path, options: argparse.Namespace) -> list[pl.DataFrame]:
    frame = pl.read_parquet(folder / "rows" / "000.parquet").head(1 << 19)
    return [frame.slice(start, options.batch_rows) for start in range(0, frame.height, options.batch_rows)]


def ready_batches(package: Package, folder: Path, options: argparse.Namespace) -> list[Batch]:
    return [to_batch(package.encode(frame), package.schema, None) for frame in frames_of(folder, options)]


def encode(package: Package, folder: Path, options: argparse.Namespace) -> int:
    return sum(package.encode(frame).height for frame in frames_of(folder, options))


@torch.inference_mode()
def bare(package: Package, batch: Batch) -> int:
    package.model.predictions(package.model(replace(batch)))
    return batch.size


def whole(package: Package, batches: list[Batch]) -> int:
    return sum(bare(package, batch) for batch in batches)


def by_threads(package: Package, batches: list[Batch]) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores()) as pool:
            return sum(pool.map(lambda batch: bare(package, batch), batches))
    finally:
        torch.set_num_threads(before)


def requests(package: Package, folder: Path, rows: int, count: int) -> dict[str, float]:
    """Milliseconds of a request of so many rows, without HTTP: the median and the 99th percentile."""
    frame = pl.read_parquet(folder / "rows" / "000.parquet").head(rows * 16)
    bodies = [
        json.dumps({"dataframe_records": frame.slice(start, rows).to_dicts()}).encode()
        for start in range(0, frame.height, rows)
    ]
    answer(package, bodies[0], None)
    took = []
    for number in range(count):
        begun = time.perf_counter()
        answer(package, bodies[number % len(bodies)], None)
        took.append(1000 * (time.perf_counter() - begun))
    return {"median": round(statistics.median(took), 2), "p99": round(float(np.quantile(took, 0.99)), 2)}


if __name__ == "__main__":
    main()
