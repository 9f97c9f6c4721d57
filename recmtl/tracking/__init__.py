"""Tracking and the registry: what a run did, kept where a team looks, and the model that came of it.

The only room that knows MLflow, which is imported when first used.
"""

from recmtl.tracking.base import (
    InMemoryTracker,
    NullTracker,
    RegisteredVersion,
    Tracker,
    TrackingConfig,
    redact,
    store_uri,
)
from recmtl.tracking.gate import GateConfig, judge, verdict_tags
from recmtl.tracking.mlflow_tracker import MlflowTracker, Synced, deliver, open_tracker, sync
from recmtl.tracking.promotion import Champion, History, Move, champion_of, history, promote, rollback
from recmtl.tracking.registry import RegistryConfig, register, resolve, resolved
from recmtl.tracking.trial import trial

__all__ = [
    "Champion",
    "GateConfig",
    "History",
    "InMemoryTracker",
    "MlflowTracker",
    "Move",
    "NullTracker",
    "RegisteredVersion",
    "RegistryConfig",
    "Synced",
    "Tracker",
    "TrackingConfig",
    "champion_of",
    "deliver",
    "history",
    "judge",
    "open_tracker",
    "promote",
    "redact",
    "register",
    "resolve",
    "resolved",
    "rollback",
    "store_uri",
    "sync",
    "trial",
    "verdict_tags",
]
