"""How models are evaluated: the config classes of this room, gathered. In: the ``evaluation`` section of a run."""

from pydantic import Field

from recmtl.etl.guards import GuardsConfig
from recmtl.etl.slicing import SlicesConfig
from recmtl.evaluation.calibrating import CalibrationConfig
from recmtl.evaluation.drift import DriftConfig
from recmtl.evaluation.fusing import FusionConfig
from recmtl.evaluation.gates import GatesConfig
from recmtl.evaluation.importance import ImportanceConfig
from recmtl.evaluation.intervals import IntervalsConfig
from recmtl.evaluation.ranking import RankingConfig
from recmtl.expansion import ExpandedText
from recmtl.settings import Settings

__all__ = ["EvaluationConfig"]


class EvaluationConfig(Settings):
    """What is measured beside the metrics, and how sure of it one is. A change trains nothing anew, but for calibration
    and fusion, which travel in the package."""

    champion: ExpandedText = Field(default="auto", min_length=1)
    """The model to compare with: a package's folder or a registry URI; auto: @champion of ``registry.model``, where
    there is one; none: no other."""
    intervals: IntervalsConfig = IntervalsConfig()
    """Bootstrap or influence functions."""
    slices: SlicesConfig | None = SlicesConfig()
    """Which parts of the rows are judged by themselves; null: none."""
    ranking: RankingConfig | None = RankingConfig()
    """How well each request's or user's rows are ranked; null: not measured."""
    calibration: CalibrationConfig | None = CalibrationConfig()
    """Fitted on validation and put into the package; null: none."""
    fusion: FusionConfig | None = None
    """One score of all predictions, its weights chosen on validation and put into the package; null: none."""
    gates: GatesConfig = GatesConfig()
    """What gates and experts do, where the tower has them."""
    importance: ImportanceConfig = ImportanceConfig()
    """What each feature contributes."""
    drift: DriftConfig | None = DriftConfig()
    """The evaluated rows against what the champion, and the model, were trained on; null: not measured."""
    guards: GuardsConfig = GuardsConfig()
    """What must hold of the data before a figure means anything."""
