"""Attribution: every sentence of its definition by hand, then a plain Python oracle on random logs."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from recmtl.etl.label import IMPRESSION, Follows, label

START = datetime(2024, 3, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
PAIR = ("user_id", "item_id")
CLICK = Follows(IMPRESSION, 30 * MINUTE, PAIR, None)
PURCHASE = Follows("click", 7 * DAY, PAIR, None)
RATING = Follows("purchase", 30 * DAY, PAIR, "value")
TIME = pl.Datetime("us", "UTC")


def log(rows, *, value=False):
    """Rows of (minutes, user, item, request, value) in input order."""
    columns = {"time": TIME, "user_id": pl.Int64, "item_id": pl.Int64, "request_id": pl.String, "value": pl.Float64}
    padded = [(START + timedelta(minutes=r[0]), *(*r[1:], None, None, None)[:4]) for r in rows]
    frame = (
        pl.DataFrame(padded, schema=columns, orient="row").with_row_index("recmtl:row").cast({"recmtl:row": pl.Int64})
    )
    return (frame if value else frame.drop("value")).lazy()


def labels_of(tmp_path, impressions, events, follows, *, buckets=1, keys=(*PAIR, "request_id")):
    logs = {name: log(rows, value=follows[name].value is not None) for name, rows in events.items()}
    found = label(log(impressions), logs, follows, keys, tmp_path / f"work-{random.random()}", buckets)
    result = {}
    for name, labels in found.items():
        frame = labels.frame.collect().sort("recmtl:row")
        minutes = [(t - START) / MINUTE for t in frame["time"]]
        values = frame["value"].to_list() if "value" in frame.columns else [1] * len(frame)
        result[name] = dict(zip(frame["recmtl:row"], zip(minutes, values, strict=True), strict=True))
    return result, {name: dict(labels.unattributed) for name, labels in found.items()}


def clicked(tmp_path, impressions, clicks, **options):
    found, lost = labels_of(tmp_path, impressions, {"click": clicks}, {"click": CLICK}, **options)
    return found["click"], lost["click"]


def test_a_click_goes_to_the_latest_impression_of_its_user_and_item_at_or_before_it(tmp_path):
    shown = [(0, 1, 7), (10, 1, 7), (20, 1, 7), (12, 2, 7), (12, 1, 8)]
    assert clicked(tmp_path, shown, [(15, 1, 7)]) == ({1: (15, 1)}, {})
    assert clicked(tmp_path, shown, [(10, 1, 7)]) == ({1: (10, 1)}, {})
    assert clicked(tmp_path, shown, [(20, 1, 7)]) == ({2: (20, 1)}, {})


def test_the_window_includes_its_last_instant(tmp_path):
    late = {"outside the window after the impression": 1}
    assert clicked(tmp_path, [(0, 1, 7)], [(30, 1, 7)]) == ({0: (30, 1)}, {})
    assert clicked(tmp_path, [(0, 1, 7)], [(30 + 1e-6, 1, 7)]) == ({}, late)


def test_events_that_match_nothing_are_counted_by_reason(tmp_path):
    clicks = [(-1, 1, 7), (5, 1, 9), (5, 3, 7), (99, 1, 7)]
    found, lost = clicked(tmp_path, [(0, 1, 7), (50, 1, 7)], clicks)
    assert found == {}
    assert lost == {
        "before any impression of its key": 1,
        "no impression of its key": 2,
        "outside the window after the impression": 1,
    }


def test_ties_go_to_the_later_row_in_input_order(tmp_path):
    assert clicked(tmp_path, [(5, 1, 7), (5, 1, 7), (0, 1, 7)], [(6, 1, 7)]) == ({1: (6, 1)}, {})


def test_several_clicks_make_one_label_and_the_first_starts_the_next_window(tmp_path):
    events = {"click": [(20, 1, 7), (1, 1, 7)], "purchase": [(1 + 7 * 1440, 1, 7)]}
    follows = {"click": CLICK, "purchase": PURCHASE}
    found, lost = labels_of(tmp_path, [(0, 1, 7)], events, follows)
    assert found["click"] == {0: (1, 1)}
    assert found["purchase"] == {0: (1 + 7 * 1440, 1)}
    events["purchase"] = [(2 + 7 * 1440, 1, 7)]  # Within 7 days of the second click, but not of the first.
    found, lost = labels_of(tmp_path, [(0, 1, 7)], events, follows)
    assert found["purchase"] == {}
    assert lost["purchase"] == {"outside the window after the click": 1}


def test_a_purchase_goes_to_the_impression_of_the_latest_click_not_to_the_latest_impression(tmp_path):
    shown = [(0, 1, 7), (100, 1, 7), (200, 1, 7)]
    events = {"click": [(1, 1, 7), (101, 1, 7)], "purchase": [(300, 1, 7), (50, 1, 7), (0.5, 1, 7)]}
    found, lost = labels_of(tmp_path, shown, events, {"click": CLICK, "purchase": PURCHASE})
    assert found["purchase"] == {0: (50, 1), 1: (300, 1)}
    assert lost["purchase"] == {"before any click of its key": 1}


def test_a_purchase_without_a_click_belongs_to_nothing(tmp_path):
    events = {"click": [], "purchase": [(3, 1, 7)]}
    found, lost = labels_of(tmp_path, [(0, 1, 7)], events, {"click": CLICK, "purchase": PURCHASE})
    assert found == {"click": {}, "purchase": {}}
    assert lost["purchase"] == {"no click of its key": 1}


def test_a_rating_follows_the_purchase_within_its_window_and_the_first_one_counts(tmp_path):
    follows = {"click": CLICK, "purchase": PURCHASE, "rating": RATING}
    events = {
        "click": [(1, 1, 7)],
        "purchase": [(2, 1, 7)],
        "rating": [(500, 1, 7, None, 5.0), (400, 1, 7, None, 2.0), (3 + 30 * 1440, 1, 7, None, 1.0)],
    }
    found, lost = labels_of(tmp_path, [(0, 1, 7)], events, follows)
    assert found["rating"] == {0: (400, 2.0)}
    assert lost["rating"] == {"outside the window after the purchase": 1}


def test_of_ratings_at_the_same_time_the_later_row_counts(tmp_path):
    follows = {"rating": Follows(IMPRESSION, DAY, PAIR, "value")}
    events = {"rating": [(9, 1, 7, None, 5.0), (9, 1, 7, None, 2.0), (10, 1, 7, None, 1.0)]}
    assert labels_of(tmp_path, [(0, 1, 7)], events, follows)[0]["rating"] == {0: (9, 2.0)}


def test_a_rating_may_follow_a_click(tmp_path):
    follows = {"click": CLICK, "rating": RATING._replace(after="click")}
    events = {"click": [(1, 1, 7)], "rating": [(500, 1, 7, None, 4.0)]}
    assert labels_of(tmp_path, [(0, 1, 7)], events, follows)[0]["rating"] == {0: (500, 4.0)}


def test_a_request_id_and_item_are_the_join_whatever_was_shown_later(tmp_path):
    shown = [(0, 1, 7, "a"), (0, 1, 8, "a"), (10, 1, 7, "b")]
    by_request = CLICK._replace(by=("request_id", "item_id"))
    clicks = [(15, 1, 7, "a"), (15, 1, 9, "a"), (40, 1, 8, "a"), (5, 1, 7, "b"), (15, 1, 7, None)]
    found, lost = labels_of(tmp_path, shown, {"click": clicks}, {"click": by_request})
    assert found["click"] == {0: (15, 1)}
    assert lost["click"] == {
        "no impression of its key": 1,
        "outside the window after the impression": 1,
        "before any impression of its key": 1,
        "without request_id or item_id": 1,
    }


def test_an_event_after_one_joined_by_id_may_be_attributed_by_time(tmp_path):
    shown = [(0, 1, 7, "a"), (10, 1, 7, "b")]
    follows = {"click": CLICK._replace(by=("request_id", "item_id")), "purchase": PURCHASE}
    events = {"click": [(15, 1, 7, "a")], "purchase": [(100, 1, 7)]}
    assert labels_of(tmp_path, shown, events, follows)[0]["purchase"] == {0: (100, 1)}


def test_empty_logs(tmp_path):
    assert clicked(tmp_path, [], []) == ({}, {})
    assert clicked(tmp_path, [], [(1, 1, 7)]) == ({}, {"no impression of its key": 1})
    assert clicked(tmp_path, [(1, 1, 7)], [], buckets=3) == ({}, {})


# --- the oracle -------------------------------------------------------------------------------------------------------


def key(row, by):
    fields = {"user_id": row[1], "item_id": row[2], "request_id": row[3]}
    return tuple(fields[column] for column in by)


def by_hand(impressions, events, follows):
    """Row by row, in the words of the definition."""
    firsts = {IMPRESSION: [(shown, shown[0], number, number) for number, shown in enumerate(impressions)]}
    labels, unattributed = {}, {}
    for name, (after, window, by, value) in follows.items():
        labels[name], lost, best = {}, {}, {}
        for number, event in enumerate(events[name]):
            wanted = key(event, by)
            if None in wanted:
                reason = f"without {' or '.join(by)}"
            else:
                same = [c for c in firsts[after] if key(c[0], by) == wanted]
                before = [c for c in same if c[1] <= event[0]]
                latest = max(before, key=lambda c: (c[1], c[2]), default=None)
                if latest is not None and event[0] - latest[1] <= window / MINUTE:
                    rank = (event[0], -number)
                    if latest[3] not in best or rank < best[latest[3]][0]:
                        best[latest[3]] = (rank, latest[0], event, number)
                    continue
                reason = f"no {after} of its key" if not same else f"before any {after} of its key"
                reason = f"outside the window after the {after}" if before else reason
            lost[reason] = lost.get(reason, 0) + 1
        firsts[name] = [(shown, event[0], number, row) for row, (_, shown, event, number) in best.items()]
        labels[name] = {row: (event[0], event[4] if value else 1) for row, (_, _, event, _) in sorted(best.items())}
        unattributed[name] = lost
    return labels, unattributed


def random_logs(seed):
    """Few users, items and instants, so that ties, repeats and near misses abound."""
    draw = random.Random(seed)

    def rows(count, latest):
        for _ in range(count):
            request = draw.choice([None, "a", "b", "c", "d"])
            yield (draw.randrange(latest), draw.randrange(2), draw.randrange(2), request, float(draw.randrange(1, 6)))

    shown = [(*row[:3], row[3] or "a", None) for row in rows(draw.randrange(25), 30)]
    events = {
        name: list(rows(draw.randrange(20), latest))
        for name, latest in (("click", 35), ("purchase", 60), ("rating", 90))
    }
    pair, request, both = PAIR, ("request_id",), ("request_id", "item_id")
    follows = {
        "click": Follows(IMPRESSION, draw.choice([3, 10]) * MINUTE, draw.choice([pair, pair, request, both]), None),
        "purchase": Follows("click", draw.choice([5, 20]) * MINUTE, draw.choice([pair, pair, both]), None),
        "rating": Follows(draw.choice(["purchase", "click"]), 30 * MINUTE, draw.choice([pair, both]), "value"),
    }
    return shown, events, follows


@pytest.mark.parametrize("seed", range(60))
def test_random_logs_agree_with_the_oracle(tmp_path: Path, seed):
    shown, events, follows = random_logs(seed)
    found, lost = labels_of(tmp_path, shown, events, follows, buckets=1 + seed % 3)
    wanted, wanted_lost = by_hand(shown, events, follows)
    assert found == wanted
    assert lost == wanted_lost
