"""A small shop, and the commands that are disturbed in it: each with the state of the folder that it begins at.

In: an empty folder. Out: :class:`World`, in which every scenario's beginning is kept and put back before each try; all
tries happen in the same folder, because a tracking store knows its artifacts by absolute paths.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.chaos.zygote import Done, Zygote

__all__ = ["SCENARIOS", "Scenario", "World"]

STORE = "sqlite:///store/mlflow.db"
MODEL = "shop-ranker"
_START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Scenario:
    """A command to be disturbed."""

    name: str
    begins: str
    """The scenario whose end it begins at; ``logs``: nothing but raw logs, a config and an empty tracking store."""
    arguments: tuple[str, ...]
    program: str = "recmtl"
    said: int = 0
    """The exit code of the undisturbed command."""


_PREDICT = (
    "tests.chaos.world:predict_in_parts",
    "predict",
    "--model",
    "runs/shop/package",
    "--input",
    "logs/impressions-*.csv",
    "--output",
    "predictions",
)
_BEST = ("--top-k", "2", "--by", "user", "--score", "click")
SCENARIOS = {
    each.name: each
    for each in (
        Scenario("prepare", "logs", ("prepare", "shop.yaml")),
        Scenario("train", "prepare", ("train", "shop.yaml")),
        Scenario("evaluate", "train", ("evaluate", "shop.yaml")),
        Scenario("register", "evaluate", ("run", "shop.yaml")),
        Scenario("run", "logs", ("run", "shop.yaml")),
        Scenario("promote", "register", ("promote", MODEL, "--tracking-uri", STORE, "--override", "the first one")),
        Scenario("predict", "train", _PREDICT, program="call"),
        Scenario("predict-fused", "fuse", _PREDICT, program="call"),
        Scenario("predict-again", "predict", (*_PREDICT, "--overwrite", *_BEST), program="call"),
        Scenario("fuse", "train", ("fuse", "shop.yaml", "--trials", "3", "--objective", "click", "--objective", "buy")),
        Scenario(
            "export",
            "train",
            ("export", "--model", "runs/shop/package", "--format", "int8", "--output", "small", "--data", "prepared"),
        ),
        Scenario(
            "evaluate-package",
            "train",
            (
                "evaluate",
                "--model",
                "runs/shop/package",
                "--data",
                "prepared",
                "--output",
                "judged",
                "--champion",
                "none",
            ),
        ),
        Scenario(
            "predict-formats",
            "train",
            ("predict", "--model", "runs/shop/package", "--input", "more/*", "--output", "predictions"),
        ),
        Scenario(
            "predict-registered",
            "register",
            (
                "predict",
                "--model",
                f"models:/{MODEL}@challenger",
                "--tracking-uri",
                STORE,
                "--input",
                "logs/impressions-2026-03-02.csv",
                "--output",
                "predictions",
            ),
        ),
        Scenario("daily", "first-day", ("daily.yaml", "--date", "2026-03-06"), program="daily"),
        Scenario("first-day", "logs", ("daily.yaml", "--date", "2026-03-05"), program="daily"),
    )
}


class World:
    """A folder in which commands are run from known beginnings.

    Args:
        place: an empty folder; ``place/shop`` is the working directory of every command.
        zygote: what runs them.
    """

    def __init__(self, place: Path, zygote: Zygote) -> None:
        self.place, self.zygote = place, zygote
        self.root = place / "shop"
        self.kept = place / "kept"
        self.kept.mkdir(parents=True)
        self.root.mkdir()
        write_logs(self.root / "logs")
        write_formats(self.root)
        (self.root / "shop.yaml").write_text(yaml.safe_dump(config(), sort_keys=False))
        (self.root / "daily.yaml").write_text(yaml.safe_dump(daily_config(), sort_keys=False))
        (self.root / "store").mkdir()
        done = zygote.run(["tests.chaos.world:make_store"], self.root, program="call")
        if done.code:
            raise RuntimeError(done.err)
        self.keep("logs")

    def begin(self, scenario: Scenario) -> None:
        """Put back the folder that a scenario begins at."""
        self.put(scenario.begins)

    def put(self, state: str) -> None:
        """Put back a scenario's end."""
        kept = self.end(state)
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(kept, self.root, symlinks=True)

    def end(self, state: str) -> Path:
        """A copy of the folder as the undisturbed scenario leaves it; not to be changed."""
        kept = self.kept / state
        if not kept.exists():
            scenario = SCENARIOS[state]
            self.begin(scenario)
            done = self.run(scenario)
            if done.code != scenario.said:
                raise RuntimeError(f"{state}: exit code {done.code}\n{done.out}\n{done.err}")
            self.keep(state)
        return kept

    def run(self, scenario: Scenario, **options: Any) -> Done:
        """Run its command."""
        return self.zygote.run(list(scenario.arguments), self.root, program=scenario.program, **options)

    def keep(self, state: str) -> None:
        """Keep the folder as it is now under a name."""
        shutil.copytree(self.root, self.kept / state, symlinks=True)


def make_store() -> None:
    """Make an empty tracking store: its tables take seconds and thousands of writes, which are MLflow's."""
    from mlflow.tracking import MlflowClient

    MlflowClient(STORE).search_experiments()


def predict_in_parts(*arguments: str) -> None:
    """The command line, with parts of a few rows: the option is one of Python's alone."""
    from recmtl.cli import main
    from recmtl.scoring.files import predict_files

    assert predict_files.__kwdefaults__ is not None
    predict_files.__kwdefaults__["rows_per_part"] = 150
    main(arguments)


def write_logs(folder: Path, days: int = 7, per_day: int = 120) -> None:
    """Views, clicks and orders of a shop where some items are liked; a file per log and day, a few rows of it bad."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(days):
        day = (_START + timedelta(days=number)).date()
        shown, clicks, orders = [], [], []
        for second in np.sort(draw.uniform(0, 86_400, per_day)):
            at = _START + timedelta(days=number, seconds=second)
            user, item = draw.integers(20), draw.integers(8)
            shown.append(f"{at.isoformat()},u{user},i{item},{draw.uniform(1, 9):.3f}")
            if draw.random() < 0.15 + 0.08 * item:
                click = at + timedelta(seconds=30)
                clicks.append(f"{click.isoformat()},u{user},i{item}")
                if draw.random() < 0.5:
                    orders.append(f"{(click + timedelta(hours=1)).isoformat()},u{user},i{item}")
        shown.append("no time,u1,i1,1.0")
        for log, more, lines in (("impressions", ",price", shown), ("clicks", "", clicks), ("orders", "", orders)):
            (folder / f"{log}-{day}.csv").write_text("\n".join([f"time,user_id,item_id{more}", *lines, ""]))


def write_formats(root: Path) -> None:
    """Rows to score in other formats, in ``more``: Parquet and compressed CSV."""
    import gzip

    import pyarrow.csv
    import pyarrow.parquet

    (root / "more").mkdir()
    log = root / "logs" / "impressions-2026-03-02.csv"
    (root / "more" / "rows.csv.gz").write_bytes(gzip.compress(log.read_bytes(), mtime=0))
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(log), root / "more" / "rows.parquet")


def config() -> dict[str, Any]:
    """The shop's config: everything small, nothing that takes time for itself."""
    return {
        "name": "shop",
        "data": {"source": _source("*"), "prepared": "prepared", "split": {"by": "time"}},
        "features": [
            {"name": "user_id", "kind": "id", "embedding_dim": 4},
            {"name": "item_id", "kind": "id", "embedding_dim": 4},
            {"name": "price", "kind": "number"},
        ],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "click"},
            {"name": "buy", "kind": "binary", "label": "buy", "parent": "click"},
        ],
        "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
        "training": {
            "epochs": 2,
            "batch_size": 64,
            "device": "cpu",
            "log_every": 2,
            "checkpoint": {"every_steps": 4},
        },
        "evaluation": {
            "slices": None,
            "ranking": None,
            "drift": None,
            "gates": {"enabled": False},
            "importance": {"enabled": False},
            "intervals": {"draws": 10},
        },
        "tracking": {"uri": STORE, "experiment": "shop", "system_metrics_seconds": 0},
        "registry": {"model": MODEL, "alias": "challenger"},
    }


def daily_config() -> dict[str, Any]:
    """The same shop, every day."""
    # The pipeline is under test, not the model, which has seen too little to be good.
    gate = {
        "compare": [{"metric": "click.auc", "permitted_loss": 1.0}],
        "at_least_one_better": "no",
        "baseline": False,
        "package": None,
    }
    changed = config()
    changed |= {
        "data": {"source": _source("{date}")},
        "daily": {"history": 4, "holdout": 0.2, "store": "days"},
        "registry": {"model": MODEL, "gate": gate},
    }
    changed["evaluation"] |= {"calibration": None}
    return changed


def _source(date: str) -> dict[str, Any]:
    return {
        "kind": "event_log",
        "impressions": {"path": f"logs/impressions-{date}.csv"},
        "events": {
            "click": {"path": f"logs/clicks-{date}.csv"},
            "buy": {"path": f"logs/orders-{date}.csv", "window": "2h"},
        },
    }
