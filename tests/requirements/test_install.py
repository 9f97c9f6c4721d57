"""install.sh: which build of torch a machine gets, and that pip refuses a file that the lock does not hash."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# Stands for the environment's Python: notes what pip is asked, answers for the index, and hands installs of locks on.
PYTHON = """\
#!/usr/bin/env bash
echo "$*" >> "{log}"
case "$*" in
  *" index versions torch") {answer} ;;
  *" show "*) exit {absent} ;;
  *" uninstall "*|*" -e .") ;;
  *) {install} ;;
esac
"""
FOUND = 'echo "torch (2.14.0)"; echo "Available versions: 2.14.0, 2.13.0+cpu, 2.13.0, 2.12.0"'
PUBLIC = 'echo "torch (2.14.0)"; echo "Available versions: 2.14.0, 2.13.0, 2.12.0"'


@pytest.fixture
def project(tmp_path, folder):
    """A copy of the folder with install.sh and small locks of its own."""
    shutil.copytree(folder, tmp_path / "requirements", ignore=shutil.ignore_patterns("*.json", "*.md", "__pycache__"))
    return tmp_path


@pytest.fixture
def install(project):
    """Run install.sh with a stand-in for Python; gives its result and what pip was asked."""

    def run(what, *lock, answer=FOUND, absent=1, install="exit 0", **environment):
        log, python = project / "log", project / "python"
        log.write_text("")
        python.write_text(PYTHON.format(log=log, answer=answer, absent=absent, install=install))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        command = ["bash", str(project / "requirements" / "install.sh"), "python", what, *lock]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120
        )
        return done, log.read_text().splitlines()

    return run


def locks(calls):
    """The lock files that pip was asked to install."""
    return [name for call in calls for name in re.findall(r"-r requirements/(\S+)\.txt", call)]


def test_a_cpu_machine_takes_the_cpu_build_where_pip_finds_one(install):
    done, calls = install("cpu")
    assert done.returncode == 0, done.stderr
    assert locks(calls) == ["torch-cpu", "cpu"]


def test_a_cpu_machine_takes_the_public_build_where_there_is_no_other(install):
    done, calls = install("cpu", answer=PUBLIC)
    assert done.returncode == 0, done.stderr
    assert locks(calls) == ["torch-cuda", "cpu"]


def test_a_gpu_machine_takes_the_public_build_without_asking(install):
    done, calls = install("cuda")
    assert done.returncode == 0, done.stderr
    assert locks(calls) == ["torch-cuda", "cuda"]
    assert not any("index versions" in call for call in calls)


def test_no_answer_about_torch_is_a_failure_not_another_build(install):
    done, calls = install("cpu", answer='echo "the network is away" >&2; exit 1')
    assert done.returncode == 1
    assert "the network is away" in done.stderr
    assert "pip could not look up torch's versions" in done.stderr
    assert locks(calls) == []


def test_another_lock_is_installed_with_torch_and_without_recmtl(install):
    done, calls = install("cpu", "/elsewhere/peer.txt")
    assert done.returncode == 0, done.stderr
    assert locks(calls) == ["torch-cpu"]
    (call,) = [call for call in calls if " install " in call]
    assert "--require-hashes" in call
    assert call.endswith("-r /elsewhere/peer.txt")


@pytest.mark.parametrize("what", ["cpu", "cuda", "dev"])
def test_whatever_is_installed_is_hashed(install, what):
    _, calls = install(what)
    installs = [call for call in calls if " install " in call]
    own = [call for call in installs if call.endswith("-e .")]
    assert len(own) == (what != "dev")
    for call in installs:
        assert "--no-deps" in call
        assert "--no-build-isolation" in call if call in own else "--require-hashes" in call


def test_make_installs_through_install_sh_alone(folder):
    for path in (folder.parent / "Makefile", folder.parent / ".ci" / "run"):
        assert not re.search(r"\bpip3?\b", re.sub(r"#.*", "", path.read_text())), path


def test_another_devices_torch_and_fbgemm_go_first(install):
    _, calls = install("cuda", absent=0)
    (gone,) = [number for number, call in enumerate(calls) if " uninstall " in call]
    assert calls[gone].endswith("--yes fbgemm-gpu fbgemm-gpu-cpu torch")
    assert gone < next(number for number, call in enumerate(calls) if "--require-hashes" in call)
    _, calls = install("cuda", absent=1)
    assert not any(" uninstall " in call for call in calls)


def wheel(folder: Path, version: str) -> str:
    """Make a wheel called torch; gives its SHA-256."""
    path = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_stand_in.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("tampered", [False, True])
def test_a_wrong_digit_of_a_hash_stops_the_installation(project, install, tampered):
    wheels, site = project / "wheels", project / "site"
    wheels.mkdir()
    digest = wheel(wheels, "2.13.0+cpu")
    if tampered:
        digest = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    requirements = project / "requirements"
    (requirements / "torch-cpu.txt").write_text(f"--only-binary :all:\ntorch==2.13.0+cpu --hash=sha256:{digest}\n")
    (requirements / "cpu.txt").write_text("--only-binary :all:\n")
    done, calls = install(
        "cpu",
        install=f'{sys.executable} "$@"',
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(wheels),
        PIP_TARGET=str(site),
    )
    assert (site / "torch_stand_in.py").exists() is not tampered
    assert (done.returncode == 0) is not tampered, done.stderr
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is tampered
    assert any(call.endswith("-e .") for call in calls) is not tampered
