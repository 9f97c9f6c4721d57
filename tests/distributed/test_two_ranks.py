"""Two ranks, each on its part of every batch, end where one process on whole batches does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ranks import CASES, MMOE, finish, small_run, start, train_case
from safetensors.torch import load_file


def job(folder, device):
    finish(start(Path(__file__).parent / "ranks.py", 2, [folder, device]))
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of two ranks' results: one job for the module."""
    return job(tmp_path_factory.mktemp("two-ranks"), "cpu")


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    """The same on two GPUs."""
    return job(tmp_path_factory.mktemp("two-gpus"), "cuda")


def flat(values):
    return {
        f"{key}.{inner}": number
        for key, value in values.items()
        for inner, number in (value.items() if isinstance(value, dict) else [("", value)])
    }


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(two_ranks, tmp_path, name):
    same(name, train_case(name, tmp_path), two_ranks)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: nccl serves one rank a GPU")
@pytest.mark.parametrize("name", CASES)
def test_two_gpus_are_one(two_gpus, tmp_path, name):
    same(name, train_case(name, tmp_path, device="cuda"), two_gpus)


def same(name, alone, folder):
    told, weights = alone
    together = json.loads((folder / f"{name}.json").read_text())
    looks = 10 if "log_conflicts_every" in CASES[name] else 0
    assert len(together["curves"]) == len(told["curves"]) == 12 + looks  # ten steps, two epochs
    for one, two in zip(told["curves"], together["curves"], strict=True):
        assert two == pytest.approx(one, rel=2e-4, abs=1e-6)
    for one, two in zip(told["history"], together["history"], strict=True):
        for part in ("train", "validation"):
            assert flat(two[part]) == pytest.approx(flat(one[part]), rel=2e-4)
    tensors = load_file(folder / f"{name}.safetensors")
    small = small_run()
    small.tower = CASES[name].get("tower", MMOE)
    start_at = small.model(small.config(sparse=CASES[name]["sparse"])).tensors()
    for key, weight in weights.items():
        moved = (weight - start_at[key]).abs().max()
        torch.testing.assert_close(
            tensors[key], weight, rtol=1e-4, atol=2e-4 * float(moved) + 1e-7, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", ["upgrad-rowwise_adagrad", "gradnorm-sgd", "fixed-exact_adam"])
def test_the_second_epoch_by_one_process_after_the_first_by_two_ranks(two_ranks, tmp_path, name):
    shutil.copytree(two_ranks / "checkpoints" / name, tmp_path / name)
    for later in tmp_path.glob(f"{name}/step-*"):
        if json.loads((later / "state.json").read_text())["step"] > 5:
            shutil.rmtree(later)
    told, weights = train_case(name, tmp_path)
    together = json.loads((two_ranks / f"{name}.json").read_text())
    assert [point["step"] for point in told["curves"]] == [6, 7, 8, 9, 10, 10]
    for one, two in zip(told["curves"], together["curves"][6:], strict=True):
        assert one == pytest.approx(two, rel=2e-4, abs=1e-6)
    tensors = load_file(two_ranks / f"{name}.safetensors")
    for key, weight in weights.items():
        torch.testing.assert_close(weight, tensors[key], rtol=1e-4, atol=1e-5)
