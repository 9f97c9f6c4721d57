"""A config is one YAML: unknown fields find the nearest known one, overrides reach every field, errors are one line."""

import json
import pickle
import re
import time
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from recmtl.config import RunConfig, json_schema, load_config, parse_config
from recmtl.errors import UserError
from recmtl.settings import Record, Settings

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


# YAML and JSON


def test_merge_keys_share_settings(tmp_path: Path) -> None:
    text = """
name: shop
data: {source: {kind: table, path: rows.parquet}}
features:
  - &base {name: user_id, kind: id, embedding_dim: 8}
  - &wide {<<: *base, name: item_id, embedding_dim: 32}
  - {<<: *wide, name: brand}
  - <<: [*wide, *base]
    name: shop
tasks:
  - {name: click, kind: binary, label: click}
"""
    config = load_config(written(tmp_path, text))
    dims = {feature.name: feature.embedding_dim for feature in config.explicit_features or ()}
    assert dims == {"user_id": 8, "item_id": 32, "brand": 32, "shop": 32}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_json_is_read_tabs_and_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"
    data = minimal(name="shop") | {"training": {"sparse": {"lr": 1e-3}}, "tracking": {"experiment": "Läden 😀"}}
    path.write_text(json.dumps(data, indent="\t"))
    config = load_config(path)
    assert config.training.sparse.lr == 1e-3
    assert config.tracking.experiment == "Läden 😀"
    path.write_text('{\n\t"name": "a",\n\t"tasks": [],\n\t"name": "b"\n}')
    with pytest.raises(UserError, match="line 4: the key 'name' stands twice, first on line 2"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1,\n  b: 2}\n", "line 2: the key 'b' stands twice, first on line 1"),
        ("a: &a {<<: {x: 1}, x: 2}\nb: {<<: *a,\n  <<: *a}\n", "line 3: the key '<<' stands twice"),
        ("a: 1\n? [b]\n: 2\n", "line 2: a key is a list or a mapping; a key is a name"),
        ("? {b: 1}\n: 2\n", "line 1: a key is a list or a mapping"),
        ("name: &a [1, *a]\n", r"line 1: the alias \*a stands within its own anchor"),
        ("a: &a\n  b:\n    <<: *a\n", r"line 3: the alias \*a stands within its own anchor"),
        ("name: " + "[" * 60 + "]" * 60, "line 1: this is nested more than 50 deep"),
        ("name: " + "[" * 200_000, "line 1: this is nested more than 50 deep"),
        ('{"a": ' * 100_000, "line 1: this is nested more than 50 deep"),
        ("a: 2024-13-45\n", "a value cannot be read: month must be in 1..12"),
        ("a: !!int x\n", "a value cannot be read"),
        ("a: *nope\n", "line 1: this is not YAML: found undefined alias"),
        ("a: \x00\n", "this is not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2: this is not YAML: but found another document"),
        ("# " + "x" * (1 << 20), "this file is larger than 1 MiB, which is no config"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "line 6: this holds more than 200,000 values, aliases counted every time",
        ),
    ],
    ids=range(16),
)
def test_yaml_is_bounded(tmp_path: Path, text: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_an_override_is_bounded_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set training\.epochs, line 1: this is nested more than 50 deep"):
        load_config(written(tmp_path, minimal()), ["training.epochs=" + "[" * 60])


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(minimal()), encoding="utf-8-sig")
    assert load_config(path).name == "shop"


# Numbers


def _floats(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        unions = (Union, types.UnionType)
        kinds = get_args(field.annotation) if get_origin(field.annotation) in unions else (field.annotation,)
        if float in kinds:
            found.append((*prefix, name))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _floats(kind, (*prefix, name))
    return found


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_no_float_setting_is_infinite(tmp_path: Path, value: str) -> None:
    several_kinds = {"data.source", "model.tower", "balancing"}
    places = [p for p in _floats(RunConfig) if not {p[0], ".".join(p[:2])} & several_kinds]
    assert ("training", "sparse", "lr") in places
    assert len(places) > 12
    data = minimal(training={"early_stopping": {"monitor": {"click.auc": 1.0}}}, registry={"model": "ranker"})
    path = written(tmp_path, data)
    for place in places:
        with pytest.raises(UserError, match=re.escape(".".join(place))):
            load_config(path, [f"{'.'.join(place)}={value}"])


def test_every_config_class_says_so() -> None:
    waiting, seen = [Settings], 0
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        seen += 1
        assert one.model_config["allow_inf_nan"] == issubclass(one, Record)
    assert seen > 50


@pytest.mark.parametrize("value", ["1e-3", "1E-3", "+1e-3", "0.1e-2", ".001", "1_0.0e-4"])
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, value: str) -> None:
    assert load_config(written(tmp_path, minimal()), [f"training.sparse.lr={value}"]).training.sparse.lr == 1e-3


# The environment


def test_paths_are_expanded_and_stored_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("LOGS", "/logs/$x")
    monkeypatch.setenv("MODEL", "ranker")
    data = minimal(output="~/runs/${MODEL}", training={"warm_start": "models:/${MODEL}@best"})
    data["evaluation"] = {"champion": "~/packages/${MODEL}"}
    data["data"] = {
        "source": {"kind": "table", "paths": {"train": ["${LOGS}/*.csv", "~/a.csv"], "test": "a$b$$c$${d}"}},
        "prepared": "~",
    }
    config = parse_config(data)
    source: Any = config.data.source
    assert config.output == Path("/home/ann/runs/ranker")
    assert config.data.prepared == Path("/home/ann")
    assert source.paths.train == ("/logs/$x/*.csv", "/home/ann/a.csv")
    assert source.paths.test == "a$b$c${d}"
    assert config.training.warm_start == "models:/ranker@best"
    assert config.evaluation.champion == "/home/ann/packages/ranker"
    monkeypatch.delenv("LOGS")
    again = load_config(written(tmp_path, config.to_yaml()))
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert parse_config(minimal(output="./~x")).output == Path("~x")
    assert load_config(written(tmp_path, parse_config(minimal(output="./~x")).to_yaml())).output == Path("~x")


def test_other_texts_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "changed")
    data = minimal(tracking={"experiment": "${X} ~ $$"})
    data["data"]["source"]["missing"] = ["~", "${X}"]
    config = parse_config(data)
    assert config.tracking.experiment == "${X} ~ $$"
    assert config.data.source.missing == ("~", "${X}")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "${NOPE}/x"}, r"^config: output: the environment variable NOPE is not set; set it, or write \$\$"),
        ({"tracking": {"uri": "https://u:${NOPE}@host"}}, r"tracking\.uri: the environment variable NOPE is not set"),
        ({"output": "${}/x"}, r"output: '\$\{\}/x' is no reference to the environment"),
        ({"output": "${A B}"}, "output: .* is no reference to the environment"),
        ({"output": "${A"}, "output: .* is no reference to the environment"),
        ({"output": "~no-such-user/x"}, r"output: .*no home folder of ~no-such-user; write \./~no-such-user/x"),
        (
            {"data": {"source": {"kind": "table", "path": ["a.csv", "${NOPE}.csv"]}}},
            r"data\.source\.path: the environment variable NOPE is not set",
        ),
    ],
)
def test_what_cannot_be_expanded_is_named(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        parse_config(minimal(**change))
    assert "more)" not in str(caught.value)


def test_what_the_environment_says_of_an_address_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "s3cret$$")
    monkeypatch.setenv("STORE", "postgresql://ann:hidden@db/x?sslpassword=hidden")
    config = parse_config(minimal(tracking={"uri": "postgresql://${PASSWORD}:${PASSWORD}@db/x"}))
    assert config.tracking.uri == "postgresql://s3cret$$:s3cret$$@db/x"
    assert "s3cret" not in config.to_yaml()
    assert load_config(written(tmp_path, config.to_yaml())).tracking.uri == config.tracking.uri
    plain: Any = parse_config(minimal(tracking={"uri": "postgresql://db/$x"})).tracking.uri
    referring: Any = config.tracking.uri
    assert (plain.refers, referring.refers, plain) == (False, True, "postgresql://db/$x")
    assert parse_config(minimal(tracking={"uri": "${STORE}"})).resolved()["tracking"]["uri"] == "${STORE}"
    assert pickle.loads(pickle.dumps(config)).resolved() == config.resolved()
    for uri in ("${STORE}x y", "ftp://${PASSWORD}@host"):
        monkeypatch.setenv("STORE", "nothing://ann:hidden@db")
        with pytest.raises(UserError, match=r"tracking\.uri") as caught:
            parse_config(minimal(tracking={"uri": uri}))
        assert "hidden" not in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_password_in_a_wrong_place_is_not_shown() -> None:
    for change in ({"tracking": "https://ann:s3cret@host"}, {"training": {"epochs": "https://ann:s3cret@host"}}):
        with pytest.raises(UserError) as caught:
            parse_config(minimal(**change))
        assert "s3cret" not in str(caught.value)
