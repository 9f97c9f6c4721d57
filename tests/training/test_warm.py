"""Warm start: the same function before the first step, whatever the vocabularies did; what changed begins anew."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recmtl.features import MakeTables, initial_table, table_shapes
from recmtl.model import Model, ModelConfig, build_model
from recmtl.package import Package, load_package, save_package
from recmtl.schema import Feature, Schema
from recmtl.statistics import NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks
from recmtl.training import SparseOptimizerConfig, make_tables
from recmtl.training.warm import WarmStarted, warm_start

SEED = 9

GROWN = {
    "user": ("9", "3", "1", "8", "2"),
    "item": ("c", "b", "a"),
    "tag": ("y", "z", "x"),
    "genre": ("q", "p"),
    "likes": ("8", "5", "7"),
}

ROWS = pl.DataFrame(
    {
        "user_id": [1, 2, 3, None, 2],
        "item_id": ["a", "b", "a", "b", None],
        "tag": ["x,y", "x", None, "y", ""],
        "genre": ["p", "q,p", "q", None, "p"],
        "likes": [[7], [8, 7], [], [8], [7, 7]],
        "price": [1.0, 50.0, None, 3.0, 0.0],
        "age": [20, 30, 40, None, 55],
        "content": [[0.1, 0.2, 0.3], [1.0, 0.0, 0.0], None, [0.0, 1.0, 0.5], [0.3, 0.3, 0.3]],
    }
)


@pytest.fixture(scope="module")
def champion(saved: Path) -> Package:
    return load_package(saved)


def vocabularies(values: dict[str, tuple[str, ...]]) -> dict[str, Vocabulary]:
    return {name: Vocabulary(one, tuple(range(len(one), 0, -1))) for name, one in values.items()}


def begun(
    champion: Package,
    tmp_path: Path,
    *,
    statistics: Statistics | None = None,
    schema: Schema | None = None,
    tasks: Tasks | None = None,
    config: dict[str, Any] | None = None,
    tables: MakeTables | None = None,
) -> tuple[Package, Model, WarmStarted]:
    """A model of grown vocabularies that begins where the champion ended, as a package and as it is."""
    schema, tasks = schema or champion.schema, tasks or champion.tasks
    statistics = statistics or replace(champion.statistics, tables=vocabularies(GROWN))
    plain = config or dict(champion.contents.model)
    parsed = ModelConfig.model_validate(plain)
    model = build_model(parsed, schema, tasks, statistics, seed=SEED, tables=tables)
    found = warm_start(model, champion, config=parsed, schema=schema, tasks=tasks, statistics=statistics, seed=SEED)
    save_package(
        tmp_path / "package",
        model,
        schema=schema,
        tasks=tasks,
        statistics=statistics,
        columns=champion.contents.columns,
        config={"name": "warm", "model": parsed.model_dump(mode="json")},
        data="1" * 64,
    )
    return load_package(tmp_path / "package"), model, found


def largest_difference(one: pl.DataFrame, other: pl.DataFrame, columns: Sequence[str]) -> float:
    return max(float((one[column] - other[column]).abs().max()) for column in columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_before_its_first_step_it_computes_what_the_champion_does(champion: Package, tmp_path: Path, kind: str) -> None:
    tables = None
    if kind == "fused":
        tables = make_tables(SparseOptimizerConfig(), torch.device("cpu"), batch_size=8)
    warm, _, found = begun(champion, tmp_path, tables=tables)
    ours, theirs = warm.predict(ROWS), champion.predict(ROWS)
    assert largest_difference(ours, theirs, theirs.columns) < 1e-6
    assert theirs["click"].n_unique() == ROWS.height  # the rows do differ
    assert (found.ids, found.new_ids, found.forgotten_ids) == (11, 5, 0)
    assert found.fresh == ()
    assert found.warnings == ()


def test_a_new_id_begins_as_in_any_model_and_differs_from_an_unseen_one(champion: Package, tmp_path: Path) -> None:
    _, model, _ = begun(champion, tmp_path)
    statistics = replace(champion.statistics, tables=vocabularies(GROWN))
    shape = table_shapes(champion.schema, statistics)["user"]
    std = ModelConfig.model_validate(dict(champion.contents.model)).inputs.embedding_std
    initial = initial_table(shape, std=std, seed=SEED, name="user")
    users = model.tensors()["tables.user"]
    new = [GROWN["user"].index(value) + 2 for value in ("9", "8")]
    torch.testing.assert_close(users[new], initial[new])
    assert (users[new] != 0).any()
    old = champion.model.tensors()["tables.user"]
    torch.testing.assert_close(users[:2], old[:2])  # missing and unseen
    torch.testing.assert_close(users[GROWN["user"].index("3") + 2], old[2 + 2])


def test_a_forgotten_id_is_counted_and_the_others_stay(champion: Package, tmp_path: Path) -> None:
    shrunk = replace(champion.statistics, tables=vocabularies({**GROWN, "user": ("3",)}))
    warm, _, found = begun(champion, tmp_path, statistics=shrunk)
    assert (found.ids, found.new_ids, found.forgotten_ids) == (9, 3, 2)
    known = ROWS.filter(pl.col("user_id") == 3)
    assert largest_difference(warm.predict(known), champion.predict(known), ["click", "stars"]) < 1e-6


def test_another_width_of_a_layer_begins_anew_by_name(champion: Package, tmp_path: Path) -> None:
    config = dict(champion.contents.model)
    config["tower"] = {**config["tower"], "head_widths": [6]}
    _, model, found = begun(champion, tmp_path, config=config)
    assert "tower.task_layers.click.layers.0.weight" in found.fresh
    assert "heads.by_task.click.linear.weight" in found.fresh
    assert "tower.experts.weights.0" not in found.fresh
    torch.testing.assert_close(
        model.tensors()["tower.experts.weights.0"], champion.model.tensors()["tower.experts.weights.0"]
    )
    assert any("tower.task_layers.click.layers.0.weight begins anew (it is 6×8, was 4×8)" in w for w in found.warnings)


def test_another_order_of_features_carries_tables_alone_though_shapes_agree(champion: Package, tmp_path: Path) -> None:
    features = list(champion.schema.values())
    features[0], features[1] = features[1], features[0]
    _, model, found = begun(champion, tmp_path, schema=Schema(features))
    assert "tower.experts.weights.0" in found.fresh
    assert not any(name.startswith("tables.") for name in found.fresh)
    assert any("the features' order differs" in warning for warning in found.warnings)
    torch.testing.assert_close(model.tensors()["tables.user"][:2], champion.model.tensors()["tables.user"][:2])


def test_a_table_of_another_width_a_new_feature_and_other_levels(champion: Package, tmp_path: Path) -> None:
    features = [
        Feature(name="user", kind="id", column="user_id", embedding_dim=8) if feature.name == "user" else feature
        for feature in champion.schema.values()
    ]
    features.append(Feature(name="slot", kind="id", embedding_dim=4))
    grown = vocabularies({**GROWN, "slot": ("1", "2")})
    _, _, found = begun(
        champion,
        tmp_path,
        schema=Schema(features),
        statistics=replace(champion.statistics, tables=grown, columns={**champion.statistics.columns, "slot": "Int64"}),
    )
    assert {"tables.user", "tables.slot"} <= set(found.fresh)
    assert "tables.item" not in found.fresh
    assert any("table 'user' begins anew (its width is 8, was 4)" in warning for warning in found.warnings)
    assert any("user, slot" in warning for warning in found.warnings)


def test_other_levels_of_a_task_are_not_overwritten(champion: Package, tmp_path: Path) -> None:
    tasks = Tasks(
        [
            Task(name="stars", kind="ordinal", label="stars", levels=(10, 20, 30)) if task.name == "stars" else task
            for task in champion.tasks.values()
        ]
    )
    _, model, found = begun(champion, tmp_path, tasks=tasks)
    assert model.tensors()["heads.by_task.stars.levels"].tolist() == [10, 20, 30]
    assert "heads.by_task.stars.linear.weight" in found.fresh
    assert "heads.by_task.click.linear.weight" not in found.fresh


def test_other_moments_are_warned_of(champion: Package, tmp_path: Path) -> None:
    numbers = {**champion.statistics.numbers, "age": NumberStatistics(4, 0, 35.0, 10.0, 10.0, 60.0)}
    moved = replace(champion.statistics, tables=vocabularies(GROWN), numbers=numbers)
    _, _, found = begun(champion, tmp_path, statistics=moved)
    assert len(found.warnings) == 1
    assert "age is standardised otherwise" in found.warnings[0]
