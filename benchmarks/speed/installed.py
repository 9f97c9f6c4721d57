"""The peers' environments: each its own, made once, from pinned and hashed files.

FuxiCTR is not here: its wheel holds no multi-task model.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = HERE.parents[1] / "requirements"
PEERS = {"DeepCTR-Torch": ("deepctr-torch", "deepctr_side.py"), "torch-rechub": ("torch-rechub", "rechub_side.py")}
"""What a peer is called, to its file of pins in ``peers/`` and its side here."""


class InstallError(Exception):
    """A peer that cannot be had here."""


def install(name: str, folder: Path, device: str) -> Path:
    """The Python of a peer's environment, made when it is not there, with recmtl's own torch for the device.

    Raises:
        InstallError: it cannot be made: no registry, no such package, or it cannot be imported.
    """
    pins = HERE / "peers" / f"{PEERS[name][0]}.txt"
    home = folder / PEERS[name][0]
    python = home / "bin" / "python"
    done = home / "installed"
    parts = [device, pins.read_text(), *((LOCKS / f"torch-{build}.txt").read_text() for build in ("cpu", "cuda"))]
    wanted = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if done.exists() and done.read_text() == wanted:
        return python
    _run(name, sys.executable, "-m", "venv", "--clear", str(home))
    _run(name, "bash", str(LOCKS / "install.sh"), str(python), device, str(pins))
    _run(name, str(python), "-c", f"import {PEERS[name][0].replace('-', '_')}")
    done.write_text(wanted)
    return python


def _run(name: str, *command: str) -> None:
    print(f"{name}: {' '.join(Path(word).name for word in command)}", file=sys.stderr, flush=True)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip().splitlines()
        raise InstallError(f"{name} cannot be installed: {words[-1] if words else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{name} cannot be installed: {error}") from error
