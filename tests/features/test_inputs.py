"""From a batch to x_BD: pooling, order, clamping, projection."""

import pytest
import torch

from recmtl.features import Features, InputsConfig, PlainTables, initial_table, table_shapes
from recmtl.modules import generator
from recmtl.schema import Schema


def features(world, schema=None, config=None):
    schema = schema or world.schema
    shapes = table_shapes(schema, world.statistics)
    tables = PlainTables(shapes)
    for name, shape in shapes.items():
        tables.load_weights({name: initial_table(shape, std=1.0, seed=1, name=name)})
    return Features(schema, tables, config or InputsConfig(), generator=generator(1))


# columns of the output: user 4, item 8, history 8, seen 8, topics 6, type 4 | text 3 + 1 | age 1 + 1
COLUMNS = {
    "user": (0, 4),
    "item": (4, 12),
    "history": (12, 20),
    "seen": (20, 28),
    "topics": (28, 34),
    "type": (34, 38),
    "text": (38, 42),
    "age": (42, 44),
}


def part(x, name):
    return x[:, slice(*COLUMNS[name])]


def test_every_feature_stands_in_its_columns_pooled_as_it_says(world, batch):
    made = features(world)
    x, weights = made(batch), made.tables.weights()
    assert x.shape == (3, made.output_dim) == (3, 44)
    assert x.dtype == torch.float32
    assert made.learned_dim == 38
    assert {name: (columns.start, columns.stop) for name, columns in made.columns.items()} == COLUMNS
    items, topics = weights["items"], weights["topics"]
    torch.testing.assert_close(part(x, "user"), weights["user"][[2, 1, 0]])
    torch.testing.assert_close(part(x, "item"), items[[2, 3, 4]])
    torch.testing.assert_close(part(x, "history"), torch.stack([items[2:5].mean(0), torch.zeros(8), items[5]]))
    torch.testing.assert_close(part(x, "seen"), torch.stack([items[2:5].sum(0), items[2], torch.zeros(8)]))
    torch.testing.assert_close(
        part(x, "topics"), torch.stack([0.25 * topics[2] + 0.75 * topics[3], topics[0], torch.zeros(6)])
    )
    torch.testing.assert_close(part(x, "type"), weights["type"][[6, 2, 3]])
    torch.testing.assert_close(part(x, "text"), world.dense[:, 2:])


def test_numbers_are_clamped(world, batch):
    torch.testing.assert_close(part(features(world)(batch), "age"), torch.tensor([[0.5, 0], [-10.0, 0], [0, 1.0]]))
    unlimited = features(world, config=InputsConfig(number_limit=None))
    assert part(unlimited(batch), "age")[1, 0] == -50.0


@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_changed_in_one_feature_moves_its_columns_alone(world, batch, name):
    made = features(world)
    rows, dense = dict(world.rows), world.dense.clone()
    if name == "text":
        dense[:, 2:] += 1
    elif name == "age":
        dense[:, 0] += 1
    else:
        rows[name] = [[3], [3], [3]]
    weights = {} if name == "topics" else world.weights
    moved = (made(world.make_batch(world.schema, rows, weights, dense)) != made(batch)).any(0)
    begin, end = COLUMNS[name]
    assert moved[begin:end].any()
    assert not moved[:begin].any()
    assert not moved[end:].any()


def test_an_unseen_id_says_nothing(world, batch):
    assert (part(features(world)(batch), "user")[1] == 0).all()


def test_a_long_vector_is_projected(world, batch):
    made = features(world, config=InputsConfig(vector_dim=2))
    x = made(batch)
    assert made.learned_dim == 40
    assert x.shape == (3, made.output_dim) == (3, 42)
    torch.testing.assert_close(x[:, 38:40], made.projections["text"](world.dense[:, 2:]))
    x.sum().backward()
    assert made.projections["text"].weight.grad.abs().sum() > 0


def test_without_sparse_features(world):
    schema = Schema([world.schema["age"], world.schema["text"]])
    batch = world.make_batch(schema, {}, {}, world.dense)
    made = features(world, schema)
    assert made.learned_dim == 0
    torch.testing.assert_close(made(batch)[:, :4], world.dense[:, 2:])


def test_without_dense_features(world):
    schema = Schema([world.schema["user"]])
    batch = world.make_batch(schema, world.rows, {}, torch.zeros(3, 0))
    assert features(world, schema)(batch).shape == (3, 4)


def test_a_batch_of_one(world, batch):
    rows = {name: each[:1] for name, each in world.rows.items()}
    one = world.make_batch(world.schema, rows, {"topics": [[0.25, 0.75]]}, world.dense[:1])
    made = features(world)
    torch.testing.assert_close(made(one), made(batch)[:1])
