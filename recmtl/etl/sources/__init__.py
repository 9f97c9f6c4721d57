"""The table of sources: one raw dataset a file, one line here."""

from recmtl.etl.sources import event_log, kuairand, movielens, synthetic, table
from recmtl.etl.sources.base import LabelledLog, SourceKind

__all__ = ["SOURCES", "LabelledLog", "SourceKind"]

SOURCES: dict[str, SourceKind] = {
    "event_log": SourceKind(event_log.EventLogConfig, event_log.read, event_log.inputs),
    "table": SourceKind(table.TableConfig, table.read, table.inputs),
    "kuairand": SourceKind(kuairand.KuaiRandConfig, kuairand.read, kuairand.inputs),
    "movielens": SourceKind(movielens.MovieLensConfig, movielens.read, movielens.inputs),
    "synthetic": SourceKind(synthetic.SyntheticConfig, synthetic.read, synthetic.inputs),
}
