"""Raw logs in, a prepared dataset out: read and validate, partition, label, split, fit, encode. Polars only, no torch."""
