"""The command line with several ranks, as a person starts it: `--nproc 2`, and torchrun on two machines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]


def config(impressions: int, dropout: float = 0.0, **training: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {
            "source": {"kind": "synthetic", "path": "logs", "users": 100, "items": 50, "impressions": impressions},
            "prepared": "prepared",
            "split": {"by": "time", "validation": 0.15, "test": 0.15},
        },
        "features": [
            {"name": "user_id", "kind": "id", "embedding_dim": 8, "min_count": 3},
            {"name": "item_id", "kind": "id", "embedding_dim": 8},
            {"name": "interests", "kind": "bag", "separator": "|", "embedding_dim": 4},
            {"name": "price", "kind": "number", "transform": "log1p"},
        ],
        "tasks": [
            {"name": "click", "kind": "binary", "label": "click"},
            {"name": "purchase", "kind": "binary", "label": "purchase", "parent": "click"},
            {"name": "rating", "kind": "ordinal", "label": "rating", "levels": [1, 2, 3, 4, 5]},
        ],
        "model": {
            "tower": {"kind": "mmoe", "num_experts": 2, "expert_widths": [16], "head_widths": [8], "dropout": dropout}
        },
        "training": {"epochs": 2, "batch_size": 256, "device": "cpu"} | training,
        "tracking": {"enabled": False},
    }


def write(folder: Path, data: dict[str, Any]) -> None:
    (folder / "small.yaml").write_text(yaml.safe_dump(data))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "recmtl", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def recmtl(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "package" / "model.safetensors")


def test_two_ranks_of_the_command_train_as_one_process_does(tmp_path: Path) -> None:
    write(tmp_path, config(3_000))
    recmtl(tmp_path, "train", "small.yaml", "--output", "one")
    done = recmtl(tmp_path, "train", "small.yaml", "--output", "two", "--nproc", "2")
    assert "with 2 ranks" in done.stderr
    assert done.stderr.count("epoch 1 of 2: validation") == done.stdout.count("\nreport ") == 1  # one rank speaks
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)
    expected, found = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two"))
    for task, values in expected["validation"].items():
        assert found["validation"][task] == pytest.approx(values, rel=1e-3)
    for before, after in zip(expected["history"], found["history"], strict=True):
        assert after["train"] == pytest.approx(before["train"], rel=1e-4)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_job_ends_as_if_never_killed(tmp_path: Path) -> None:
    write(tmp_path, config(12_000, dropout=0.1, epochs=6, checkpoint={"every_steps": 3}))
    recmtl(tmp_path, "train", "small.yaml", "--output", "whole", "--nproc", "2")
    log = tmp_path / "log"
    with log.open("w") as err:
        job = subprocess.Popen(
            command("train", "small.yaml", "--output", "killed", "--nproc", "2"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
    for rank, step in ((1, 6), (0, 60)):
        while not any(
            int(path.name.split("-")[1]) >= step for path in (tmp_path / "killed").glob("checkpoints/step-*")
        ):
            assert job.poll() is None, log.read_text()
            time.sleep(0.02)
        (worker,) = [child for child in psutil.Process(job.pid).children(recursive=True) if is_rank(child, rank)]
        worker.send_signal(signal.SIGKILL)
        worker.wait(60)
    assert job.wait(600) == 0, log.read_text()
    said = log.read_text()
    for rank, restart in ((1, 1), (0, 2)):
        told = f"rank {rank} was killed by SIGKILL; all start again from the last checkpoint ({restart} of 3 restarts)"
        assert told in said
    assert said.count("resuming at step") == 2
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(killed[name], weight) for name, weight in whole.items())


def is_rank(process: psutil.Process, rank: int) -> bool:
    try:
        return process.environ().get("RANK") == str(rank) and any(
            "from recmtl.cli import main" in word for word in process.cmdline()
        )
    except psutil.Error:
        return False


@pytest.fixture
def two_machines(tmp_path: Path) -> Iterator[list[list[str]]]:
    """What stands before a command to run it on one of two machines, each with a network and a host name of its own."""
    lacking = [tool for tool in ("ip", "unshare", "hostname") if shutil.which(tool) is None]
    if os.name != "posix" or os.geteuid() != 0 or lacking:
        pytest.skip(f"network namespaces need root and {', '.join(lacking) or 'nothing else'}")
    names = [f"recmtl{os.getpid()}{letter}" for letter in "ab"]
    hosts = [Path("/etc/netns") / name for name in names]
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine makes no network namespaces: {made.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for number, (name, folder) in enumerate(zip(names, hosts, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n")
        yield [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
            for name, host in zip(names, ("first", "second"), strict=True)
        ]
    finally:
        for name, folder in zip(names, hosts, strict=True):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.mark.slow
def test_torchrun_on_two_machines_trains_as_two_ranks_here_do(tmp_path: Path, two_machines: list[list[str]]) -> None:
    write(tmp_path, config(3_000))
    recmtl(tmp_path, "train", "small.yaml", "--output", "here", "--nproc", "2")
    line = (
        "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400 -m recmtl train small.yaml"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", *line.split(), "--output", "there"]
    logs = [tmp_path / f"log-{number}" for number in range(2)]
    jobs = []
    for machine, log in zip(two_machines, logs, strict=True):
        with log.open("w") as out:
            jobs.append(
                subprocess.Popen(
                    [*machine, *torchrun], cwd=tmp_path, env=environment(), stdout=out, stderr=subprocess.STDOUT
                )
            )
    codes = [job.wait(600) for job in jobs]
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], said
    assert sum("with 2 ranks" in text for text in said) == 1
    here, there = weights(tmp_path / "here"), weights(tmp_path / "there")
    assert all(torch.equal(there[name], weight) for name, weight in here.items())
