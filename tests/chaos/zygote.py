"""A process that imports everything once and then forks a child per command: imports take longer than commands.

Forking is safe because the parent does no work: Polars, torch and Arrow start their threads with the first work. The
process starts with shim.so preloaded, and speaks JSON lines on standard input and output.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Done", "Zygote"]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PYTHONHASHSEED": "0",
    "NO_COLOR": "1",
    "COLUMNS": "400",
}
ROOT = Path(__file__).parents[2]
_IMPORTED = (
    "torch",
    "torch._dynamo",
    "torchrec",
    "fbgemm_gpu",
    "polars",
    "polars._utils.async_",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "safetensors.torch",
    "sklearn.isotonic",
    "sklearn.linear_model",
    "joblib",
    "optuna",
    "sqlite3",
    "opentelemetry.sdk.metrics",
    "mlflow.tracing.processor.base_mlflow",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "mlflow.pyfunc",
    "mlflow.tracking",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "recmtl.cli",
    "recmtl.features.fused",
    "recmtl.stages.daily",
    "recmtl.stages.exporting",
    "recmtl.stages.training",
)
"""What commands import; what is missing here costs each of them the time."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    """Its exit code; negative: the signal."""
    out: str
    err: str
    seconds: float


class Zygote:
    """Runs commands of recmtl in processes of their own, one at a time.

    Args:
        shim: the library to preload; None: none.
        place: a folder for what the commands print.
    """

    def __init__(self, shim: Path | None, place: Path) -> None:
        self._place = place
        place.mkdir(parents=True, exist_ok=True)
        preload = {} if shim is None else {"LD_PRELOAD": str(shim)}
        with (place / "zygote.err").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__)), str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **ENVIRONMENT, **preload, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            )

    def run(
        self,
        arguments: list[str],
        at: Path,
        *,
        program: str = "recmtl",
        state: Path | None = None,
        own: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        memory_gib: int | None = None,
        timeout: float = 180,
    ) -> Done:
        """Run a command to its end, or to a timeout, which kills it.

        Args:
            arguments: of the command.
            at: its working directory.
            program: recmtl; or daily, the pipeline for a scheduler; or call, ``module:function`` as first argument.
            state: of :class:`recmtl injector <tests.chaos.injector.State>`: what disturbs it.
            own: what disturbs recmtl's own file operations (:mod:`tests.chaos.own`).
            environment: variables to set.
            memory_gib: how much more address space than now it may take; None: any.
            timeout: seconds.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {
            "arguments": arguments,
            "at": str(at),
            "program": program,
            "state": None if state is None else str(state),
            "own": own,
            "environment": environment or {},
            "memory_gib": memory_gib,
            "timeout": timeout,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the zygote ended: {(self._place / 'zygote.err').read_text()[-2000:]}")
        answer = json.loads(line)
        out, err = ((self._place / name).read_text(errors="replace") for name in ("out", "err"))
        return Done(answer["code"], out, err, answer["seconds"])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def _serve(place: Path) -> None:
    preloaded = ctypes.CDLL(None)
    for name in _IMPORTED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            answers.close()
            _child(asked, place, preloaded)
        code = _wait(child, asked["timeout"])
        answers.write(json.dumps({"code": code, "seconds": round(time.monotonic() - start, 3)}) + "\n")


def _wait(child: int, timeout: float) -> int:
    watched = os.pidfd_open(child)
    try:
        if not select.select([watched], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(watched)
    with contextlib.suppress(OSError):  # what it started and left
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def _child(asked: dict[str, Any], place: Path, preloaded: Any) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(asked["at"])
        for number, name in ((0, "/dev/null"), (1, place / "out"), (2, place / "err")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, flags, 0o600), number)
        faulthandler.enable()
        os.environ.update(asked["environment"])
        if asked["memory_gib"] is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + asked["memory_gib"] * 2**30
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if asked["state"]:
            os.environ["CHAOS_STATE"] = asked["state"]
            preloaded.chaos_attach(os.fsencode(asked["state"]))
        if asked["own"]:
            from tests.chaos.own import disturb

            disturb(asked["own"])
        code = _run(asked["program"], asked["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _run(program: str, arguments: list[str]) -> int:
    from recmtl.cli import exit_code_of, main

    sys.argv = [program, *arguments]
    try:
        if program == "recmtl":
            main(arguments)
        elif program == "daily":
            import runpy

            sys.argv = ["batch_training.py", *arguments]
            runpy.run_path(str(ROOT / "pipelines" / "batch_training.py"), run_name="__main__")
        else:
            module, function = arguments[0].split(":")
            with exit_code_of():
                getattr(importlib.import_module(module), function)(*arguments[1:])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
