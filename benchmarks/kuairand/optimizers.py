"""KuaiRand: tables under row-wise Adagrad beside tables under exact Adam, at equal epochs.

    python benchmarks/kuairand/optimizers.py --data FOLDER

recmtl's MMoE of pipelines/configs/kuairand.yaml, the same rows, features, widths and dense optimiser; nothing but the
tables' optimiser differs. Every rate of both grids is trained with every seed for as many epochs; the rate is the one
with the best validation AUCs (mean of the seeds) at that many epochs. Test is scored with the chosen rates alone. A
cell that is there already is left as it is. Out, in ``--output``: ``optimizers.json``, ``optimizers.md`` and a folder
per cell.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from run import HEADS, TARGETS, cell_of, config_of, over_seeds, samples_of, train_recmtl

import recmtl
from recmtl.evaluation.intervals import bootstrap, clusters_of, interval
from recmtl.metrics import METRICS

GRIDS = {"rowwise_adagrad": (0.01, 0.02, 0.04, 0.08, 0.16), "exact_adam": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)}
REFERENCE = "exact_adam"
NAMES = {"rowwise_adagrad": "row-wise Adagrad, fused", "exact_adam": "exact Adam, dense"}


def main() -> None:
    """Fill the cells, choose the rates, measure what was chosen."""
    options = _options()
    prepared = recmtl.prepare(config_of(options, []))
    longest = max(options.epochs)
    for seed in options.seeds:
        for optimizer, rates in GRIDS.items():
            for rate in rates:
                _train(options, optimizer, rate, longest, seed)
    chosen = {
        epochs: {optimizer: _choose(options, optimizer, epochs) for optimizer in GRIDS} for epochs in options.epochs
    }
    for epochs, rates in chosen.items():  # the rate does not change over an epoch, so fewer epochs are a shorter run
        for optimizer, rate in rates.items():
            for seed in options.seeds:
                _train(options, optimizer, rate, epochs, seed)
    truth = pl.concat(
        [pl.read_parquet(prepared.folder / shard.path) for shard in prepared.manifest.splits["test"].shards]
    )
    results = {
        "data": prepared.manifest.fingerprint,
        "seeds": options.seeds,
        "grids": GRIDS,
        "validation": {
            epochs: {o: {rate: _validation(options, o, rate, epochs) for rate in rates} for o, rates in GRIDS.items()}
            for epochs in options.epochs
        },
        "chosen": chosen,
        "test": {epochs: _measure(options, rates, epochs, truth) for epochs, rates in chosen.items()},
        "versions": {name: version(name) for name in ("recmtl", "torch", "torchrec", "polars")},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
    (options.output / "optimizers.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.output / "optimizers.md").write_text(_markdown(results))
    print(_markdown(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data/raw/kuairand_pure"), help="KuaiRand's CSV files")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/kuairand"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 2], help="of every run; a table each")
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap over users")
    return parser.parse_args()


def _name(optimizer: str, rate: float, epochs: int) -> str:
    return f"tables {optimizer} {rate} epochs {epochs}"


def _train(options: argparse.Namespace, optimizer: str, rate: float, epochs: int, seed: int) -> None:
    cell = cell_of(options.output, _name(optimizer, rate, epochs), seed)
    if (cell / "cell.json").exists():
        return
    print(f"{optimizer}, rate {rate}, {epochs} epochs, seed {seed} …", flush=True)
    overrides = [
        f"training.sparse={{optimizer: {optimizer}, lr: {rate}}}",
        f"training.epochs={epochs}",
        "training.early_stopping=null",
        "training.checkpoint.every_seconds=null",
        f"training.seed={seed}",
    ]
    train_recmtl(config_of(options, overrides), cell)


def _validation(options: argparse.Namespace, optimizer: str, rate: float, epochs: int) -> float:
    """Mean AUC of the targets and the seeds after this many epochs."""
    longest = _name(optimizer, rate, max(options.epochs))
    cells = [json.loads((cell_of(options.output, longest, seed) / "cell.json").read_text()) for seed in options.seeds]
    return statistics.fmean(auc for cell in cells for auc in cell["history"][epochs - 1].values())


def _choose(options: argparse.Namespace, optimizer: str, epochs: int) -> float:
    return max(GRIDS[optimizer], key=lambda rate: _validation(options, optimizer, rate, epochs))


def _measure(
    options: argparse.Namespace, rates: Mapping[str, float], epochs: int, truth: pl.DataFrame
) -> dict[str, dict[str, Any]]:
    """Test AUCs, and how far they are from the reference's, with an interval over users."""
    names = {optimizer: _name(optimizer, rate, epochs) for optimizer, rate in rates.items()}
    samples = samples_of(options, list(names.values()), "test", truth)
    _, clusters = clusters_of(truth["group"].to_numpy(), truth.height)
    drawn = bootstrap(list(samples.values()), clusters, replicates=options.replicates, seed=1)
    found: dict[str, dict[str, Any]] = {}
    for optimizer, name in names.items():
        found[optimizer] = {"seconds": [_seconds(options, name, seed) for seed in options.seeds]}
        for target in TARGETS:
            each = [METRICS["auc"].compute(samples[name, seed, target].rows) for seed in options.seeds]
            found[optimizer][target] = over_seeds(each)
    for target in TARGETS:
        differences = {
            optimizer: [
                drawn[(name, seed, target), "auc"] - drawn[(names[REFERENCE], seed, target), "auc"]
                for seed in options.seeds
            ]
            for optimizer, name in names.items()
            if optimizer != REFERENCE
        }
        for optimizer, each in differences.items():
            found[optimizer][target]["above_reference"] = {
                "mean": found[optimizer][target]["mean"] - found[REFERENCE][target]["mean"],
                "interval": interval(np.mean(each, axis=0), 0.95),
            }
    return found


def _seconds(options: argparse.Namespace, name: str, seed: int) -> float:
    seconds = json.loads((cell_of(options.output, name, seed) / "cell.json").read_text())["seconds"]
    return float(seconds)


def _markdown(results: Mapping[str, Any]) -> str:
    """The rates that were tried, then for every number of epochs the test AUCs and their difference."""
    lines = [
        "Mean validation AUC (of the four figures and the seeds) by the tables' optimiser and its rate:",
        "",
        "| | " + " | ".join(f"{epochs} epoch{'s' * (epochs > 1)}" for epochs in results["validation"]) + " |",
        "|---|" + "---|" * len(results["validation"]),
    ]
    for optimizer, rates in GRIDS.items():
        for rate in rates:
            cells = []
            for epochs, found in results["validation"].items():
                chosen = results["chosen"][epochs][optimizer] == rate
                cells.append(f"**{found[optimizer][rate]:.4f}**" if chosen else f"{found[optimizer][rate]:.4f}")
            lines.append(f"| {NAMES[optimizer]}, {rate} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Test AUC at the rates in bold, mean ± standard deviation over {len(results['seeds'])} seeds, and how far "
        f"{NAMES['rowwise_adagrad']} is above {NAMES[REFERENCE]}, paired, with a 95 % interval of the bootstrap over "
        "users:",
        "",
        f"| | {' | '.join(HEADS.values())} |",
        f"|---|{'---|' * len(HEADS)}",
    ]
    for epochs, found in results["test"].items():
        after = f"{epochs} epoch{'s' * (epochs > 1)}"
        for optimizer in GRIDS:
            cells = [f"{found[optimizer][t]['mean']:.4f} ± {found[optimizer][t]['std'] or 0:.4f}" for t in HEADS]
            lines.append(f"| {NAMES[optimizer]}, {after} | {' | '.join(cells)} |")
        above = [found["rowwise_adagrad"][target]["above_reference"] for target in HEADS]
        cells = [f"{a['mean']:+.4f} ({a['interval'][0]:+.4f} to {a['interval'][1]:+.4f})" for a in above]
        lines.append(f"| difference, {after} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
