"""Of an address only scheme, host, port and path are ever shown or stored."""

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recmtl import uris
from recmtl.uris import keep_secret, redact, shown_uri


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "_secrets", set())


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://mlflow.shop.com:5000/x/y", "https://mlflow.shop.com:5000/x/y"),
        ("https://ann:s3cret@mlflow.shop.com/x", "https://mlflow.shop.com/x"),
        ("https://token@mlflow.shop.com", "https://mlflow.shop.com"),
        ("HTTPS://ann:pw@Host:1", "HTTPS://Host:1"),
        ("http://ann:pw@[::1]:5000/x", "http://[::1]:5000/x"),
        ("http://host:5000/#/experiments", "http://host:5000/"),
        ("http://host/x?token=s3cret#frag", "http://host/x"),
        ("postgresql://db/x?user=ann&sslkey=s3cret", "postgresql://db/x"),
        ("postgresql+psycopg2://ann:it's@db/x", "postgresql+psycopg2://db/x"),
        ('postgresql://ann:say"so"@db/x', "postgresql://db/x"),
        ("postgresql://ann:s3/cr@et@db/x", "postgresql://db/x"),
        ("postgresql://ann:my pass@db/x", "postgresql://db/x"),
        ("postgresql://ann:p?w@db/x", "postgresql://***"),
        ("postgresql://ann:p#w@db/x", "postgresql://***"),
        ("postgresql://ann:s3cret", "postgresql://***"),
        ("postgresql://db/x?user=a@b&password=c", "postgresql://***"),
        ("postgresql://${USER}:${PASSWORD}@db/x", "postgresql://db/x"),
        ("postgresql:ann:s3cret@db/x", "postgresql:***"),
        ("https:/ann:s3cret@host", "https:***"),
        ("databricks://profile", "databricks://profile"),
        ("databricks", "databricks"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("sqlite:////home/ann@shop/x.db", "sqlite:////home/ann@shop/x.db"),
        ("sqlite:///a b#c/x.db?timeout=3", "sqlite:///a b#c/x.db"),
        ("file:///home/ann@shop/x?y#z", "file:///home/ann@shop/x?y#z"),
        ("/home/ann@shop/x?y#z", "/home/ann@shop/x?y#z"),
        ("models:/ranker@challenger", "models:/ranker@challenger"),
    ],
)
def test_only_scheme_host_port_and_path_are_shown(uri: str, expected: str) -> None:
    assert shown_uri(uri) == expected
    assert shown_uri(expected) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("${STORE}", "${STORE}"),
        ("postgresql://${USER}:${PASSWORD}@db/x", "postgresql://${USER}:${PASSWORD}@db/x"),
        ("postgresql://ann:${PASSWORD}@db/x", "postgresql://db/x"),
        ("postgresql://ann:s3cret@${HOST}:${PORT}/x", "postgresql://${HOST}:${PORT}/x"),
        ("https://${HOST}/x?token=s3cret", "https://${HOST}/x"),
    ],
)
def test_a_reference_to_the_environment_is_no_secret(uri: str, expected: str) -> None:
    assert shown_uri(uri, references=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://token@host failed, again https://token@host.", "https://host failed, again https://host."),
        ("store 'postgresql://ann:it's@db/x' is away", "store 'postgresql://db/x' is away"),
        ("(https://h/x?sig=abc%2Bd&se=1), then more", "(https://h/x), then more"),
        ("{'uri': 'http://ann:pw@h:1'}", "{'uri': 'http://h:1'}"),
        ("jdbc:postgresql://db/x?password=pw", "jdbc:postgresql://db/x"),
        ("write https:// before the host", "write https:// before the host"),
        ("sqlite:////home/ann@shop/x.db is damaged", "sqlite:////home/ann@shop/x.db is damaged"),
        ("no address; 3:1 and a@b", "no address; 3:1 and a@b"),
    ],
)
def test_addresses_in_a_text(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_password_is_hidden_without_its_address_too() -> None:
    said = 'authentication with "my p@ss" or my%20p%40ss failed at /x'
    assert redact(said) == said
    keep_secret("postgresql://ann:my%20p%40ss@db/x?sslpassword=long-secret")
    assert redact(said) == 'authentication with "***" or *** failed at /x'
    assert redact("long-secret") == "***"
    keep_secret("https://tok1234@host")
    assert redact("bearer tok1234") == "bearer ***"
    keep_secret("postgresql://mlflow:mlflow@host/mlflow")
    assert redact("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    keep_secret("postgresql://ann:two words@db/x")
    assert redact("at postgresql://ann:two words@db/x: refused") == "at postgresql://db/x: refused"
    keep_secret("https://ann:a@host")
    keep_secret("sqlite:///secret.db")
    keep_secret("plain")
    assert redact("a secret.db is plain") == "a secret.db is plain"


_secret = st.text(alphabet=string.ascii_letters + string.digits, min_size=6, max_size=12)


@given(
    scheme=st.sampled_from(["https", "postgresql", "mysql+pymysql"]),
    core=_secret.map(lambda text: f"Zq{text}qZ"),
    odd=st.text(alphabet="'\"@/:;,.!$&()*+=%~ <>", max_size=4),
    where=st.sampled_from(["{s}://ann:{p}@db.shop:5432/x", "{s}://{p}@db.shop/x", "{s}://db.shop/x?k={q}#{q}"]),
)
def test_no_unescaped_password_is_shown(scheme: str, core: str, odd: str, where: str) -> None:
    uri = where.format(s=scheme, p=odd + core, q=quote(odd + core))
    assert core not in shown_uri(uri)
    assert shown_uri(uri) in (f"{scheme}://db.shop:5432/x", f"{scheme}://db.shop/x", f"{scheme}://***")
    if " " not in odd:
        assert core not in redact(f"the store '{uri}', cannot be used")
