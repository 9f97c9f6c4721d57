"""Read and write the lock files. In: a file that `make lock` wrote, or uv's output. Out: a list of :class:`Package`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = {"cpu": ("torch-cpu", "cpu"), "cuda": ("torch-cuda", "cuda"), "dev": ("dev",)}
"""What is installed, to the lock files that it is installed from. ``dev`` comes on top of either device."""

_BLOCK = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))? *\\\n"
    r"(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
    r"(?P<via>(?: +#.*\n)*)",
    re.MULTILINE,
)
_HEAD = """\
# Written by `make lock`; do not edit. Every file that pip may choose is hashed; nothing is built from source.
# Install it with --no-deps --require-hashes.
--only-binary :all:
"""


@dataclass(frozen=True)
class Package:
    """One locked package: a line of a lock file with its hashes."""

    name: str
    version: str
    """With its local part, as in ``2.13.0+cpu``."""
    marker: str
    """Where the package is installed, as an environment marker; empty: everywhere."""
    hashes: tuple[str, ...]
    """The SHA-256 of each file that pip may choose, as hexadecimal digits."""
    via: tuple[str, ...]
    """The packages that require it; ``recmtl`` is this project."""


def read(*names: str) -> list[Package]:
    """The packages of the named lock files (``cpu`` for cpu.txt), in the files' order."""
    return [package for name in names for package in parse((HERE / f"{name}.txt").read_text())]


def parse(text: str) -> list[Package]:
    """The packages of one lock, ours or uv's.

    Raises:
        ValueError: a line that is neither a package with at least one hash, nor a comment, nor an option.
    """
    rest = _BLOCK.sub("", text)
    for line in rest.splitlines():
        if line.strip() and not line.startswith(("#", "--only-binary ")):
            raise ValueError(f"not a package with a hash: {line!r}")
    return [
        Package(
            name=block["name"],
            version=block["version"],
            marker=block["marker"] or "",
            hashes=tuple(re.findall(r"sha256:(\w+)", block["hashes"])),
            via=_via(block["via"]),
        )
        for block in _BLOCK.finditer(text)
    ]


def write(name: str, packages: Iterable[Package]) -> None:
    """Write one lock file, sorted by package."""
    ordered = sorted(packages, key=lambda package: (package.name, package.version))
    text = _HEAD + "".join(map(_block, ordered))
    assert parse(text) == ordered
    (HERE / f"{name}.txt").write_text(text)


def _block(package: Package) -> str:
    marker = f" ; {package.marker}" if package.marker else ""
    hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in package.hashes)
    via = f"    # via {', '.join(package.via)}\n" if package.via else ""
    return f"{package.name}=={package.version}{marker} \\\n{hashes}\n{via}"


def _via(comment: str) -> tuple[str, ...]:
    words = re.sub(r"^ +#(?: +via)? *", "", comment, flags=re.MULTILINE)
    parents = (re.sub(r" \(pyproject\.toml\)$", "", word.strip()) for word in re.split(r"[,\n]", words))
    return tuple(sorted({parent for parent in parents if parent and not parent.startswith(("-c ", "--"))}))
