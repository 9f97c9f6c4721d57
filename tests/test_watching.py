"""A heavy verb in a process of its own: whatever ends it, the command ends with a sentence and a code that says so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recmtl import children
from recmtl.cli import watching
from recmtl.cli.watching import is_watched, watch

WORK = "from recmtl.cli.watching import follow, noting\nfrom recmtl.progress import Silent\nfollow()\nimport os, time\n"


def working(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have the process apart run this instead of the command."""
    command = [sys.executable, "-P", "-c", children.bootstrap() + WORK + program]
    monkeypatch.setattr("recmtl.children.python", lambda *_: command)


def killed(name: str, bar: str = "encoding") -> str:
    return f"with noting(Silent()).bar({bar!r}, 5):\n    os.kill(os.getpid(), __import__('signal').{name})"


@pytest.mark.parametrize(
    ("arguments", "watched"),
    [
        (["run", "a.yaml"], True),
        (["--debug", "predict", "--model", "m"], True),
        (["train", "a.yaml", "--nproc", "2"], False),
        (["train", "a.yaml", "--nproc=2"], False),
        (["run", "--help"], False),
        (["plan", "run"], False),
        (["version"], False),
        ([], False),
    ],
)
def test_which_commands_are_watched(arguments: list[str], watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_watched(arguments) is watched
    monkeypatch.setenv("RANK", "0")
    assert not is_watched(arguments)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130])
def test_exit_codes_pass(code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    working(monkeypatch, f"print('out')\nraise SystemExit({code})")
    assert watch(["run", "a.yaml"]) == code
    assert capfd.readouterr() == ("out\n", "")


@pytest.mark.parametrize(
    ("verb", "bar", "advice"),
    [
        ("prepare", "encoding", "lower data.rows_per_shard"),
        ("run", "epoch 2 of 3", "lower training.batch_size"),
        ("run", "scoring test", "lower evaluation.intervals.memory_rows"),
        ("predict", "predicting", "give fewer --workers"),
    ],
)
def test_an_abort_is_told_as_want_of_memory(
    verb: str, bar: str, advice: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    working(monkeypatch, killed("SIGABRT", bar))
    assert watch([verb, "a.yaml"]) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"error: recmtl {verb} ran out of memory while it was busy with {bar!r} (it held ")
    assert advice in err
    assert "the same command goes on from here" in err
    assert err.count("\n") == 1


def test_polars_without_memory(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The real thing: an allocation that fails inside Polars ends its process."""
    program = "import polars as pl, resource\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
    working(monkeypatch, program + "pl.int_range(10**11, eager=True)")
    assert watch(["prepare", "a.yaml"]) == 1
    assert "error: recmtl prepare ran out of memory (it held" in capfd.readouterr().err


def test_a_kill(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    working(monkeypatch, killed("SIGKILL"))
    monkeypatch.setattr(watching, "_killed_for_memory", lambda: 5)
    assert watch(["prepare", "a.yaml"]) == 1
    assert "recmtl prepare was killed while it was busy with 'encoding'" in capfd.readouterr().err
    counts = iter([5, 6])
    monkeypatch.setattr(watching, "_killed_for_memory", lambda: next(counts))
    assert watch(["prepare", "a.yaml"]) == 1
    err = capfd.readouterr().err
    assert "ran out of memory while it was busy with 'encoding'" in err
    assert "when the kernel killed it" in err


def test_a_crash(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    working(monkeypatch, killed("SIGSEGV"))
    assert watch(["predict"]) == 1
    assert "crashed in a library while it was busy with 'encoding' (SIGSEGV; it held" in capfd.readouterr().err


WATCHER = """
import sys
from recmtl import children
from recmtl.cli.watching import watch
children.python = lambda *_: [sys.executable, "-P", "-c", children.bootstrap() + sys.argv[1]]
sys.exit(watch(["run", "a.yaml"]))
"""


STARTED: "list[subprocess.Popen[bytes]]" = []


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """A test that fails leaves no process, of which another test would be told."""
    yield
    for process in STARTED:
        process.kill()
        process.wait(30)
    STARTED.clear()


def started(program: str, ready: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """A watcher of a process that writes its id to a file when it is ready."""
    program = f"{WORK}open({str(ready)!r} + '.new', 'w').write(str(os.getpid()))\n{program}"
    program = program.replace("READY", f"os.rename({str(ready)!r} + '.new', {str(ready)!r})")
    # In a process group of its own: nothing stops one that no shell above it could take up again (POSIX: orphaned).
    process = subprocess.Popen([sys.executable, "-c", WATCHER, program], process_group=0)
    STARTED.append(process)
    for _ in range(600):
        if ready.exists():
            return process, int(ready.read_text())
        time.sleep(0.05)
    raise AssertionError("the process did not start")


COUNTING = """
import signal
times = []
signal.signal(signal.SIGINT, lambda *_: times.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
READY
until = time.monotonic() + 20
while not times and time.monotonic() < until: time.sleep(0.01)
time.sleep(0.3)
raise SystemExit(100 + len(times))
"""


def test_ctrl_c_arrives_once(tmp_path: Path) -> None:
    process, _ = started(COUNTING, tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 101


def test_the_process_apart_is_in_no_group_that_a_terminal_signals(tmp_path: Path) -> None:
    process, worker = started("READY\ntime.sleep(60)", tmp_path / "ready")
    assert os.getpgid(worker) == worker != os.getpgid(process.pid)
    process.kill()
    process.wait(30)


def test_an_end_by_a_signal_is_the_commands_end(tmp_path: Path) -> None:
    process, worker = started("READY\ntime.sleep(60)", tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert gone(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one above it")
def test_a_killed_command_leaves_no_process(tmp_path: Path) -> None:
    process, worker = started("READY\ntime.sleep(60)", tmp_path / "ready")
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert gone(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_z_stops_both(tmp_path: Path) -> None:
    process, worker = started("READY\ntime.sleep(60)", tmp_path / "ready")
    process.send_signal(signal.SIGTSTP)
    assert soon(lambda: state(process.pid) == state(worker) == "T")
    process.send_signal(signal.SIGCONT)
    assert soon(lambda: state(process.pid) != "T" and state(worker) != "T")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def soon(holds: "object") -> bool:
    for _ in range(200):
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    def dead() -> bool:
        try:
            return state(pid) == "Z"
        except OSError:
            return True

    return soon(dead)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["prepare", "absent.yaml"], 2, "error: absent.yaml: cannot read this config: No such file or directory\n"),
        (["run"], 2, "error: recmtl run: missing argument 'CONFIG'"),
        (["predict", "--debug", "--model", "nowhere", "--input", "x", "--output", "y"], 2, "Traceback"),
    ],
)
def test_a_real_command(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from recmtl.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
