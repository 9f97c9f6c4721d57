"""A schema with every kind of feature, and batches for it written out by hand."""

from types import SimpleNamespace

import pytest
import torch

from recmtl.batch import Batch, SparseBatch
from recmtl.schema import Feature, Schema
from recmtl.statistics import Statistics, Vocabulary

FEATURES = [
    Feature(name="user", kind="id", embedding_dim=4),
    Feature(name="age", kind="number"),
    Feature(name="item", kind="id", table="items", embedding_dim=8),
    Feature(name="history", kind="bag", table="items"),
    Feature(name="seen", kind="bag", table="items", pooling="sum"),
    Feature(name="topics", kind="weighted_bag", embedding_dim=6),
    Feature(name="text", kind="vector", dim=3),
    Feature(name="type", kind="id", hash_buckets=5, embedding_dim=4),
]
# feature -> the rows of its table in each of three examples
ROWS = {
    "user": [[2], [1], [0]],
    "item": [[2], [3], [4]],
    "history": [[2, 3, 4], [], [5]],
    "seen": [[2, 3, 4], [2], []],
    "topics": [[2, 3], [0], []],
    "type": [[6], [2], [3]],
}
WEIGHTS = {"topics": [[0.25, 0.75], [1.0], []]}


def make_batch(schema, rows, weights, dense, device="cpu"):
    keys = tuple(feature.name for feature in schema.sparse)
    size = len(dense)
    values = [value for key in keys for example in rows[key] for value in example]
    ones = {key: [[1.0] * len(example) for example in rows[key]] for key in keys}
    each = [weight for key in keys for example in weights.get(key, ones[key]) for weight in example]
    sparse = SparseBatch(
        keys,
        torch.tensor(values, dtype=torch.int64),
        torch.tensor([len(example) for key in keys for example in rows[key]], dtype=torch.int32),
        torch.tensor(each) if schema.of_kind("weighted_bag") else None,
    )
    number = torch.arange(size)
    return Batch(size, sparse, dense, {}, {}, {}, number, number).to(device)


def vocabulary(rows):
    return Vocabulary(tuple(str(value) for value in range(rows - 2)), (1,) * (rows - 2))


@pytest.fixture
def world():
    schema = Schema(FEATURES)
    return SimpleNamespace(
        schema=schema,
        statistics=Statistics({"user": vocabulary(5), "items": vocabulary(7), "topics": vocabulary(4)}, {}, {}),
        rows=ROWS,
        weights=WEIGHTS,
        dense=torch.tensor([[0.5, 0, 1, 2, 3, 0], [-50, 0, 0, 0, 0, 1], [0, 1, 4, 5, 6, 0]]),
        make_batch=make_batch,
        vocabulary=vocabulary,
    )


@pytest.fixture
def batch(world):
    return make_batch(world.schema, world.rows, world.weights, world.dense)
