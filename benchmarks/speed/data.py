"""The agreed work's data: one log, prepared by recmtl; and the same train rows, flat, as a peer's user would have them.

In: a folder and a number of rows. Out, under it::

    log.parquet     what a log would hold: ids, numbers, labels
    prepared/       recmtl's dataset of it
    flat.parquet    the train rows, encoded: C0 … (int64 table rows), I0 … (float32), a column per task (float32)
    epoch.parquet   some of them: an epoch of those who take long over it
    data.json       what was asked for; written last, so a folder without it is made anew
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from work import BINARY, CARDINALITIES, REGRESSION, TASKS, Work

_CHUNK = 1 << 17
_EPOCH = 300_000


def config(folder: Path, training: dict[str, Any] | None = None, work: Work | None = None) -> dict[str, Any]:
    """The run's config as plain data: recmtl's defaults but for the agreed shapes and the given ``training``."""
    work = work or Work()
    return {
        "name": "speed",
        "data": {
            "source": {"kind": "table", "path": str(folder / "log.parquet"), "outcomes": list(TASKS)},
            "prepared": str(folder / "prepared"),
            "split": {"by": "random", "validation": 0.01, "test": 0.01},
        },
        "features": [
            *(
                {"name": f"C{i}", "kind": "id", "embedding_dim": work.dim, "hash_buckets": rows}
                for i, rows in enumerate(work.cardinalities)
            ),
            *({"name": f"I{i}", "kind": "number"} for i in range(work.numbers)),
        ],
        "tasks": [
            *({"name": task, "kind": "binary", "label": task} for task in BINARY),
            {"name": REGRESSION, "kind": "regression", "label": REGRESSION},
        ],
        "model": {
            "tower": {
                "kind": "mmoe",
                "num_experts": work.experts,
                "expert_widths": list(work.expert_widths),
                "head_widths": list(work.head_widths),
            },
            "inputs": {"interactions": "none"},
        },
        "training": {"checkpoint": {"every_seconds": None}, **(training or {})},
        "tracking": {"enabled": False},
    }


def make(folder: Path, rows: int, seed: int) -> None:
    """Make what is not there."""
    asked = {"rows": rows, "seed": seed, "format": 2}
    done = folder / "data.json"
    if done.exists() and json.loads(done.read_text()) == asked:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log(rows, seed).write_parquet(folder / "log.parquet", row_group_size=_CHUNK)
    import recmtl
    from recmtl.config import parse_config

    prepared = recmtl.prepare(parse_config(config(folder)))
    shards = [prepared.folder / shard.path for shard in prepared.manifest.splits["train"].shards]
    train = flat(pl.read_parquet(shards))
    train.write_parquet(folder / "flat.parquet", row_group_size=_CHUNK)
    train.head(_EPOCH).write_parquet(folder / "epoch.parquet", row_group_size=_CHUNK)
    done.write_text(json.dumps(asked))


def log(rows: int, seed: int) -> pl.DataFrame:
    """Ids by Zipf's law with exponent 1, numbers without a missing value, labels by both, with noise."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    score = np.zeros(rows)
    for i, cardinality in enumerate(CARDINALITIES):
        ids = np.minimum(np.floor(np.exp(rng.random(rows) * np.log(cardinality))).astype(np.int64), cardinality - 1)
        columns[f"C{i}"] = ids
        score += 0.2 * rng.standard_normal(cardinality)[ids]
    for i in range(Work().numbers):
        columns[f"I{i}"] = rng.standard_normal(rows).astype(np.float32)
        score += 0.1 * columns[f"I{i}"]
    for task, shift in zip(BINARY, (-1.0, -2.5), strict=True):
        columns[task] = (rng.random(rows) < 1 / (1 + np.exp(-score - shift))).astype(np.int64)
    columns[REGRESSION] = 3 + np.clip(score + 0.5 * rng.standard_normal(rows), -2, 2)
    return pl.DataFrame(columns)


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """recmtl's encoded rows as columns of numbers; of a number the standardised value alone, none is missing."""
    width = frame.schema["dense"].shape[0]
    dense = frame["dense"].to_numpy().reshape(frame.height, width)
    values = dense if width == Work().numbers else dense[:, ::2]
    return pl.DataFrame(
        {
            **{f"C{i}": frame[f"id:C{i}"].cast(pl.Int64) for i in range(len(CARDINALITIES))},
            **{f"I{i}": values[:, i] for i in range(Work().numbers)},
            **{task: frame[f"label:{task}"].cast(pl.Float32) for task in TASKS},
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    make(given.folder, given.rows, given.seed)
