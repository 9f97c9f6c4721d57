"""Every locked package has a licence, and one that licences.toml allows."""

import importlib.metadata
import re

import pytest


@pytest.fixture
def licences(module):
    return module("licences")


@pytest.fixture
def locked(module):
    """Each locked package's name and public version, and its licence."""
    sbom = module("sbom")
    return {key: licence for what in ("cpu", "cuda", "dev") for key, licence in sbom.licences(what).items()}


def test_every_locked_package_has_an_allowed_licence(module, licences, locked):
    locks = module("locks")
    packages = [package for names in locks.LOCKS.values() for package in locks.read(*names)]
    assert {module("sbom").public(package) for package in packages} == set(locked)
    allowed = licences.rules().allowed
    assert {
        name: bad for (name, _), licence in locked.items() if (bad := licences.refused(licence.expression, allowed))
    } == {}


def test_the_installed_packages_state_what_is_recorded(licences, locked):
    reviewed = licences.rules().reviewed
    looked_at = 0
    for dist in importlib.metadata.distributions():
        key = (re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(), dist.version.partition("+")[0])
        if key in locked:
            looked_at += 1
            assert licences.licence(key[0], dist.metadata.json, reviewed) == locked[key], key[0]
    assert looked_at > 100


def test_a_review_is_in_use_and_gives_its_reason(licences, locked):
    reviewed = licences.rules().reviewed
    assert {name for (name, _), licence in locked.items() if licence.source == "reviewed"} == set(reviewed)
    assert all(len(entry["reason"]) > 20 for entry in reviewed.values())
    assert list(reviewed) == sorted(reviewed)


def test_every_allowed_licence_is_in_use_or_well_known(licences):
    for name in licences.rules().allowed:
        assert licences.refused(name, {name}) == []


@pytest.mark.parametrize(
    ("metadata", "expression", "source"),
    [
        ({"license_expression": "MIT AND Zlib", "license": "BSD-2-Clause"}, "MIT AND Zlib", "License-Expression"),
        ({"license": "Apache 2.0", "classifier": ["License :: Other/Proprietary License"]}, "Apache-2.0", "License"),
        ({"license": "MIT License\n\nCopyright (c) Somebody\n\nPermission is"}, "MIT", "License"),
        ({"license": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT", "License"),
        ({"license": "NVIDIA Proprietary Software"}, "LicenseRef-NVIDIA-Proprietary", "License"),
        ({"classifier": ["Topic :: Software", "License :: OSI Approved :: MIT License"]}, "MIT", "classifier"),
    ],
)
def test_a_licence_is_read_from_each_place_that_states_it(licences, metadata, expression, source):
    assert licences.licence("one", metadata, {}) == licences.Licence(expression, source)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"license": "BSD", "classifier": ["License :: OSI Approved :: BSD License"]},  # two clauses, or three?
        {"license": "Dual License"},
        {"license_expression": "Made-Up-1.0"},
        {
            "classifier": [
                "License :: OSI Approved :: MIT License",
                "License :: OSI Approved :: Apache Software License",
            ]
        },
    ],
)
def test_an_unknown_licence_fails_with_the_packages_name_unless_reviewed(licences, metadata):
    with pytest.raises(licences.UnknownLicenceError, match=r"^one: the metadata names no one licence"):
        licences.licence("one", metadata, {})
    reviewed = {"one": {"licence": "ISC", "reason": "the licence file"}}
    assert licences.licence("one", metadata, reviewed) == licences.Licence("ISC", "reviewed")


@pytest.mark.parametrize(
    ("expression", "refused"),
    [
        ("MIT", []),
        ("MIT AND GPL-3.0-only", ["GPL-3.0-only"]),
        ("GPL-2.0-only OR MIT", []),
        ("GPL-2.0-only OR AGPL-3.0-only", ["AGPL-3.0-only", "GPL-2.0-only"]),
        ("MIT AND (GPL-2.0-only OR Apache-2.0)", []),
        ("Apache-2.0 WITH LLVM-exception", []),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only WITH Classpath-exception-2.0"]),
        ("LicenseRef-NVIDIA-Proprietary", []),
        ("LicenseRef-Somebody-Proprietary", ["LicenseRef-Somebody-Proprietary"]),
    ],
)
def test_an_expression_is_refused_for_what_cannot_be_chosen_away(licences, expression, refused):
    assert licences.refused(expression, licences.rules().allowed) == refused
