"""Compiled, the tower trains to the same weights; where it cannot be compiled, training goes on and says so."""

import shutil

import pytest
import torch

from recmtl.progress import Silent
from recmtl.training.compiled import compiled_decide


class Heard(Silent):
    """A progress that keeps its warnings."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's compiler has warnings of its own
@pytest.mark.parametrize("balancer", ["fixed", "upgrad"])
def test_a_compiled_run_ends_at_the_same_weights(small, tmp_path, balancer):
    small.tower["dropout"] = 0.0  # compiled code draws its own random numbers
    small.progress = Heard()
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    plain, compiled = (
        small.train(
            tmp_path / str(compile),
            small.config(compile=compile, batch_size=300),  # of 1000 rows: an epoch's last batch is short
            balancer=small.balancer(balancer),
            progress=small.progress,
        ).model.tensors()
        for compile in (False, True)
    )
    assert small.progress.warnings == []
    assert graphs["unique_graphs"] == 1
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_what_cannot_be_compiled_goes_on_without(small, monkeypatch):
    def refuses(function, **settings):
        def call(*arguments):
            raise RuntimeError("no compiler\nhere")

        return call

    monkeypatch.setattr(torch, "compile", refuses)
    model = small.model(small.config())
    heard = Heard()
    decide = compiled_decide(model, progress=heard)
    x_BD = model.embed(small.rows)
    model.eval()
    for _ in range(2):
        assert torch.equal(decide(x_BD).logits["click"], model.decide(x_BD).logits["click"])
    assert heard.warnings == ["training.compile: not compiled, training goes on without (no compiler)"]
