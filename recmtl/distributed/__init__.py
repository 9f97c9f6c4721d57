"""Many ranks: the processes of one job, and how they are started. One process is the normal case and needs none of it.

Importing this room imports torch.distributed; only training does.
"""

from recmtl.distributed.process_group import Ranks, check_device, ensure_process_group, joined

__all__ = ["Ranks", "check_device", "ensure_process_group", "joined"]
