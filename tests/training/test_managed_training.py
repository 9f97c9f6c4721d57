"""Managed tables in training: rows that change hands begin anew; a resumed run, candidates included, is the same."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # small_run.py is also run as a script
from small_run import InMemory, SmallRun

from recmtl.features.managed import EMPTY
from recmtl.features.tables import InMemory as Whole
from recmtl.schema import UNSEEN, Feature, Managed, Schema
from recmtl.training.optimizers import sparse_optimizer


class ManagedRun(SmallRun):
    """Twenty of fifty users have rows, all items can; decisions every third step. The rows' ids stand for hashes."""

    def __init__(self, rows=600):
        super().__init__(rows=rows)
        self.schema = Schema(
            [
                Feature(name="user", kind="id", embedding_dim=8, managed=Managed(rows=20, every=3)),
                Feature(name="item", kind="id", embedding_dim=4, managed=Managed(rows=30, eviction="lfu", every=3)),
                Feature(name="age", kind="number"),
            ]
        )


class Stops(InMemory):
    """Ends the process's part of the work in the middle of an epoch."""

    def __init__(self, rows, batch_size, after):
        super().__init__(rows, batch_size)
        self.after = after

    def epoch(self, number, start=0):
        for batch in super().epoch(number, start):
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            yield batch


def everything(model):
    return {**model.tensors(), **{f"managed/{k}": v for k, v in model.features.id_maps.state().items()}}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "exact_adam"])
def test_a_run_stopped_between_two_decisions_ends_as_one_left_alone(tmp_path, optimizer):
    run = ManagedRun()
    settings = {"sparse": {"optimizer": optimizer}, "checkpoint": {"every_steps": 1, "every_seconds": None}}
    config = run.config(**settings)
    alone = run.train(tmp_path / "alone", config).model
    for after in (4, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            run.train(tmp_path / "stopped", config, loader=Stops(run.rows, config.batch_size, after))
    resumed = run.train(tmp_path / "stopped", config)
    assert resumed.resumed
    expected = everything(alone)
    for name, tensor in everything(resumed.model).items():
        assert torch.equal(tensor, expected[name]), name
    maps = dict(alone.features.id_maps.maps.items())
    assert (maps["user"].ids != EMPTY).all()  # fifty wanted twenty rows
    assert (maps["item"].ids != EMPTY).sum() == 20
    user, item = alone.tables.weights()["user"], alone.tables.weights()["item"]
    assert user[UNSEEN].abs().sum() > 0  # the users without a row have trained this one
    assert (item[maps["item"](torch.arange(2, 22))].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd", "exact_adam"])
def test_a_row_that_changes_hands_begins_anew_and_no_other_does(tmp_path, optimizer):
    run = ManagedRun()
    config = run.config(sparse={"optimizer": optimizer}, epochs=1)
    model = run.train(tmp_path, config).model
    sparse = sparse_optimizer(config.sparse, model.tables)
    if optimizer == "exact_adam":  # a new one has no state yet: take a step
        for parameter in model.tables.parameters():
            parameter.grad = torch.ones_like(parameter)
        sparse.step()
    rows = torch.tensor([4, 21])
    others = torch.ones(22, dtype=torch.bool)
    others[rows] = False

    def of_user():
        state = {key: value for key, value in Whole(flat(sparse.state())).whole().items() if key.startswith("user")}
        return {"weights": model.tables.weights()["user"].clone(), **{k: v.clone() for k, v in state.items()}}

    before = of_user()
    sparse.reset_rows("user", rows)
    after = of_user()
    for name, tensor in after.items():
        if tensor.dim() and len(tensor) == 22:
            assert not tensor[rows].any(), name
            assert torch.equal(tensor[others], before[name][others]), name
    assert before["weights"][rows].any()
    assert sum(len(tensor) == 22 for tensor in after.values() if tensor.dim()) == (
        1 if optimizer == "sgd" else 3 if optimizer == "exact_adam" else 2
    )


def flat(state):
    """Of one rank: the pieces are the whole."""
    return {k: v if isinstance(v, torch.Tensor) else v.held[0].tensor for k, v in state.items()}


def test_the_candidates_are_of_the_training_rows_alone(tmp_path):
    run = ManagedRun()
    model = run.train(tmp_path, run.config(epochs=1)).model
    before = {name: tensor.clone() for name, tensor in everything(model).items()}
    run.validate(model)
    for name, tensor in everything(model).items():
        assert torch.equal(tensor, before[name]), name
