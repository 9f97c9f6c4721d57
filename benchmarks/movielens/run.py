"""MovieLens: the rating's RMSE on the last 15 % by time and on a random split, for both towers, beside two baselines.

In: the folder of an unpacked archive (ml-100k; 1M and later layouts work too) and a config. Out, in ``--output``: a
run's folder per split, tower and seed, ``movielens.json`` and the table as Markdown, which is printed as well. Started
again, it goes on where it was; a finished run is only read.

The baselines see the same train rows. The bias model is Koren et al. 2009 ("Matrix Factorization Techniques for
Recommender Systems", eq. 3): mean + user's bias + item's bias, each shrunk by a penalty that is picked on validation.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import recmtl
from recmtl.etl.prepare import Prepared
from recmtl.progress import Lines
from recmtl.schema import UNSEEN

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row of the user in its vocabulary, of the item, and the stars."""

TOWERS = {
    "shared_bottom": "{kind: shared_bottom, widths: [64], head_widths: [32], dropout: 0.3}",
    "mmoe": None,  # the config's own
}
SPLITS = ("time", "random")
PENALTIES = (1.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)


def main() -> None:
    """Run what is missing and report."""
    options = _options()
    progress = Lines()
    result: dict[str, Any] = {"config": str(options.config), "splits": {}}
    for split in options.splits:
        prepared = recmtl.prepare(_config(options, split), progress=progress)
        cells: dict[str, Any] = {tower: {} for tower in options.towers}
        for tower in options.towers:
            for seed in options.seeds:
                config = _config(options, split, tower, seed)
                run = recmtl.run(config, output=options.output / split / f"{tower}-{seed}", progress=progress)
                cells[tower][seed] = {part: run.metrics[part]["rating"]["rmse"] for part in ("validation", "test")}
        result["splits"][split] = {
            "data": prepared.manifest.fingerprint,
            "rows": {name: part.rows for name, part in prepared.manifest.splits.items()},
            "unseen": _unseen(prepared),
            "baselines": _baselines(prepared),
            "models": cells,
        }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "movielens.json").write_text(json.dumps(result, indent=2) + "\n")
    text = _markdown(result)
    (options.output / "movielens.md").write_text(text)
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the unpacked archive: with u.data in it, say")
    parser.add_argument("--config", type=Path, default=Path("pipelines/configs/movielens.yaml"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/movielens"))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args()


def _config(options: argparse.Namespace, split: str, tower: str = "mmoe", seed: int = 1) -> recmtl.RunConfig:
    changes = [
        f"data.source.path={options.data}",
        f"data.split.by={split}",
        f"data.prepared={options.output / 'prepared' / split}",
        f"training.seed={seed}",
        "tracking.enabled=false",
        "registry=null",
    ]
    if TOWERS[tower] is not None:
        changes.append(f"model.tower={TOWERS[tower]}")
    return recmtl.load_config(options.config, changes)


# The baselines


def _rows(prepared: Prepared, split: str) -> Rows:
    shards = prepared.manifest.splits[split].shards
    frame = pl.concat([pl.read_parquet(prepared.folder / shard.path) for shard in shards])
    levels = np.asarray(prepared.manifest.tasks_["rating"].levels)
    stars = levels[frame["label:rating"].to_numpy().astype(int)]
    return frame["id:user_id"].to_numpy(), frame["id:item_id"].to_numpy(), stars


def _unseen(prepared: Prepared) -> dict[str, float]:
    """Share of the test rows whose user, or whose item, no train row has."""
    user, item, _ = _rows(prepared, "test")
    return {"user": float((user == UNSEEN).mean()), "item": float((item == UNSEEN).mean())}


def _baselines(prepared: Prepared) -> dict[str, Any]:
    rows = {split: _rows(prepared, split) for split in ("train", "validation", "test")}
    mean = float(rows["train"][2].mean())
    constant = {split: _rmse(np.full(len(stars), mean), stars) for split, (_, _, stars) in rows.items()}
    found = [
        (_biased_rmse(rows, "validation", biases), penalties, biases)
        for penalties in ((user, item) for user in PENALTIES for item in PENALTIES)
        for biases in [_biases(rows["train"], *penalties)]
    ]
    _, penalties, biases = min(found, key=lambda each: each[0])
    return {
        "mean": {split: constant[split] for split in ("validation", "test")},
        "bias": {split: _biased_rmse(rows, split, biases) for split in ("validation", "test")},
        "penalties": {"user": penalties[0], "item": penalties[1]},
    }


def _biases(train: Rows, user_penalty: float, item_penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, user biases and item biases by alternating least squares; one that was never seen has 0."""
    user, item, stars = train
    mean = float(stars.mean())
    users, items = int(user.max()) + 1, int(item.max()) + 1
    user_bias, item_bias = np.zeros(users), np.zeros(items)
    for _ in range(15):
        item_bias = np.bincount(item, stars - mean - user_bias[user]) / (np.bincount(item) + item_penalty)
        user_bias = np.bincount(user, stars - mean - item_bias[item]) / (np.bincount(user) + user_penalty)
    return mean, user_bias, item_bias


def _biased_rmse(rows: Mapping[str, Rows], split: str, biases: tuple[float, np.ndarray, np.ndarray]) -> float:
    user, item, stars = rows[split]
    mean, user_bias, item_bias = biases
    return _rmse(np.clip(mean + user_bias[user] + item_bias[item], 1, stars.max()), stars)


def _rmse(predicted: np.ndarray, stars: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted - stars) ** 2)))


# The report


def _markdown(result: Mapping[str, Any]) -> str:
    splits = result["splits"]
    lines = ["| test RMSE (validation) | " + " | ".join(splits) + " |", "|---|" + "---|" * len(splits)]
    rows = [("train mean", lambda split: _pair([split["baselines"]["mean"]]))]
    rows += [("user and item bias, shrunk", lambda split: _pair([split["baselines"]["bias"]]))]
    for tower in next(iter(splits.values()))["models"]:
        rows.append((f"recmtl, {tower}", lambda split, tower=tower: _pair(list(split["models"][tower].values()))))
    lines += [f"| {name} | " + " | ".join(cell(split) for split in splits.values()) + " |" for name, cell in rows]
    for name, split in splits.items():
        penalties, unseen, count = split["baselines"]["penalties"], split["unseen"], split["rows"]
        lines.append(
            f"\n{name}: {count['train']:,} train, {count['validation']:,} validation, {count['test']:,} test rows; "
            f"{unseen['user']:.1%} of the test rows have a user and {unseen['item']:.1%} an item that train has not; "
            f"the bias model's penalties are {penalties['user']:g} (user) and {penalties['item']:g} (item)."
        )
    return "\n".join(lines) + "\n"


def _pair(cells: list[Mapping[str, float]]) -> str:
    test, validation = (np.asarray([cell[part] for cell in cells]) for part in ("test", "validation"))
    if len(cells) == 1:
        return f"{test[0]:.4f} ({validation[0]:.4f})"
    return f"{test.mean():.4f} ± {test.std(ddof=1):.4f} ({validation.mean():.4f} ± {validation.std(ddof=1):.4f})"


if __name__ == "__main__":
    main()
