"""Slices: each against the same rows judged alone, whichever way they were gathered."""

from dataclasses import replace

import numpy as np
import pytest

from recmtl.etl.slicing import SliceColumn, SlicesConfig
from recmtl.evaluation.evaluate import examples, measure, targets
from recmtl.evaluation.influence import clustered, clustered_difference
from recmtl.evaluation.slices import slice_rows
from recmtl.evaluation.spill import Spill, pieces

CONFIG = SlicesConfig(small_rows=60, small_users=5, small_positives=4)


def columns_for(rows, seed=0):
    random = np.random.default_rng(seed)
    lopsided = np.minimum(random.geometric(0.5, rows) - 1, 3).astype(np.int32)
    some = np.where(random.random(rows) < 0.2, -1, random.integers(0, 2, rows)).astype(np.int32)
    return (
        SliceColumn("lopsided", ("a", "b", "c", "d", "(missing)"), lopsided),
        SliceColumn("some", ("x", "y"), some),
    )


def only(scored, rows):
    """The rows alone."""

    def taken(columns):
        return {name: values[rows] for name, values in columns.items()}

    return replace(
        scored,
        predictions=taken(scored.predictions),
        labels=taken(scored.labels),
        observed=taken(scored.observed),
        group=None if scored.group is None else scored.group[rows],
        row=scored.row[rows],
    )


@pytest.fixture
def systems(funnel):
    model, _ = funnel(rows=900, users=60, noise=0.3)
    champion, _ = funnel(rows=900, users=60, noise=1.5)
    return {"model": model, "champion": replace(champion, labels=model.labels, observed=model.observed)}


def defined(figure):
    return {name: value for name, value in figure.model_dump().items() if value is not None}


def test_a_slice_is_its_rows_judged_alone(systems, tasks):
    columns = columns_for(900)
    found = slice_rows(systems, tasks, columns, CONFIG)
    assert not found.notes
    assert len(found.rows) == len(targets(tasks)) * (4 + 2)
    by_key = {target.key: target for target in targets(tasks)}
    for row in found.rows:
        (column,) = [column for column in columns if column.name == row.slice]
        target = by_key[row.target]
        there = column.codes == column.labels.index(row.value)
        mine, theirs = (examples(only(scored, there), target) for scored in systems.values())
        values = {system: measure(rows, target.task) for system, rows in zip(systems, (mine, theirs), strict=True)}
        assert row.rows == values["model"]["rows"] == len(mine)
        assert row.users == len(np.unique(mine.group))
        assert row.positives == values["model"].get("positives")
        for system, rows in zip(systems, (mine, theirs), strict=True):
            for metric, figure in row.systems[system].items():
                assert figure.value == pytest.approx(values[system][metric])
                alone = clustered(rows, metric, rows.group)
                assert defined(figure) == pytest.approx(defined(alone))
        for metric, difference in row.differences["champion"].items():
            alone = clustered_difference(mine, theirs, metric, mine.group)
            assert defined(difference) == pytest.approx(defined(alone), abs=1e-12)


def test_small_slices_are_marked_and_shown(systems, tasks):
    found = slice_rows(systems, tasks, columns_for(900), CONFIG).rows
    of_clicks = {(row.slice, row.value): row for row in found if row.target == "click"}
    assert not of_clicks["lopsided", "a"].small
    assert [row.small for row in found] == [
        row.rows < 60
        or row.users < 5
        or (row.positives is not None and min(row.positives, row.rows - row.positives) < 4)
        for row in found
    ]
    assert any(row.small for row in found)
    assert all(row.systems["model"] for row in found)


def test_few_users_positives_or_negatives_make_a_slice_small(systems, tasks):
    model = systems["model"]
    column = SliceColumn("half", ("one", "two"), (np.arange(900) % 2).astype(np.int32))

    def smalls(scored, **config):
        rows = slice_rows({"model": scored}, tasks, (column,), SlicesConfig(small_rows=1, **config)).rows
        return [row.small for row in rows if row.target == "click"]

    assert smalls(model) == [False, False]
    assert smalls(model, small_users=61) == [True, True]
    assert smalls(replace(model, group=None), small_users=61) == [False, False]
    label = {**model.labels, "click": np.where(column.codes == 0, 1, model.labels["click"]).astype(np.float32)}
    assert smalls(replace(model, labels=label)) == [True, False]


def mapped(scored, folder):
    """The same, on disk."""
    with Spill(folder) as spill:
        for role in ("predictions", "labels", "observed"):
            for name, values in getattr(scored, role).items():
                spill.append(f"{role}:{name}", values)
        spill.append("group", scored.group)

    def role(name):
        columns = getattr(scored, name)
        return {key: spill.column(f"{name}:{key}", str(values.dtype)) for key, values in columns.items()}

    return replace(
        scored,
        predictions=role("predictions"),
        labels=role("labels"),
        observed=role("observed"),
        group=spill.column("group", "int64"),
    )


def test_rows_from_files_piece_by_piece_give_the_same(systems, tasks, tmp_path, monkeypatch):
    columns = columns_for(900)
    expected = slice_rows(systems, tasks, columns, CONFIG)
    on_disk = {name: mapped(scored, tmp_path / name) for name, scored in systems.items()}
    monkeypatch.setattr("recmtl.evaluation.slices.pieces", lambda rows: pieces(rows, 100))
    found = slice_rows(on_disk, tasks, columns, CONFIG, memory_rows=500, folder=tmp_path)
    assert not found.notes
    assert len(found.rows) == len(expected.rows)
    for one, other in zip(found.rows, expected.rows, strict=True):
        fields = {"systems", "differences"}
        assert one.model_dump(exclude=fields) == other.model_dump(exclude=fields)
        for a, b in [(one.systems, other.systems), (one.differences, other.differences)]:
            for system in b:
                for metric, figure in b[system].items():
                    assert defined(a[system][metric]) == pytest.approx(defined(figure), abs=1e-12)


def test_a_slice_beyond_memory_is_judged_on_whole_users_and_says_so(systems, tasks):
    columns = columns_for(900)[:1]
    whole = {(row.value, row.target): row for row in slice_rows(systems, tasks, columns, CONFIG).rows}
    found = slice_rows(systems, tasks, columns, CONFIG.model_copy(update={"sample_rows": 200}), memory_rows=500)
    assert any(note.startswith("Slice lopsided = a, click: judged on ") for note in found.notes)
    for row in found.rows:
        same = whole[row.value, row.target]
        assert (row.rows, row.users, row.positives, row.small) == (same.rows, same.users, same.positives, same.small)
        if row.rows <= 200:
            assert defined(row.systems["model"]["log_loss" if "log_loss" in row.systems["model"] else "mae"])
    sampled, exact = next(row for row in found.rows if row.target == "click"), whole["a", "click"]
    figure, reference = sampled.systems["model"]["auc"], exact.systems["model"]["auc"]
    assert figure.value != reference.value
    assert abs(figure.value - reference.value) < 0.15
    assert figure.high - figure.low > reference.high - reference.low


def test_a_system_without_a_task_is_left_out_there(systems, tasks):
    champion = systems["champion"]
    fewer = {name: values for name, values in champion.predictions.items() if name != "stars"}
    found = slice_rows({**systems, "champion": replace(champion, predictions=fewer)}, tasks, columns_for(900), CONFIG)
    assert {tuple(row.systems) for row in found.rows if row.target == "stars"} == {("model",)}
    assert {tuple(row.systems) for row in found.rows if row.target == "click"} == {("model", "champion")}


def test_a_target_without_rows_in_a_slice_has_a_line(systems, tasks):
    model = systems["model"]
    column = SliceColumn("half", ("one", "two"), (np.arange(900) >= 450).astype(np.int32))
    observed = {**model.observed, "click": np.arange(900) < 450}
    rows = slice_rows({"model": replace(model, observed=observed)}, tasks, (column,), CONFIG).rows
    empty = next(row for row in rows if row.target == "click" and row.value == "two")
    assert (empty.rows, empty.users, empty.positives, empty.small) == (0, 0, 0, True)
    assert all(figure.value is None for figure in empty.systems["model"].values())
