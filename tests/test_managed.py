"""Managed ids from raw rows to a served prediction: what is served is what was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recmtl import stages
from recmtl.config import RunConfig, parse_config
from recmtl.loading import Loader
from recmtl.manifest import Manifest
from recmtl.model import build_model
from recmtl.package import load_package
from recmtl.schema import MISSING, UNSEEN
from recmtl.statistics import Statistics

MANAGED = {"rows": 24, "eviction": "lfu", "every": 4}


def config(folder: Path, **changes: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "managed",
        "output": str(folder / "run"),
        "data": {
            "source": {"kind": "table", "path": str(folder / "rows.parquet")},
            "prepared": str(folder / "prepared"),
            "split": {"by": "random"},
        },
        "features": [
            {"name": "item", "kind": "id", "embedding_dim": 4, "managed": MANAGED},
            {"name": "seen", "kind": "bag", "table": "item", "embedding_dim": 4, "managed": MANAGED},
            {"name": "country", "kind": "id", "embedding_dim": 4},
            {"name": "price", "kind": "number"},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
        "model": {"tower": {"kind": "shared_bottom", "widths": [16], "head_widths": [8]}},
        "training": {"epochs": 4, "batch_size": 128, "device": "cpu", "sparse": {"lr": 0.1}, "dense": {"lr": 0.01}},
        "tracking": {"enabled": False},
    }
    return parse_config(data | changes)


def write_rows(folder: Path) -> pl.DataFrame:
    """Items, most of them rare; whether one is clicked hangs on the item, for the frequent ones."""
    draw = np.random.default_rng(1)
    items = draw.zipf(1.3, 3000).clip(max=5000)
    charm = draw.random(5001) < 0.5
    frame = pl.DataFrame(
        {
            "item": [None if draw.random() < 0.05 else f"i{item}" for item in items],
            "seen": [[f"i{other}" for other in draw.zipf(1.3, draw.integers(0, 4))] for _ in items],
            "country": [f"c{value}" for value in draw.integers(0, 5, len(items))],
            "price": draw.random(len(items)),
            "click": draw.random(len(items)) < np.where(charm[items], 0.9, 0.1),
        }
    )
    frame.write_parquet(folder / "rows.parquet")
    return frame


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    folder = tmp_path_factory.mktemp("managed")
    write_rows(folder)
    run = config(folder)
    stages.train(run)
    return folder, run


def test_what_is_served_is_what_was_trained(trained: tuple[Path, RunConfig]) -> None:
    folder, run = trained
    package = load_package(folder / "run" / "package")
    raw = pl.read_parquet(folder / "prepared" / "raw" / "test" / "*.parquet")
    served = package.predict(raw)["click"].to_numpy()
    manifest = Manifest.read_from(folder / "prepared")
    loader = Loader(folder / "prepared", manifest, "test", batch_size=64, shuffle_seed=None)
    statistics = Statistics.load(folder / "prepared" / "statistics")
    model = build_model(run.model, manifest.schema_, manifest.tasks_, statistics, seed=9)
    model.load_tensors(package.model.tensors())
    model.eval()
    with torch.no_grad():
        trained_ = torch.cat([model.predictions(model(batch))["click"] for batch in loader.epoch(0)])
    assert len(served) > 300
    np.testing.assert_allclose(served, trained_.numpy(), rtol=2e-6)  # products of another batch size round apart
    encoded = package.loader(folder / "prepared", manifest, "test")  # the raw rows, as the package encodes them
    with torch.no_grad():
        anew = torch.cat([model.predictions(model(batch))["click"] for batch in encoded.epoch(0)])
    np.testing.assert_allclose(anew.numpy(), trained_.numpy(), rtol=2e-6)


def test_it_has_learned_the_frequent_items_and_shares_a_row_among_the_rest(trained: tuple[Path, RunConfig]) -> None:
    folder, _ = trained
    package = load_package(folder / "run" / "package")
    rows = package.encode(pl.DataFrame({"item": ["i1", "i2", "i4999", "never seen", None]}))
    assert rows.schema["id:item"] == pl.Int64
    assert rows.schema["bag:seen"] == pl.List(pl.Int64)
    (id_map,) = (each for _, each in package.model.features.id_maps.maps.items())
    mapped = id_map(torch.from_numpy(rows["id:item"].to_numpy().copy())).tolist()
    assert min(mapped[:2]) > UNSEEN
    assert mapped[0] != mapped[1]
    assert mapped[2:] == [UNSEEN, UNSEEN, MISSING]
    one_row = {"seen": [["i1"]] * 2, "country": ["c1"] * 2, "price": [0.5] * 2}
    strangers = package.predict(pl.DataFrame({"item": ["x", "y"], **one_row}))["click"]
    assert strangers[0] == strangers[1]
    metrics = stages.evaluate(config(folder)).metrics["test"]["click"]
    assert metrics["auc"] > 0.75, "half of the rows are of items with a row, clicked nine times in ten or one in ten"


def test_the_package_holds_the_map_and_needs_no_torchrec(trained: tuple[Path, RunConfig]) -> None:
    from safetensors.torch import load_file

    folder, _ = trained
    tensors = load_file(folder / "run" / "package" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "id_maps" in name}
    assert set(kept) == {"features.id_maps.maps.item.ids", "features.id_maps.maps.item.rows"}
    assert (kept["features.id_maps.maps.item.ids"].diff() > 0).all()
    assert sorted(kept["features.id_maps.maps.item.rows"].tolist()) == list(range(2, 26))
    assert tensors["tables.item"].shape == (26, 4)
    assert not (folder / "prepared" / "statistics" / "vocabulary" / "item.parquet").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"managed": {"rows": 0}}, "features.item.managed.rows"),
        ({"managed": MANAGED, "hash_buckets": 10}, "`managed` and `hash_buckets` exclude each other"),
        ({"managed": MANAGED, "min_count": 2}, "`min_count` belongs to a vocabulary"),
        ({"managed": {**MANAGED, "eviction": "random"}}, "features.item.managed.eviction"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, field: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, features=[{"name": "item", "kind": "id", **field}])


def test_features_of_one_table_agree_about_it(tmp_path: Path) -> None:
    features = [
        {"name": "item", "kind": "id", "managed": MANAGED},
        {"name": "seen", "kind": "bag", "table": "item"},
    ]
    with pytest.raises(ValueError, match="both must state the same embedding_dim, min_count, hash_buckets and managed"):
        config(tmp_path, features=features)
