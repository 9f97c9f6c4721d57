"""Tower and heads through torch.compile, on request. In: a model. Out: its ``decide``, as one graph.

The batch is a dynamic dimension, so that an epoch's short last batch compiles nothing again. Where there is no
compiler, or the compiler refuses the tower, a word is said and the plain function goes on.
"""

from collections.abc import Callable

from torch import Tensor

from recmtl.model import Model, Output
from recmtl.progress import Progress

__all__ = ["compiled_decide"]


def compiled_decide(model: Model, *, progress: Progress) -> Callable[[Tensor], Output]:
    """``model.decide``, compiled at its first call.

    Args:
        model: on its device, in training mode.
        progress: is told when there is no compiling.
    """
    import torch._dynamo  # a second of imports, which only those who compile pay
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # balancers that want each task's gradient walk the graph again
    compiled: Callable[[Tensor], Output] = torch.compile(model.decide, dynamic=True, fullgraph=True)
    chosen: Callable[[Tensor], Output] | None = None

    def decide(x_BD: Tensor) -> Output:
        nonlocal chosen
        if x_BD.shape[0] < 2:  # 0 and 1 are sizes that a graph is specialised for
            return model.decide(x_BD)
        if chosen is not None:
            return chosen(x_BD)
        try:
            output = compiled(x_BD)
        except Exception as error:  # whatever a compiler's many layers raise: the model itself is tried next
            reason = str(error).strip().splitlines() or [type(error).__name__]
            progress.warn(f"training.compile: not compiled, training goes on without ({reason[0]})")
            chosen = model.decide
            return chosen(x_BD)
        chosen = compiled
        return output

    return decide
