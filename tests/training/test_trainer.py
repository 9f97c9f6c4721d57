"""The loop: what it chooses, resumes, refuses and tells."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from small_run import InMemory, Recorder, SmallRun, take

from recmtl.errors import RunError, UserError
from recmtl.progress import Silent
from recmtl.training.schedules import ScheduleConfig, factor
from recmtl.training.trainer import _Health, _NotFiniteError


class Stop(BaseException):
    """A kill."""


class Scripted:
    """Validation metrics from a list, an entry an epoch."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, model):
        return self.values.pop(0)


def auc(value):
    return {"click": {"auc": value}, "rating": {"rmse": 1.0}}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What it learns


def test_it_learns(small, tmp_path):
    config = small.config(epochs=8, dense={"lr": 0.01}, sparse={"lr": 0.1})
    trained = small.train(tmp_path, config)
    first, last = trained.history[0]["train"], trained.history[-1]["train"]
    assert all(last[task] < 0.95 * first[task] for task in ("click", "buy", "rating"))
    assert trained.steps == 8 * 16
    assert trained.epochs == trained.best_epoch == 8
    assert not trained.model.training
    assert trained.validation == trained.history[-1]["validation"]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "exact_adam"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(small, tmp_path, optimizer):
    def run(name, seed):
        config = small.config(epochs=1, seed=seed, sparse={"optimizer": optimizer})
        return weights(small.train(tmp_path / name, config).model)

    first = run("a", 1)
    torch.manual_seed(4321)
    assert equal(first, run("b", 1))
    assert not equal(first, run("c", 2))


def test_torchs_global_randomness_is_given_back(small, tmp_path):
    config = small.config(epochs=1)
    model = small.model(config)
    before = torch.random.get_rng_state()
    small.train(tmp_path, config, model=model)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("rows", "batch_size"), [(65, 64), (3, 1), (1, 64)])
def test_a_last_partial_batch_and_a_batch_of_one_work(small, tmp_path, rows, batch_size):
    small.rows = take(small.rows, torch.arange(rows))
    config = small.config(epochs=1, batch_size=batch_size)
    trained = small.train(tmp_path, config, model=small.model(config, norm="batch"))
    assert all(tensor.isfinite().all() for tensor in trained.model.tensors().values())


def test_no_rows_are_refused(small, tmp_path):
    small.rows = take(small.rows, torch.arange(0))
    with pytest.raises(UserError, match="the training split has no rows"):
        small.train(tmp_path)


def test_an_epochs_mean_losses_are_over_its_observed_rows(small, tmp_path):
    told = []
    balancer = small.balancer()
    balancer.end_epoch = told.append
    # A learning rate of nearly nothing: the losses of every batch are those of the model as it began.
    config = small.config(epochs=1, dense={"lr": 1e-12}, sparse={"lr": 1e-12})
    model = small.model(config, dropout=0.0)
    with torch.no_grad():
        expected = model.losses(model(small.rows), small.rows)
    trained = small.train(tmp_path, config, balancer=balancer, model=model)
    for task in ("click", "buy", "rating"):
        assert told[0][task] == pytest.approx(expected[task].item(), rel=1e-5)
        assert trained.history[0]["train"][task] == told[0][task]


def test_a_task_that_is_never_observed_has_no_mean_loss(small, tmp_path):
    small.rows = replace(
        small.rows, observed={**small.rows.observed, "rating": torch.zeros(small.rows.size, dtype=torch.bool)}
    )
    told = []
    balancer = small.balancer("dwa")
    remember, end = told.append, balancer.end_epoch
    balancer.end_epoch = lambda means: (remember(dict(means)), end(means))
    trained = small.train(tmp_path, small.config(epochs=3), balancer=balancer)
    assert math.isnan(told[0]["rating"])
    assert "rating" not in trained.history[0]["train"]
    assert all(tensor.isfinite().all() for tensor in trained.model.tensors().values())


def test_clipping_bounds_the_dense_gradient(small, tmp_path):
    before = weights(small.model(small.config()))
    config = small.config(
        epochs=1, batch_size=1000, clip_norm=0.001, dense={"optimizer": "sgd", "lr": 1.0}, log_every=1
    )
    after = weights(small.train(tmp_path, config).model)
    moved = torch.cat([(after[n] - before[n]).flatten() for n in before if not n.startswith("tables.")])
    assert moved.norm().item() == pytest.approx(0.001, rel=1e-2)
    assert small.tracker.points[0][1]["train/gradient_norm"] > 0.001, "logged as it was before the clipping"


def test_both_rates_follow_their_schedules(small, tmp_path):
    config = small.config(
        epochs=1,
        log_every=1,
        schedule={"kind": "linear", "warmup_steps": 3},
        sparse={"lr": 0.5, "schedule": {"kind": "cosine"}},
        dense={"lr": 0.01},
    )
    small.train(tmp_path, config)
    points = [values for _, values in small.tracker.points if "train/lr/dense" in values]
    linear, cosine = ScheduleConfig(kind="linear", warmup_steps=3), ScheduleConfig(kind="cosine")
    assert [point["train/lr/dense"] for point in points] == [0.01 * factor(linear, step, 16) for step in range(16)]
    assert [point["train/lr/sparse"] for point in points] == [0.5 * factor(cosine, step, 16) for step in range(16)]


def test_a_sparse_rate_of_zero_moves_no_table(small, tmp_path):
    config = small.config(epochs=1, batch_size=1000, sparse={"schedule": {"kind": "linear", "warmup_steps": 0}})
    before = weights(small.model(config))
    trained = small.train(tmp_path / "one", config)
    assert not torch.equal(trained.model.tensors()["tables.user"], before["tables.user"])
    seen = []
    two = small.config(epochs=2, batch_size=1000, sparse={"schedule": {"kind": "linear"}})
    small.train(tmp_path / "two", two, validate=lambda model: seen.append(weights(model)) or {})
    assert torch.equal(seen[0]["tables.user"], seen[1]["tables.user"]), "the last step of the line has a rate of 0"
    assert not torch.equal(seen[0]["heads.by_task.click.linear.bias"], seen[1]["heads.by_task.click.linear.bias"])


def test_bf16_autocast_leaves_parameters_and_losses_in_float32(small, tmp_path):
    kinds = set()
    config = small.config(epochs=1, precision="bf16")
    model = small.model(config)
    model.tower.register_forward_hook(
        lambda tower, inputs, output: kinds.update(h.dtype for h in output.hidden.values())
    )
    trained = small.train(tmp_path, config, model=model)
    assert torch.bfloat16 in kinds
    assert all(tensor.dtype == torch.float32 for tensor in trained.model.tensors().values())
    assert all(math.isfinite(loss) for loss in trained.history[0]["train"].values())


# Which epoch it chooses


def test_the_best_epochs_weights_come_back(small, tmp_path):
    seen = []
    values = iter([0.6, 0.8, 0.7, 0.75, 0.9])

    def validate(model):
        seen.append(weights(model))
        return auc(next(values))

    config = small.config(epochs=5, early_stopping={"monitor": {"click.auc": 1.0}, "patience": 2})
    trained = small.train(tmp_path, config, validate=validate)
    assert (trained.best_epoch, trained.epochs) == (2, 4)
    assert equal(weights(trained.model), seen[1])
    assert trained.validation["click"]["auc"] == 0.8
    assert [entry["score"] for entry in trained.history] == [0.6, 0.8, 0.7, 0.75]
    assert not trained.model.training


def test_without_early_stopping_the_last_epochs_do(small, tmp_path):
    seen = []
    values = iter([0.9, 0.8, 0.7])

    def validate(model):
        seen.append(weights(model))
        return auc(next(values))

    trained = small.train(tmp_path, small.config(epochs=3), validate=validate)
    assert trained.best_epoch == 3
    assert equal(weights(trained.model), seen[2])


def test_the_monitor_is_a_weighted_sum_signed_by_each_metrics_direction(small, tmp_path):
    def both(click, rating):
        return {"click": {"auc": click}, "rating": {"rmse": rating}}

    config = small.config(
        epochs=3, early_stopping={"monitor": {"click.auc": 2.0, "rating.rmse": 0.5}, "min_delta": 0.05}
    )
    trained = small.train(tmp_path, config, validate=Scripted(both(0.7, 1.0), both(0.7, 0.8), both(0.71, 0.79)))
    assert [entry["score"] for entry in trained.history] == pytest.approx([0.9, 1.0, 1.025])
    assert trained.best_epoch == 2, "the third is better by less than min_delta"


def test_a_metric_that_validation_does_not_have_is_named(small, tmp_path):
    config = small.config(early_stopping={"monitor": {"clik.auc": 1.0}})
    with pytest.raises(
        UserError, match=r"monitor\.clik\.auc: validation has no such metric; it has click\.auc, rating"
    ):
        small.train(tmp_path, config)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_monitored_metric_that_is_not_defined_is_an_error_that_says_what_to_do(small, tmp_path, value):
    config = small.config(early_stopping={"monitor": {"click.auc": 1.0}})
    with pytest.raises(UserError, match=r"not defined on the validation split .* data\.split\.validation"):
        small.train(tmp_path, config, validate=Scripted(auc(value)))


# What it resumes


def killed_at(small, folder, config, step, **given):
    """Train until a step begins, then stop as a kill would: nothing is cleaned up."""

    class Killed(InMemory):
        done = 0

        def epoch(self, number, start=0):
            for batch in super().epoch(number, start):
                if self.done == step:
                    raise Stop
                Killed.done += 1
                yield batch

    with pytest.raises(Stop):
        small.train(folder, config, loader=Killed(small.rows, config.batch_size), **given)


@pytest.mark.parametrize(
    ("kind", "step"),
    [("fixed", 3), ("uncertainty", 20), ("dwa", 33), ("gradnorm", 20), ("pcgrad", 20), ("upgrad", 20), ("fixed", 32)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(small, tmp_path, kind, step):
    small.rows = take(small.rows, torch.arange(500))
    config = small.config(epochs=3, batch_size=32, checkpoint={"every_steps": 7}, dense={"optimizer": "adam"})
    whole = small.train(tmp_path / "whole", config, balancer=small.balancer(kind))
    killed_at(small, tmp_path / "killed", config, step, balancer=small.balancer(kind))
    resumed = small.train(tmp_path / "killed", config, balancer=small.balancer(kind))
    assert equal(weights(whole.model), weights(resumed.model))
    assert whole.history == resumed.history
    assert resumed.resumed == (step >= 7)


def test_the_best_epoch_is_remembered_over_a_kill(small, tmp_path):
    config = small.config(epochs=4, early_stopping={"monitor": {"click.auc": 1.0}, "patience": 2})
    killed_at(small, tmp_path, config, 40, validate=Scripted(auc(0.8), auc(0.7)))
    trained = small.train(tmp_path, config, validate=Scripted(auc(0.75)))
    assert (trained.best_epoch, trained.epochs) == (1, 3)
    assert trained.validation["click"]["auc"] == 0.8


def test_a_finished_run_is_only_loaded(small, tmp_path):
    config = small.config(epochs=3, early_stopping={"monitor": {"click.auc": 1.0}, "patience": 2})
    first = small.train(tmp_path, config, validate=Scripted(auc(0.8), auc(0.7), auc(0.6)))
    kept = weights(first.model)
    small.tracker.points.clear()
    again = small.train(tmp_path, config, loader=InMemory(small.rows, 64), validate=Scripted())
    assert equal(weights(again.model), kept)
    assert again.history == first.history
    assert (again.best_epoch, again.steps, again.resumed) == (1, 48, True)
    assert small.tracker.points == []


def test_a_damaged_checkpoint_costs_steps_not_the_result(small, tmp_path):
    config = small.config(checkpoint={"every_steps": 7, "keep": 3})
    whole = small.train(tmp_path / "whole", config)
    killed_at(small, tmp_path / "killed", config, 22)
    damaged = tmp_path / "killed" / "step-000000021-00" / "tensors-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed = small.train(tmp_path / "killed", config)
    assert "step-000000021-00 is damaged" in small.progress.warnings[0]
    assert equal(weights(whole.model), weights(resumed.model))


def test_checkpoints_of_another_run_are_refused(small, tmp_path):
    small.train(tmp_path, small.config(epochs=1))
    with pytest.raises(UserError, match="another config or other data"):
        small.train(tmp_path, small.config(epochs=1), identity="b")


def test_a_checkpoint_is_due_by_time_too(small, tmp_path):
    config = small.config(epochs=1, checkpoint={"every_seconds": 1e-9, "keep": 100})
    small.train(tmp_path, config)
    saved = sorted(path.name for path in tmp_path.glob("step-*"))
    assert saved == [f"step-{step:09d}-00" for step in range(1, 17)] + ["step-000000016-01"]


# What it refuses


def poisoned(small, task, at):
    """The rows with an infinite label at one of them."""
    labels = {**small.rows.labels, task: small.rows.labels[task].clone()}
    labels[task][at] = math.inf
    observed = {**small.rows.observed, task: small.rows.observed[task].clone()}
    observed[task][at] = True
    return replace(small.rows, labels=labels, observed=observed)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_task_step_and_batch(small, tmp_path):
    config = small.config(checkpoint={"every_steps": 1, "keep": 1})
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    small.rows = poisoned(small, "rating", order[5 * 64 + 3])
    model = small.model(config)
    message = r"the loss of rating is not finite at step 5 \(epoch 1, batch 5.*The last checkpoint is from before it"
    with pytest.raises(RunError, match=message):
        small.train(tmp_path, config, model=model)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000005-00"]
    assert all(tensor.isfinite().all() for tensor in model.tensors().values())


def not_finite_gradient(model, task, where):
    """Make one task's gradient NaN at the tower's input or at its head, with a loss that is finite."""
    losses = model.losses

    def with_a_trap(output, batch, rows=None):
        found = losses(output, batch, rows)
        head = next(iter(model.heads.by_task[task].parameters()))
        source = head if where == "head" else output.logits[task]
        return {**found, task: found[task] + torch.sqrt(source * 0.0).sum()}

    model.losses = with_a_trap
    return model


@pytest.mark.parametrize("kind", ["fixed", "pcgrad"])
@pytest.mark.parametrize("where", ["head", "input"])
def test_a_gradient_that_is_not_finite_names_its_task_and_spares_the_tables(small, tmp_path, kind, where):
    config = small.config()
    model = not_finite_gradient(small.model(config), "rating", where)
    before = weights(model)
    with pytest.raises(RunError, match=r"the gradient of rating is not finite at step 0 \(epoch 1, batch 0"):
        small.train(tmp_path, config, model=model, balancer=small.balancer(kind))
    after = weights(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert changed == [] or where == "head"
    assert not list(tmp_path.glob("step-*"))


def test_the_loader_is_closed_when_training_stops_in_the_middle(small, tmp_path):
    closed = []

    class Watched(InMemory):
        def epoch(self, number, start=0):
            try:
                yield from super().epoch(number, start)
            finally:
                closed.append(number)

    config = small.config()
    model = not_finite_gradient(small.model(config), "rating", "head")
    with pytest.raises(RunError):
        small.train(tmp_path, config, model=model, loader=Watched(small.rows, 64))
    assert closed == [0]


def test_on_a_gpu_the_first_step_that_is_not_finite_is_noted_and_read_back_later():
    health = _Health(torch.device("cuda"))  # only its way of looking: the values are on the CPU
    one, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for step, (loss, norm) in enumerate([(one, one), (one, bad), (bad, bad), (one, one)]):
        health.begin_step(step)
        health.see({"click": one, "rating": loss})
        health.see({"norm": norm})
        if step == 0:
            health.check()
    with pytest.raises(_NotFiniteError) as caught:
        health.check()
    assert (caught.value.step, caught.value.names) == (1, ["norm"])


# What it tells


def test_the_training_curves(small, tmp_path):
    config = small.config(epochs=2, log_every=5)
    small.train(tmp_path, config, balancer=small.balancer(weights={"buy": 0.5}))
    curve = [(step, values) for step, values in small.tracker.points if "train/rows_per_second" in values]
    assert [step for step, _ in curve] == [5, 10, 15, 20, 25, 30]
    tasks = ("click", "buy", "rating")
    expected = {f"train/{what}/{task}" for what in ("loss", "weight") for task in tasks}
    expected |= {"train/lr/sparse", "train/lr/dense", "train/gradient_norm", "train/rows_per_second"}
    assert curve[0][1].keys() == expected
    assert curve[0][1]["train/weight/buy"] == 0.5
    epochs = [(step, values) for step, values in small.tracker.points if "epoch" in values]
    assert [(step, values["epoch"]) for step, values in epochs] == [(16, 1.0), (32, 2.0)]
    assert {"validation/click/auc", "validation/rating/rmse", "train/epoch_loss/click"} <= epochs[0][1].keys()


def test_a_point_is_the_mean_since_the_one_before(small, tmp_path):
    small.train(tmp_path / "all", small.config(epochs=1, log_every=1, batch_size=100))
    single = [values["train/loss/click"] for _, values in small.tracker.points if "train/loss/click" in values]
    small.tracker = Recorder()
    small.train(tmp_path / "some", small.config(epochs=1, log_every=4, batch_size=100))
    means = [values["train/loss/click"] for _, values in small.tracker.points if "train/loss/click" in values]
    assert means == pytest.approx([sum(single[:4]) / 4, sum(single[4:8]) / 4])


def test_a_resumed_run_repeats_points_and_adds_none(small, tmp_path):
    config = small.config(log_every=3, checkpoint={"every_steps": 7})

    def points(recorder):
        curves = {}
        for step, values in recorder.points:
            for name, value in values.items():
                if name != "train/rows_per_second":
                    curves.setdefault((name, step), set()).add(value)
        return curves

    small.train(tmp_path / "whole", config)
    whole, small.tracker = points(small.tracker), Recorder()
    killed_at(small, tmp_path / "killed", config, 26)
    assert small.tracker.flushed == len([step for step, _ in small.tracker.points if step <= 21])
    small.train(tmp_path / "killed", config)
    assert points(small.tracker) == whole


def test_the_bar_counts_rows_from_where_it_resumes(small, tmp_path):
    bars = []

    class Watching(Silent):
        @contextmanager
        def bar(self, title, total, unit="rows", done=0):
            bars.append([title, total, done, 0])

            class Counting:
                def advance(self, amount=1):
                    bars[-1][3] += amount

                def note(self, text):
                    assert text.startswith("loss click 0.")

            yield Counting()

    config = small.config(epochs=1, checkpoint={"every_steps": 7})
    killed_at(small, tmp_path, config, 9, progress=Watching())
    small.train(tmp_path, config, progress=Watching())
    assert bars == [["epoch 1 of 1", 1000, 0, 9 * 64], ["epoch 1 of 1", 1000, 7 * 64, 1000 - 7 * 64]]


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "partial_rowwise_adam", "lamb", "exact_adam"])
@pytest.mark.parametrize("kind", ["fixed", "gradnorm", "pcgrad"])
def test_training_on_a_gpu_learns_and_resumes(tmp_path, optimizer, kind):
    small = SmallRun()
    config = small.config(epochs=8, device="cuda", sparse={"optimizer": optimizer, "lr": 0.1}, dense={"lr": 0.01})
    from recmtl.training import make_tables

    def model():
        from recmtl.model import ModelConfig, build_model

        config_of_model = ModelConfig(tower=small.tower)
        made = make_tables(config.sparse, "cuda")
        return build_model(config_of_model, small.schema, small.tasks, small.statistics, seed=1, tables=made)

    def validate(current):
        rows = small.rows.to("cuda")
        with torch.no_grad():
            return {"click": {"auc": 1 - current.losses(current(rows), rows)["click"].item()}}

    given = {"validate": validate}
    killed_at(small, tmp_path, config, 70, model=model(), balancer=small.balancer(kind), **given)
    trained = small.train(tmp_path, config, model=model(), balancer=small.balancer(kind), **given)
    assert trained.resumed
    first, last = trained.history[0]["train"], trained.history[-1]["train"]
    assert all(last[task] < first[task] for task in first)
