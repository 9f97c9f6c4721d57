"""PCGrad and UPGrad: the former by hand, the latter against TorchJD, its projection by trying every active set."""

import itertools

import pytest
import torch
from torchjd.aggregation import UPGrad as TorchJDsUPGrad

from recmtl.balancing import build_balancer
from recmtl.balancing.dual_cone import DualConeByLeastSquares
from recmtl.balancing.torchjd_pcgrad import PCGradConfig
from recmtl.balancing.torchjd_upgrad import UPGradConfig

TASKS = ("a", "b", "c")


def combined(toy):
    """The combined gradient at the shared layer, and what went through the table."""
    gradients = toy.gradients()
    return gradients["shared"].flatten(), gradients["table"]


def on_table(toy, leaf_rows):
    """(5, 3): gradients of the pooled rows, added up where rows of the batch read the same row of the table."""
    return torch.zeros(5, 3).index_add(0, toy.index, leaf_rows.view(4, 3))


def test_pcgrad_of_two_tasks_by_hand(make_toy):
    """With two tasks the order does not matter: g1 + g2, each less its part along the other where they conflict."""
    for seed in range(20):
        toy = make_toy(seed)
        first, second, _ = toy.task_rows()
        if first @ second >= 0:
            continue
        balancer = build_balancer(PCGradConfig(weights={"c": 0.0}), tasks=TASKS, seed=0)
        toy.step(balancer)
        expected = first - (first @ second) / (second @ second) * second
        expected = expected + second - (first @ second) / (first @ first) * first
        shared, table = combined(toy)
        torch.testing.assert_close(shared, expected[12:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(table, on_table(toy, expected[:12]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(toy.gradients()["a"], toy.plain(dict.fromkeys(TASKS, 1.0))["a"])
        return
    pytest.fail("no seed gave a conflict")


def test_pcgrad_of_three_tasks_is_one_of_the_orders_by_hand(make_toy):
    toy = make_toy(3)
    rows = toy.task_rows()
    results = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        total = torch.zeros_like(rows[0])
        for task, order in enumerate(orders):
            gradient = rows[task].clone()
            for other in order:
                if other != task and gradient @ rows[other] < 0:
                    gradient = gradient - (gradient @ rows[other]) / (rows[other] @ rows[other]) * rows[other]
            total = total + gradient
        results.append(total)
    balancer = build_balancer(PCGradConfig(), tasks=TASKS, seed=0)
    for _ in range(5):
        toy.step(balancer)
        shared, table = combined(toy)
        assert any(
            torch.allclose(shared, result[12:], rtol=1e-4, atol=1e-5)
            and torch.allclose(table, on_table(toy, result[:12]), rtol=1e-4, atol=1e-5)
            for result in results
        )


def test_pcgrad_draws_from_its_seed_and_step_alone(make_toy):
    def weights(balancer, toy, steps):
        return [tuple(weight.item() for weight in toy.step(balancer)[0].values()) for _ in range(steps)]

    # Gradients that conflict so that the order matters.
    toys = (make_toy(seed) for seed in range(50))
    toy = next(
        toy for toy in toys if len(set(weights(build_balancer(PCGradConfig(), tasks=TASKS, seed=0), toy, 20))) > 1
    )
    whole = weights(build_balancer(PCGradConfig(), tasks=TASKS, seed=0), toy, 20)
    before = torch.random.get_rng_state()
    begun = build_balancer(PCGradConfig(), tasks=TASKS, seed=0)
    first = weights(begun, toy, 7)
    torch.manual_seed(99)
    resumed = build_balancer(PCGradConfig(), tasks=TASKS, seed=0)
    resumed.load_state_dict(begun.state_dict())
    assert first + weights(resumed, toy, 13) == whole
    torch.manual_seed(0)
    torch.random.set_rng_state(before)
    weights(begun, toy, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights(build_balancer(PCGradConfig(), tasks=TASKS, seed=1), toy, 20) != whole


@pytest.mark.parametrize("seed", range(6))
def test_upgrad_is_torchjds(make_toy, seed):
    toy = make_toy(seed)
    importance = (1.0, 0.5, 2.0)
    rows = toy.task_rows()
    # No conflict is left to TorchJD's own solver, which needs packages that recmtl does not; its projector is ours.
    aggregator = TorchJDsUPGrad(torch.tensor(importance).double(), projector=DualConeByLeastSquares())
    expected = aggregator(rows.double()).float()
    balancer = build_balancer(UPGradConfig(weights=dict(zip(TASKS, importance, strict=True))), tasks=TASKS, seed=0)
    toy.step(balancer)
    shared, table = combined(toy)
    torch.testing.assert_close(shared, expected[12:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(table, on_table(toy, expected[:12]), rtol=1e-3, atol=1e-4)
    # No task is worsened, to first order.
    direction = torch.cat([expected])
    assert ((rows @ direction) > -1e-3 * rows.norm(dim=1) * direction.norm()).all()


def by_active_sets(u, gramian):
    """min vᵀGv over v ≥ u: for every choice of entries held at their bound, the stationary v; the best."""
    best, best_value = None, torch.inf
    for active in itertools.product([False, True], repeat=len(u)):
        free = [index for index, held in enumerate(active) if not held]
        held = [index for index, held in enumerate(active) if held]
        v = u.clone()
        if free:
            v[free] = torch.linalg.solve(gramian[free][:, free], -gramian[free][:, held] @ u[held])
        value = v @ gramian @ v
        if (v >= u - 1e-9).all() and value < best_value:
            best, best_value = v, value
    return best


def test_the_projection_against_every_active_set():
    random = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 4):
        for _ in range(10):
            rows = torch.randn(tasks, 6, generator=random, dtype=torch.float64)
            gramian = rows @ rows.T
            found = DualConeByLeastSquares(regularisation=0.0)(torch.eye(tasks, dtype=torch.float64), gramian)
            for u, v in zip(torch.eye(tasks, dtype=torch.float64), found, strict=True):
                torch.testing.assert_close(v, by_active_sets(u, gramian), rtol=1e-6, atol=1e-8)


def test_the_projection_does_not_depend_on_the_size_of_the_gradients():
    rows = torch.tensor([[1.0, 0.2], [-1.0, 0.3]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    project = DualConeByLeastSquares()
    large, small = project(eye, rows @ rows.T), project(eye, 1e-12 * rows @ rows.T)
    torch.testing.assert_close(large, small)
    assert not torch.equal(large, eye)


def test_the_projection_of_nothing_is_nothing_done():
    eye = torch.eye(2, dtype=torch.float64)
    assert torch.equal(DualConeByLeastSquares()(eye, torch.zeros(2, 2, dtype=torch.float64)), eye)
