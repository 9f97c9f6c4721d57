"""Shared by every room's tests: a small model of every kind of feature and task, made without any training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recmtl import durable
from recmtl.manifest import Columns
from recmtl.model import Model, ModelConfig, build_model
from recmtl.package import save_package
from recmtl.reading import ColumnReading, Reading
from recmtl.schema import Feature, Schema
from recmtl.statistics import LabelStatistics, NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks


class Sample:
    """A model with all that a package of it holds."""

    def __init__(self, seed: int = 3) -> None:
        self.schema = Schema(
            [
                Feature(name="user", kind="id", column="user_id", embedding_dim=4),
                Feature(name="item", kind="id", column="item_id", embedding_dim=4),
                Feature(name="tag", kind="bag", separator=",", embedding_dim=4),
                Feature(name="genre", kind="weighted_bag", separator=",", embedding_dim=4),
                Feature(name="likes", kind="bag", embedding_dim=4),
                Feature(name="price", kind="number", transform="log1p"),
                Feature(name="age", kind="number"),
                Feature(name="content", kind="vector", dim=3),
            ]
        )
        self.tasks = Tasks(
            [
                Task(name="click", kind="binary", label="click"),
                Task(name="purchase", kind="binary", label="purchase", parent="click"),
                Task(name="watched", kind="regression", label="watched"),
                Task(name="stars", kind="ordinal", label="stars", levels=(1, 2, 3)),
                Task(name="mood", kind="multiclass", label="mood", classes=("up", "down")),
            ]
        )
        self.statistics = Statistics(
            tables={
                "user": Vocabulary(("1", "2", "3"), (3, 2, 1)),
                "item": Vocabulary(("a", "b"), (2, 1)),
                "tag": Vocabulary(("x", "y"), (2, 1)),
                "genre": Vocabulary(("p", "q"), (2, 1)),
                "likes": Vocabulary(("7", "8"), (2, 1)),
            },
            numbers={
                "price": NumberStatistics(4, 0, 1.0, 2.0, 0.0, 3.0),
                "age": NumberStatistics(4, 0, 30.0, 10.0, 10.0, 60.0),
            },
            labels={
                "click": LabelStatistics(10, 0.3, 0.4),
                "purchase": LabelStatistics(10, 0.1, 0.3),
                "watched": LabelStatistics(10, 2.0, 0.5),
                "stars": LabelStatistics(10, 2.1, 0.5, (0.2, 0.5, 0.3)),
                "mood": LabelStatistics(10, None, None, (0.6, 0.4)),
            },
            conditional_labels={"purchase": LabelStatistics(3, 0.33, 0.4)},
            columns={
                "user_id": "Int64",
                "item_id": "String",
                "tag": "String",
                "genre": "String",
                "likes": "List(Int64)",
                "price": "Float64",
                "age": "Int64",
                "content": "List(Float64)",
            },
            train_rows=10,
            reading=Reading(
                columns={
                    "user_id": ColumnReading(type="integer", identifies=True, key=True),
                    "item_id": ColumnReading(type="text", identifies=True, key=True),
                    "tag": ColumnReading(type="text", identifies=True),
                    "genre": ColumnReading(type="text", identifies=True),
                    "likes": ColumnReading(type="list", identifies=True, inner=ColumnReading(type="integer")),
                    "price": ColumnReading(type="float"),
                    "age": ColumnReading(type="integer"),
                    "content": ColumnReading(type="list", inner=ColumnReading(type="float")),
                }
            ),
        )
        self.columns = Columns(user="user_id", item="item_id", time="time")
        tower = {"kind": "mmoe", "num_experts": 2, "expert_widths": [8], "head_widths": [4]}
        self.config: dict[str, Any] = {"name": "sample", "model": ModelConfig(tower=tower).model_dump(mode="json")}  # type: ignore[arg-type]
        self.model: Model = build_model(
            ModelConfig.model_validate(self.config["model"]), self.schema, self.tasks, self.statistics, seed=seed
        )
        noise = torch.Generator().manual_seed(seed)
        for tensor in self.model.tensors().values():  # as if trained: no head that still says the base rate
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=noise) * 0.7)

    def save(self, folder: Path) -> Path:
        """Write the package."""
        save_package(
            folder,
            self.model,
            schema=self.schema,
            tasks=self.tasks,
            statistics=self.statistics,
            columns=self.columns,
            config=self.config,
            data="0" * 64,
        )
        return folder


@pytest.fixture(scope="session")
def sample() -> Sample:
    return Sample()


@pytest.fixture(scope="session")
def saved(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's package on disk; not to be changed."""
    return sample.save(tmp_path_factory.mktemp("sample") / "package")


class Killed(BaseException):
    """The process ends here, as far as a test is concerned: no `except` of ours is meant to catch it."""


class Dying(durable.Files):
    """Lets some operations through, then kills; a dead process does nothing more, so all that follow are refused.

    Args:
        at: number of the operation, from 0, that kills; None: never.
        after: whether that operation is still done.
        fail: raise this error at that operation once, and go on, instead of killing.
    """

    def __init__(self, at: int | None = None, *, after: bool = False, fail: OSError | None = None) -> None:
        self.at, self.after, self.fail = at, after, fail
        self.done: list[tuple[str, str]] = []
        """(operation, name) of each, in order."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("open", "write", "fsync", "rename", "link", "mkdir", "unlink", "rmdir"):
            return found

        def operation(*arguments: Any) -> Any:
            number = len(self.done)
            what = arguments[0]
            self.done.append((name, Path(getattr(what, "name", what)).name))
            if self.at is None or number < self.at or (self.fail is not None and number > self.at):
                return found(*arguments)
            if self.fail is not None:
                raise self.fail
            if number == self.at and self.after:
                done = found(*arguments)
                if name == "open":
                    done.close()
            raise Killed(f"at operation {number}: {name} {what}")

        return operation


@pytest.fixture
def kill_at_each(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Do something from a fresh start, killed at its first durable operation, at its second, and so on; look each time.

    The function takes ``do`` and ``look``, calls ``do`` under every kill, before and after the operation, and ``look``
    once it is dead; and returns how many operations ``do`` has. ``every``: a sample, every so many operations.
    """

    def try_all(do: Callable[[], object], look: Callable[[], object], every: int = 1) -> int:
        number = 0
        while True:
            for after in (False, True):
                dying = Dying(number, after=after)
                monkeypatch.setattr(durable, "files", dying)
                killed = False
                try:
                    do()
                except Killed:
                    killed = True
                finally:
                    monkeypatch.setattr(durable, "files", durable.Files())
                if not killed:
                    assert number > 0, "nothing durable was done"
                    return number
                look()
            number += every

    return try_all
