"""Raw logs in, a prepared dataset out: read, validate, label, split, fit, encode. Polars only, no torch."""
