"""Is this machine set up to train? In: the installed packages. Out: a list of :class:`Check`, each with what to do.

torch, torchrec and fbgemm come in trios that break when mixed, and the break otherwise surfaces as a missing symbol
deep inside an import. So the versions are compared from their metadata, and the imports are tried in a process of
their own.
"""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from recmtl import children
from recmtl.errors import UserError

__all__ = ["TRIOS", "Check", "diagnose", "require_trio"]

TRIOS: Mapping[str, tuple[str, str]] = {
    "2.11": ("1.6", "1.6"),
    "2.12": ("1.7", "1.7"),
    "2.13": ("1.8", "1.8"),
    "2.14": ("1.9", "1.9"),
}
"""torch's minor release to those of fbgemm and torchrec built for it."""

_FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
_IMPORT_SECONDS = 180


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Literal["ok", "note", "wrong"]
    found: str
    """What is there."""
    remedy: str = ""
    """What to do, where something is wrong or could be better."""


def diagnose() -> list[Check]:
    """Look at everything a run needs; takes some seconds, for the imports are really tried."""
    versions = _versions()
    checks = [_python(), *_trio(versions)]
    trio_ok = all(check.verdict != "wrong" for check in checks)
    if trio_ok:
        checks += [_operators(), _device()]
    return [*checks, _mlflow(versions), *_rest(versions)]


def require_trio() -> None:
    """Fail early and in words when torch, torchrec and fbgemm do not belong together; reads metadata alone.

    Raises:
        UserError: what is wrong and what to install.
    """
    for check in _trio(_versions()):
        if check.verdict == "wrong":
            raise UserError(f"{check.found}. {check.remedy} (`recmtl doctor` looks at everything)")


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("torch", "torchrec", *_FBGEMM, "mlflow", "polars", "pandas", "safetensors", "torchjd", "scikit-learn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _minor(version: str) -> str:
    match = re.match(r"\d+\.\d+", version)
    return match.group() if match else version


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", "ok", found)


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)  # noqa: S607 - found on PATH
    return asked.returncode == 0


def _trio(versions: Mapping[str, str]) -> Iterator[Check]:
    torch = versions.get("torch")
    if torch is None:
        yield Check("torch", "wrong", "torch is not installed", "Run `make dev`, or `pip install torch==2.13.0`.")
        return
    if _minor(torch) not in TRIOS:
        known = ", ".join(TRIOS)
        yield Check("torch", "wrong", f"torch {torch} is none of {known}", "Run `pip install torch==2.13.0`.")
        return
    yield Check("torch", "ok", torch)
    fbgemm_wanted, torchrec_wanted = TRIOS[_minor(torch)]

    installed = [name for name in _FBGEMM if name in versions]
    package = "fbgemm-gpu" if _has_gpu() else "fbgemm-gpu-cpu"
    install = f"`pip install --no-deps {package}=={fbgemm_wanted}.0`"
    if len(installed) == 2:
        yield Check(
            "fbgemm",
            "wrong",
            "fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files",
            f"Run `pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu`, then {install}.",
        )
    elif not installed:
        yield Check("fbgemm", "wrong", "fbgemm is not installed", f"Run {install}.")
    elif _minor(versions[installed[0]]) != fbgemm_wanted:
        found = f"{installed[0]} {versions[installed[0]]} does not fit torch {torch}"
        yield Check("fbgemm", "wrong", found, f"Run {install}.")
    elif installed[0] == "fbgemm-gpu" and not _has_gpu():
        found = "fbgemm-gpu needs CUDA's libraries to import, and there is no GPU here"
        yield Check("fbgemm", "wrong", found, f"Run `pip uninstall -y fbgemm-gpu`, then {install}.")
    elif installed[0] == "fbgemm-gpu-cpu" and _has_gpu():
        found = f"fbgemm-gpu-cpu {versions[installed[0]]} on a machine with a GPU: training runs on the CPU"
        remedy = f"For the GPU, run `pip uninstall -y fbgemm-gpu-cpu`, then {install}."
        yield Check("fbgemm", "note", found, remedy)
    else:
        yield Check("fbgemm", "ok", f"{installed[0]} {versions[installed[0]]}")

    torchrec = versions.get("torchrec")
    install = f"`pip install --no-deps torchrec=={torchrec_wanted}.{'1' if torchrec_wanted == '1.6' else '0'}`"
    if torchrec is None:
        yield Check("torchrec", "wrong", "torchrec is not installed", f"Run {install}.")
    elif _minor(torchrec) != torchrec_wanted:
        yield Check("torchrec", "wrong", f"torchrec {torchrec} does not fit torch {torch}", f"Run {install}.")
    else:
        yield Check("torchrec", "ok", torchrec)


def _python_says(code: str) -> tuple[bool, str]:
    """Run code in a process of its own: a broken native library takes that process down, not this one."""
    try:
        done = subprocess.run(  # noqa: S603 - our own code on our own interpreter
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
            env=children.environment(),
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return True, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    lines = done.stderr.strip().splitlines()
    return False, lines[-1] if lines else f"the process died with code {done.returncode}"


def _operators() -> Check:
    code = (
        "import torch, torchrec, fbgemm_gpu\n"
        "import fbgemm_gpu.split_table_batched_embeddings_ops_training as ops\n"
        "place = (ops.EmbeddingLocation.HOST, ops.ComputeDevice.CPU)\n"
        "t = ops.SplitTableBatchedEmbeddingBagsCodegen([(4, 4, *place)])\n"
        "t(torch.tensor([1, 2]), torch.tensor([0, 1, 2])).sum().backward()\n"
        "print('a fused table looked up and updated')\n"
    )
    good, said = _python_says(code)
    if good:
        return Check("fbgemm operators", "ok", said)
    remedy = "The trio is installed but does not load; reinstall it in a fresh environment (`make clean`, `make dev`)."
    return Check("fbgemm operators", "wrong", said, remedy)


def _device() -> Check:
    code = (
        "import torch\n"
        "if torch.cuda.is_available():\n"
        "    import fbgemm_gpu\n"
        "    torch.zeros(1, device='cuda')\n"
        "    print('cuda: ' + torch.cuda.get_device_name() + (', bf16' if torch.cuda.is_bf16_supported() else ''))\n"
        "else:\n"
        "    print('cpu: ' + str(torch.get_num_threads()) + ' threads')\n"
    )
    good, said = _python_says(code)
    if not good:
        return Check("device", "wrong", said, "A CUDA device is there but does not work; check its driver.")
    if said.startswith("cpu") and _has_gpu():
        return Check("device", "note", f"{said}, although nvidia-smi sees a GPU", "Install torch's CUDA build.")
    return Check("device", "ok", said)


def _mlflow(versions: Mapping[str, str]) -> Check:
    version = versions.get("mlflow")
    if version is None:
        return Check("mlflow", "wrong", "mlflow is not installed", "Run `pip install mlflow==3.17.2`.")
    code = (
        "import tempfile, pathlib, logging\n"
        "logging.disable(logging.CRITICAL)\n"
        "import mlflow\n"
        "from mlflow import MlflowClient\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    MlflowClient(f'sqlite:///{pathlib.Path(folder) / \"doctor.db\"}').search_experiments()\n"
        "print('a SQLite store opened')\n"
    )
    good, said = _python_says(code)
    if good:
        return Check("mlflow", "ok", f"{version}, {said}")
    return Check("mlflow", "wrong", f"{version}: {said}", "Run `pip install mlflow==3.17.2`.")


def _rest(versions: Mapping[str, str]) -> Iterator[Check]:
    for name in ("polars", "pandas", "safetensors", "torchjd", "scikit-learn"):
        if name in versions:
            yield Check(name, "ok", versions[name])
        else:
            yield Check(name, "wrong", f"{name} is not installed", f"Run `make dev`, or `pip install {name}`.")
