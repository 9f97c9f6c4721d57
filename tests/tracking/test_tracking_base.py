from pathlib import Path

import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.tracking import InMemoryTracker, NullTracker, RegisteredVersion, RegistryConfig, TrackingConfig
from recmtl.tracking.base import flatten, store_uri


def test_a_config_is_written_without_secrets_and_reads_back() -> None:
    config = TrackingConfig(uri="https://ann:s3cret@mlflow.shop.com", experiment="x")
    assert config.uri == "https://ann:s3cret@mlflow.shop.com"
    assert config.model_dump(mode="json")["uri"] == "https://mlflow.shop.com"
    assert "s3cret" not in config.model_dump_json()
    assert (
        TrackingConfig.model_validate(TrackingConfig(uri="sqlite:///a.db").model_dump(mode="json")).uri
        == "sqlite:///a.db"
    )


def test_the_store_is_the_configs_then_the_environments_then_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri("sqlite:///runs/x.db") == f"sqlite:///{tmp_path}/runs/x.db"
    assert store_uri("sqlite:////data/x.db") == "sqlite:////data/x.db"
    assert store_uri() == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_uri() == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("name", ["a%2Fb", "50%", "a#b", "a?b"])
def test_a_sqlite_file_that_mlflow_cannot_open_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=r"tracking\.uri: MLflow cannot open .* its path holds %, # or \?; name a file"):
        store_uri()
    assert store_uri(f"sqlite:///{tmp_path}/x.db") == f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host", "sqlite://", "sqlite:///", "http:host"])
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="expected sqlite:///PATH"):
        store_uri(uri)
    with pytest.raises(ValidationError, match="expected sqlite:///PATH"):
        TrackingConfig(uri=uri)


def test_config_data_as_parameters() -> None:
    config = {
        "name": "demo",
        "features": [{"name": "user", "kind": "id"}, {"name": "age", "kind": "number"}],
        "model": {"tower": {"kind": "mmoe", "widths": [8, 4]}},
        "paths": [{"a": 1}],
        "empty": {},
        "uri": "http://ann:s3cret@host",
    }
    assert dict(flatten(config)) == {
        "name": "demo",
        "features.user.name": "user",
        "features.user.kind": "id",
        "features.age.name": "age",
        "features.age.kind": "number",
        "model.tower.kind": "mmoe",
        "model.tower.widths": "[8, 4]",
        "paths.0.a": "1",
        "empty": "{}",
        "uri": "http://host",
    }


def test_the_one_in_memory_keeps_one_point_a_step(tmp_path: object) -> None:
    tracker = InMemoryTracker()
    for step in (0, 1, 1, 0, 2):
        tracker.metrics({"loss": float(step)}, step)
    assert tracker.points == {"loss": [(0, 0.0), (1, 1.0), (2, 2.0)]}
    tracker.params({"a": {"b": 1}})
    tracker.params({"a": {"b": 2}})
    assert tracker.parameters == {"a.b": "1"}


def test_the_null_one_takes_everything() -> None:
    from pathlib import Path

    tracker = NullTracker()
    tracker.params({"a": 1})
    tracker.metrics({"a": 1.0}, 1)
    tracker.tags({"a": "b"})
    tracker.artifact(Path("nowhere"))
    tracker.dataset("a", "b", source="c")
    tracker.flush()
    assert tracker.register(Path("nowhere"), "model", None) is None
    tracker.close()
    tracker.finish()


def test_names_of_models_and_aliases() -> None:
    assert RegistryConfig(model="kuairand-ranker").alias == "challenger"
    assert RegistryConfig(model="m", alias=None).alias is None
    for model in ("a/b", "a:b", "a@b", "a b", "", "."):
        with pytest.raises(ValidationError):
            RegistryConfig(model=model)
    with pytest.raises(ValidationError, match="are kept under that name"):
        RegistryConfig(model="ranker.promotions")
    with pytest.raises(ValidationError, match="`recmtl promote` alone moves @champion"):
        RegistryConfig.model_validate({"model": "m", "alias": "champion", "gate": {}})
    gated = RegistryConfig.model_validate({"model": "m", "gate": {}})
    assert RegistryConfig.model_validate(gated.model_dump(mode="json")) == gated
    for alias in ("v1", "3", "latest", "a b", "", "a/b"):
        with pytest.raises(ValidationError):
            RegistryConfig(model="m", alias=alias)
    assert RegisteredVersion("m", 3, "champion").uri == "models:/m@champion"
    assert RegisteredVersion("m", 3).uri == "models:/m/3"
