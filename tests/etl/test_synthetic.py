import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.special import expit, ndtr
from sklearn.metrics import roc_auc_score

from recmtl.errors import UserError
from recmtl.etl.sources import SOURCES, synthetic_world
from recmtl.etl.sources.event_log import EventConfig, EventLogConfig, LogConfig
from recmtl.etl.sources.event_log import read as read_event_log
from recmtl.etl.sources.synthetic import Noise, SyntheticConfig, default_features, inputs, read, write_logs
from recmtl.etl.sources.synthetic_truth import Truth, label_truth
from recmtl.etl.sources.synthetic_world import (
    DAY,
    SECOND,
    Delay,
    Delays,
    Shown,
    WorldConfig,
    behave,
    build_world,
    show,
)
from recmtl.progress import Silent
from recmtl.schema import Schema

CLICK_WINDOW, PURCHASE_WINDOW = timedelta(minutes=30), timedelta(days=7)
SMALL = {"users": 60, "items": 40, "impressions": 2000, "days": 30}


def truth_of(config: WorldConfig, shown: Shown, *, by_request: bool = False, draws: int = 127) -> Truth:
    return label_truth(
        shown,
        config.delays,
        rating_noise=config.strengths.rating_noise,
        click_window=CLICK_WINDOW,
        purchase_window=PURCHASE_WINDOW,
        by_request=by_request,
        generator=np.random.default_rng(0),
        draws=draws,
    )


def impressions(times: list[float], click: float, purchase: float) -> Shown:
    """Impressions of one pair at these seconds, one a request."""
    n = len(times)
    zeros = np.zeros(n, np.int64)
    return Shown(
        request=np.arange(n),
        user=zeros,
        item=zeros,
        position=zeros,
        time=np.array([round(t * SECOND) for t in times], np.int64) + 20_000 * DAY,
        click=np.full(n, click),
        purchase=np.full(n, purchase),
        stars=np.full(n, 3.0),
        main_click=np.full(n, click),
    )


def world_of(config: WorldConfig):
    generator = np.random.default_rng(config.seed)
    world = build_world(config, generator)
    return world, show(config, world, generator)


def logs_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestDelay:
    delay = Delay(median=timedelta(minutes=1), spread=1.5, longest=timedelta(hours=2))

    def test_cdf_is_the_cut_log_normal(self) -> None:
        top = ndtr(np.log(120) / 1.5)
        given = self.delay.cdf(np.array([-5.0, 0.0, 60.0, 1800.0, 7200.0, 1e9]))
        np.testing.assert_allclose(given, [0, 0, 0.5 / top, ndtr(np.log(30) / 1.5) / top, 1, 1])

    def test_quantile_inverts_the_cdf(self) -> None:
        share = np.linspace(0, 1, 11)
        np.testing.assert_allclose(self.delay.cdf(self.delay.quantile(share)), share, atol=1e-12)
        assert self.delay.quantile(np.array([1.0]))[0] == pytest.approx(7200)

    def test_median_beyond_the_longest_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="shorter than `longest`"):
            Delay(median=timedelta(hours=3), spread=1.0, longest=timedelta(hours=2))


class TestWorld:
    config = WorldConfig(users=400, items=150, impressions=20_000, days=20, seed=3)

    def test_effects_are_standard_over_what_is_shown(self) -> None:
        world, _ = world_of(self.config)
        for effect, weight in ((world.user_effect, world.visits), (world.item_effect, world.popularity)):
            np.testing.assert_allclose(effect @ weight, 0, atol=1e-9)
            np.testing.assert_allclose(effect**2 @ weight, 1, atol=1e-9)

    def test_interaction_has_no_main_effect_and_variance_one(self) -> None:
        world, _ = world_of(self.config)
        for taste in world.taste:
            product_UI = taste @ world.trait.T / np.sqrt(self.config.factors)
            np.testing.assert_allclose(product_UI @ world.popularity, 0, atol=1e-9)
            np.testing.assert_allclose(world.visits @ product_UI, 0, atol=1e-9)
            assert world.visits @ product_UI**2 @ world.popularity == pytest.approx(1)

    @pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.7, 1.0])
    def test_tasks_correlate_as_asked(self, correlation: float) -> None:
        world, _ = world_of(self.config.model_copy(update={"task_correlation": correlation}))
        for effect, weight in ((world.user_effect, world.visits), (world.item_effect, world.popularity)):
            found = (effect * weight) @ effect.T
            np.testing.assert_allclose(found[np.triu_indices(3, 1)], correlation, atol=0.1)
        products = (world.taste @ world.trait.T) * np.sqrt(np.outer(world.visits, world.popularity))
        found = products.reshape(3, -1) @ products.reshape(3, -1).T / self.config.factors
        np.testing.assert_allclose(found[np.triu_indices(3, 1)], correlation, atol=0.15)

    def test_rates_are_met(self) -> None:
        _, shown = world_of(self.config)
        assert shown.click.mean() == pytest.approx(self.config.rates.click, abs=1e-6)
        assert shown.purchase.mean() == pytest.approx(self.config.rates.purchase, abs=1e-6)

    def test_requests_show_no_item_twice_at_positions_from_0(self) -> None:
        _, shown = world_of(self.config)
        assert shown.request.size == self.config.impressions
        assert np.unique(shown.request * 1000 + shown.item).size == shown.request.size
        sizes = np.bincount(shown.request)
        assert sizes[:-1].min() == 4
        assert sizes.max() == 12
        np.testing.assert_array_equal(shown.position, np.concatenate([np.arange(size) for size in sizes]))
        assert (np.diff(shown.time) >= 0).all()
        assert (shown.time[1:] == shown.time[:-1])[np.diff(shown.request) == 0].all()

    def test_requests_of_the_whole_catalogue(self) -> None:
        _, shown = world_of(WorldConfig(users=3, items=12, impressions=600, days=9, request_sizes=(12, 12), zipf=1.5))
        assert (np.sort(shown.item.reshape(-1, 12), axis=1) == np.arange(12)).all()

    def test_popularity_is_zipf(self) -> None:
        world, shown = world_of(self.config)
        ranks = np.sort(world.popularity)[::-1]
        np.testing.assert_allclose(ranks[[1, 9]] / ranks[0], [2**-0.8, 10**-0.8])
        assert np.corrcoef(np.bincount(shown.item, minlength=150), world.popularity)[0, 1] > 0.98

    def test_position_bias(self) -> None:
        _, shown = world_of(
            WorldConfig(**SMALL, position=0.5, strengths={"click": dict.fromkeys(("user", "item", "interaction"), 0.0)})
        )
        logit = np.log(shown.click / (1 - shown.click))
        np.testing.assert_allclose(logit - logit[0], -0.5 * np.log1p(shown.position), atol=1e-9)
        np.testing.assert_allclose(shown.main_click, shown.click)

    def test_events_follow_one_another_and_are_as_frequent_as_their_chances(self) -> None:
        config = self.config
        _, shown = world_of(config)
        events = behave(config, shown, np.random.default_rng(5))
        clicks, purchases, ratings = (events[task] for task in ("click", "purchase", "rating"))
        spread = np.sqrt((shown.click * (1 - shown.click)).sum())
        assert abs(clicks.time.size - shown.click.sum()) < 4 * spread
        assert set(purchases.impression) <= set(clicks.impression)
        assert set(ratings.impression) <= set(purchases.impression)
        waited = clicks.time - shown.time[clicks.impression]
        assert waited.min() >= 0
        assert waited.max() <= 7200 * SECOND
        assert np.median(waited) == pytest.approx(40 * SECOND, rel=0.1)
        assert ratings.value is not None
        assert set(ratings.value) == {1, 2, 3, 4, 5}

    def test_impossible_sizes_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="12 different items out of 5"):
            WorldConfig(items=5)
        with pytest.raises(ValidationError, match="fewest, most"):
            WorldConfig(request_sizes=(5, 4))


class TestTruth:
    delays = Delays()

    def test_lone_impression(self) -> None:
        truth = truth_of(WorldConfig(), impressions([0.0], 0.2, 0.3))
        lost_click = 1 - ndtr(np.log(1800 / 40) / 1.5) / ndtr(np.log(7200 / 40) / 1.5)
        assert truth.click[0] == pytest.approx(0.2 * (1 - lost_click))
        bought = ndtr(np.log(7 * 24 / 8) / 1.7) / ndtr(np.log(14 * 24 / 8) / 1.7)
        assert truth.purchase_given_click[0] == pytest.approx(0.3 * bought)
        assert truth.coupled == 0

    def test_pair_within_minutes_shares_the_clicks(self) -> None:
        # The second, a minute later, takes the clicks that the first one's viewers have not made by then.
        truth = truth_of(WorldConfig(), impressions([0.0, 60.0], 0.2, 0.3))
        cdf = self.delays.click.cdf
        assert truth.click[0] == pytest.approx(0.2 * float(cdf(np.array(60.0))))
        late = float(cdf(np.array(1860.0)) - cdf(np.array(60.0)))
        assert truth.click[1] == pytest.approx(1 - (1 - 0.2 * float(cdf(np.array(1800.0)))) * (1 - 0.2 * late))

    def test_pair_a_day_apart_against_quadrature(self) -> None:
        # Clicks cannot cross. The first one's purchase counts until the second is clicked; one made later counts for
        # the second, beside the second's own.
        day, c, q = 86_400.0, 0.4, 0.5
        truth = truth_of(WorldConfig(), impressions([0.0, day], c, q), draws=8191)
        bought, click = self.delays.purchase.cdf, self.delays.click
        in_time = float(click.cdf(np.array(1800.0)))
        nodes = click.quantile((np.arange(400) + 0.5) / 400 * in_time)  # click delays, given one in time
        until = np.minimum(day + nodes[None, :] - nodes[:, None], 7 * day)
        first = q * (c * in_time * bought(until).mean() + (1 - c * in_time) * bought(np.array(7 * day)))
        assert truth.purchase_given_click[0] == pytest.approx(first, rel=2e-3)
        own = q * float(bought(np.array(7 * day)))

        def taken(theirs: float, mine: np.ndarray) -> np.ndarray:
            begin = day + mine - theirs
            return q * (bought(begin + 7 * day) - bought(begin))

        all_nodes = click.quantile((np.arange(400) + 0.5) / 400)  # a click too late for its label can still buy
        other = c * np.mean([taken(theirs, nodes).mean() for theirs in all_nodes])
        assert truth.purchase_given_click[1] == pytest.approx(1 - (1 - own) * (1 - other), rel=2e-3)

    def test_request_ids_uncouple_impressions(self) -> None:
        lone = truth_of(WorldConfig(), impressions([0.0], 0.2, 0.3))
        both = truth_of(WorldConfig(), impressions([0.0, 60.0], 0.2, 0.3), by_request=True)
        np.testing.assert_allclose(both.click, lone.click[0])
        np.testing.assert_allclose(both.purchase_given_click, lone.purchase_given_click[0])

    def test_mean_of_the_stars(self) -> None:
        shown = impressions([0.0], 0.2, 0.3)
        noise = WorldConfig().strengths.rating_noise
        chances = [
            quad(lambda x: np.exp(-0.5 * ((x - 3.0) / noise) ** 2) / noise / np.sqrt(2 * np.pi), low, high)[0]
            for low, high in ((-9, 1.5), (1.5, 2.5), (2.5, 3.5), (3.5, 4.5), (4.5, 15))
        ]
        expected = sum(star * chance for star, chance in zip(range(1, 6), chances, strict=True))
        assert truth_of(WorldConfig(), shown).rating[0] == pytest.approx(expected)

    def test_order_of_rows_changes_nothing_exact(self) -> None:
        _, shown = world_of(WorldConfig(**SMALL))
        order = np.random.default_rng(1).permutation(shown.time.size)
        mixed = Shown(**{name: getattr(shown, name)[order] for name in Shown.__dataclass_fields__})
        truth, again = truth_of(WorldConfig(), shown), truth_of(WorldConfig(), mixed)
        np.testing.assert_allclose(again.click, truth.click[order])
        np.testing.assert_allclose(again.purchase_given_click, truth.purchase_given_click[order], atol=0.01)

    def test_error_of_the_lattice(self) -> None:
        config = WorldConfig(users=50, items=60, impressions=1500, days=40, seed=2)
        _, shown = world_of(config)
        usual, fine = truth_of(config, shown), truth_of(config, shown, draws=2039)
        assert usual.coupled > 300
        error = (usual.purchase_given_click - fine.purchase_given_click)[usual.purchase_given_click > 0]
        assert np.sqrt((error**2).mean()) < 3e-4
        assert np.abs(error).max() < 5e-3
        np.testing.assert_array_equal(usual.click, fine.click)

    def test_agrees_with_attribution_by_event_log(self, tmp_path: Path) -> None:
        """The same impressions under many users' names: the mean label that event_log gives is the truth."""
        config = WorldConfig(
            users=5,
            items=6,
            impressions=120,
            days=8,
            request_sizes=(2, 5),
            rates={"click": 0.35, "purchase": 0.4, "rating": 0.7},
            delays=Delays(
                click=Delay(median=timedelta(minutes=10), spread=1.5, longest=timedelta(hours=6)),
                purchase=Delay(median=timedelta(hours=30), spread=1.5, longest=timedelta(days=20)),
                rating=Delay(median=timedelta(days=6), spread=1.5, longest=timedelta(days=60)),
            ),
        )
        _, shown = world_of(config)
        truth = truth_of(config, shown)
        assert truth.coupled > 100
        copies = 2000
        generator = np.random.default_rng(11)
        n = shown.time.size
        many = Shown(**{name: np.tile(getattr(shown, name), copies) for name in Shown.__dataclass_fields__})
        events = behave(config, many, generator)
        user = np.repeat(np.arange(copies), n) * config.users + many.user

        def write(name: str, rows: np.ndarray, time: np.ndarray, **more: np.ndarray) -> str:
            path = tmp_path / f"{name}.parquet"
            columns = {"user_id": user[rows], "item_id": many.item[rows], **more}
            pl.DataFrame(columns).with_columns(pl.Series("time", time).cast(pl.Datetime("us"))).write_parquet(path)
            return str(path)

        logs = {
            name: write(name, e.impression, e.time, **({} if e.value is None else {"rating": e.value}))
            for name, e in events.items()
        }
        everything = np.arange(n * copies)
        log = read_event_log(
            EventLogConfig(
                impressions=LogConfig(path=write("impressions", everything, many.time, number=everything)),
                events={name: EventConfig(path=path) for name, path in logs.items()},
            ),
            tmp_path / "work",
            Silent(),
        )
        labels = log.frame.select("number", "click", "purchase", "rating").sort("number").collect()
        click = labels["click"].to_numpy().reshape(copies, n)
        purchase = labels["purchase"].to_numpy().reshape(copies, n)
        rating = labels["rating"].cast(pl.Float64).to_numpy().reshape(copies, n)

        def check(mean: np.ndarray, expected: np.ndarray, count: np.ndarray | int, variance: np.ndarray) -> None:
            z = (mean - expected) / np.sqrt(variance / count)
            assert np.abs(z).max() < 4.5
            assert 0.6 < (z**2).mean() < 1.5

        assert ((purchase == 1) <= (click == 1)).all()
        check(click.mean(axis=0), truth.click, copies, truth.click * (1 - truth.click))
        given = truth.purchase_given_click
        clicked = (click == 1).sum(axis=0)
        check(purchase.sum(axis=0) / clicked, given, clicked, given * (1 - given))
        rated = (~np.isnan(rating)).sum(axis=0)
        enough = rated > 50
        assert enough.sum() > 60
        mean, variance = np.nanmean(rating[:, enough], axis=0), np.nanvar(rating[:, enough], axis=0)
        check(mean, truth.rating[enough], rated[enough], np.maximum(variance, 1e-3))
        # The effects that the truth accounts for are there to be seen: ignoring them is found out.
        naive = shown.purchase * float(config.delays.purchase.cdf(np.array(7 * 86_400.0)))
        z = (purchase.sum(axis=0) / clicked - naive) / np.sqrt(naive * (1 - naive) / clicked)
        assert (z**2).mean() > 5


class TestDefaults:
    """The default world is what the demo runs on: its strengths are stated here and are not to be weakened."""

    def test_attainable_auc_and_share_of_the_main_effects(self) -> None:
        config = WorldConfig()
        assert (config.users, config.items, config.impressions) == (10_000, 2_000, 500_000)
        world, shown = world_of(config)
        events = behave(config, shown, np.random.default_rng(7))
        clicked = np.zeros(shown.time.size)
        clicked[events["click"].impression] = 1
        attainable = roc_auc_score(clicked, shown.click)
        assert 0.75 < attainable < 0.85
        share = (roc_auc_score(clicked, shown.main_click) - 0.5) / (attainable - 0.5)
        assert 0.60 < share < 0.85
        assert 0.1 < clicked.mean() < 0.2
        assert 0.1 < events["purchase"].time.size / clicked.sum() < 0.3
        assert events["rating"].time.size > 5000
        # `explained`: what the tables say of the users' effects, by least squares.
        columns = [np.eye(12)[world.segment], np.eye(8)[world.country]]
        columns += [np.stack([world.age, np.log(world.visits_per_week + 0.01)], axis=1)]
        weight = np.sqrt(world.visits)[:, None]
        said, effects = np.concatenate(columns, axis=1) * weight, world.user_effect.T * weight
        rest = effects - said @ np.linalg.lstsq(said, effects, rcond=None)[0]
        np.testing.assert_allclose(1 - (rest**2).sum(axis=0), config.explained, atol=0.03)


class TestFolder:
    def config(self, tmp_path: Path, **changes) -> SyntheticConfig:
        return SyntheticConfig(path=tmp_path / "shop", **{**SMALL, **changes})

    def test_same_parameters_same_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            assert write_logs(SyntheticConfig(path=tmp_path / name, **SMALL), Silent())
        one, two = logs_in(tmp_path / "one"), logs_in(tmp_path / "two")
        assert one == two
        logs = ("clicks", "impressions", "items", "purchases", "ratings", "users")
        assert list(one) == [*(f"logs/{log}.parquet" for log in logs), "synthetic.json", "truth.parquet"]
        write_logs(SyntheticConfig(path=tmp_path / "three", **SMALL, seed=2), Silent())
        assert logs_in(tmp_path / "three")["logs/clicks.parquet"] != one["logs/clicks.parquet"]

    def test_written_once_and_again_when_parameters_change(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        assert write_logs(config, Silent())
        before = logs_in(config.path)
        assert not write_logs(config, Silent())
        earlier = config.model_copy(update={"observed_until": datetime(2025, 1, 20, tzinfo=UTC)})
        assert not write_logs(earlier, Silent())
        assert write_logs(self.config(tmp_path, zipf=0.5), Silent())
        assert logs_in(config.path) != before
        assert write_logs(config, Silent())
        assert logs_in(config.path) == before
        assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["shop"]

    @pytest.mark.parametrize("damage", ["missing", "short", "record"])
    def test_a_damaged_folder_is_written_again(self, tmp_path: Path, damage: str) -> None:
        config = self.config(tmp_path)
        write_logs(config, Silent())
        before = logs_in(config.path)
        clicks = config.path / "logs/clicks.parquet"
        if damage == "missing":
            clicks.unlink()
        elif damage == "short":
            clicks.write_bytes(before["logs/clicks.parquet"][:-9])
        else:
            (config.path / "synthetic.json").write_text("{")
        assert write_logs(config, Silent())
        assert logs_in(config.path) == before

    def test_leftovers_of_a_killed_run_do_not_matter(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        (tmp_path / ".shop.writing/logs").mkdir(parents=True)
        (tmp_path / ".shop.writing/logs/clicks.parquet").write_text("half")
        assert write_logs(config, Silent())
        assert not (tmp_path / ".shop.writing").exists()

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "shop").mkdir()
        (tmp_path / "shop/thesis.tex").write_text("three years")
        with pytest.raises(UserError, match="something other than synthetic logs"):
            write_logs(self.config(tmp_path), Silent())
        assert (tmp_path / "shop/thesis.tex").read_text() == "three years"

    def test_record(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        write_logs(config, Silent())
        record = json.loads((config.path / "synthetic.json").read_text())
        assert record["parameters"]["users"] == 60
        assert str(tmp_path) not in json.dumps(record)
        last = pl.read_parquet(config.path / "logs/impressions.parquet")["shown_at"].drop_nulls()
        last = last.str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", strict=False).max().replace(tzinfo=UTC)
        recorded = datetime.fromisoformat(record["observed_until"])
        assert timedelta() <= recorded - (last + timedelta(minutes=30, days=37)) <= timedelta(seconds=1)

    def test_csv_holds_no_vector(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="content_dim: 0"):
            self.config(tmp_path, format="csv")


class TestRead:
    @pytest.mark.parametrize("changes", [{}, {"format": "csv", "content_dim": 0}, {"request_ids": True}])
    def test_reads_its_logs_like_a_company_s(self, tmp_path: Path, changes: dict) -> None:
        config = SyntheticConfig(
            path=tmp_path / "shop", **{**SMALL, "noise": Noise(bad_rows=0.02, missing=0.1), **changes}
        )
        log = read(config, tmp_path / "work", Silent())
        frame = log.frame.collect()
        assert frame.height == config.impressions
        for name in ("impressions", "click", "purchase", "rating"):
            bad = sum(log.rejected[name].values())
            assert log.read[name] - log.duplicates[name] - bad > 0
            assert bad > 0 or name == "rating"
        assert len(log.rejected["impressions"]) == 5
        assert log.duplicates["impressions"] > 0
        assert log.outcomes >= {"click", "purchase", "rating"}
        assert log.maturity["purchase"] == timedelta(days=7, minutes=30)
        assert log.inputs == inputs(config)
        assert "truth" not in " ".join(log.inputs)
        assert log.columns.request == "request_id"
        schema = Schema(log.default_features)
        assert schema.columns == Schema(default_features(config)).columns
        assert set(schema.columns) <= set(frame.columns)
        assert not set(schema.columns) & log.outcomes
        for column in ("segment", "age", "category", "tags"):
            assert 0 < frame[column].null_count() < 0.4 * frame.height

    @pytest.mark.parametrize("request_ids", [False, True])
    def test_labels_agree_with_the_truth_on_the_whole(self, tmp_path: Path, request_ids: bool) -> None:
        config = SyntheticConfig(
            path=tmp_path / "shop", users=2000, items=200, impressions=30_000, days=20, request_ids=request_ids
        )
        log = read(config, tmp_path / "work", Silent())
        assert log.truth is not None
        truth = pl.scan_parquet(log.truth).rename(lambda name: f"true/{name}" if ":" in name else name)
        rows = log.frame.join(truth, on=["request_id", "user_id", "item_id"], how="left", maintain_order="left")
        rows = rows.collect()
        assert rows["true/label:click"].null_count() == 0

        def agree(label: pl.Series, chance: pl.Series) -> None:
            p = chance.to_numpy()
            assert abs(label.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())

        agree(rows["click"], rows["true/label:click"])
        agree(rows["purchase"], rows["true/label:purchase"])
        clicked = rows.filter(pl.col("click") == 1)
        agree(clicked["purchase"], clicked["true/given:purchase"])
        rated = rows.filter(pl.col("rating").is_not_null())
        gap = (rated["rating"] - rated["true/label:rating"]).to_numpy()
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size)
        product = rows["true/label:click"] * rows["true/given:purchase"]
        np.testing.assert_allclose(rows["true/label:purchase"], product)
        kinds = Counter(reason for event in log.unattributed.values() for reason in event)
        assert any("window" in reason for reason in kinds)

    def test_observed_until(self, tmp_path: Path) -> None:
        config = SyntheticConfig(path=tmp_path / "shop", **SMALL)
        log = read(config, tmp_path / "work", Silent())
        record = json.loads((config.path / "synthetic.json").read_text())
        assert log.observed_until == datetime.fromisoformat(record["observed_until"])
        earlier = config.model_copy(update={"observed_until": datetime(2025, 1, 20, tzinfo=UTC)})
        assert read(earlier, tmp_path / "again", Silent()).observed_until == datetime(2025, 1, 20, tzinfo=UTC)

    def test_smallest_world(self, tmp_path: Path) -> None:
        config = SyntheticConfig(
            path=tmp_path / "shop",
            users=1,
            items=1,
            impressions=1,
            days=1,
            request_sizes=(1, 1),
            content_dim=2,
            noise=Noise(duplicates=0, bad_rows=0, missing=0, absent=0),
        )
        write_logs(config, Silent())
        truth = pl.read_parquet(config.path / "truth.parquet")
        assert truth.height == 1
        assert truth["main:click"][0] == pytest.approx(config.rates.click)
        assert expit(np.log(0.18 / 0.82)) == pytest.approx(0.18)

    def test_is_in_the_table_of_sources(self) -> None:
        kind = SOURCES["synthetic"]
        assert kind.config is SyntheticConfig
        assert kind.read is read


def test_a_world_that_drifts_keeps_its_spread_and_forgets_at_the_stated_rate():
    config = WorldConfig(users=4000, items=3000, impressions=1000, drift={"tastes": 0.2, "popularity": 0.3})
    first = build_world(config, np.random.default_rng(1))
    world, drift = first, np.random.default_rng(2)
    for _ in range(4):
        world = synthetic_world._moved(config, world, drift)

    def alike(one, other, weight):
        one, other = (values - (values * weight).sum() for values in (one, other))
        return (one * other * weight).sum() / np.sqrt((one**2 * weight).sum() * (other**2 * weight).sum())

    assert (world.user_effect[0] ** 2 * first.visits).sum() == pytest.approx(1, abs=0.25)
    assert (world.trait[:, 0] ** 2 * first.popularity).sum() == pytest.approx(1, abs=0.35)
    # (1 − 0.2)^(4/2) = 0.64, though few segments make single sets uneven.
    kept = [alike(first.user_effect[t], world.user_effect[t], first.visits) for t in range(3)]
    kept += [alike(first.taste[t][:, k], world.taste[t][:, k], first.visits) for t in range(3) for k in range(4)]
    assert np.mean(kept) == pytest.approx(0.64, abs=0.15)
    shown = np.corrcoef(np.log(first.popularity), np.log(world.popularity))[0, 1]
    assert shown == pytest.approx(0.7**2, abs=0.05)
    assert world.popularity.sum() == pytest.approx(1)


def test_new_users_and_items_come_on_the_stated_days_and_rates_stay():
    config = WorldConfig(
        users=400, items=200, impressions=30_000, days=10, drift={"tastes": 0.1, "new_users": 0.05, "new_items": 0.03}
    )
    world = build_world(config, np.random.default_rng(1))
    shown = show(config, world, np.random.default_rng(2), np.random.default_rng(3))
    day = (shown.time - round(config.start.timestamp()) * SECOND) // DAY
    for codes, count, new in ((shown.user, 400, 20), (shown.item, 200, 6)):
        first = np.full(count, 99)
        np.minimum.at(first, codes, day)
        on_the_first = (first == 0).sum()
        assert 0.6 * (count - 9 * new) < on_the_first <= count - 9 * new
        later = [(first <= today).sum() for today in range(1, 10)]
        assert all(seen <= count - 9 * new + new * today for today, seen in enumerate(later, 1))
        assert later[-1] > on_the_first + 5 * new
    assert shown.click.mean() == pytest.approx(config.rates.click, abs=1e-6)
    pairs = shown.request * 200 + shown.item
    assert np.unique(pairs).size == pairs.size


def test_drift_that_leaves_nobody_for_the_first_day_is_refused():
    with pytest.raises(ValidationError, match=r"drift\.new_items: 190 of 200"):
        WorldConfig(items=200, days=20, drift={"new_items": 0.05})


def test_standing_still_is_no_parameter_of_the_logs(tmp_path):
    assert "drift" not in SyntheticConfig(path=tmp_path).parameters()
    assert "drift" in SyntheticConfig(path=tmp_path, drift={"tastes": 0.1}).parameters()
