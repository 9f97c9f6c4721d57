"""Write the locks, the bills of materials and the table of licences from pyproject.toml and pins.in: `make lock`.

Versions stay as they are locked. `make lock UPGRADE=all` takes the newest that fit, `UPGRADE="polars rich"` those of
the named packages. What is written:

- cpu.txt, cuda.txt: what recmtl needs on either device, without torch.
- torch-cuda.txt: torch as the public index has it, with CUDA's libraries.
- torch-cpu.txt: torch's CPU build, a version of its own (``+cpu``), which the public index does not have.
- dev.txt: the tools of development, on top of either.
- cpu.cdx.json, cuda.cdx.json, dev.cdx.json, licences.md: see sbom.py.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import sbom
from licences import Licence, UnknownLicenceError, licence, refused, rules
from locks import HERE, LOCKS, Package, parse, read, write
from packaging.markers import Marker

UV = os.environ.get("UV", "uv")
PIP = "pip==26.3"
"""Reads metadata without downloading the files; it is not installed into .venv."""
OLDEST_PYTHON = "3.11"
_BROUGHT = re.compile(r"torch|triton|cuda-[a-z]+|nvidia-(?!ml-py$)[a-z0-9-]+")


@dataclass(frozen=True)
class Machine:
    """An environment whose files are looked up."""

    python: str
    platform: str
    machine: str

    def has(self, package: Package) -> bool:
        """Whether the package is installed there."""
        environment = {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "sys_platform": self.platform,
            "platform_machine": self.machine,
            "platform_system": {"linux": "Linux", "win32": "Windows"}[self.platform],
            "os_name": {"linux": "posix", "win32": "nt"}[self.platform],
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
        }
        return not package.marker or Marker(package.marker).evaluate(environment)

    def options(self) -> list[str]:
        """pip's options that choose this environment's files."""
        if self.platform == "win32":
            tags = ["win_amd64"]
        else:
            tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(40, 4, -1)]
            tags += [f"{name}_{self.machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1")]
        return ["--python-version", self.python, *(option for tag in tags for option in ("--platform", tag))]


MACHINES = (Machine("3.11", "linux", "x86_64"), Machine("3.13", "linux", "x86_64"), Machine("3.13", "win32", "AMD64"))
"""Every locked package is installed on one of these."""
TORCH_MACHINES = tuple(
    Machine(python, "linux", machine)
    for python in ("3.11", "3.12", "3.13", "3.14")
    for machine in ("x86_64", "aarch64")
)


def main(upgrade: Sequence[str]) -> int:
    """Write everything; ``upgrade`` names the packages to upgrade, or is ``all``."""
    options = ["--upgrade"] if "all" in upgrade else [o for name in upgrade for o in ("--upgrade-package", name)]
    cpu = resolve(["cpu"], ["cpu", "torch-cuda"], [], options)
    write("cpu", (package for package in cpu if not brought(package)))
    cuda = resolve(["cuda"], ["cuda", "torch-cuda"], ["cpu"], options)
    write("cuda", (package for package in cuda if not brought(package)))
    # A CPU machine that finds no CPU build installs torch-cuda.txt too.
    assert set(filter(brought, cpu)) <= set(filter(brought, cuda)), "cpu and cuda resolve torch differently"
    write("torch-cuda", filter(brought, cuda))
    write("torch-cpu", [cpu_build(next(package for package in cpu if package.name == "torch"))])
    dev = resolve(["cpu", "dev"], ["cpu", "dev", "torch-cuda"], ["cpu", "torch-cuda"], options)
    names = {package.name for package in cpu}
    write("dev", (package for package in dev if package.name not in names))

    found, problems = licences_of(read(*dict.fromkeys(name for names in LOCKS.values() for name in names)))
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    for path in sbom.write(found, rules()):
        print(f"wrote {path.relative_to(HERE.parent)}")
    return 0


def brought(package: Package) -> bool:
    """Whether the package is torch, or one that torch's CUDA build alone requires."""
    return _BROUGHT.fullmatch(package.name) is not None


def resolve(extras: Sequence[str], kept: Sequence[str], bounds: Sequence[str], options: Sequence[str]) -> list[Package]:
    """What pyproject.toml and these extras need, for every platform and Python.

    Args:
        extras: of pyproject.toml.
        kept: the locks whose versions stay where they fit.
        bounds: the locks whose versions must stay.
        options: more of uv's options.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        output.write_text("".join((HERE / f"{name}.txt").read_text() for name in kept))
        constraints = ["requirements/pins.in", *(f"requirements/{name}.txt" for name in bounds)]
        command = [
            *(UV, "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--generate-hashes"),
            *("--universal", "--python-version", OLDEST_PYTHON, "--only-binary", ":all:"),
            *(option for extra in extras for option in ("--extra", extra)),
            *(option for constraint in constraints for option in ("--constraint", constraint)),
            *(("--override", "requirements/no-cuda-fbgemm.in") if "cpu" in extras else ()),
            *("--output-file", str(output), *options),
        ]
        subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
        found = [package for package in parse(output.read_text()) if "'never'" not in package.marker]
    known = {"recmtl", *(package.name for package in found)}
    return [replace(package, via=tuple(parent for parent in package.via if parent in known)) for package in found]


def cpu_build(torch: Package) -> Package:
    """torch's CPU build: of the same version, the hashes in torch-cpu.txt and those of the files that pip finds here.

    A machine finds few of these files: those of its folder, or all of an index. So hashes are added, and kept until
    torch's version changes.
    """
    version = f"{torch.version}+cpu"
    hashes: set[str] = set()
    hashes.update(*(package.hashes for package in read("torch-cpu") if package.version == version))
    for machine in TORCH_MACHINES:
        for item in report([f"torch=={version}"], machine, may_lack=True):
            source = item["download_info"]
            if source["url"].startswith("file:"):
                hashes.add(hashlib.sha256(Path(unquote(urlsplit(source["url"]).path)).read_bytes()).hexdigest())
            else:
                hashes.add(source["archive_info"]["hashes"]["sha256"])
    if not hashes:
        raise SystemExit(f"pip finds no torch=={version}: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where it is")
    return replace(torch, version=version, hashes=tuple(sorted(hashes)))


def licences_of(packages: Iterable[Package]) -> tuple[dict[tuple[str, str], Licence], list[str]]:
    """The licence of each package, and a sentence for each that has none or one that is not allowed."""
    given = rules()
    todo = {sbom.public(package): package for package in packages}
    found: dict[tuple[str, str], Licence] = {}
    problems = []
    for machine in MACHINES:
        here = [key for key, package in todo.items() if machine.has(package)]
        items = report([f"{name}=={version}" for name, version in here], machine)
        stated = {normalised(item["metadata"]["name"]): item["metadata"] for item in items}
        for key in here:
            del todo[key]
            try:
                found[key] = licence(key[0], stated[key[0]], given.reviewed)
            except UnknownLicenceError as error:
                problems.append(str(error))
                continue
            if bad := refused(found[key].expression, given.allowed):
                problems.append(f"{key[0]}: {' and '.join(bad)} is not allowed by requirements/licences.toml")
    problems += [f"{name}: no machine in requirements/lock.py installs it" for name, _ in todo]
    return found, problems


def normalised(name: str) -> str:
    """A package's name as the locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def report(requirements: Sequence[str], machine: Machine, *, may_lack: bool = False) -> list[dict[str, Any]]:
    """pip's account of the files that it would install on a machine; with ``may_lack``, empty where it finds none."""
    if not requirements:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [
            *(UV, "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable, "--with", PIP),
            *("python", "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"),
            *("--only-binary", ":all:", "--target", folder, "--report", str(path), *machine.options(), *requirements),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            # pip says the second where a constraint of the user's own names the package, too.
            if may_lack and re.search("No matching distribution|ResolutionImpossible", done.stderr):
                return []
            raise SystemExit(done.stderr)
        return json.loads(path.read_text())["install"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
