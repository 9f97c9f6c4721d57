"""recmtl trains one recommender for several objectives at once, from event logs to a registered model."""

__version__ = "0.1.0"
