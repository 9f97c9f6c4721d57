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
from recmtl.tracking.mlflow_tracker import MlflowTracker, Synced, open_tracker, sync
from recmtl.tracking.registry import RegistryConfig, register, resolve, resolved

__all__ = [
    "InMemoryTracker",
    "MlflowTracker",
    "NullTracker",
    "RegisteredVersion",
    "RegistryConfig",
    "Synced",
    "Tracker",
    "TrackingConfig",
    "open_tracker",
    "redact",
    "register",
    "resolve",
    "resolved",
    "store_uri",
    "sync",
]
