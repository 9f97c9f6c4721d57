"""KuaiRand: recmtl beside DeepCTR-Torch's MMoE, on the same rows, features and widths.

    python benchmarks/kuairand/run.py --data FOLDER --deepctr-python VENV/bin/python

Trains every system with every seed, a cell at a time, scores validation and test row by row, and measures all of them
with one and the same code. A cell that is there already is left as it is, so that the same command continues where it
was stopped. Out, in ``--output``: ``results.json`` and ``results.md``, and a folder per cell.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

import recmtl
from recmtl.config import RunConfig, load_config
from recmtl.evaluation.intervals import Sample, bootstrap, clusters_of, interval
from recmtl.manifest import Manifest
from recmtl.metrics import METRICS, Examples

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "pipelines" / "configs" / "kuairand.yaml"
TARGETS = {"click": "click", "like": "like", "long_view": "long_view", "long_view_given_click": "long_view"}
"""Figure to the task that it measures; all are columns of the predictions."""
HEADS = {
    "click": "click",
    "like": "is_like",
    "long_view_given_click": "long_view, clicked rows",
    "long_view": "long_view, all rows",
}
"""Figure to the head of its column."""
DEEPCTR: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "deepctr.yaml").read_text())
REFERENCE = next(iter(DEEPCTR))


def systems() -> dict[str, list[str] | None]:
    """What is compared: overrides of the config; None is DeepCTR-Torch."""
    written = yaml.safe_load(CONFIG.read_text())
    tasks = [task for task in written["tasks"] if task["name"] != "share_watched"]
    weights = {task["name"]: written["balancing"]["weights"].get(task["name"], 1.0) for task in tasks}
    tower = written["model"]["tower"]
    shared = {
        "kind": "shared_bottom",
        "widths": tower["expert_widths"],
        **{k: v for k, v in tower.items() if k in ("head_widths", "norm", "dropout")},
    }
    matched = [
        "data.prepared=data/prepared/kuairand-three-tasks",
        f"tasks={json.dumps(tasks)}",
        f"balancing.weights={json.dumps(weights)}",
        "model.inputs.interactions=none",
    ]
    return {
        "recmtl MMoE": [],
        "recmtl shared-bottom": [f"model.tower={json.dumps(shared)}"],
        "recmtl MMoE, same inputs and tasks": matched,
        **dict.fromkeys(DEEPCTR),
    }


def main() -> None:
    """Fill the cells, then measure them."""
    options = _options()
    plan = {name: overrides for name, overrides in systems().items() if options.only in (None, name)}
    base = config_of(options, [])
    prepared = recmtl.prepare(base)
    for name, overrides in plan.items():
        for seed in options.seeds:
            cell = cell_of(options.output, name, seed)
            if (cell / "cell.json").exists():
                continue
            print(f"{name}, seed {seed} …", flush=True)
            if overrides is None:
                _train_deepctr(options, base, prepared.folder, cell, seed, DEEPCTR[name])
            else:
                train_recmtl(config_of(options, [*overrides, f"training.seed={seed}"]), cell)
    if options.only is None:
        results = measure(options, list(plan), prepared.folder, prepared.manifest)
        (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (options.output / "results.md").write_text(as_markdown(results))
        print(as_markdown(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data/raw/kuairand_pure"), help="KuaiRand's CSV files")
    parser.add_argument("--deepctr-python", type=Path, required=True, help="the other environment's python")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/kuairand"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--only", help="fill the cells of this system alone")
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap over users")
    return parser.parse_args()


def config_of(options: argparse.Namespace, overrides: list[str]) -> RunConfig:
    fixed = [f"data.source.path={options.data}", "tracking.enabled=false", "registry=null"]
    return load_config(CONFIG, [*fixed, *overrides])


def cell_of(output: Path, name: str, seed: int) -> Path:
    return output / name.lower().replace(",", "").replace(" ", "-") / f"seed-{seed}"


def train_recmtl(config: RunConfig, cell: Path) -> None:
    began = time.monotonic()
    result = recmtl.train(config, output=cell / "run")
    seconds = time.monotonic() - began
    raw = recmtl.prepare(config).folder / "raw"
    for split in ("validation", "test"):
        scored = recmtl.predict(
            model=str(cell / "run" / "package"),
            inputs=[str(raw / split / "*.parquet")],
            output=cell / f"predicted-{split}",
            keep=["recmtl:row"],
            overwrite=True,
        )
        frame = pl.read_parquet(scored.folder / "*.parquet").select(pl.col("recmtl:row").alias("row"), *TARGETS)
        frame.write_parquet(cell / f"predictions-{split}.parquet")
    epochs = [_aucs(epoch["validation"]) for epoch in result.metrics["history"]]
    best = max(range(len(epochs)), key=lambda i: sum(epochs[i].values()))
    _write_cell(cell, {"best_epoch": best + 1, "epochs": len(epochs), "history": epochs, "seconds": seconds})


def _aucs(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {target: figures[target]["auc"] for target in TARGETS}


def _train_deepctr(
    options: argparse.Namespace, config: RunConfig, prepared: Path, cell: Path, seed: int, own: Mapping[str, Any]
) -> None:
    """With the config's widths, loss weights, batch size, epochs and patience, and the settings of its ``own``."""
    tower, training = config.resolved()["model"]["tower"], config.resolved()["training"]
    weights = config.resolved()["balancing"]["weights"]
    arguments: dict[str, Any] = {
        "prepared": prepared,
        "output": cell,
        "seed": seed,
        "experts": tower["num_experts"],
        "expert-widths": tower["expert_widths"],
        "head-widths": tower["head_widths"],
        "weights": [weights.get(task, 1.0) for task in ("click", "long_view", "like")],
        "batch-size": training["batch_size"],
        "epochs": training["epochs"],
        "patience": training["early_stopping"]["patience"],
        **own,
    }
    command = [str(options.deepctr_python), str(HERE / "deepctr_mmoe.py")]
    for key, value in arguments.items():
        command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    cell.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, check=True)


def _write_cell(cell: Path, content: dict[str, Any]) -> None:
    (cell / "cell.json").write_text(json.dumps(content, indent=2) + "\n")


def measure(options: argparse.Namespace, names: list[str], prepared: Path, manifest: Manifest) -> dict[str, Any]:
    """AUCs of every cell, and how far each system is from the reference, with an interval over users."""
    found: dict[str, Any] = {name: {} for name in names}
    rows = {}
    for split in ("validation", "test"):
        truth = pl.concat([pl.read_parquet(prepared / shard.path) for shard in manifest.splits[split].shards])
        samples = samples_of(options, names, split, truth)
        _, clusters = clusters_of(truth["group"].to_numpy(), truth.height)
        rows[split] = {
            target: {"rows": len(sample.rows), "positives": int(sample.rows.label.sum())}
            for (_, _, target), sample in samples.items()
        }
        for name in names:
            found[name][split] = {
                target: over_seeds([METRICS["auc"].compute(samples[name, seed, target].rows) for seed in options.seeds])
                for target in TARGETS
            }
        if split == "test" and REFERENCE in names:
            drawn = bootstrap(list(samples.values()), clusters, replicates=options.replicates, seed=1)
            for name in names:
                for target in TARGETS:
                    each = [
                        drawn[(name, seed, target), "auc"] - drawn[(REFERENCE, seed, target), "auc"]
                        for seed in options.seeds
                    ]
                    found[name][split][target]["above_reference"] = {
                        "mean": found[name][split][target]["mean"] - found[REFERENCE][split][target]["mean"],
                        "interval": interval(np.mean(each, axis=0), 0.95),
                    }
    for name in names:
        cells = [json.loads((cell_of(options.output, name, seed) / "cell.json").read_text()) for seed in options.seeds]
        found[name] |= {key: [cell[key] for cell in cells] for key in ("best_epoch", "epochs", "seconds")}
    return {
        "data": manifest.fingerprint,
        "seeds": options.seeds,
        "rows": rows,
        "systems": found,
        "config": yaml.safe_load(CONFIG.read_text()),
        "deepctr": DEEPCTR,
        "versions": {name: version(name) for name in ("recmtl", "torch", "torchrec", "polars")},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def samples_of(
    options: argparse.Namespace, names: list[str], split: str, truth: pl.DataFrame
) -> dict[tuple[str, int, str], Sample[tuple[str, int, str]]]:
    """(system, seed, target) to its predictions and labels, on the rows on which the target counts."""
    cluster, _ = clusters_of(truth["group"].to_numpy(), truth.height)
    clicked = truth["observed:click"].to_numpy() & (truth["label:click"].to_numpy() == 1)
    samples = {}
    for name in names:
        for seed in options.seeds:
            predictions = pl.read_parquet(cell_of(options.output, name, seed) / f"predictions-{split}.parquet")
            joined = truth.select("row").join(predictions, on="row", how="left", maintain_order="left", validate="1:1")
            assert predictions.height == truth.height
            assert sum(joined.null_count().row(0)) == 0
            for target, task in TARGETS.items():
                counts = truth[f"observed:{task}"].to_numpy()
                if target != task:
                    counts = counts & clicked
                rows = Examples(joined[target].to_numpy()[counts], truth[f"label:{task}"].to_numpy()[counts])
                samples[name, seed, target] = Sample((name, seed, target), rows, cluster[counts], ["auc"])
    return samples


def over_seeds(values: list[float | None]) -> dict[str, Any]:
    assert all(value is not None for value in values)
    defined = [value for value in values if value is not None]
    deviation = statistics.stdev(defined) if len(defined) > 1 else None
    return {"mean": statistics.fmean(defined), "std": deviation, "by_seed": defined}


def as_markdown(results: Mapping[str, Any]) -> str:
    """The table of test AUCs, and under it the differences from the reference."""
    lines = [
        f"Test AUC, mean ± standard deviation over {len(results['seeds'])} seeds:",
        "",
        f"| | {' | '.join(HEADS.values())} |",
        f"|---|{'---|' * len(HEADS)}",
    ]
    for name, found in results["systems"].items():
        cells = [f"{found['test'][t]['mean']:.4f} ± {found['test'][t]['std'] or 0:.4f}" for t in HEADS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counted = [f"{results['rows']['test'][t]['rows']:,} ({results['rows']['test'][t]['positives']:,})" for t in HEADS]
    lines += [f"| rows (positive) | {' | '.join(counted)} |", ""]
    lines += [
        f"Above {REFERENCE}, with a 95 % interval of the bootstrap over users, paired, mean of the seeds:",
        "",
        f"| | {' | '.join(HEADS.values())} |",
        f"|---|{'---|' * len(HEADS)}",
    ]
    for name, found in results["systems"].items():
        if name != REFERENCE:
            cells = []
            for target in HEADS:
                above = found["test"][target]["above_reference"]
                low, high = above["interval"]
                cells.append(f"{above['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
