"""Features: what the model sees of a row. In: a few lines of config. Out: frozen :class:`Feature` objects and tables.

Missing values: an id that is missing is row 0 of its table; an id never seen in training (or rarer than
``min_count``) is row 1; the two are kept apart. A missing bag is ``[0]``, an empty one ``[]``. A missing number is the
training mean (0 after standardising) beside an indicator of 1. A missing vector is zeros beside an indicator of 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.settings import Name, Settings

__all__ = ["MISSING", "UNSEEN", "Eviction", "Feature", "FeatureKind", "Managed", "Schema", "Table"]

FeatureKind = Literal["id", "bag", "weighted_bag", "number", "vector"]
Eviction = Literal["lru", "lfu", "distance_lfu"]

MISSING = 0
"""Row of every embedding table that stands for a missing id."""
UNSEEN = 1
"""Row of every embedding table that stands for an id not kept in training (with hashing: never used)."""


class Managed(Settings):
    """A table of bounded size for ids without bound: while training, the most useful ids get rows of their own, and
    lose them again. No vocabulary is kept; the ids are hashed to 63 bits."""

    rows: int = Field(ge=1)
    """How many ids can have a row at a time."""
    eviction: Eviction = "distance_lfu"
    """Which ids keep their rows: those seen last (lru), most often (lfu), or most often for how long ago it was
    (distance_lfu: count over steps since the last time)."""
    every: int = Field(default=100, ge=1)
    """Steps between two decisions; until the first one all ids share the row of unseen ones. A decision looks at
    every row."""


class Feature(Settings):
    """One input of the model."""

    name: Name
    """The feature's name: the key of its embedding."""
    kind: FeatureKind
    """id: one value; bag: several; weighted_bag: several with a weight each; number: a real; vector: a fixed-length
    content embedding."""
    column: str = ""
    """The source's column; by default the feature's name."""
    table: Name | None = None
    """The embedding table; features that name the same one share its rows and vocabulary. By default its own."""
    embedding_dim: int | None = Field(default=None, ge=1, le=4096)
    """Width of the embedding. Default 16; features on one table must agree."""
    min_count: int = Field(default=1, ge=1)
    """Values seen fewer times than this in training are treated as unseen."""
    hash_buckets: int | None = Field(default=None, ge=2)
    """Hash the values into this many rows and keep no vocabulary: for huge id spaces."""
    managed: Managed | None = None
    """For ids without bound: rows are given to ids, and taken from them, while training."""
    separator: str | None = Field(default=None, min_length=1)
    """bag, weighted_bag: splits a text column into values; a list column needs none."""
    weight_separator: str = Field(default=":", min_length=1)
    """weighted_bag in text: between a value and its weight, as in `action:0.7,drama:0.3`."""
    weights: str | None = None
    """weighted_bag: the column that holds the weights, aligned with the values (list or separated text)."""
    pooling: Literal["mean", "sum"] = "mean"
    """bag, weighted_bag: how a row's embeddings are pooled; for a weighted bag, the weighted mean or the weighted sum.
    Features on one table may differ."""
    max_length: int | None = Field(default=None, ge=1)
    """bag, weighted_bag: keep this many values, the first ones."""
    transform: Literal["none", "log1p", "sqrt", "rank"] = "none"
    """number: applied before standardising; log1p and sqrt keep the sign (sign(x)·log1p(|x|)); rank is the training
    quantile in [0, 1]."""
    dim: int | None = Field(default=None, ge=1, le=65536)
    """vector: its length."""

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "Feature":
        object.__setattr__(self, "column", self.column or self.name)
        if self.sparse:
            object.__setattr__(self, "table", self.table or self.name)
        allowed = {
            "table": ("id", "bag", "weighted_bag"),
            "embedding_dim": ("id", "bag", "weighted_bag"),
            "hash_buckets": ("id", "bag", "weighted_bag"),
            "managed": ("id", "bag", "weighted_bag"),
            "separator": ("bag", "weighted_bag"),
            "weights": ("weighted_bag",),
            "max_length": ("bag", "weighted_bag"),
            "dim": ("vector",),
        }
        for field, kinds in allowed.items():
            if getattr(self, field) is not None and self.kind not in kinds:
                raise ValueError(
                    f"feature {self.name}: `{field}` belongs to kind {' or '.join(kinds)}, not {self.kind}"
                )
        if self.managed is not None and self.hash_buckets is not None:
            raise ValueError(f"feature {self.name}: `managed` and `hash_buckets` exclude each other")
        if self.managed is not None and self.min_count > 1:
            raise ValueError(
                f"feature {self.name}: `min_count` belongs to a vocabulary, and `managed` keeps none; leave it out"
            )
        if self.transform != "none" and self.kind != "number":
            raise ValueError(f"feature {self.name}: `transform` belongs to kind number, not {self.kind}")
        if self.kind == "vector" and self.dim is None:
            raise ValueError(f"feature {self.name}: a vector needs `dim`, its length")
        return self

    @property
    def sparse(self) -> bool:
        """Whether the feature reads an embedding table."""
        return self.kind in ("id", "bag", "weighted_bag")

    @property
    def columns(self) -> tuple[str, ...]:
        """The source columns that the feature reads."""
        return (self.column,) if self.weights is None else (self.column, self.weights)


class Table(Settings):
    """An embedding table as the features that share it imply."""

    name: Name
    embedding_dim: int
    min_count: int
    hash_buckets: int | None
    managed: Managed | None
    features: tuple[str, ...]
    """The features that read it, in config order."""

    @property
    def stated_rows(self) -> int | None:
        """Rows, the two reserved ones included, that the config alone fixes; None where the vocabulary does."""
        bound = self.hash_buckets if self.managed is None else self.managed.rows
        return None if bound is None else bound + 2


class Schema(Mapping[str, Feature]):
    """The features of a run, in config order, checked against each other.

    Raises:
        UserError: a name twice, no feature at all, or features that share a table and disagree about it.
    """

    DEFAULT_EMBEDDING_DIM = 16

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = {feature.name: feature for feature in features}
        if not features:
            raise UserError("features: at least one feature is needed")
        if len(self._features) != len(features):
            raise UserError("features: a name is used twice")
        self.tables: dict[str, Table] = {}
        for feature in features:
            if feature.sparse:
                self._add_to_table(feature)

    def _add_to_table(self, feature: Feature) -> None:
        assert feature.table is not None
        table = self.tables.get(feature.table)
        if table is None:
            self.tables[feature.table] = Table(
                name=feature.table,
                embedding_dim=feature.embedding_dim or self.DEFAULT_EMBEDDING_DIM,
                min_count=feature.min_count,
                hash_buckets=feature.hash_buckets,
                managed=feature.managed,
                features=(feature.name,),
            )
            return
        width = feature.embedding_dim or table.embedding_dim
        asked = (width, feature.min_count, feature.hash_buckets, feature.managed)
        if asked != (table.embedding_dim, table.min_count, table.hash_buckets, table.managed):
            raise UserError(
                f"features.{feature.name}: shares table {table.name!r} with {table.features[0]!r}, so both must state "
                "the same embedding_dim, min_count, hash_buckets and managed"
            )
        self.tables[table.name] = table.model_copy(update={"features": (*table.features, feature.name)})

    def __getitem__(self, name: str) -> Feature:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def of_kind(self, *kinds: FeatureKind) -> tuple[Feature, ...]:
        """The features of these kinds, in config order."""
        return tuple(feature for feature in self._features.values() if feature.kind in kinds)

    @property
    def sparse(self) -> tuple[Feature, ...]:
        """The features that read a table, in config order."""
        return self.of_kind("id", "bag", "weighted_bag")

    @property
    def dense(self) -> tuple[Feature, ...]:
        """The features that enter as numbers, in config order."""
        return self.of_kind("number", "vector")

    @property
    def dense_width(self) -> int:
        """Columns of ``Batch.dense``: a number takes 2 (value, missing indicator), a vector ``dim`` + 1."""
        return sum(2 if feature.kind == "number" else (feature.dim or 0) + 1 for feature in self.dense)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every source column that some feature reads, once each, in config order."""
        return tuple(dict.fromkeys(column for feature in self._features.values() for column in feature.columns))
