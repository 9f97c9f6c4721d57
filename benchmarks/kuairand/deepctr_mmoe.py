"""DeepCTR-Torch's MMoE on the rows that recmtl prepared: the same rows, vocabularies, features and widths.

In: the folder of a prepared dataset (``data.prepared`` of a recmtl config), whose encoded shards it reads as they are.
Out, in ``--output``: ``predictions-{validation,test}.parquet`` (``row`` and a score per task, of the epoch with the
best validation score) and ``cell.json``.

It runs in a virtual environment of its own, which has no recmtl (README.md beside it says how to make that).

DeepCTR-Torch knows no masked labels and no conditional tasks. So it trains on the rows whose labels all count (recmtl
masks long_view where it contradicts click), long_view is a plain binary task over all rows, and its score on clicked
rows is that same score.
"""

import argparse
import contextlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models.multitask.mmoe import MMOE
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

TASKS = ("click", "long_view", "like")
RESERVED = 2  # recmtl's rows for missing and unseen ids


def main() -> None:
    """Train one model and write its predictions."""
    options = _options()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    manifest = json.loads((options.prepared / "manifest.json").read_text())
    splits = {split: _read(options.prepared, manifest, split) for split in ("train", "validation", "test")}
    columns, inputs = _columns(options.prepared, manifest, splits)
    every_label = np.logical_and.reduce([splits["train"][f"observed:{task}"].to_numpy() for task in TASKS])
    train_x = {name: values[every_label] for name, values in inputs["train"].items()}
    train_y = _labels(splits["train"])[every_label]

    model = MMOE(
        columns,
        num_experts=options.experts,
        expert_dnn_hidden_units=options.expert_widths,
        gate_dnn_hidden_units=options.gate_widths,
        tower_dnn_hidden_units=options.head_widths,
        l2_reg_embedding=options.l2_embedding,
        init_std=options.init_std,
        dnn_dropout=options.dropout,
        task_types=["binary"] * len(TASKS),
        task_names=list(TASKS),
        seed=options.seed,
        device="cpu",
    )
    optimizer = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[options.optimizer]
    model.compile(optimizer(model.parameters(), lr=options.lr), metrics=[])
    model.loss_func = [_weighted(weight) for weight in options.weights]

    history: list[dict[str, float]] = []
    best, best_epoch, kept = -np.inf, 0, {}
    began = time.monotonic()
    for epoch in range(1, options.epochs + 1):
        with contextlib.redirect_stdout(io.StringIO()):  # one epoch a call: fit() forgets dropout after it evaluates
            model.fit(dict(train_x), train_y, batch_size=options.batch_size, epochs=1, verbose=0)
        scores = model.predict(dict(inputs["validation"]), options.batch_size)
        figures = _figures(splits["validation"], scores)
        history.append(figures)
        monitored = sum(figures.values())
        print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)
        if monitored > best:
            best, best_epoch = monitored, epoch
            kept = {"validation": scores, "test": model.predict(dict(inputs["test"]), options.batch_size)}
        elif epoch - best_epoch >= options.patience:
            break

    options.output.mkdir(parents=True, exist_ok=True)
    for split, scores in kept.items():
        frame = {"row": splits[split]["row"], **{task: scores[:, i] for i, task in enumerate(TASKS)}}
        frame["long_view_given_click"] = scores[:, TASKS.index("long_view")]
        pl.DataFrame(frame).write_parquet(options.output / f"predictions-{split}.parquet")
    cell = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "train_rows": int(every_label.sum()),
        "best_epoch": best_epoch,
        "epochs": len(history),
        "validation": history[best_epoch - 1],
        "history": history,
        "seconds": time.monotonic() - began,
    }
    (options.output / "cell.json").write_text(json.dumps(cell, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--optimizer", choices=["adam", "adagrad"], default="adam")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--expert-widths", type=int, nargs="*", default=[256, 128])
    parser.add_argument("--gate-widths", type=int, nargs="*", default=[])
    parser.add_argument("--head-widths", type=int, nargs="*", default=[64])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--init-std", type=float, default=0.0001)
    parser.add_argument("--weights", type=float, nargs=len(TASKS), default=[1.0] * len(TASKS), metavar=TASKS)
    parser.add_argument("--l2-embedding", type=float, default=0.00001)
    return parser.parse_args()


def _weighted(weight: float) -> Callable[..., torch.Tensor]:
    """Cross-entropy times a weight: compile() takes losses by name alone, but fit() calls what it finds."""

    def loss(prediction: torch.Tensor, label: torch.Tensor, reduction: str) -> torch.Tensor:
        return weight * F.binary_cross_entropy(prediction, label, reduction=reduction)

    return loss


def _read(prepared: Path, manifest: dict[str, Any], split: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(prepared / shard["path"]) for shard in manifest["splits"][split]["shards"]])


def _columns(
    prepared: Path, manifest: dict[str, Any], splits: dict[str, pl.DataFrame]
) -> tuple[list[Any], dict[str, dict[str, np.ndarray]]]:
    """DeepCTR-Torch's columns in the features' order, and per split its inputs by name.

    It keeps all inputs in one float32 matrix, which holds integers up to 2**24 exactly.
    """
    columns: list[Any] = []
    inputs: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
    for feature in manifest["features"]:
        name, kind = feature["name"], feature["kind"]
        if kind == "number":
            continue
        if kind not in ("id", "bag") or feature["hash_buckets"] is not None:
            raise SystemExit(f"feature {name}: this script knows ids, bags and numbers")
        vocabulary = prepared / "statistics" / "vocabulary" / f"{feature['table']}.parquet"
        rows = pl.scan_parquet(vocabulary).select(pl.len()).collect().item() + RESERVED
        assert rows < 2**24
        table = SparseFeat(name, rows, embedding_dim=feature["embedding_dim"] or 16, embedding_name=feature["table"])
        if kind == "id":
            columns.append(table)
            for split, frame in splits.items():
                inputs[split][name] = frame[f"id:{name}"].to_numpy().astype(np.float32)
            continue
        longest = max(int(frame[f"bag:{name}"].list.len().max() or 1) for frame in splits.values())
        columns.append(VarLenSparseFeat(table, longest, feature["pooling"], length_name=f"{name}_length"))
        for split, frame in splits.items():
            bag = frame[f"bag:{name}"]
            padded = bag.list.concat(pl.Series([[0] * longest], dtype=pl.List(pl.Int32))).list.head(longest)
            inputs[split][name] = np.stack(padded.to_list()).astype(np.float32)
            inputs[split][f"{name}_length"] = bag.list.len().to_numpy().astype(np.float32)
    dense = splits["train"].schema.get("dense")
    if dense is not None:
        columns.append(DenseFeat("dense", dense.size))
        for split, frame in splits.items():
            inputs[split]["dense"] = frame["dense"].to_numpy().astype(np.float32)
    return columns, inputs


def _labels(frame: pl.DataFrame) -> np.ndarray:
    return np.stack([frame[f"label:{task}"].to_numpy() for task in TASKS], axis=1).astype(np.float32)


def _figures(frame: pl.DataFrame, scores: np.ndarray) -> dict[str, float]:
    """The AUCs that recmtl's early stopping monitors, on the same rows."""
    figures = {}
    click = frame["label:click"].to_numpy() == 1
    for i, task in enumerate(TASKS):
        counts = frame[f"observed:{task}"].to_numpy()
        label = frame[f"label:{task}"].to_numpy()
        figures[task] = float(roc_auc_score(label[counts], scores[counts, i]))
        if task == "long_view":
            counts = counts & click
            figures["long_view_given_click"] = float(roc_auc_score(label[counts], scores[counts, i]))
    return figures


if __name__ == "__main__":
    main()
