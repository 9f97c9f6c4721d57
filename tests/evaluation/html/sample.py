"""A report with every section in it: three tasks, four systems, sixty slices, plausible numbers from a seed."""
# ruff: noqa: E501 - rows of data, one a line

import math

import numpy as np

from recmtl.findings import (
    About,
    Calibration,
    Check,
    Coherence,
    Conflict,
    Cost,
    Coverage,
    Curve,
    DataCard,
    Difference,
    Drift,
    Epoch,
    Expert,
    FeatureDrift,
    Figure,
    FigureRow,
    Fusion,
    FusionPoint,
    Gate,
    Guard,
    Importance,
    LabelDrift,
    RankingRow,
    Report,
    SliceRow,
    Verdict,
)

SYSTEMS = ("model", "champion", "baseline", "optimum")
TARGETS = {"click": "click", "purchase": "purchase", "purchase_given_click": "purchase", "rating": "rating"}
_AUC = {
    "click": {"model": 0.7421, "champion": 0.7368, "baseline": 0.5, "optimum": 0.7713},
    "purchase": {"model": 0.8034, "champion": 0.8041, "baseline": 0.5, "optimum": 0.8312},
    "purchase_given_click": {"model": 0.6612, "champion": 0.6590, "baseline": 0.5, "optimum": 0.6955},
}
_RATE = {"click": 0.118, "purchase": 0.0142, "purchase_given_click": 0.12}
_SLICES = {
    "country": ("DE", "FR", "NL", "PL", "ES", "IT", "AT", "BE"),
    "device": ("phone", "tablet", "desktop", "tv"),
    "category": tuple(f"{name}" for name in ("shoes", "coats", "garden", "toys", "books", "music", "food", "tools")),
    "price": tuple(
        f"{q} of 5 ({a} to {b})" for q, a, b in ((1, 0, 4), (2, 4, 9), (3, 9, 17), (4, 17, 40), (5, 40, 990))
    ),
    "position": tuple(str(n) for n in range(1, 11)),
    "new_user": ("new", "returning"),
    "new_item": ("new", "known"),
    "item_popularity": tuple(f"{q} of 5" for q in range(1, 6)),
    "user_activity": tuple(f"{q} of 5" for q in range(1, 6)),
    "time": tuple(f"2026-11-{day:02d}" for day in range(9, 16)),
    "age": ("under 25", "25 to 39", "40 to 59", "60 and over"),
}


def sample_report(seed: int = 0) -> Report:
    """Every section filled."""
    random = np.random.default_rng(seed)
    return Report(
        about=About(
            name="shop-ranker nightly",
            created="2026-11-16T04:12:09+00:00",
            version="0.1.0",
            commit="e93c638a90f1",
            split="test",
            models={"model": "sha256:8a4f0c1be2d7", "champion": "models:/shop-ranker/41"},
            systems=SYSTEMS,
        ),
        verdict=_verdict(),
        figures=tuple(_figures(random)),
        legend={
            "auc": "chance that a positive row is ranked above a negative one; 0.5 is chance",
            "pr_auc": "average precision; the share of positives is chance",
            "log_loss": "mean of −log of the probability given to what happened, in nats",
            "calibration": "positives predicted over positives observed; 1 is right",
            "ece": "mean distance between predicted and observed rate over 15 bins of equal mass",
            "rmse": "root of the mean squared error, in label units",
            "spearman": "rank correlation of predictions and labels, from −1 to 1",
            "ndcg": "discounted gain of the first k over the highest possible",
        },
        history=tuple(_history(random)),
        curves=tuple(_curves(random)),
        calibration=tuple(_calibration(random)),
        slices=tuple(_slices(random)),
        ranking=tuple(_ranking(random)),
        coverage=tuple(
            Coverage(system=s, by="user", scored_by="fused", k=10, items=i, catalogue=8412, gini=g, popularity=p)
            for s, i, g, p in (("model", 3120, 0.712, 0.861), ("champion", 2844, 0.744, 0.879))
        ),
        gates=tuple(_gates(random)),
        experts=(
            Expert(layer="gate", expert="expert 6", dead=True, units_dead=0.41),
            Expert(layer="gate", expert="expert 3", duplicate_of="expert 1", similarity=0.964, units_dead=0.03),
        ),
        importance=tuple(_importance(random)),
        conflicts=tuple(
            Conflict(
                one=one,
                other=other,
                steps=tuple(range(500, 6001, 500)),
                cosine=tuple(float(c) for c in level + 0.08 * np.sin(np.arange(12) / 2 + level) + random.normal(0, 0.02, 12)),
                negative=share,
            )
            for one, other, level, share in (
                ("click", "purchase", 0.34, 0.04),
                ("click", "rating", -0.06, 0.61),
                ("purchase", "rating", 0.02, 0.43),
            )
        ),
        coherence=(
            Coherence(kind="prediction", text="p(purchase) > p(click)", system="model", rows=0, of=412_332, share=0.0),
            Coherence(kind="prediction", text="p(purchase) > p(click)", system="champion", rows=37, of=412_332, share=37 / 412_332),
            Coherence(kind="label", text="a purchase without a click", rows=118, of=412_332, share=118 / 412_332),
        ),
        fusion=_fusion(random),
        drift=_drift(random),
        guards=(
            Guard(name="leaky_feature_names", status="passed", text="No feature is called like a label or an outcome (14 looked at)."),
            Guard(name="label_correlation", status="allowed", text="dwell_previous has a correlation of 0.58 with click; 0.5 is permitted.", reason="measured before the impression, checked on 2026-10-02"),
            Guard(name="vocabulary_on_train", status="passed", text="Vocabularies count 1,918,204 rows, as train has."),
            Guard(name="rows_shared", status="passed", text="No key of validation or test is in train."),
            Guard(name="times_overlap", status="passed", text="Train ends at 2026-11-08 23:59, validation begins at 2026-11-09 00:00."),
            Guard(name="validation_is_test", status="not applicable", text="There are two different splits."),
        ),
        data=_data(),
        config={
            "name": "shop",
            "model": {"tower": {"kind": "mmoe", "experts": 8, "expert_units": [64, 32]}},
            "balancing": {"kind": "uncertainty"},
            "training": {"epochs": 6, "batch_size": 4096, "seed": 17, "sparse": {"optimizer": "rowwise_adagrad", "lr": 0.05}},
            "registry": {"model": "shop-ranker", "gate": {"required": {"click.auc": 0.0}}},
        },
        cost=Cost(
            seconds={"prepare": 141.2, "train": 1284.0, "evaluate": 96.4, "fuse": 31.0, "register": 6.2},
            rows_per_second={"train": 9410.0, "score": 61_900.0},
            peak_memory_mb=3412.0,
            package_mb=48.7,
            device="cpu",
            cores=2,
            steps=6000,
            epochs=6,
        ),
        notes=(
            "Integrated gradients were taken on 20,000 rows drawn from test, not on all of them.",
            "kappa of rating: no interval, because the bootstrap is not defined for it on slices.",
        ),
    )  # fmt: skip


def _figure(value: float, half: float) -> Figure:
    return Figure(value=value, low=value - half, high=value + half)


def _difference(value: float, half: float, p: float, corrected: float | None) -> Difference:
    return Difference(value=value, low=value - half, high=value + half, p_value=p, p_corrected=corrected)


def _p(value: float, half: float) -> float:
    return math.erfc(abs(value) / (half / 1.96) / math.sqrt(2))


def _figures(random: np.random.Generator):
    method = "Poisson bootstrap over users, 1000 draws"
    for target, task in TARGETS.items():
        rows = {"click": 412_332, "purchase": 396_120, "purchase_given_click": 46_710, "rating": 18_412}[target]
        if target == "rating":
            table = [
                ("rmse", False, True, {"model": 1.012, "champion": 1.021, "baseline": 1.204, "optimum": 0.964}, 0.011),
                ("mae", False, False, {"model": 0.801, "champion": 0.806, "baseline": 0.98, "optimum": 0.76}, 0.009),
                (
                    "spearman",
                    True,
                    False,
                    {"model": 0.512, "champion": 0.505, "baseline": None, "optimum": 0.571},
                    0.012,
                ),
                ("kappa", True, False, {"model": 0.398, "champion": 0.391, "baseline": 0.0, "optimum": 0.44}, 0.014),
            ]
        else:
            auc, rate = _AUC[target], _RATE[target]
            entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
            loss = {s: entropy * (1 - 0.9 * (v - 0.5) ** 2 * 3) for s, v in auc.items()}
            half = 0.0039 if target == "click" else 0.0092
            table = [
                ("auc", True, True, auc, half),
                ("log_loss", False, True, loss, 0.0021 if target == "click" else 0.0009),
                ("pr_auc", True, False, {s: rate + (v - 0.5) * 0.9 * rate**0.5 for s, v in auc.items()}, 0.006),
                ("normalised_entropy", False, False, {s: v / entropy for s, v in loss.items()}, 0.004),
                ("user_auc", True, False, {s: 0.5 + (v - 0.5) * 0.8 for s, v in auc.items()}, half * 1.3),
                (
                    "calibration",
                    None,
                    True,
                    {"model": 1.012, "champion": 0.981, "baseline": 1.034, "optimum": 1.001},
                    0.021,
                ),
                (
                    "ece",
                    False,
                    False,
                    {"model": 0.0041, "champion": 0.0067, "baseline": 0.0061, "optimum": 0.0009},
                    None,
                ),
            ]
        for metric, higher, headline, values, half in table:
            systems = {s: Figure(value=v) if v is None or half is None else _figure(v, half) for s, v in values.items()}
            if metric == "auc":
                systems["baseline"] = Figure(value=0.5)
            differences = {}
            for other in SYSTEMS[1:]:
                if values[other] is not None and half is not None:
                    gap = values["model"] - values[other]
                    p = _p(gap, half * 0.4)
                    differences[other] = _difference(gap, half * 0.4, p, min(1.0, 4 * p))
            share = None
            if metric == "auc":
                share = _figure((values["model"] - 0.5) / (values["optimum"] - 0.5), 0.021)
            yield FigureRow(
                target=target,
                task=task,
                metric=metric,
                higher_is_better=higher,
                headline=headline,
                rows=rows,
                positives=None if target == "rating" else int(rows * _RATE[target]),
                users=38_120,
                systems=systems,
                differences=differences,
                share_of_attainable=share,
                method=method if half is not None else "none",
            )


def _verdict() -> Verdict:
    checks = [
        Check(name="click.auc vs champion", group="metric", passed=True, text="click: AUC 0.7421 is 0.0053 (0.0037 to 0.0069) above the champion's; 0 is required.", target="click", metric="auc", value=0.0053, low=0.0037, high=0.0069, bound=0.0),
        Check(name="purchase.auc vs champion", group="metric", passed=True, text="purchase: AUC 0.8034 is 0.0007 (−0.0044 to 0.0030) below the champion's; a loss of 0.005 is permitted.", target="purchase", metric="auc", value=-0.0007, low=-0.0044, high=0.0030, bound=-0.005),
        Check(name="rating.rmse vs champion", group="metric", passed=True, text="rating: RMSE 1.0120 is 0.0090 (0.0046 to 0.0134) below the champion's; 0 is required.", target="rating", metric="rmse", value=-0.009, low=-0.0134, high=-0.0046, bound=0.0),
        Check(name="click.auc floor", group="floor", passed=True, text="click: AUC 0.7421 is above the floor of 0.7.", target="click", metric="auc", value=0.7421, bound=0.7),
        Check(name="purchase.calibration", group="calibration", passed=True, text="purchase: predicts 1.012 of what happens; 0.9 to 1.1 is permitted.", target="purchase", value=1.012, bound=1.1),
        Check(name="purchase.auc in country=PL", group="slice", passed=False, text="purchase in country PL: AUC is 0.0211 (0.0102 to 0.0320) below the champion's; a loss of 0.01 is permitted.", target="purchase", metric="auc", slice="country=PL", value=-0.0211, low=-0.032, high=-0.0102, bound=-0.01),
        Check(name="rating in device=tv", group="slice", passed=None, text="rating on device tv: 41 rows are too few to judge.", target="rating", slice="device=tv"),
        Check(name="coherence", group="coherence", passed=True, text="No row has p(purchase) > p(click).", value=0.0, bound=0.0),
        Check(name="drift.position", group="drift", passed=True, text="The largest population stability index is 0.218 (session_hour); 0.25 is permitted.", value=0.218, bound=0.25),
        Check(name="package.loads", group="package", passed=True, text="The package loads in a fresh process and predicts the same to 1e-6."),
        Check(name="package.latency", group="package", passed=True, text="256 rows take 11.2 ms; 50 ms are permitted.", value=11.2, bound=50.0),
        Check(name="guards", group="guard", passed=True, text="All guards passed or are allowed with a reason."),
    ]  # fmt: skip
    return Verdict(
        decision="refuse",
        reasons=(
            "purchase in country PL: AUC is 0.0211 (0.0102 to 0.0320) below the champion's; a loss of 0.01 is permitted.",
            "Everything else that the gate asks is met: 10 checks passed, 1 could not be judged.",
        ),
        checks=tuple(checks),
    )


def _history(random: np.random.Generator):
    for epoch in range(1, 7):
        fall = math.exp(-epoch / 2)
        yield Epoch(
            epoch=epoch,
            step=1000 * epoch,
            train={"click": 0.338 + 0.06 * fall, "purchase": 0.342 + 0.05 * fall, "rating": 1.31 + 0.3 * fall},
            validation={
                target: (
                    {"rmse": 1.01 + 0.12 * fall + 0.002 * max(0, epoch - 4), "mae": 0.8 + 0.1 * fall}
                    if target == "rating"
                    else {
                        "auc": _AUC[target]["model"] - 0.08 * fall - 0.0014 * max(0, epoch - 4),
                        "log_loss": 0.31 + 0.05 * fall + 0.001 * max(0, epoch - 4),
                    }
                )
                for target in TARGETS
            },
        )


def _scores(random: np.random.Generator, target: str, auc: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and calibrated predictions whose AUC is about the one given."""
    rate = _RATE[target]
    separation = math.sqrt(2) * 2.0 * (auc - 0.5) * 1.33
    label = random.random(40_000) < rate
    score = random.normal(0, 1, label.size) + separation * label
    odds = rate / (1 - rate) * np.exp(separation * score - separation**2 / 2)
    return label, odds / (1 + odds)


def _curves(random: np.random.Generator):
    for target in _AUC:
        for system in SYSTEMS:
            if system == "baseline":
                continue
            label, p = _scores(random, target, _AUC[target][system])
            order = np.argsort(-p)
            hits = np.cumsum(label[order])
            tpr, fpr = hits / hits[-1], (np.arange(1, p.size + 1) - hits) / (p.size - hits[-1])
            picked = np.unique(np.linspace(0, p.size - 1, 200).astype(int))
            yield Curve(kind="roc", target=target, system=system, x=(0.0, *fpr[picked]), y=(0.0, *tpr[picked]))
            late = picked[picked > 100]
            precision = hits / np.arange(1, p.size + 1)
            yield Curve(kind="pr", target=target, system=system, x=tuple(tpr[late]), y=tuple(precision[late]))
            shares = np.unique((np.linspace(0.01, 1, 50) * p.size).astype(int) - 1)
            lift = precision[shares] / label.mean()
            yield Curve(kind="lift", target=target, system=system, x=tuple((shares + 1) / p.size), y=tuple(lift))
            bins = np.array_split(order[::-1], 10)
            x = [float(p[b].mean()) * (1.06 if system == "champion" else 1.0) for b in bins]
            y = [float(label[b].mean()) for b in bins]
            half = [1.96 * math.sqrt(max(r, 1e-4) * (1 - r) / b.size) for r, b in zip(y, bins, strict=True)]
            yield Curve(
                kind="calibration",
                target=target,
                system=system,
                x=tuple(x),
                y=tuple(y),
                low=tuple(max(0.0, r - h) for r, h in zip(y, half, strict=True)),
                high=tuple(r + h for r, h in zip(y, half, strict=True)),
                rows=tuple(b.size for b in bins),
            )
    stars = np.linspace(1.8, 4.6, 10)
    for system, tilt in (("model", 0.03), ("champion", -0.08)):
        y = stars + tilt * (stars - 3.2) + random.normal(0, 0.02, 10)
        yield Curve(
            kind="calibration", target="rating", system=system, x=tuple(stars), y=tuple(y),
            low=tuple(y - 0.06), high=tuple(y + 0.06), rows=(1841,) * 10,
        )  # fmt: skip


def _calibration(random: np.random.Generator):
    for target in _AUC:
        for method, loss, ece, ratio in (
            ("none", 0.3391, 0.0041, 1.012),
            ("isotonic", 0.3389, 0.0022, 1.001),
            ("platt", 0.3390, 0.0031, 1.0),
            ("beta", 0.3388, 0.0024, 1.0),
        ):
            yield Calibration(
                target=target, method=method, chosen=method == "beta", log_loss=loss, ece=ece, ratio=ratio,
                rows=206_100, fitted_on="validation, 5 folds",
            )  # fmt: skip


def _slices(random: np.random.Generator):
    for cut, values in _SLICES.items():
        for value in values:
            rows = int(412_332 / len(values) * random.uniform(0.3, 1.2))
            if value in ("tv", "music"):
                rows = 410
            for target in ("click", "purchase", "rating"):
                rate = _RATE.get(target, 0.0)
                count = rows if target != "rating" else rows // 22
                positives = int(count * rate) if rate else None
                effective = positives if positives is not None else count
                half = 0.95 / math.sqrt(max(effective, 2))
                systems, differences = {}, {}
                if target == "rating":
                    base = {"model": 1.012, "champion": 1.021}
                    shift = random.normal(0, 0.03)
                    systems = {
                        s: {"rmse": _figure(v + shift, half), "mae": _figure(0.8 * v + shift, half)}
                        for s, v in base.items()
                    }
                    name, gap = "rmse", -0.009 + random.normal(0, half * 0.25)
                else:
                    shift = random.normal(0, 0.015)
                    for s in ("model", "champion", "baseline"):
                        systems[s] = {
                            "auc": _figure(_AUC[target][s] + shift, half) if s != "baseline" else Figure(value=0.5),
                            "log_loss": _figure(0.33 - shift / 3, half / 3),
                            "calibration": _figure(1 + random.normal(0, half), 2 * half),
                        }
                    name, gap = "auc", (0.004 if target == "click" else -0.0005) + random.normal(0, half * 0.25)
                if (cut, value, target) == ("country", "PL", "purchase"):
                    gap = -0.0211
                width = half * 0.45 if gap != -0.0211 else 0.0109
                differences = {"champion": {name: _difference(gap, width, _p(gap, width), None)}}
                yield SliceRow(
                    slice=cut, value=value, target=target, rows=count, users=max(1, count // 9), positives=positives,
                    small=effective < 60, systems=systems, differences=differences,
                )  # fmt: skip


def _ranking(random: np.random.Generator):
    for objective, base in (("click", 0.412), ("purchase", 0.447), ("rating", 0.893)):
        for metric, k, factor in (("ndcg", 5, 0.94), ("ndcg", 10, 1.0), ("map", 10, 0.8), ("recall", 10, 1.2), ("mrr", None, 0.9)):  # fmt: skip
            value = min(0.98, base * factor)
            gap = 0.004 if objective == "click" else -0.0006
            yield RankingRow(
                by="request", scored_by="fused", objective=objective, metric=metric, k=k, groups=31_204,
                systems={"model": _figure(value, 0.004), "champion": _figure(value - gap, 0.004), "baseline": _figure(value * 0.6, 0.004)},
                differences={"champion": _difference(gap, 0.0015, _p(gap, 0.0015), None)},
            )  # fmt: skip
    yield RankingRow(
        by="user", scored_by="click", objective="click", metric="ndcg", k=10, groups=12_020,
        systems={"model": _figure(0.52, 0.003), "champion": _figure(0.517, 0.003)},
    )  # fmt: skip


def _gates(random: np.random.Generator):
    experts = tuple(f"expert {n}" for n in range(1, 9))
    parts = [(None, None, 412_332), ("new_user", "new", 60_120), ("new_user", "returning", 352_212)]
    for cut, value, rows in parts:
        for task, favourite in (("click", 0), ("purchase", 1), ("rating", 6)):
            weight = random.dirichlet(np.full(8, 2.0)) * 0.6
            weight[favourite] += 0.4
            weight[5] = 0.004
            weight = weight / weight.sum()
            entropy = float(-(weight * np.log(weight)).sum() / math.log(8))
            yield Gate(layer="gate", task=task, slice=cut, value=value, rows=rows, experts=experts, mean=tuple(weight), entropy=entropy)  # fmt: skip


_FEATURES = ("user_id", "item_id", "category", "position", "price", "session_hour", "device", "country", "brand", "query_tokens", "item_age_days", "discount", "dwell_previous", "a_feature_with_a_rather_long_name_v2")  # fmt: skip


def _importance(random: np.random.Generator):
    for target in ("click", "purchase", "rating"):
        metric = "rmse" if target == "rating" else "auc"
        sizes = np.sort(random.gamma(0.8, 0.012, len(_FEATURES)))[::-1] - 0.0004
        shares = random.dirichlet(np.linspace(3, 0.3, len(_FEATURES)))
        for feature, size, share in zip(_FEATURES, sizes, shares, strict=True):
            yield Importance(target=target, feature=feature, method="permutation", figure=_figure(float(size), 0.0009), metric=metric)  # fmt: skip
            yield Importance(target=target, feature=feature, method="integrated_gradients", figure=_figure(float(share), 0.006), metric="attribution")  # fmt: skip


def _fusion(random: np.random.Generator) -> Fusion:
    weights = random.dirichlet(np.ones(3), 60)
    found = []
    for click, purchase, rating in weights:
        lost = abs(float(random.normal(0, 0.012)))
        found.append(
            {
                "click": 0.36 + 0.06 * math.sqrt(click) - lost,
                "purchase": 0.38 + 0.07 * math.sqrt(purchase) - lost,
                "rating": 0.85 + 0.05 * math.sqrt(rating) - lost,
            }
        )
    points = []
    for _index, (weight, goal) in enumerate(zip(weights, found, strict=True)):
        beaten = any(
            all(other[t] >= goal[t] for t in goal) and any(other[t] > goal[t] for t in goal) for other in found
        )
        names = dict(zip(("click", "purchase", "rating"), (round(float(w), 3) for w in weight), strict=True))
        points.append(FusionPoint(weights=names, objectives=goal, on_front=not beaten, chosen=False))
    best = max((p for p in points if p.on_front), key=lambda p: sum(p.objectives.values()))
    points[points.index(best)] = best.model_copy(update={"chosen": True})
    return Fusion(
        formula="click^a × purchase^b × rating^c", split="validation", by="request", k=10,
        points=tuple(points), weights=best.weights,
    )  # fmt: skip


def _drift(random: np.random.Generator) -> tuple[Drift, ...]:
    features = [
        FeatureDrift(
            feature=name,
            psi=0.218 if name == "session_hour" else float(random.gamma(1, 0.02)),
            unseen_before=0.011 if name.endswith("_id") else None,
            unseen_now=0.063 if name.endswith("_id") else None,
            missing_before=0.02,
            missing_now=0.024,
        )
        for name in _FEATURES
    ]
    labels = (
        LabelDrift(target="click", before=0.1164, now=0.1182, observed_before=1_918_204, observed_now=412_332),
        LabelDrift(target="purchase", before=0.0151, now=0.0142, observed_before=1_880_110, observed_now=396_120),
        LabelDrift(target="rating", before=3.61, now=3.64, observed_before=84_002, observed_now=18_412),
    )
    return (
        Drift(
            against="champion",
            split="test",
            rows_before=1_918_204,
            rows_now=412_332,
            features=tuple(features),
            labels=labels,
        ),
    )


def _data() -> DataCard:
    def split(rows: int, begin: str, end: str) -> dict[str, object]:
        return {
            "rows": rows,
            "time_range": [begin, end],
            "tasks": {
                "click": {"observed": rows, "positives": int(rows * 0.118), "mean": 0.118, "masked": {}},
                "purchase": {"observed": int(rows * 0.96), "positives": int(rows * 0.0137), "mean": 0.0142, "masked": {"immature": rows - int(rows * 0.96)}},
                "rating": {"observed": rows // 22, "positives": None, "mean": 3.62, "masked": {"missing": rows - rows // 22 - 40, "invalid": 40}},
            },
        }  # fmt: skip

    return DataCard(
        name="shop",
        source="event_log",
        fingerprint="5f1c9b0a7d3e4482aa0c61be9a4f2d1c0b77e6f58c2a91d3e4b5a6c7d8e9f001",
        statistics="c0b77e6f58c2a91d3e4b5a6c7d8e9f0015f1c9b0a7d3e4482aa0c61be9a4f2d1",
        splits={
            "train": split(1_918_204, "2026-10-01T00:00:03+00:00", "2026-11-08T23:59:57+00:00"),
            "validation": split(206_100, "2026-11-09T00:00:01+00:00", "2026-11-11T23:59:59+00:00"),
            "test": split(412_332, "2026-11-12T00:00:02+00:00", "2026-11-15T23:59:58+00:00"),
        },
        inputs={
            "logs/views.csv": "9d" * 32,
            "logs/clicks.csv": "3a" * 32,
            "logs/orders.csv": "71" * 32,
        },
        read={"impressions": 2_540_011, "click": 301_882, "purchase": 36_020},
        duplicates={"impressions": 312, "click": 4},
        rejected={"impressions": {"time: cannot be read": 2890, "user: missing": 173}, "click": {"item: missing": 12}},
        unattributed={"click": {"no impression": 1204, "outside the window": 388}, "purchase": {"no click": 118}},
        observed_until="2026-11-15T23:59:58+00:00",
        labels_as_of="2026-11-09T00:00:01+00:00",
        warnings=("purchase: 4.0 % of the test rows are immature; set observed_until if events were recorded longer.",),
    )
