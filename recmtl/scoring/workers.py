"""Pieces scored by several processes, each with the package loaded once and its share of the cores.

In: a job and its pieces. Out: the parts, in no particular order. A process calls :func:`work`; it is told its pieces
and says what it has done as lines of JSON. It ends when its standard input does, so none outlives the job.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

from recmtl import children
from recmtl.errors import RunError, UserError
from recmtl.failures import input_or_output, out_of_memory
from recmtl.package import load_package
from recmtl.scoring.inputs import Piece
from recmtl.scoring.pieces import Job, Part, Scorer, cores

__all__ = ["score_in_processes", "work"]

_PROGRAM = "from recmtl.scoring.workers import work; work()"


def score_in_processes(
    job: Job,
    pieces: Sequence[Piece],
    workers: int,
    done: Callable[[int], None],
    finished: Callable[[int, Part], None],
) -> None:
    """Score all pieces; ``done`` hears of rows from several threads, one at a time, ``finished`` of each part.

    Raises:
        UserError, RunError: what a process ran into; a process was killed.
    """
    threads = max(1, cores() // workers)
    waiting: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    for piece in pieces:
        waiting.put(piece)
    lock = threading.Lock()

    def noted(rows: int) -> None:
        with lock:
            done(rows)

    with _processes(min(workers, len(pieces)), threads) as processes:
        with ThreadPoolExecutor(len(processes), "recmtl-worker") as pool:
            follow = [pool.submit(_follow, process, job, waiting, noted, finished) for process in processes]
            try:
                over, _ = wait(follow, return_when=FIRST_EXCEPTION)
            finally:  # ended processes end the threads that listen to them, of which the pool waits
                for process in processes:
                    process.kill()
        for future in over:
            future.result()


@contextmanager
def _processes(number: int, threads: int) -> Iterator[list["subprocess.Popen[str]"]]:
    environment = {
        **children.environment(),
        "POLARS_MAX_THREADS": str(threads),
        "OMP_NUM_THREADS": "1",  # of torch: a batch is one thread's
        "RECMTL_THREADS": str(threads),
    }
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(number):
            processes.append(
                subprocess.Popen(  # noqa: S603
                    children.python(_PROGRAM),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the parent, which ends them
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # what was still to be told to a process that has gone
                    pipe.close()


def _follow(
    process: "subprocess.Popen[str]",
    job: Job,
    waiting: "queue.SimpleQueue[Piece]",
    done: Callable[[int], None],
    finished: Callable[[int, Part], None],
) -> None:
    """Hand pieces to one process until none is left."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job.model_dump_json() + "\n")
        while True:
            try:
                piece = waiting.get_nowait()
            except queue.Empty:
                return
            process.stdin.write(piece.model_dump_json() + "\n")
            process.stdin.flush()
            while True:
                said = json.loads(process.stdout.readline() or '{"lost": true}')
                if "rows" in said:
                    done(said["rows"])
                elif "error" in said:
                    raise (UserError if said["users"] else RunError)(said["error"])
                elif "lost" in said:
                    raise BrokenPipeError
                else:
                    finished(said["done"], Part(**said["part"]))
                    break
    except BrokenPipeError as error:
        code = process.wait()
        how = (
            f"was killed by signal {-code} (6 and 9: perhaps out of memory)" if code < 0 else f"ended with code {code}"
        )
        raise RunError(
            f"a scoring process {how}; the same command goes on from here; fewer --workers take less memory"
        ) from error


def work() -> None:
    """A process's side: a job's line, then a line for each piece; what is printed meanwhile goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    given: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(given,), daemon=True).start()

    def say(**said: object) -> None:
        print(json.dumps(said), file=out, flush=True)

    try:
        job = Job.model_validate_json(given.get())
        package = load_package(job.package, device=job.device)
        if package.contents.digest != job.digest:
            raise RunError(f"{job.package}: this package was replaced while it was scoring; start again")
        scorer = Scorer(package, job, int(os.environ["RECMTL_THREADS"]))
        while True:
            piece = Piece.model_validate_json(given.get())
            part = scorer.write(piece, lambda rows: say(rows=rows))
            say(done=piece.number, part=part._asdict())
    except (UserError, RunError) as error:
        say(error=str(error), users=isinstance(error, UserError))
    except Exception as error:
        short, found = out_of_memory(error), input_or_output(error)
        if short is None and found is None:
            raise  # a fault of ours, with its traceback
        say(error=found or f"a scoring process is out of {short}; fewer --workers take less", users=False)


def _listen(given: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        given.put(line)
    os._exit(0)  # the parent has gone or needs no more; whatever is half-written has no name yet
