"""Folders may have any name: logs, prepared rows, runs and predictions are found by it, never taken for a pattern."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recmtl import stages
from recmtl.config import parse_config

ODD = "a [v2]*?{b} 50%20#ü"


def test_a_run_in_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 40, 1500), generator.integers(0, 30, 1500)
    rows = pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "price": generator.normal(size=1500),
            "click": (generator.random(1500) < 0.2 + 0.6 * (items % 2)).astype(int),
        }
    )
    logs = Path(f"logs {ODD}")
    for day, part in enumerate(rows.iter_slices(500), 1):
        folder = logs / f"dt=2024-01-0{day}"
        folder.mkdir(parents=True)
        part.write_csv(folder / "rows.csv")
        (folder / "_SUCCESS").touch()
    place, store = Path(f"out {ODD}"), f"sqlite:///{tmp_path}/store/x.db"
    config = parse_config(
        {
            "name": "odd",
            "output": str(place / "run"),
            "data": {"source": {"kind": "table", "path": f"{logs}/**/*"}, "prepared": str(place / "prepared")},
            "features": [
                {"name": "user_id", "kind": "id"},
                {"name": "item_id", "kind": "id"},
                {"name": "dt", "kind": "id"},
            ],
            "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
            "training": {"epochs": 1, "batch_size": 128, "device": "cpu"},
            "evaluation": {"intervals": {"draws": 100}},
            "tracking": {"uri": store, "system_metrics_seconds": 0},
            "registry": {"model": "odd"},
        }
    )
    result = stages.run(config)
    assert result.report is not None
    stages.predict(config)
    own = pl.read_parquet(place / "run" / "predictions" / "part-00000.parquet", glob=False)
    test_rows = place / "prepared" / "raw" / "test" / "*.parquet"
    stages.predict(model="models:/odd/1", inputs=[str(test_rows)], output=place / "again", tracking_uri=store)
    again = pl.read_parquet(place / "again" / "part-00000.parquet", glob=False)
    assert len(own) > 100
    assert again["click"].to_list() == own["click"].to_list()
    stages.predict(config, inputs=[f"{logs}/dt=2024-01-02/*.csv"], output=place / "a day")
    assert len(pl.read_parquet(place / "a day" / "part-00000.parquet", glob=False)) == 500
