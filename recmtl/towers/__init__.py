"""Towers: one architecture per file, each from x_BD to a hidden vector per task.

To add one: write its file (a config class with a ``kind`` and a module that fits :class:`recmtl.towers.base.Tower`)
and name it in :data:`TOWERS`; ``tests/contracts/test_towers.py`` walks the table.
"""

from recmtl.towers.adversarial import AdversarialConfig, build_adversarial
from recmtl.towers.base import SHARED_GATE, GatedLayer, GateShares, Tower, TowerKind, TowerOutput
from recmtl.towers.mmoe import MMoEConfig, build_mmoe
from recmtl.towers.ple import PLEConfig, build_ple
from recmtl.towers.shared_bottom import SharedBottomConfig, build_shared_bottom

__all__ = ["SHARED_GATE", "TOWERS", "GateShares", "GatedLayer", "Tower", "TowerKind", "TowerOutput"]

TOWERS: dict[str, TowerKind] = {
    "shared_bottom": TowerKind(SharedBottomConfig, build_shared_bottom),
    "mmoe": TowerKind(MMoEConfig, build_mmoe),
    "ple": TowerKind(PLEConfig, build_ple),
    "adversarial": TowerKind(AdversarialConfig, build_adversarial),
}
