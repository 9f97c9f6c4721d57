"""A package on data of other tasks than its own: what both have in common is judged, and nothing else is read."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recmtl
from recmtl.config import parse_config
from recmtl.errors import UserError
from recmtl.evaluation import score
from recmtl.manifest import Manifest
from recmtl.model import build_model
from recmtl.package import Package, common_tasks, load_package, save_package
from recmtl.statistics import Statistics

TASKS = [
    {"name": "click", "kind": "binary", "label": "click"},
    {"name": "buy", "kind": "binary", "label": "buy", "parent": "click"},
    {"name": "stars", "kind": "ordinal", "label": "stars", "levels": [1, 2, 3]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows beside an untrained package of the same tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    draw, rows = np.random.default_rng(0), 600
    click = draw.integers(0, 2, rows)
    pl.DataFrame(
        {
            "user_id": draw.integers(0, 20, rows),
            "item_id": draw.integers(0, 9, rows),
            "time": np.arange(rows) * 60 + 1_700_000_000,
            "click": click,
            "buy": click * draw.integers(0, 2, rows),
            "stars": draw.integers(1, 4, rows),
        }
    ).write_parquet(folder / "rows.parquet")
    config = parse_config(
        {
            "name": "tasks",
            "data": {
                "source": {"kind": "table", "path": str(folder / "rows.parquet")},
                "prepared": str(folder / "prepared"),
            },
            "features": [{"name": "item_id", "kind": "id", "embedding_dim": 4}],
            "tasks": TASKS,
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
        }
    )
    prepared = recmtl.prepare(config)
    manifest, statistics = prepared.manifest, Statistics.load(prepared.folder / "statistics")
    save_package(
        folder / "package",
        build_model(config.model, manifest.schema_, manifest.tasks_, statistics, seed=0),
        schema=manifest.schema_,
        tasks=manifest.tasks_,
        statistics=statistics,
        columns=manifest.columns,
        config=config.resolved(),
        data=manifest.fingerprint,
    )
    return folder


@pytest.fixture
def package(data: Path) -> Package:
    return load_package(data / "package")


def changed(data: Path, **tasks: dict[str, object] | None) -> Manifest:
    """The data's manifest with some tasks changed, or taken out (None)."""
    manifest = Manifest.read_from(data / "prepared")
    plain = manifest.model_dump(mode="json")
    plain["tasks"] = [
        {**task, **(tasks.get(task["name"]) or {})}
        for task in plain["tasks"]
        if tasks.get(task["name"], {}) is not None
    ]
    if "opened" in str(tasks):
        plain["tasks"].append({"name": "opened", "kind": "binary", "label": "opened"})
    return Manifest.model_validate(plain)


def test_with_the_same_tasks_all_are_common(data: Path, package: Package) -> None:
    assert common_tasks(package, changed(data)) == (("click", "buy", "stars"), ())


def test_a_task_that_was_removed(data: Path, package: Package) -> None:
    manifest = changed(data, stars=None)
    names, said = common_tasks(package, manifest)
    assert names == ("click", "buy")
    assert said == ("these data have no labels for task 'stars', which the model predicts",)
    with pytest.raises(UserError, match="no labels for task 'stars'"):
        package.loader(data / "prepared", manifest, "test")
    scored = score(package.model, package.loader(data / "prepared", manifest, "test", tasks=names))
    assert list(scored.labels) == ["click", "buy"]
    assert "stars" in scored.predictions
    whole = score(package.model, package.loader(data / "prepared", changed(data), "test"))
    for name in names:
        np.testing.assert_array_equal(scored.labels[name], whole.labels[name])
        np.testing.assert_array_equal(scored.observed[name], whole.observed[name])
    for name, values in whole.predictions.items():
        np.testing.assert_array_equal(scored.predictions[name], values)


def test_a_task_that_was_redefined(data: Path, package: Package) -> None:
    manifest = changed(data, stars={"levels": [1, 2, 3, 4]})
    names, said = common_tasks(package, manifest)
    assert names == ("click", "buy")
    assert said == ("tasks.stars: `levels` is (1.0, 2.0, 3.0) in the model but (1.0, 2.0, 3.0, 4.0) in these data",)
    with pytest.raises(UserError, match="`levels` is"):
        package.loader(data / "prepared", manifest, "test", tasks=["click", "stars"])
    loader = package.loader(data / "prepared", manifest, "test", tasks=names)
    assert "stars" not in next(loader.epoch(0)).labels


def test_a_new_task_of_the_data_is_not_the_models(data: Path, package: Package) -> None:
    manifest = Manifest.read_from(data / "prepared")
    task = manifest.tasks[-1].model_copy(update={"name": "rating"})
    names, said = common_tasks(package, manifest.model_copy(update={"tasks": (*manifest.tasks, task)}))
    assert names == ("click", "buy", "stars")
    assert said == ("the model does not predict task 'rating', for which these data have labels",)


def test_what_depends_on_a_task_that_is_another_is_another(data: Path, package: Package) -> None:
    manifest = changed(data, click={"observed": {"when": "opened"}})
    names, said = common_tasks(package, manifest)
    assert names == ("stars",)
    assert said[0].startswith("tasks.click: `observed` is None in the model but ")
    assert said[1] == "tasks.buy: 'click', on which it depends, is another in the model than in these data"


def test_a_task_brings_what_it_depends_on(data: Path, package: Package) -> None:
    loader = package.loader(data / "prepared", changed(data), "test", tasks=["buy"])
    assert list(loader.tasks) == ["click", "buy"]


def test_nothing_in_common(data: Path, package: Package) -> None:
    manifest = changed(data, click=None, buy=None, stars={"kind": "regression", "levels": None})
    names, _ = common_tasks(package, manifest)
    assert names == ()
    with pytest.raises(UserError, match=r"have no task in common \(.*no labels for task 'click'.*`kind` is 'ordinal'"):
        package.loader(data / "prepared", manifest, "test", tasks=names)
    with pytest.raises(UserError, match="no labels for task 'sold'"):
        package.loader(data / "prepared", manifest, "test", tasks=["sold"])
