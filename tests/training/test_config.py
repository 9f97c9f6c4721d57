"""What a training config refuses, and in which words."""

import pytest
import torch
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.training import EarlyStoppingConfig, TrainingConfig, resolve_device, resolve_precision
from recmtl.training.config import products_in

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def refused(pattern, **settings):
    with pytest.raises(ValidationError, match=pattern):
        TrainingConfig(**{"device": "cpu", **settings})


def test_the_issues_yaml_is_accepted():
    config = TrainingConfig.model_validate(
        {
            "epochs": 5,
            "batch_size": 4096,
            "sparse": {"optimizer": "rowwise_adagrad", "lr": 0.02},
            "dense": {"optimizer": "adamw", "lr": 0.001},
            "seed": 1,
            "device": "auto",
            "precision": "auto",
            "early_stopping": {"monitor": {"click.auc": 1.0, "share_watched.rmse": 0.5}, "patience": 2},
        }
    )
    assert config.early_stopping.monitor == {"click.auc": 1.0, "share_watched.rmse": 0.5}
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("weight", [-0.5, 0.0])
def test_a_monitors_weight_is_an_importance(weight):
    with pytest.raises(ValidationError, match=r"monitor\.share\.rmse: .* importances above 0, and whether rmse should"):
        EarlyStoppingConfig(monitor={"share.rmse": weight})


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_monitors_weight_is_finite(weight):
    with pytest.raises(ValidationError, match=r"share\.rmse(.|\n)*finite number"):
        EarlyStoppingConfig(monitor={"share.rmse": weight})


def test_a_monitor_must_name_a_metric_that_has_a_better_direction():
    with pytest.raises(ValidationError, match=r"there is no metric named 'acu'; did you mean 'auc'"):
        EarlyStoppingConfig(monitor={"click.acu": 1.0})
    with pytest.raises(ValidationError, match="calibration is better neither higher nor lower"):
        EarlyStoppingConfig(monitor={"click.calibration": 1.0})
    with pytest.raises(ValidationError, match=r"must be TASK\.METRIC"):
        EarlyStoppingConfig(monitor={"auc": 1.0})
    with pytest.raises(ValidationError):
        EarlyStoppingConfig(monitor={})


def test_what_a_cpu_cannot_do_is_refused_with_the_alternatives():
    refused(
        r"FBGEMM has no adam on cpu; use rowwise_adagrad, adagrad, sgd, exact_adam or exact_adamw",
        sparse={"optimizer": "adam"},
    )
    refused(
        r"weight_decay: rowwise_adagrad ignores it on cpu; leave it at 0 or use exact_adam or exact_adamw",
        sparse={"weight_decay": 0.1},
    )
    TrainingConfig(device="cpu", sparse={"optimizer": "exact_adam", "weight_decay": 0.1})
    for optimizer in ("adam", "partial_rowwise_adam", "lamb", "partial_rowwise_lamb", "rowwise_adagrad"):
        TrainingConfig(device="cuda", sparse={"optimizer": optimizer, "weight_decay": 0.1})
    with pytest.raises(ValidationError, match="adagrad ignores it on cuda"):
        TrainingConfig(device="cuda", sparse={"optimizer": "adagrad", "weight_decay": 0.1})


@CPU_ONLY
def test_auto_is_checked_as_what_it_is_here():
    refused("FBGEMM has no adam on cpu", device="auto", sparse={"optimizer": "adam"})


def test_options_that_do_not_fit_their_optimizer_are_refused():
    refused(r"dense\.momentum belongs to sgd, not adamw", dense={"momentum": 0.9})
    refused(r"dense\.betas belongs to adam or adamw, not sgd", dense={"optimizer": "sgd", "betas": [0.9, 0.99]})
    refused(r"dense\.eps belongs to", dense={"optimizer": "sgd", "eps": 1e-6})
    refused(r"sparse\.betas belongs to", sparse={"betas": [0.9, 0.99]})
    refused(r"sparse\.eps does not belong to sgd", sparse={"optimizer": "sgd", "eps": 1e-6})


@CPU_ONLY
def test_devices():
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(UserError, match="torch sees no GPU here"):
        resolve_device("cuda")


def test_precision_on_a_cpu():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) is torch.float32
    assert resolve_precision("float32", cpu) is torch.float32
    assert resolve_precision("bf16", cpu) is torch.bfloat16
    with pytest.raises(UserError, match="tf32 is a GPU's; use auto or float32"):
        resolve_precision("tf32", cpu)


@pytest.mark.parametrize(("precision", "within"), [("tf32", "high"), ("float32", "highest"), ("bf16", "highest")])
def test_the_products_precision_holds_while_training_and_is_given_back(precision, within):
    torch.set_float32_matmul_precision("medium")
    try:
        with products_in(precision):
            assert torch.get_float32_matmul_precision() == within
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@CPU_ONLY
@pytest.mark.parametrize("kind", ["row_wise", "table_row_wise", "grid"])
def test_shardings_without_a_kernel_on_a_cpu_are_refused(kind):
    refused(rf"training.sharding.default: TorchRec shards {kind} on GPUs only", sharding={"default": kind})
    refused("training.sharding.tables.user: .* use table_wise, column_wise", sharding={"tables": {"user": kind}})


def test_sharding_of_tables_that_are_whole_on_every_rank_is_refused():
    refused(
        "tables under exact_adam are whole on every rank",
        sharding={"default": "column_wise"},
        sparse={"optimizer": "exact_adam"},
    )


@pytest.mark.parametrize("sparse", [{"optimizer": "partial_rowwise_adam"}, {"placement": "managed_caching"}])
def test_data_parallel_tables_step_by_what_is_written_out_for_them(sparse, monkeypatch):
    monkeypatch.setattr("recmtl.training.config.resolve_device", lambda *arguments, **options: torch.device("cuda"))
    refused("data_parallel tables step by", sharding={"tables": {"user": "data_parallel"}}, sparse=sparse)
    TrainingConfig(sharding={"default": "data_parallel"}, sparse={"optimizer": "adagrad"})
