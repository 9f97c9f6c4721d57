"""The bills of materials list what the locks list, in CycloneDX; licences.md shows the same."""

import json
from urllib.parse import unquote

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

WHAT = ("cpu", "cuda", "dev")


@pytest.fixture
def sbom(module):
    return module("sbom")


@pytest.fixture
def everything(sbom):
    """The licences that the kept bills state."""
    return {key: licence for what in WHAT for key, licence in sbom.licences(what).items()}


@pytest.mark.parametrize("what", WHAT)
def test_a_bill_lists_exactly_what_the_locks_list(module, sbom, what):
    locks = module("locks")
    components = json.loads(sbom.path(what).read_text())["components"]
    listed = {
        (item["name"], item["version"]): {digest["content"] for digest in item["hashes"] if digest["alg"] == "SHA-256"}
        for item in components
    }
    assert len(listed) == len(components)
    assert listed == {(p.name, p.version): set(p.hashes) for p in locks.read(*locks.LOCKS[what])}
    for item in components:
        assert unquote(item["purl"]) == f"pkg:pypi/{item['name']}@{item['version']}"
        assert item["licenses"]


@pytest.mark.parametrize("what", WHAT)
def test_a_bill_is_valid_and_names_no_registry(sbom, what):
    text = sbom.path(what).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text.count("://") == 1  # the schema's own name


@pytest.mark.parametrize("what", WHAT)
def test_a_bill_is_made_anew_byte_for_byte(sbom, everything, what):
    assert sbom.bill(what, everything) == sbom.path(what).read_text()


def test_the_table_is_made_anew_byte_for_byte(module, folder, sbom, everything):
    assert sbom.table(everything, module("licences").rules()) == (folder / "licences.md").read_text()


def test_a_bill_says_what_requires_what(sbom):
    document = json.loads(sbom.path("cuda").read_text())
    below = {item["ref"].partition("@")[0]: set(item.get("dependsOn", ())) for item in document["dependencies"]}
    assert any(ref.startswith("pkg:pypi/torch@") for ref in below["recmtl"])
    assert any(ref.startswith("pkg:pypi/triton@") for ref in below["pkg:pypi/torch"])
    reached, waiting = set(), ["recmtl"]
    while waiting:
        name = waiting.pop().partition("@")[0]
        if name not in reached:
            reached.add(name)
            waiting += below[name]
    assert reached == set(below)  # nothing is locked that nothing requires
