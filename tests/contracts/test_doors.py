"""A row means the same at every door: every type of column × every way in gives one prediction, or is refused.

The expected prediction is the evaluation's, from the prepared rows. A door that cannot carry a type (pandas reads 00017
as a number) refuses the rows or counts the values; it never scores something else.
"""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from recmtl.answering import answer, predictions
from recmtl.errors import UserError
from recmtl.etl.encode import Encoder
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.loading import to_batch
from recmtl.model import ModelConfig, build_model
from recmtl.package import Package, load_package, save_package
from recmtl.progress import Silent
from recmtl.reading import Unread
from recmtl.schema import Feature, Schema
from recmtl.scoring import predict_files
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

ROWS = 400
TEST = 60
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
TASKS = Tasks([Task(name="click", kind="binary", label="click")])


def _base() -> dict[str, list[Any]]:
    rng = np.random.default_rng(5)
    user = rng.integers(0, 30, ROWS)
    return {
        "user_id": [2**60 + int(u) for u in user],
        "zeros": [f"{u:05d}" for u in user],
        "code": [f"{u}" if u % 7 else f"x{u}" for u in user],
        "plain": ["Zürich" if u % 3 else "Genève" for u in user],
        "count": [int(u) if u % 5 else None for u in user],
        "whole_id": [int(u) if u % 4 else None for u in user],
        "price": [round(1234.5 * float(u) + 0.25, 2) if u % 6 else None for u in user],
        "flag": [bool(u % 2) for u in user],
        "click": rng.integers(0, 2, ROWS).tolist(),
    }


def _times() -> list[datetime]:
    return [BEGIN + timedelta(minutes=7 * row, milliseconds=row) for row in range(ROWS)]


# Two kinds of training logs: text as a European export writes it, and typed columns.


def _csv(folder: Path) -> tuple[DataConfig, list[Feature], str]:
    base = _base()
    frame = pl.DataFrame(base)
    price = [None if p is None else f"{p:,.2f}".translate(str.maketrans(",.", ".,")) for p in base["price"]]
    frame = frame.with_columns(
        price=pl.Series(price),
        plain=pl.Series(["unknown" if row % 9 == 0 else p for row, p in enumerate(base["plain"])]),
        time=pl.Series([int(t.timestamp() * 1000) for t in _times()]),
        tags=pl.Series([f"0{row % 4}|{row % 3}" for row in range(ROWS)]),
        json_tags=pl.Series([json.dumps([row % 4, row % 3]) for row in range(ROWS)]),
    )
    folder.mkdir()
    path = folder / "rows.csv"
    text = frame.write_csv(separator=";")
    path.write_bytes(text.encode("cp1252"))
    header, *lines = text.splitlines()
    (folder / "test.csv").write_bytes("\n".join([header, *lines[-TEST:], ""]).encode("cp1252"))
    source = {
        "kind": "table",
        "path": str(path),
        "item": None,
        "separator": ";",
        "encoding": "cp1252",
        "decimal": ",",
        "thousands": ".",
        "missing": ["", "unknown"],
        "timezone": "Asia/Tokyo",
    }
    features = [
        {"name": "user_id", "kind": "id"},
        {"name": "zeros", "kind": "id"},
        {"name": "hashed_zeros", "kind": "id", "column": "zeros", "hash_buckets": 64},
        {"name": "code", "kind": "id"},
        {"name": "plain", "kind": "id"},
        {"name": "count", "kind": "number"},
        {"name": "whole_id", "kind": "id"},
        {"name": "price", "kind": "number", "transform": "log1p"},
        {"name": "flag", "kind": "number"},
        {"name": "flag_id", "kind": "id", "column": "flag"},
        {"name": "hour", "kind": "number", "column": "time"},
        {"name": "tags", "kind": "bag", "separator": "|"},
        {"name": "json_tags", "kind": "bag"},
    ]
    config = DataConfig.model_validate({"source": source, "split": {"by": "time"}, "prepared": folder / "prepared"})
    return config, [Feature.model_validate(one) for one in features], "csv"


def _typed() -> pl.DataFrame:
    base = _base()
    user = [u - 2**60 for u in base["user_id"]]
    return pl.DataFrame(
        {
            **base,
            "time": _times(),
            "published": [datetime(2020, 1, 1) + timedelta(hours=13 * u) for u in user],
            "day": [date(2020, 1, 1) + timedelta(days=u) for u in user],
            "small": pl.Series([0.1 * u for u in user], dtype=pl.Float32),
            "unsigned": pl.Series([2**63 + u for u in user], dtype=pl.UInt64),
            "campaign": pl.Series([Decimal(10**18 + u) for u in user], dtype=pl.Decimal(38, 0)),
            "tariff": pl.Series([Decimal(u) / 4 for u in user], dtype=pl.Decimal(38, 2)),
            "ratio": [u / 8 for u in user],
            "device": pl.Series([bytes([u, 255]) for u in user], dtype=pl.Binary),
            "channel": pl.Series(["app" if u % 2 else "web" for u in user], dtype=pl.Categorical),
            "tier": pl.Series(["gold" if u % 3 else "tin" for u in user], dtype=pl.Enum(["tin", "gold"])),
            "seen": [[u % 5, 2**60 + u % 3] for u in user],
            "words": [["007" if u % 2 else "a", "b"] for u in user],
            "content": [[u / 2, 1.0, -0.5] for u in user],
        }
    )


def _parquet(folder: Path) -> tuple[DataConfig, list[Feature], str]:
    folder.mkdir()
    frame = _typed()
    frame.write_parquet(folder / "rows.parquet")
    frame.tail(TEST).write_parquet(folder / "test.parquet")
    features: list[dict[str, Any]] = [
        {"name": name, "kind": "id"}
        for name in [
            "user_id",
            "zeros",
            "code",
            "plain",
            "whole_id",
            "unsigned",
            "campaign",
            "tariff",
            "ratio",
            "device",
            "channel",
            "tier",
            "day",
            "published",
            "flag",
        ]
    ]
    features += [
        {"name": f"{name}_n", "kind": "number", "column": name}
        for name in ("count", "price", "flag", "time", "published", "day", "small", "tariff", "ratio")
    ]
    features += [
        {"name": "seen", "kind": "bag"},
        {"name": "words", "kind": "bag"},
        {"name": "content", "kind": "vector", "dim": 3},
    ]
    source = {"kind": "table", "path": str(folder / "rows.parquet"), "item": None}
    config = DataConfig.model_validate({"source": source, "split": {"by": "time"}, "prepared": folder / "prepared"})
    return config, [Feature.model_validate(one) for one in features], "parquet"


class Trained:
    """A prepared log, and for each of its features a package that reads it alone."""

    def __init__(self, made: tuple[DataConfig, list[Feature], str], folder: Path) -> None:
        config, self.features, self.kind = made
        self.folder = folder
        self.prepared: Prepared = prepare(config, self.features, list(TASKS.values()), name="doors", progress=Silent())
        self.statistics = Statistics.load(self.prepared.folder / "statistics")
        raw = sorted((self.prepared.folder / "raw" / "test").glob("*.parquet"))
        self.rows = pl.concat([pl.read_parquet(path) for path in raw]).tail(TEST)
        self._packages: dict[str, Package] = {}

    def package(self, name: str) -> Package:
        if name not in self._packages:
            feature = next(one for one in self.features if one.name == name)
            schema = Schema([feature])
            config = {"name": "doors", "model": ModelConfig(tower={"kind": "shared_bottom"}).model_dump(mode="json")}
            rows = to_batch(Encoder(schema, self.statistics).rows(self.rows), schema, None)
            for seed in range(20):  # until one looks at the feature: all hidden units of a small model may be at 0
                model = build_model(ModelConfig.model_validate(config["model"]), schema, TASKS, self.statistics, seed=1)
                noise = torch.Generator().manual_seed(seed)
                for tensor in model.tensors().values():
                    if tensor.is_floating_point():
                        tensor.add_(torch.randn(tensor.shape, generator=noise) * 0.08)
                with torch.inference_mode():
                    if len(model.eval().predictions(model(rows))["click"].unique()) > 1:
                        break
            place = self.folder / "packages" / name
            statistics = Statistics(
                tables={t: v for t, v in self.statistics.tables.items() if t in schema.tables},
                numbers={n: v for n, v in self.statistics.numbers.items() if n in schema},
                labels=self.statistics.labels,
                columns=self.statistics.columns,
                train_rows=self.statistics.train_rows,
                reading=self.statistics.reading,
            )
            save_package(
                place,
                model,
                schema=schema,
                tasks=TASKS,
                statistics=statistics,
                columns=self.prepared.manifest.columns,
                config=config,
                data="0" * 64,
            )
            self._packages[name] = load_package(place)
        return self._packages[name]

    def expected(self, name: str) -> np.ndarray:
        """What the evaluation gives: the rows as the ETL left them, encoded as training encodes them."""
        package = self.package(name)
        rows = Encoder(package.schema, package.statistics).rows(self.rows)
        with torch.inference_mode():
            found = package.model.predictions(package.model(to_batch(rows, package.schema, None)))
        return found["click"].float().numpy()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    place = tmp_path_factory.mktemp("doors")
    return {
        "csv": Trained(_csv(place / "csv"), place / "csv"),
        "parquet": Trained(_parquet(place / "parquet"), place / "parquet"),
    }


# The doors: a trained log and a feature in, predictions of the same test rows out.

Door = Callable[[Trained, str], np.ndarray]


def _evaluate(log: Trained, name: str) -> np.ndarray:
    package = log.package(name)
    loader = package.loader(log.prepared.folder, log.prepared.manifest, "test")
    with torch.inference_mode():
        found = [package.model.predictions(package.model(batch))["click"] for batch in loader.epoch(0)]
    assert loader.unread == {}
    return torch.cat(found).float().numpy()[-TEST:]


def _files(log: Trained, name: str, path: Path) -> np.ndarray:
    class Warned(Silent):
        def warn(self, text: str) -> None:
            if "cannot be read" in text:
                raise UserError(text)

    out = path.parent / "out" / f"{path.suffix[1:]}-{name}"
    predict_files(log.package(name), str(path), out, overwrite=True, progress=Warned())
    return pl.read_parquet(out / "*.parquet")["click"].to_numpy()


def _from_csv(log: Trained, name: str) -> np.ndarray:
    path = log.folder / "test.csv"
    if log.kind == "parquet" and not path.exists():
        nested = [c for c, dtype in log.rows.schema.items() if dtype.is_nested() or dtype == pl.Binary]
        log.rows.drop(nested).write_csv(path)
    if log.kind == "parquet" and name in ("seen", "words", "content", "device"):
        raise UserError("CSV holds no lists and no bytes")
    return _files(log, name, path)


def _from_parquet(log: Trained, name: str) -> np.ndarray:
    path = log.folder / "test.parquet"
    if not path.exists():  # what a colleague makes of the CSV
        pl.read_csv(log.folder / "test.csv", separator=";", encoding="cp1252").write_parquet(path)
    return _files(log, name, path)


def _frame(log: Trained) -> pd.DataFrame:
    if log.kind == "csv":
        return pd.read_csv(log.folder / "test.csv", sep=";", encoding="cp1252")
    return pd.read_parquet(log.folder / "test.parquet")


def _pandas(log: Trained, name: str) -> np.ndarray:
    return log.package(name).predict_pandas(_frame(log))["click"].to_numpy()


def _pandas_text(log: Trained, name: str) -> np.ndarray:
    if log.kind == "parquet":
        return _pandas(log, name)
    frame = pd.read_csv(log.folder / "test.csv", sep=";", encoding="cp1252", dtype=str)
    return log.package(name).predict_pandas(frame)["click"].to_numpy()


def _polars(log: Trained, name: str) -> np.ndarray:
    if log.kind == "csv":
        frame = pl.read_csv(log.folder / "test.csv", separator=";", encoding="cp1252")
    else:
        frame = pl.read_parquet(log.folder / "test.parquet")
    return log.package(name).predict(frame)["click"].to_numpy()


def _plain(value: Any) -> Any:
    """A value as a client's JSON library writes it; times as ISO 8601."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise UserError("JSON holds no bytes")
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _records(log: Trained, name: str) -> list[dict[str, Any]]:
    """Test rows as a service has them: text of a CSV as text, typed columns as their values."""
    column = log.package(name).schema[name].column
    if log.kind == "csv":
        values: list[Any] = pd.read_csv(log.folder / "test.csv", sep=";", encoding="cp1252", dtype=str)[column].tolist()
        values = [None if value != value else value for value in values]
    else:
        values = pl.read_parquet(log.folder / "test.parquet")[column].to_list()
    return [{column: _plain(value)} for value in values]


def _request(log: Trained, name: str) -> np.ndarray:
    body = json.dumps({"dataframe_records": _records(log, name)})
    return answer(log.package(name), body, "application/json")["click"].to_numpy()


def _json_lines(log: Trained, name: str) -> np.ndarray:
    path = log.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _records(log, name)))
    return _files(log, name, path)


def _pyfunc(log: Trained, name: str) -> np.ndarray:
    """Under MLflow's enforcement of the signature that a registered version has."""
    from mlflow.models.utils import _enforce_schema
    from mlflow.types import ColSpec
    from mlflow.types import Schema as Signature
    from mlflow.types.schema import AnyType

    package = log.package(name)
    signature = Signature([ColSpec(AnyType(), column, required=False) for column in package.schema.columns])
    return predictions(package, _enforce_schema(_frame(log), signature))["click"].to_numpy()


DOORS: dict[str, Door] = {
    "evaluate": _evaluate,
    "predict CSV": _from_csv,
    "predict Parquet": _from_parquet,
    "predict JSON lines": _json_lines,
    "pandas": _pandas,
    "pandas, text": _pandas_text,
    "Polars": _polars,
    "request": _request,
    "pyfunc": _pyfunc,
}

REFUSED = {
    # A CSV that was read without the types that training saw: the zeros, and the decimal comma as a point, are gone.
    ("csv", "predict Parquet"): {"zeros", "hashed_zeros"},
    ("csv", "pandas"): {"zeros", "hashed_zeros"},
    ("csv", "Polars"): {"zeros", "hashed_zeros"},
    ("csv", "pyfunc"): {"zeros", "hashed_zeros"},
    ("parquet", "predict CSV"): {"seen", "words", "content", "device"},
    ("parquet", "request"): {"device"},
    ("parquet", "predict JSON lines"): {"device"},
}
"""What a door cannot carry, and says so."""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_type_means_the_same_at_every_door(logs: dict[str, Trained], kind: str, door: str) -> None:
    log = logs[kind]
    refused: set[str] = set()
    wrong: dict[str, float] = {}
    for feature in log.features:
        expected = log.expected(feature.name)
        assert len(np.unique(expected)) > 1, f"{feature.name}: the model does not look at it"
        try:
            found = DOORS[door](log, feature.name)
        except UserError:
            refused.add(feature.name)
            continue
        if not np.allclose(found, expected, rtol=1e-6, atol=1e-7):
            wrong[feature.name] = float(np.abs(found - expected).max())
    assert wrong == {}
    assert refused == REFUSED.get((kind, door), set())


@pytest.fixture
def unread() -> dict[str, Unread]:
    return {}


def test_what_is_refused_names_the_remedy(logs: dict[str, Trained], unread: dict[str, Unread]) -> None:
    package = logs["csv"].package("zeros")
    frame = pl.DataFrame({"zeros": [17, 4]})
    with pytest.raises(UserError, match=r"pd\.read_csv\(…, dtype=\{'zeros': str\}\)"):
        package.predict(frame)
    package.predict(frame, unread=unread)
    assert unread["zeros"].count == 2
    assert unread["zeros"].examples == ("17", "4")


def _rows(package: Package, values: Any) -> np.ndarray:
    """Predictions for a pandas column under the name that the package reads."""
    (column,) = package.schema.columns
    return package.predict_pandas(pd.DataFrame({column: values}))["click"].to_numpy()


@pytest.mark.parametrize(
    ("kind", "name", "values", "same"),
    [
        ("parquet", "whole_id", pd.Series([3, None], dtype="Int64"), [3.0, None]),
        ("parquet", "whole_id", pd.Series([3, 5], dtype="category"), [3, 5]),
        ("parquet", "whole_id", pd.Series([3, None], dtype="int64[pyarrow]"), ["3", None]),
        ("parquet", "user_id", pd.Series([2**60 + 3, None], dtype="Int64"), [str(2**60 + 3), None]),
        ("parquet", "plain", pd.Series(["Zürich", None], dtype="string[pyarrow]"), ["Zürich", None]),
        ("parquet", "plain", pd.Series(["Zürich", "Genève"], dtype="category"), ["Zürich", "Genève"]),
        ("parquet", "flag", pd.Series([True, None], dtype="boolean"), [True, None]),
        ("parquet", "price_n", pd.Series([Decimal("12.5"), None]), [12.5, None]),
        ("parquet", "price_n", pd.Series([1.5, None], dtype="Float64"), ["1.5", float("nan")]),
        ("parquet", "day", pd.Series([date(2020, 1, 4), None]), pd.Series([datetime(2020, 1, 4), None])),
        ("parquet", "seen", pd.Series([np.array([1, 2]), None]), [[1, 2], None]),
        ("parquet", "campaign", pd.Series([10**18 + 3, 10**30], dtype=object), [Decimal(10**18 + 3), Decimal(10**30)]),
        ("parquet", "unsigned", pd.Series([2**63 + 3, None], dtype=object), [str(2**63 + 3), None]),
        ("csv", "whole_id", pd.Series([3, "5", 7.0, None], dtype=object), [3, 5, 7, None]),
    ],
)
def test_pandas_has_many_types_for_one_value(
    logs: dict[str, Trained], kind: str, name: str, values: Any, same: Any
) -> None:
    package = logs[kind].package(name)
    np.testing.assert_array_equal(_rows(package, values), _rows(package, same))


@pytest.mark.parametrize(
    ("kind", "name", "values", "match"),
    [
        ("csv", "zeros", [17], "leading zeros"),
        ("csv", "zeros", pd.Series(["00017", 17], dtype=object), r"1 of 2 values.*\(17\)"),
        ("csv", "plain", [True], "training read this column as text"),
        ("csv", "plain", [datetime(2024, 1, 1)], "training read this column as text"),
        ("csv", "price", ["12.5"], "written with the decimal ','"),
        ("csv", "count", [float("inf")], "a number lies within"),
        ("csv", "flag", [2], "training read true and false"),
        ("csv", "flag", ["yes"], "training read true and false"),
        ("parquet", "user_id", [2.0**60], r"floats skip whole numbers.*dtype=\{'user_id': str\}"),
        ("parquet", "time_n", [1704067200], "does not say in which unit"),
        ("parquet", "time_n", ["yesterday"], "times are written ISO 8601"),
        ("parquet", "day_n", [datetime(2024, 1, 1, 5)], "training read dates"),
        ("parquet", "words", [[7]], "pass lists of text"),
        ("parquet", "price_n", [datetime(2024, 1, 1)], "training read numbers"),
        ("parquet", "price_n", ["cheap"], "training read numbers"),
        ("parquet", "plain", pd.period_range("2024-01", periods=1, freq="M").to_series(), "pass text, numbers"),
        ("parquet", "plain", pd.Series([1 + 2j, "a"], dtype=object), "a complex is no value of a column"),
        ("parquet", "seen", pd.Series([[1], "a"], dtype=object), "mixes lists with other values"),
    ],
)
def test_what_cannot_mean_the_trained_type_is_refused(
    logs: dict[str, Trained], kind: str, name: str, values: Any, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        _rows(logs[kind].package(name), values)
