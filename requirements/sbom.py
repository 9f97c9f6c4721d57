"""The bill of materials of a lock, and the table of licences. In: locks and licences. Out: CycloneDX JSON; Markdown.

Both are functions of what is locked alone: no time, and a serial number that follows from the content.
"""

import hashlib
import json
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id
from licences import Licence, Rules
from locks import HERE, LOCKS, Package, read
from packageurl import PackageURL

_SOURCE = "recmtl:licence-source"
_MARKER = "recmtl:environment-marker"
_NAMESPACE = uuid.UUID("6f0a2c0e-3a0c-5d0b-9a52-6f6f2a1d7c11")
Licences = Mapping[tuple[str, str], Licence]
"""A package's name and its version without the local part, to its licence: builds of one version share it."""


def path(what: str) -> Path:
    """Where the bill of ``cpu``, ``cuda`` or ``dev`` is kept."""
    return HERE / f"{what}.cdx.json"


def public(package: Package) -> tuple[str, str]:
    """A package's key in :data:`Licences`."""
    return package.name, package.version.partition("+")[0]


def bill(what: str, licences: Licences) -> str:
    """The CycloneDX 1.6 document of what ``cpu``, ``cuda`` or ``dev`` installs.

    Raises:
        KeyError: a locked package has no licence.
    """
    packages = read(*LOCKS[what])
    components = {package: _component(package, licences[public(package)]) for package in packages}
    root = _root()
    bom = Bom(components=components.values())
    bom.metadata.component = root
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the output leaves it out
    bom.metadata.properties.add(Property(name="recmtl:locks", value=" ".join(f"{name}.txt" for name in LOCKS[what])))
    children: dict[str, list[Component]] = {}
    for package, component in components.items():
        for parent in package.via:
            children.setdefault(parent, []).append(component)
    bom.register_dependency(root, children.get("recmtl", []))
    for package, component in components.items():
        bom.register_dependency(component, children.get(package.name, []))
    bom.serial_number = uuid.UUID(int=0)
    content = hashlib.sha256(JsonV1Dot6(bom).output_as_string().encode()).hexdigest()
    bom.serial_number = uuid.uuid5(_NAMESPACE, content)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def licences(what: str) -> dict[tuple[str, str], Licence]:
    """The licences that a kept bill states."""
    found = {}
    for component in json.loads(path(what).read_text())["components"]:
        (entry,) = component["licenses"]
        stated = entry.get("expression") or entry["license"]["id"]
        source = next(item["value"] for item in component["properties"] if item["name"] == _SOURCE)
        found[component["name"], component["version"].partition("+")[0]] = Licence(stated, source)
    return found


def table(licences: Licences, rules: Rules) -> str:
    """The licences of everything locked, as a page to read."""
    where: dict[tuple[str, str], list[str]] = {}
    for what, names in LOCKS.items():
        for package in read(*names):
            where.setdefault(public(package), []).append(what)
    rows = ["| package | version | licence | for | stated by |", "|---|---|---|---|---|"]
    for (name, version), needed in sorted(where.items()):
        licence = licences[name, version]
        reason = f": {rules.reviewed[name]['reason']}" if licence.source == "reviewed" else ""
        needs = ", ".join(dict.fromkeys(needed))
        rows.append(f"| {name} | {version} | {licence.expression} | {needs} | {licence.source}{reason} |")
    return (
        "# Licences of the dependencies\n\n"
        "`make lock` writes this page from the locks; do not edit. Licences are SPDX expressions. `cpu` and `cuda`\n"
        "mark what recmtl needs to run on either device, `dev` the tools of development, which no user needs. The\n"
        "allowed licences, and the decisions where a package's metadata names none, are in\n"
        "[licences.toml](licences.toml).\n\n" + "\n".join(rows) + "\n"
    )


def _component(package: Package, licence: Licence) -> Component:
    url = PackageURL("pypi", None, package.name, package.version)
    by_reading = licence.source == "reviewed"
    acknowledgement = LicenseAcknowledgement.CONCLUDED if by_reading else LicenseAcknowledgement.DECLARED
    stated: DisjunctiveLicense | LicenseExpression
    if fixup_id(licence.expression) == licence.expression:
        stated = DisjunctiveLicense(id=licence.expression, acknowledgement=acknowledgement)
    else:
        stated = LicenseExpression(licence.expression, acknowledgement=acknowledgement)
    properties = [Property(name=_SOURCE, value=licence.source)]
    if package.marker:
        properties.append(Property(name=_MARKER, value=package.marker))
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=str(url),
        name=package.name,
        version=package.version,
        purl=url,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in package.hashes],
        licenses=[stated],
        properties=properties,
    )


def _root() -> Component:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return Component(
        type=ComponentType.APPLICATION,
        bom_ref="recmtl",
        name=project["name"],
        version=project["version"],
        licenses=[DisjunctiveLicense(id=project["license"])],
    )


def write(licences: Licences, rules: Rules) -> Iterable[Path]:
    """Write every bill and the table; gives the paths."""
    for what in LOCKS:
        path(what).write_text(bill(what, licences))
        yield path(what)
    page = HERE / "licences.md"
    page.write_text(table(licences, rules))
    yield page
