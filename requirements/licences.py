"""What a package's licence is, and whether it is allowed. In: metadata, licences.toml. Out: SPDX expressions.

The metadata states a licence in one of three ways, of different age: the field License-Expression, the field License
(a name or the whole text), and trove classifiers. Where none of them names one licence, somebody read the licence file:
licences.toml says what it is and why.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from license_expression import LicenseSymbol, LicenseWithExceptionSymbol, get_spdx_licensing

HERE = Path(__file__).parent
_SPDX = get_spdx_licensing()

_NAMES = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
    "zpl 2.1": "ZPL-2.1",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
}
"""What the License field says in words, in lower case, to its SPDX expression. A plain "BSD" names no one licence."""

_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
"""The last part of a classifier to its SPDX expression. "BSD License" names no one licence."""


class UnknownLicenceError(ValueError):
    """No licence could be read from a package's metadata; the message names the package."""


@dataclass(frozen=True)
class Licence:
    """A package's licence."""

    expression: str
    """In SPDX's syntax, as in ``Apache-2.0 OR BSD-3-Clause``."""
    source: str
    """Where it was read: ``License-Expression``, ``License``, ``classifier`` or ``reviewed``."""


@dataclass(frozen=True)
class Rules:
    """The hand-written licences.toml."""

    allowed: frozenset[str]
    """SPDX identifiers, with the exception where one applies (``Apache-2.0 WITH LLVM-exception``)."""
    reviewed: Mapping[str, Mapping[str, str]]
    """A package's name to its ``licence`` and the ``reason``."""


def rules(path: Path = HERE / "licences.toml") -> Rules:
    """Read licences.toml."""
    content = tomllib.loads(path.read_text())
    return Rules(frozenset(name for group in content["allowed"].values() for name in group), content["reviewed"])


def licence(name: str, metadata: Mapping[str, Any], reviewed: Mapping[str, Mapping[str, str]]) -> Licence:
    """The licence of a package.

    Args:
        name: the package's normalised name.
        metadata: the core metadata as JSON: ``license_expression``, ``license`` and ``classifier``, each if stated.
        reviewed: what was decided by reading; it counts only where the metadata names no licence.

    Raises:
        UnknownLicenceError: neither the metadata nor the review says it.
    """
    stated = metadata.get("license_expression") or ""
    if _is_spdx(stated):
        return Licence(stated, "License-Expression")
    lines = (metadata.get("license") or "").strip().splitlines()
    stated = lines[0].strip() if lines else ""
    if expression := _NAMES.get(stated.lower(), stated if _is_spdx(stated) else ""):
        return Licence(expression, "License")
    classifiers = [line.split(" :: ")[-1] for line in metadata.get("classifier", []) if line.startswith("License :: ")]
    if len(classifiers) == 1 and classifiers[0] in _CLASSIFIERS:
        return Licence(_CLASSIFIERS[classifiers[0]], "classifier")
    if name in reviewed:
        return Licence(reviewed[name]["licence"], "reviewed")
    found = "; ".join(filter(None, (stated, *classifiers))) or "nothing"
    raise UnknownLicenceError(
        f"{name}: the metadata names no one licence (it says {found!r}). Read the licence file and add the package "
        "to [reviewed] in requirements/licences.toml, with the reason"
    )


def refused(expression: str, allowed: Iterable[str]) -> list[str]:
    """The licences in an expression that are not allowed, sorted; empty: the expression is fine.

    ``A OR B`` is fine if one side is: the user chooses. ``A AND B`` is fine if both are.
    """
    allowed = frozenset(allowed)

    def walk(node: Any) -> set[str]:
        if isinstance(node, LicenseSymbol | LicenseWithExceptionSymbol):
            text = node.render()
            return set() if text in allowed else {text}
        sides = [walk(side) for side in node.args]
        if isinstance(node, _SPDX.OR) and not all(sides):
            return set()
        return set().union(*sides)

    return sorted(walk(_SPDX.parse(expression)))


def _is_spdx(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9.+() -]+", text):
        return False
    try:
        unknown = _SPDX.unknown_license_keys(_SPDX.parse(text))
    except Exception:  # the parser's errors share no base class
        return False
    return all(key.startswith("LicenseRef-") for key in unknown)
