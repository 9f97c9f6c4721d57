"""Looking at the tasks' gradients: right by hand, told, kept over a kill, and without a trace in what is trained."""

import math

import pytest
import torch
from small_run import InMemory, take

from recmtl.balancing import BALANCERS, Cut, task_cosines
from recmtl.evaluation.conflicts import conflicts
from recmtl.features.tables import PlainTables
from recmtl.model import ModelConfig, build_model


class Stop(BaseException):
    """A kill."""


def weights(model):
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


def looks(tracker):
    return {
        (name.removeprefix("conflict/"), step): value
        for step, values in tracker.points
        for name, value in values.items()
        if name.startswith("conflict/")
    }


def test_cosines_are_those_of_each_tasks_own_gradient(small):
    model = build_model(
        ModelConfig(tower={**small.tower, "dropout": 0.0}),
        small.schema,
        small.tasks,
        small.statistics,
        seed=1,
        tables=PlainTables,
    )
    rows = take(small.rows, torch.arange(80))
    shared = tuple(model.shared_parameters())
    learned = model.features.learned_dim

    def losses(x):
        return model.losses(model.decide(x), rows)

    flat = []
    for task in small.tasks:
        leaf = model.embed(rows).detach().requires_grad_()
        own = torch.autograd.grad(losses(leaf)[task], (leaf, *shared), allow_unused=True)
        parts = [
            own[0][:, :learned],
            *(torch.zeros_like(p) if g is None else g for p, g in zip(shared, own[1:], strict=True)),
        ]
        flat.append(torch.cat([part.flatten() for part in parts]).double())
    expected = torch.nn.functional.cosine_similarity(torch.stack(flat)[:, None], torch.stack(flat)[None], dim=2)
    x = model.embed(rows)
    cut = Cut(x, x, shared, (), (), learned)
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    found = task_cosines(losses(x), cut)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.diagonal(), torch.ones(3, dtype=torch.float64))
    assert {name: p.grad for name, p in model.named_parameters()} == before, "no gradient is left behind"


def test_a_task_without_an_observed_row_has_no_cosine():
    x = torch.ones(2, 2, requires_grad=True)
    found = task_cosines({"a": x.sum(), "b": (x * 0.0).sum(), "c": -x[0].sum()}, Cut(x, x, (), (), ()))
    assert found[0, 2] == pytest.approx(-math.sqrt(0.5))
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()


def test_a_model_without_anything_shared_has_no_cosines():
    x = torch.ones(2, 2)
    own = torch.nn.Parameter(torch.ones(2))
    assert task_cosines({"a": (x @ own).sum(), "b": (x @ own).sum()}, Cut(x, x, (), (own,), ())).isnan().all()


@pytest.mark.parametrize(("kind", "norm"), [*((kind, "none") for kind in BALANCERS), ("fixed", "batch")])
def test_looking_changes_nothing_that_is_trained(small, tmp_path, kind, norm):
    small.rows = take(small.rows, torch.arange(150))

    def run(every):
        config = small.config(log_conflicts_every=every)
        model = small.model(config, norm=norm)
        return small.train(tmp_path / str(every), config, model=model, balancer=small.balancer(kind))

    without, with_looks = run(0), run(1)
    first, second = weights(without.model), weights(with_looks.model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for one, other in zip(without.history, with_looks.history, strict=True):
        assert one == {name: value for name, value in other.items() if name != "conflicts"}
        assert "conflicts" in other


def test_what_was_seen_is_told_and_kept_by_epoch(small, tmp_path):
    trained = small.train(tmp_path, small.config(log_conflicts_every=5))
    seen = looks(small.tracker)
    pairs = ["click/buy", "click/rating", "buy/rating"]
    assert sorted(seen) == sorted((pair, step) for pair in pairs for step in (5, 10, 15, 20, 25, 30))
    assert all(-1 <= cosine <= 1 for cosine in seen.values())
    for entry, steps in zip(trained.history, ((5, 10, 15), (20, 25, 30)), strict=True):
        for pair in pairs:
            cosines = [seen[pair, step] for step in steps]
            kept = entry["conflicts"][pair]
            assert kept["cosine"] == pytest.approx(sum(cosines) / 3)
            assert (kept["looks"], kept["negative"]) == (3, sum(cosine < 0 for cosine in cosines))
    rows = conflicts(trained.history)
    assert [(row.one, row.other) for row in rows] == [("click", "buy"), ("click", "rating"), ("buy", "rating")]
    assert rows[0].steps == (16, 32)
    assert rows[0].cosine == tuple(entry["conflicts"]["click/buy"]["cosine"] for entry in trained.history)
    assert rows[0].negative == sum(seen["click/buy", step] < 0 for step in range(5, 31, 5)) / 6


def test_a_kill_in_the_middle_of_an_epoch_loses_no_look(small, tmp_path):
    config = small.config(log_conflicts_every=3, checkpoint={"every_steps": 7})
    whole = small.train(tmp_path / "whole", config)

    class Killed(InMemory):
        done = 0

        def epoch(self, number, start=0):
            for batch in super().epoch(number, start):
                if self.done == 26:
                    raise Stop
                Killed.done += 1
                yield batch

    with pytest.raises(Stop):
        small.train(tmp_path / "killed", config, loader=Killed(small.rows, config.batch_size))
    resumed = small.train(tmp_path / "killed", config)
    assert resumed.resumed
    assert resumed.history == whole.history


def test_runs_without_looks_have_no_conflicts(small, tmp_path):
    trained = small.train(tmp_path, small.config(log_conflicts_every=0))
    assert not looks(small.tracker)
    assert conflicts(trained.history) == conflicts([]) == ()
