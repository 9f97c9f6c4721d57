"""Event logs from their files to labelled rows: a made-up shop, bad rows, joins, config mistakes."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.etl.sources import SOURCES
from recmtl.etl.sources.event_log import EventLogConfig, inputs, read
from recmtl.manifest import Columns
from recmtl.progress import Silent

IMPRESSIONS = """\
visitor,sku,shown_at,page,position,price
u1,A,2024-03-01T10:00:00,p1,1,9.5
u1,B,2024-03-01T10:00:00,p1,2,3
u1,B,2024-03-01T10:00:00,p1,2,3
u2,A,2024-03-01 11:00,p2,1,
u2,A,not a time,p2,1,1
,A,2024-03-01 11:00,p2,1,1
u3,A,1970-01-01,p2,1,1
u3,A,2024-03-02,p3
u1,A,2024-03-01T10:20:00,p4,1,9.5
"""
CLICKS = """\
who,sku,ts
u1,A,2024-03-01T10:19:00
u2,A,2024-03-01T11:31:00
u1,B,2024-03-01T09:00:00
u9,B,2024-03-01T09:00:00
u1,B,2024-03-01T10:05:00Z
u1,B,2024-03-01T10:05:00Z
u1,A,2024-03-01T12:30:00+02:00
"""
RATINGS = """\
who,sku,ts,stars
u1,B,2024-03-01T10:06:00Z,3.5
u1,B,2024-03-01T10:05:30Z,2
u1,A,2024-04-01T10:05:30Z,
"""
ITEMS = "sku,price,brand\nA,1.5,x\nC,2,y\n"
USERS = "visitor,age\nu1,30\nu2,\n"


@pytest.fixture
def shop(tmp_path):
    texts = {"imp": IMPRESSIONS, "clicks": CLICKS, "ratings": RATINGS, "items": ITEMS, "users": USERS}
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def config_of(shop, **changes):
    config = {
        "impressions": {"path": str(shop / "imp.csv"), "columns": {"user": "visitor", "time": "shown_at"}},
        "events": {
            "click": {"path": str(shop / "clicks.csv")},
            "rating": {"path": str(shop / "ratings.csv"), "after": "click", "columns": {"value": "stars"}},
        },
        "columns": {"item": "sku", "user": "who", "time": "ts", "request": "page"},
        "users": {"path": str(shop / "users.csv"), "key": "visitor"},
        "items": {"path": str(shop / "items.csv")},
    }
    return EventLogConfig.model_validate({**config, **changes})


def read_in(config, folder, **options):
    work = folder / f"work-{len(list(folder.iterdir()))}"
    work.mkdir()
    return read(config, work, Silent(), **options)


def frame_of(tmp_path, shown, event="user_id,item_id,time\n", **config):
    """The rows of a config with one log of impressions and one of clicks, given as CSV."""
    (tmp_path / "i.csv").write_text(shown)
    (tmp_path / "c.csv").write_text(event)
    base = {"impressions": {"path": str(tmp_path / "i.csv")}, "events": {"click": {"path": str(tmp_path / "c.csv")}}}
    for key, value in config.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return read_in(EventLogConfig.model_validate(base), tmp_path)


def test_a_shop_with_other_names_iso_times_and_bad_rows(shop):
    log = read_in(config_of(shop), shop)
    rows = log.frame.collect()
    assert rows.select("recmtl:row", "visitor", "sku", "page", "position", "price").rows() == [
        (0, "u1", "A", "p1", 1, 9.5),
        (1, "u1", "B", "p1", 2, 3.0),
        (2, "u2", "A", "p2", 1, None),
        (3, "u1", "A", "p4", 1, 9.5),
    ]
    assert rows["shown_at"].to_list()[0] == datetime(2024, 3, 1, 10, tzinfo=UTC)
    assert rows.schema["shown_at"] == pl.Datetime("us", "UTC")
    assert rows["click"].to_list() == [1, 1, 0, 1]
    assert rows.schema["click"] == pl.Int8
    assert rows["rating"].to_list() == [None, 2.0, None, None]
    assert rows["rating:time"].to_list()[1] == datetime(2024, 3, 1, 10, 5, 30, tzinfo=UTC)
    assert rows["age"].to_list() == [30, 30, None, 30]
    assert rows.select("item_price", "brand").rows() == [(1.5, "x"), (None, None), (1.5, "x"), (1.5, "x")]
    # Rows to score will come with the shop's names; a config may also say user_id.
    assert log.columns == Columns(user="visitor", item="sku", time="shown_at", request="page")
    assert log.aliases == {"user_id": "visitor", "item_id": "sku", "time": "shown_at", "request_id": "page"}


def test_an_own_name_that_another_column_has_gives_way(shop):
    (shop / "users.csv").write_text("who,visitor\nu1,often\nu2,\n")
    log = read_in(config_of(shop, users={"path": str(shop / "users.csv"), "key": "who"}), shop)
    rows = log.frame.collect()
    assert log.columns.user == "user_id"
    assert "user_id" not in log.aliases
    assert rows.select("user_id", "visitor").rows() == [("u1", "often"), ("u1", "often"), ("u2", None), ("u1", "often")]


def test_what_was_left_out_is_counted_and_kept(shop):
    log = read_in(config_of(shop), shop)
    assert log.read == {"impressions": 9, "click": 7, "rating": 3, "users": 2, "items": 2}
    assert log.duplicates == {"impressions": 1, "click": 1, "rating": 0}
    assert log.rejected["impressions"] == {
        "shown_at is impossible: before 1990-01-01": 1,
        "shown_at is not a time": 1,
        "visitor is missing": 1,
        "wrong number of fields": 1,
    }
    assert log.rejected["rating"] == {"stars is missing": 1}
    assert log.unattributed["click"] == {
        "before any impression of its key": 1,
        "outside the window after the impression": 1,
        "no impression of its key": 1,
    }
    quarantine = pl.concat(pl.read_parquet(path) for path in log.rejected_files)
    assert quarantine.columns == ["source", "file", "file_row", "reason", "row"]
    assert len(quarantine) == sum(sum(reasons.values()) for reasons in log.rejected.values())
    rows = dict(quarantine.filter(pl.col("source") == "impressions").select("reason", "row").iter_rows())
    assert '"shown_at":"not a time"' in rows["shown_at is not a time"]
    assert rows["wrong number of fields"] == "u3,A,2024-03-02,p3"


def test_outcomes_maturity_and_the_end_of_observation(shop):
    log = read_in(config_of(shop), shop)
    assert log.outcomes == {"click", "rating", "rating:time"}
    assert log.maturity == {"click": timedelta(minutes=30)}
    assert log.known_at == {"rating": "rating:time"}
    assert log.observed_until == datetime(2024, 3, 1, 11, tzinfo=UTC)
    log = read_in(config_of(shop, observed_until="2024-05-01"), shop)
    assert log.observed_until == datetime(2024, 5, 1, tzinfo=UTC)


def test_windows_add_up_along_the_chain(shop):
    events = {
        "click": {"path": str(shop / "clicks.csv")},
        "purchase": {"path": str(shop / "clicks.csv"), "window": "1d"},
        "return": {"path": str(shop / "clicks.csv"), "window": "2d", "after": "purchase"},
        "like": {"path": str(shop / "clicks.csv"), "window": "1h"},
    }
    log = read_in(config_of(shop, events=events), shop)
    half = timedelta(minutes=30)
    day = timedelta(days=1)
    assert log.maturity == {"click": half, "purchase": half + day, "return": half + 3 * day, "like": 2 * half}


def test_buckets_change_nothing(shop):
    whole = read_in(config_of(shop), shop)
    cut = read_in(config_of(shop), shop, bucket_bytes=100)
    assert whole.frame.collect().equals(cut.frame.collect())
    assert whole.unattributed == cut.unattributed


def test_folders_may_have_a_pattern_in_their_name(shop):
    odd = shop / "a [1] *?"
    odd.mkdir()
    for path in shop.glob("*.csv"):
        path.rename(odd / path.name)
    assert read_in(config_of(odd), odd, bucket_bytes=100).frame.collect()["click"].to_list() == [1, 1, 0, 1]


def test_parquet_and_csv_of_the_same_logs_give_the_same_rows(tmp_path):
    impressions = pl.DataFrame(
        {"user_id": [1, 2, 1], "item_id": [5, 5, 6], "time": [1_700_000_000, 1_700_000_100] * 1 + [1_700_000_200]}
    )
    clicks = pl.DataFrame({"user_id": [1.0, None], "item_id": ["5", "6"], "time": [1_700_000_001.5, 1_700_000_002.0]})
    results = []
    for kind in ("csv", "parquet"):
        for name, frame in (("i", impressions), ("c", clicks)):
            getattr(frame, f"write_{kind}")(tmp_path / f"{name}.{kind}")
        config = EventLogConfig.model_validate(
            {
                "impressions": {"path": str(tmp_path / f"i.{kind}")},
                "events": {"click": {"path": str(tmp_path / f"c.{kind}")}},
            }
        )
        log = read_in(config, tmp_path)
        results.append(log.frame.collect())
        assert log.rejected["click"] == {"user_id is missing": 1}
    assert results[0].equals(results[1])
    assert results[0]["click"].to_list() == [1, 0, 0]
    assert results[0].schema["user_id"] == pl.Int64


def test_files_of_a_pattern_are_read_in_order(tmp_path):
    for day, user in (("02", "b"), ("01", "a"), ("03", "c")):
        (tmp_path / f"imp-{day}.csv").write_text(f"item_id,user_id,time\n1,{user},2024-01-{day}\n")
    (tmp_path / "c.csv").write_text("user_id,item_id,time\n")
    config = EventLogConfig.model_validate(
        {"impressions": {"path": str(tmp_path / "imp-*.csv")}, "events": {"click": {"path": str(tmp_path / "c.csv")}}}
    )
    log = read_in(config, tmp_path)
    assert log.frame.collect()["user_id"].to_list() == ["a", "b", "c"]
    assert log.frame.collect()["recmtl:row"].to_list() == [0, 1, 2]
    assert (
        list(log.inputs)
        == list(inputs(config))
        == [*(str(tmp_path / f"imp-0{n}.csv") for n in (1, 2, 3)), str(tmp_path / "c.csv")]
    )


SHOWN = "user_id,item_id,time,request_id\n1,5,2024-01-01 10:00,a\n1,6,2024-01-01 10:00,a\n1,5,2024-01-01 10:10,b\n"


def test_a_shared_request_id_is_the_join(tmp_path):
    click = "user_id,item_id,time,request_id\n1,5,2024-01-01 10:11,a\n9,6,2024-01-01 10:11,a\n1,6,2024-01-01 10:11,\n"
    log = frame_of(tmp_path, SHOWN, click)
    assert log.frame.collect()["click"].to_list() == [1, 1, 0]
    assert log.unattributed["click"] == {"without request_id or item_id": 1}


def test_join_time_sets_a_shared_id_aside(tmp_path):
    click = "user_id,item_id,time,request_id\n1,5,2024-01-01 10:11,a\n"
    event = {"click": {"path": str(tmp_path / "c.csv"), "join": "time"}}
    assert frame_of(tmp_path, SHOWN, click, events=event).frame.collect()["click"].to_list() == [0, 0, 1]


def test_a_request_alone_joins_where_it_shows_one_item(tmp_path):
    click = "time,request_id\n2024-01-01 10:11,b\n"
    one = "user_id,item_id,time,request_id\n1,5,2024-01-01 10:00,a\n1,5,2024-01-01 10:10,b\n"
    assert frame_of(tmp_path, one, click).frame.collect()["click"].to_list() == [0, 1]
    with pytest.raises(UserError, match="1 requests show several items, so its log needs the item"):
        frame_of(tmp_path, SHOWN, click)


def test_an_impression_id_joins_without_user_or_item_and_must_not_be_missing(tmp_path):
    shown = "user_id,item_id,time,impression_id\n1,5,2024-01-01,x\n1,5,2024-01-01,y\n1,5,2024-01-01,\n"
    click = "impression_id,time\nx,2024-01-01 00:30\nx,2024-01-01 00:01\ny,2024-01-01 00:31\nz,2024-01-01\n"
    log = frame_of(tmp_path, shown, click)
    assert log.frame.collect()["click"].to_list() == [1, 0]
    assert log.rejected["impressions"] == {"impression_id is missing": 1}
    assert log.unattributed["click"] == {
        "outside the window after the impression": 1,
        "no impression of its key": 1,
    }


def test_most_events_lost_is_a_warning(tmp_path):
    click = "user_id,item_id,time\n1,5,2024-01-01 12:00\n1,6,2024-01-01 10:01\n1,7,2024-01-01 10:00\n"
    log = frame_of(tmp_path, SHOWN, click)
    assert len(log.warnings) == 1
    assert "events.click: 2 of 3 events belong to no impression" in log.warnings[0]


def test_a_key_that_comes_twice_in_a_table_is_an_error_that_names_it(shop):
    (shop / "users.csv").write_text("visitor,age\nu1,30\nu2,1\nu2,1\n")
    with pytest.raises(UserError, match=r"data.source.users: user_id 'u2' comes 2 times"):
        read_in(config_of(shop), shop)


def test_an_events_name_must_be_free(tmp_path):
    shown = "user_id,item_id,time,click\n1,5,2024-01-01,0\n"
    with pytest.raises(UserError, match=r"its column 'click' has the name of an event.*impressions.drop: \['click'\]"):
        frame_of(tmp_path, shown)
    dropped = {"path": str(tmp_path / "i.csv"), "drop": ["click"]}
    assert frame_of(tmp_path, shown, impressions=dropped).frame.collect()["click"].to_list() == [0]


def test_dropped_columns_tell_rows_apart_but_are_not_judged(tmp_path):
    shown = "user_id,item_id,time,note\n" + "1,5,2024-01-01,1\n" * 2 + "1,5,2024-01-01,2\n" * 50 + "1,5,2024-01-01,x\n"
    dropped = {"path": str(tmp_path / "i.csv"), "drop": ["note"]}
    log = frame_of(tmp_path, shown, impressions=dropped)
    assert "note" not in log.frame.collect_schema().names()
    assert len(log.frame.collect()) == 3
    assert log.rejected["impressions"] == {}
    assert log.duplicates["impressions"] == 50


def test_columns_of_both_tables_that_clash_are_told_apart(tmp_path):
    (tmp_path / "u.csv").write_text("user_id,region\n1,x\n")
    (tmp_path / "t.csv").write_text("item_id,region\n5,y\n")
    tables = {"users": {"path": str(tmp_path / "u.csv")}, "items": {"path": str(tmp_path / "t.csv")}}
    rows = frame_of(tmp_path, SHOWN, **tables).frame.collect()
    assert rows.select("user_region", "item_region").rows() == [("x", "y"), ("x", None), ("x", "y")]


def test_text_in_another_encoding(tmp_path):
    shown = "user_id,item_id,time\nJosé,5,2024-01-01\nAna,5,2024-01-01\n"
    (tmp_path / "c.csv").write_text("user_id,item_id,time\n")
    (tmp_path / "i.csv").write_bytes(shown.encode("cp1252"))
    base = {
        "impressions": {"path": str(tmp_path / "i.csv")},
        "events": {"click": {"path": str(tmp_path / "c.csv")}},
    }
    log = read_in(EventLogConfig.model_validate(base), tmp_path)
    assert log.rejected["impressions"] == {"user_id is not in the file's encoding": 1}
    log = read_in(EventLogConfig.model_validate({**base, "encoding": "cp1252"}), tmp_path)
    assert log.frame.collect()["user_id"].to_list() == ["José", "Ana"]


def test_quoted_fields_hold_separators_and_line_breaks(tmp_path):
    shown = 'user_id,item_id,time,title\n1,5,2024-01-01,"a, ""b""\nc"\n'
    assert frame_of(tmp_path, shown).frame.collect()["title"].to_list() == ['a, "b"\nc']


def test_any_column_name_will_do(tmp_path):
    shown = (
        'user_id,item_id,time,reason,value,source,"a/b c",start\n1,5,2024-01-01,x,1,s,2,9\n1,,2024-01-01,y,1,s,2,9\n'
    )
    log = frame_of(tmp_path, shown, "user_id,item_id,time,row,value\n1,5,2024-01-01,0,9\n")
    assert log.frame.collect().select("reason", "value", "source", "a/b c", "click").rows() == [("x", 1, "s", 2, 1)]


def test_other_separators(tmp_path):
    shown = "user_id;item_id;time\n1;5;2024-01-01\n"
    log = frame_of(tmp_path, shown, "user_id;item_id;time\n1;5;2024-01-01 00:05\n", separator=";")
    assert log.frame.collect()["click"].to_list() == [1]


def test_logs_without_rows(tmp_path):
    log = frame_of(tmp_path, "user_id,item_id,time\n")
    assert log.frame.collect().shape == (0, 5)
    assert log.observed_until is None


@pytest.mark.parametrize(
    ("impressions", "message"),
    [
        (
            "user,item_id,time\n",
            r"impressions.columns.user: say which column holds the user; the file has user, item_id",
        ),
        ("user_id,item_id,time,label:click\n", "column 'label:click' is called like one of recmtl's own"),
        ("user_id,item_id,time,click:time\n", "its column 'click:time' has the name of the times of event click"),
        ("user_id,item_id,time,time\n", "names the column.s. time twice"),
        ("", "cannot be read as CSV"),
    ],
)
def test_files_that_do_not_fit_are_the_users_mistake(tmp_path, impressions, message):
    with pytest.raises(UserError, match=message):
        frame_of(tmp_path, impressions)


def test_missing_files_are_the_users_mistake(tmp_path):
    config = {"impressions": {"path": "nowhere/*.csv"}, "events": {"click": {"path": "x.csv"}}}
    with pytest.raises(UserError, match=r"data.source.impressions.path: there is no file nowhere/\*.csv"):
        inputs(EventLogConfig.model_validate(config))
    with pytest.raises(UserError, match="is a folder; name its files"):
        inputs(EventLogConfig.model_validate({**config, "impressions": {"path": str(tmp_path)}}))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"rating": {"path": "r"}}, "there is no event 'purchase'; name one of rating, impression"),
        ({"like": {"path": "r"}}, "events.like.window: say how long after impression"),
        (
            {"a": {"path": "r", "after": "b", "window": "1d"}, "b": {"path": "r", "after": "a", "window": "1d"}},
            "circle",
        ),
        ({"click": {"path": "r", "window": "soon"}}, "write a number and a unit, such as 30m"),
        ({"click": {"path": "r", "window": "0s"}}, "more than 0"),
        ({"time": {"path": "r", "window": "1d"}}, "taken by a column"),
        ({}, "at least 1"),
    ],
)
def test_configs_that_make_no_sense_are_refused(events, message):
    with pytest.raises(ValidationError, match=message):
        EventLogConfig.model_validate({"impressions": {"path": "i"}, "events": events})


def test_the_config_reads_back_what_it_wrote(shop):
    config = config_of(shop, observed_until="2024-05-01T00:00:00+02:00", timezone="Europe/Berlin")
    assert EventLogConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="not a time zone"):
        config_of(shop, timezone="Mars/Olympus")


def test_the_table_of_sources_is_keyed_by_kind():
    for kind, source in SOURCES.items():
        assert source.config.model_fields["kind"].default == kind


VIEWS = "user_id,item_id,time,slot,is_bot\nu1,A,2024-03-01T10:00:00,1,false\nu2,B,2024-03-01T10:00:00,2,true\n" + (
    "u3,A,2024-03-01T10:00:00,1,\nu4,A,never,1,false\n"
)
ORDERS = "user_id,item_id,time,quantity,unit price\n" + "".join(
    f"{user},A,2024-03-01T10:01:00,{quantity},{price}\n"
    for user, quantity, price in [("u1", 1, 2.5), ("u1", 1, 2.5), ("u3", -1, 2.5), ("u1", "", 1), ("u3", "x", 1)]
)


def test_where_leaves_rows_out_and_counts_them(tmp_path):
    log = frame_of(tmp_path, VIEWS, ORDERS, impressions={"where": "is_bot is null or not is_bot"})
    assert log.frame.collect()["user_id"].to_list() == ["u1", "u3"]
    assert log.filtered == {"impressions": 1}
    assert log.rejected["impressions"] == {"time is not a time": 1}
    assert log.read == {"impressions": 4, "click": 5}
    assert log.frame.collect()["click"].to_list() == [1, 1]


def test_where_reads_columns_of_an_event_log_that_nothing_else_needs(tmp_path):
    where = {"click": {"path": str(tmp_path / "c.csv"), "where": "quantity > 0 and column('unit price') < 3"}}
    # "x" is a fifth of the quantities: the column is text, unless its type is named.
    with pytest.raises(UserError, match=r"data.source.events.click.where .*quantity is text and 0 is a number"):
        frame_of(tmp_path, VIEWS, ORDERS, events=where)
    where["click"]["types"] = {"quantity": "int"}
    log = frame_of(tmp_path, VIEWS, ORDERS, events=where)
    rows = log.frame.collect()
    assert dict(zip(rows["user_id"], rows["click"], strict=True)) == {"u1": 1, "u2": 0, "u3": 0}
    # Of five rows one is a duplicate, one negative, one without a quantity, one unreadable.
    assert (log.filtered, log.duplicates["click"], log.read["click"]) == ({"click": 3}, 1, 5)
    unread = log.condition_unread["data.source.events.click.where", "quantity"]
    assert (unread.count, unread.given, unread.examples) == (1, 4, ("x",))
    assert not any("negative" in warning for warning in log.warnings)


@pytest.mark.parametrize("log", ["impressions", "click"])
def test_where_names_a_column_that_is_not_there(tmp_path, log):
    (tmp_path / "c.csv").write_text(ORDERS)
    config = {"path": str(tmp_path / "c.csv"), "where": "quantty > 0"}
    other = {"impressions": {"where": "slott > 0"}} if log == "impressions" else {"events": {"click": config}}
    near = "slot" if log == "impressions" else "quantity"
    with pytest.raises(UserError, match=rf"data.source.*{log}.where .*the file has no column .*did you mean '{near}'"):
        frame_of(tmp_path, VIEWS, ORDERS, **other)


def test_where_is_checked_with_the_config(tmp_path):
    with pytest.raises(ValidationError, match="is no expression"):
        frame_of(tmp_path, VIEWS, ORDERS, impressions={"where": "slot ="})


def test_a_column_without_values_fits_any_type(tmp_path):
    empty = "user_id,item_id,time,quantity\nu1,A,2024-03-01T10:01:00,\n"
    click = {"path": str(tmp_path / "c.csv"), "where": "quantity is null or quantity > 0"}
    log = frame_of(tmp_path, VIEWS, empty, events={"click": click})
    assert log.filtered == {}
    click["where"] = "quantity > 0"
    log = frame_of(tmp_path, VIEWS, empty, events={"click": click})
    assert log.filtered == {"click": 1}
    assert any("events.click.where 'quantity > 0' leaves out all of the 1 rows" in text for text in log.warnings)


def test_where_over_parquet_and_times(tmp_path):
    (tmp_path / "i.csv").write_text(VIEWS)
    at = [datetime(2024, 3, 1, 10, minute, tzinfo=UTC) for minute in (1, 2)]
    clicks = pl.DataFrame({"user_id": ["u1", "u3"], "item_id": ["A", "A"], "ts": at, "sum": [2.0, float("nan")]})
    clicks.write_parquet(tmp_path / "c.parquet")
    click = {"path": str(tmp_path / "c.parquet"), "columns": {"time": "ts"}}
    base = {"impressions": {"path": str(tmp_path / "i.csv")}}
    for where, clicked in [("ts < '2024-03-01T10:02'", {"u1"}), ("sum is null", {"u3"}), ("sum > 0", {"u1"})]:
        config = EventLogConfig.model_validate({**base, "events": {"click": {**click, "where": where}}})
        rows = read_in(config, tmp_path).frame.collect()
        assert set(rows.filter(pl.col("click") == 1)["user_id"]) == clicked


@pytest.mark.parametrize(
    ("column", "where"),
    [
        ("quantity", "quantity > 0"),
        ("orderQty", "orderQty > 0"),
        ("unit price", 'column("unit price") > 0'),
        ("total_amount", "total_amount > 0"),
    ],
)
def test_negative_quantities_are_told_with_the_condition_that_leaves_them_out(tmp_path, column, where):
    event = f"user_id,item_id,time,{column}\n" + "".join(
        f"u{n},A,2024-03-01T10:01:00,{value}\n" for n, value in enumerate([1, -2, -2, -1.5, ""], 1)
    )
    (warning,) = [text for text in frame_of(tmp_path, VIEWS, event).warnings if "negative" in text]
    assert warning.startswith(f"data.source.events.click: 3 of the 4 values of column '{column}' are negative, ")
    assert "such as -2, -1.5, and their rows count as click" in warning
    assert warning.endswith(f"data.source.events.click.where: {where}")
    click = {"path": str(tmp_path / "c.csv"), "where": where}
    log = frame_of(tmp_path, VIEWS, event, events={"click": click})
    assert log.filtered == {"click": 4}
    assert not any("negative" in text for text in log.warnings)


def test_no_word_of_other_columns_or_of_what_is_not_negative(tmp_path):
    event = "user_id,item_id,time,quantity,delta,price\nu1,A,2024-03-01T10:01:00,1,-1,n/a\n"
    assert not any("negative" in text for text in frame_of(tmp_path, VIEWS, event).warnings)


def test_a_negative_value_of_an_event_is_told(tmp_path):
    event = "user_id,item_id,time,gain\nu1,A,2024-03-01T10:01:00,-3\n"
    click = {"path": str(tmp_path / "c.csv"), "columns": {"value": "gain"}}
    log = frame_of(tmp_path, VIEWS, event, events={"click": click})
    assert any("1 of the 1 values of column 'gain' are negative, such as -3" in text for text in log.warnings)
