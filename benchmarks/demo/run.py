"""The demo's figures beside the optimum, for both towers and several seeds; and what the distance is lost to.

In: `pipelines/configs/demo.yaml`. Out, in ``--output``: a run's folder per cell, ``demo.json`` and the table as
Markdown, which is printed as well. Started again, it goes on where it was; a finished run is only read.

The ablations change one thing each: `every user` gives every user a row of its own, `twice the log` shows the same
users and items twice as often. What they change is named by the cell; nothing is chosen by them.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import recmtl
from recmtl.progress import Lines

CONFIG = Path("pipelines/configs/demo.yaml")
SHARED_BOTTOM = "model.tower={kind: shared_bottom, widths: [256, 64], head_widths: [32]}"
CELLS: dict[str, list[str]] = {
    "mmoe": [],
    "shared bottom": [SHARED_BOTTOM],
    "mmoe, every user": ["features.user_id.min_count=1"],
    "mmoe, twice the log": ["data.source.impressions=1000000"],
}
ABLATIONS = ("mmoe, every user", "mmoe, twice the log")


def main() -> None:
    """Run what is missing and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for cell in options.cells:
        for seed in options.seeds[:1] if cell in ABLATIONS else options.seeds:
            result.setdefault(cell, {})[seed] = _figures(options.config, options.output, cell, seed)
    (options.output / "demo.json").write_text(json.dumps(result, indent=2) + "\n")
    text = _markdown(result)
    (options.output / "demo.md").write_text(text)
    print(text)


def _figures(config: Path, output: Path, cell: str, seed: int) -> dict[str, Any]:
    folder = output / cell.replace(",", "").replace(" ", "_")
    log = "log_twice" if "twice" in cell else "log"
    data = output / (f"{log}_every_user" if "every user" in cell else log)
    overrides = [
        *CELLS[cell],
        f"training.seed={seed}",
        f"data.source.path={output / log / 'logs'}",
        f"data.prepared={data / 'prepared'}",
        "tracking.enabled=false",
        "registry=null",
    ]
    loaded = recmtl.load_config(config, overrides)
    metrics = recmtl.run(loaded, output=folder / f"seed-{seed}", progress=Lines(every=60)).metrics
    epochs = [entry["score"] for entry in metrics["history"]]
    return {
        "epoch": 1 + epochs.index(max(epochs)),
        "share": metrics["share_of_attainable"],
        **{part: _main(metrics[part]) for part in ("validation", "test", "optimum")},
    }


def _main(values: dict[str, Any]) -> dict[str, float]:
    return {key: one.get("auc", one.get("rmse")) for key, one in values.items()}


def _markdown(result: dict[str, Any]) -> str:
    keys = ["click", "purchase", "purchase_given_click", "rating"]
    names = ["click AUC", "purchase AUC", "purchase given click AUC", "rating RMSE"]
    lines = ["| model | " + " | ".join(names) + " | share of click | of purchase |", "|---|" + "--:|" * (len(keys) + 2)]
    for cell, seeds in result.items():
        runs = list(seeds.values())
        figures = [_spread([run["test"][key] for run in runs], "{:.4f}") for key in keys]
        shares = [_spread([100 * run["share"][key] for run in runs], "{:.1f}") + " %" for key in keys[:2]]
        lines.append(f"| {cell} | " + " | ".join([*figures, *shares]) + " |")
        if cell in ("mmoe", "mmoe, twice the log"):
            best = [f"{runs[0]['optimum'][key]:.4f}" for key in keys]
            lines.append(f"| *optimum of these rows* | {' | '.join(best)} | | |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], form: str) -> str:
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"


if __name__ == "__main__":
    main()
