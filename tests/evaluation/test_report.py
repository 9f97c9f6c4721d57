"""The report says what was measured, on what, beside what."""

import re

import pytest

from recmtl.evaluation import evaluation_record, summary_table, write_report
from recmtl.manifest import Columns, Manifest, SplitSummary, TaskSummary
from recmtl.schema import Feature


@pytest.fixture
def manifest(tasks) -> Manifest:
    labels = {name: TaskSummary(observed=480, mean=0.25, masked={"immature": 1200}) for name in tasks}
    split = SplitSummary(rows=600, shards=(), tasks=labels, time_range=("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"))
    return Manifest(
        name="shop",
        source="event_log",
        fingerprint="0123456789abcdef" * 4,
        statistics="",
        features=(Feature(name="item", kind="id"),),
        tasks=tuple(tasks.values()),
        columns=Columns(user="who"),
        splits={"train": split, "validation": split, "test": split},
        inputs={"logs/a|b.csv": "f" * 64},
        read={"clicks": 12345},
        duplicates={"clicks": 67},
        rejected={"clicks": {"null user": 5, "no time": 3}},
        unattributed={"click": {"no impression": 11}},
        observed_until="2026-03-01T00:00:00Z",
        labels_as_of="2026-01-20T00:00:00Z",
        warnings=("purchase has <no> observed row; see `split.labels_as_of`",),
    )


@pytest.fixture
def metrics(funnel, tasks, statistics):
    rows, truth = funnel()
    return evaluation_record({"validation": rows, "test": rows}, tasks, statistics, {"test": truth}, replicates=30) | {
        "seconds": {"prepare": 1.25, "train": 3.0},
        "history": [
            {"epoch": 1, "step": 10, "train": {"click": 0.7}, "validation": {"click": {"auc": 0.61}}, "score": 0.61},
            {"epoch": 2, "step": 20, "train": {"click": 0.6}, "validation": {"click": {"auc": None}}, "score": None},
        ],
    }


def written(path, manifest, metrics, **rest) -> str:
    write_report(path / "report.md", name="run | one", manifest=manifest, metrics=metrics, config={}, **rest)
    assert [file.name for file in path.iterdir()] == ["report.md"]
    return (path / "report.md").read_text()


def test_it_says_what_was_measured_on_what(tmp_path, manifest, metrics):
    text = written(tmp_path, manifest, metrics, commit="abc1234")
    for needed in (
        r"# run \| one",
        "Figures on **test**",
        "commit `abc1234`",
        "0123456789ab",
        "purchase has &lt;no> observed row",
        "| test | 600 | 2026-01-01 00:00:00 | 2026-02-01 00:00:00 |",
        "| purchase | test | 480 | – | 0.2500 | immature: 1,200 |",
        "| clicks | 12,345 | 67 | null user: 5, no time: 3 |",
        "click: no impression: 11",
        r"logs/a\|b.csv",
        "training labels are those known on 2026-01-20 00:00:00",
        "| prepare | 1.2 |",
        "30 bootstrap draws of 40 users",
    ):
        assert needed in text, needed


def test_a_figure_stands_beside_interval_baseline_and_optimum(tmp_path, manifest, metrics):
    text = written(tmp_path, manifest, metrics)
    low, high = metrics["intervals"]["model"]["click"]["auc"]
    model, best = metrics["test"]["click"]["auc"], metrics["optimum"]["click"]["auc"]
    assert f"| auc ↑ | {model:.4f} | {low:.4f} to {high:.4f} | 0.5000 | {best:.4f} |" in text
    assert f"goes **{metrics['share_of_attainable']['click'] * 100:.1f} %** of the way" in text
    assert "the true main effects alone go" in text
    for key in metrics["test"]:
        assert f"### {key}\n" in text


def test_the_history_is_a_table(tmp_path, manifest, metrics):
    text = written(tmp_path, manifest, metrics)
    assert "| epoch | step | click: loss | click: auc |" in text
    assert "| 1 | 10 | 0.7000 | 0.6100 |" in text
    assert "| 2 | 20 | 0.6000 | – |" in text


def test_every_table_is_one(tmp_path, manifest, metrics):
    """Rows have as many cells as their header, and a blank line stands before and after."""
    lines = written(tmp_path, manifest, metrics).splitlines()
    tables = 0
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( :?-+:? \|)+", line):
            tables += 1
            assert lines[number - 2] == "", lines[number - 1]
            end = number
            while end < len(lines) and lines[end]:
                assert len(re.findall(r"(?<!\\)\|", lines[end])) == line.count("|"), lines[end]
                end += 1
            assert len(re.findall(r"(?<!\\)\|", lines[number - 1])) == line.count("|")
    assert tables >= 5 + 4 + 3
    assert "\n\n\n" not in "\n".join(lines)


def test_without_optimum_history_or_anything_evaluated(tmp_path, manifest, funnel, tasks, statistics):
    real = evaluation_record({"validation": funnel()[0]}, tasks, statistics, replicates=10)
    text = written(tmp_path, manifest, real)
    assert "the epoch was chosen on" in text
    assert "model − baseline" in text
    assert "optimum" not in text
    assert "Nothing was evaluated yet" in written(tmp_path, manifest, {})
    bare = manifest.model_copy(
        update={"inputs": {}, "read": {}, "rejected": {}, "unattributed": {}, "warnings": (), "observed_until": None}
    )
    assert "## Warnings" not in written(tmp_path, bare, real)


def test_undefined_figures_are_dashes(tmp_path, manifest, funnel, tasks, statistics):
    rows, _ = funnel(rows=0)
    text = written(tmp_path, manifest, evaluation_record({"test": rows}, tasks, statistics))
    assert "| auc ↑ | – | – | – | – | – |" in text
    assert "nan" not in text
    assert "None" not in text


def test_the_summary_is_a_table_of_text(metrics):
    header, rows = summary_table(metrics)
    assert header == ("test", "metric", "model", "95 %", "baseline", "optimum", "share")
    assert [row[:2] for row in rows] == [
        ("click", "auc ↑"),
        ("click", "log_loss ↓"),
        ("purchase", "auc ↑"),
        ("purchase", "log_loss ↓"),
        ("purchase_given_click", "auc ↑"),
        ("purchase_given_click", "log_loss ↓"),
        ("stars", "rmse ↓"),
        ("watched", "rmse ↓"),
        ("mood", "log_loss ↓"),
        ("mood", "accuracy ↑"),
    ]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][6].endswith("%")
    assert rows[6][5] == "–"


def test_the_summary_without_optimum_and_without_anything(metrics):
    del metrics["optimum"], metrics["share_of_attainable"]
    header, rows = summary_table(metrics)
    assert header[-1] == "baseline"
    assert {len(row) for row in rows} == {5}
    assert summary_table({}) == ((), ())
