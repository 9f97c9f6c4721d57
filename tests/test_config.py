"""A config is one YAML: unknown fields find the nearest known one, overrides reach every field, errors are one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recmtl.config import RunConfig, json_schema, load_config, parse_config
from recmtl.errors import UserError

REPOSITORY = Path(__file__).parent.parent


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "data": {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "prepared"},
        "features": [
            {"name": "user_id", "kind": "id", "embedding_dim": 8},
            {"name": "price", "kind": "number"},
        ],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "click"},
            {"name": "purchase", "kind": "binary", "label": "purchase", "parent": "click"},
        ],
    } | changes


def written(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", sorted((REPOSITORY / "pipelines" / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_configs_that_come_along_are_good_and_read_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(written(tmp_path, config.to_yaml())) == config
    assert load_config(written(tmp_path, config.to_yaml())).fingerprint() == config.fingerprint()


def test_the_shop_of_the_readme_is_a_good_config() -> None:
    found = re.search(r"```yaml\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert found is not None
    config = parse_config(yaml.safe_load(found.group(1)))
    assert [task.name for task in config.tasks] == ["click", "purchase"]
    assert config.data.source.columns["user"] == "customer"  # type: ignore[attr-defined]


def test_defaults_fill_in_and_the_folder_follows_the_name() -> None:
    config = parse_config(minimal())
    assert config.folder == Path("runs/shop")
    assert config.training.epochs >= 1
    assert config.balancing.kind == "fixed"  # type: ignore[attr-defined]
    assert parse_config(minimal(output="elsewhere")).folder == Path("elsewhere")


def test_the_fingerprint_ignores_the_folder_and_nothing_else() -> None:
    config = parse_config(minimal())
    assert parse_config(minimal(output="elsewhere")).fingerprint() == config.fingerprint()
    assert parse_config(minimal(training={"seed": 2})).fingerprint() != config.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {}}, r"trainning: unknown field; did you mean 'training'"),
        ({"training": {"epoch": 3}}, r"training\.epoch: unknown field; did you mean 'epochs'"),
        ({"training": {"sparse": {"optimiser": "sgd"}}}, r"training\.sparse\.optimiser: .*did you mean 'optimizer'"),
        ({"training": {"epochs": "many"}}, r"training\.epochs: .*integer.*got 'many'"),
        ({"data": {"prepared": "p"}}, r"data\.source: this field is required"),
        ({"data": {"source": {"kind": "tabel"}, "prepared": "p"}}, r"data\.source\.kind: .*did you mean 'table'"),
        ({"data": {"source": {"path": "x"}, "prepared": "p"}}, r"data\.source\.kind: this field is required"),
        ({"data": {"source": {"kind": "table", "pth": "x"}, "prepared": "p"}}, r"data\.source\.pth: .*'path'"),
        ({"model": {"tower": {"kind": "mmoe", "experts": 4}}}, r"model\.tower\.experts: .*did you mean 'num_experts'"),
        ({"balancing": {"kind": "fixed", "weights": {"clik": 1.0}}}, r"balancing\.weights: .*'clik'.*'click'"),
        (
            {"training": {"early_stopping": {"monitor": {"clik.auc": 1.0}}}},
            r"early_stopping\.monitor: .*'clik'.*'click'",
        ),
        (
            {"training": {"early_stopping": {"monitor": {"click.auc": -1.0}}}},
            r"^config: training\.early_stopping\.monitor\.click\.auc: .*above 0",
        ),
        ({"tasks": []}, r"tasks: "),
        ({"features": [{"name": "v", "kind": "vector"}]}, r"a vector needs `dim`"),
        ({"features": [{"name": "user_id", "kind": "id", "embeding_dim": 8}]}, r"features\.user_id\.embeding_dim"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_config(minimal(**change))
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_the_cpu_lacks_is_refused_with_the_alternatives() -> None:
    training = {"device": "cpu", "sparse": {"optimizer": "adam"}}
    with pytest.raises(UserError, match=r"adam.*cpu.*rowwise_adagrad"):
        parse_config(minimal(training=training))


def test_overrides_reach_fields_items_by_name_and_new_sections(tmp_path: Path) -> None:
    path = written(tmp_path, minimal())
    config = load_config(
        path,
        [
            "training.epochs=2",
            "features.user_id.embedding_dim=32",
            "tasks.0.label=clicked",
            "training.early_stopping={monitor: {click.auc: 1.0}, patience: 1}",
            "registry.model=shop-ranker",
        ],
    )
    assert config.training.epochs == 2
    assert config.features[0].embedding_dim == 32  # type: ignore[union-attr]
    assert config.tasks[0].label == "clicked"
    assert config.training.early_stopping is not None
    assert config.registry is not None
    assert config.registry.model == "shop-ranker"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected a.b.c=value"),
        ("training.epochs=[", "not YAML"),
        ("features.usr_id.embedding_dim=3", "no item 'usr_id'; did you mean 'user_id'"),
        ("name.first=3", "name is a value"),
        ("training.epoch=3", "did you mean 'epochs'"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(written(tmp_path, minimal()), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"run\.yaml, line \d+: this is not YAML"),
        ("- a\n", "begins with `name:`"),
        ("", "begins with `name:`"),
        ("name: a\nname: b\n", "line 2: .*'name' stands twice"),
        ("name: !!python/object/apply:os.system [echo]\n", "not YAML"),
    ],
)
def test_what_is_no_config_says_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read this config"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_json_schema_knows_every_source_tower_and_balancer() -> None:
    from recmtl.balancing import BALANCERS
    from recmtl.etl.sources import SOURCES
    from recmtl.towers import TOWERS

    schema = json_schema()
    kinds = {
        definition["properties"]["kind"]["const"]
        for definition in schema["$defs"].values()
        if "const" in definition.get("properties", {}).get("kind", {})
    }
    assert {*SOURCES, *TOWERS, *BALANCERS} <= kinds
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    json.dumps(schema)
