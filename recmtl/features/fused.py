"""Embedding tables whose optimiser steps inside ``backward``: TorchRec's FusedEmbeddingBagCollection over FBGEMM.

In: a :class:`recmtl.batch.SparseBatch`, as a KeyedJaggedTensor. Out: as :class:`recmtl.features.tables.Tables` says.
A second ``backward`` is a second step, so one step of training makes exactly one. This file imports TorchRec and
FBGEMM; import it only where they are wanted (training).

Dimensions: B batch, V rows of a table, W width of a table.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recmtl.batch import SparseBatch
from recmtl.errors import RunError, UserError
from recmtl.features.tables import TableShape, check_weights

with warnings.catch_warnings():  # FBGEMM's CPU build warns on import that it lacks its kernels for SSDs
    warnings.simplefilter("ignore")
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

__all__ = ["FusedTables"]

# The first KeyedJaggedTensor makes torch warn of a function that torch itself calls: nothing that a user can mend.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)

WIDTH_STEP = 4  # FBGEMM asserts that a table's width is a multiple of this


class FusedTables(nn.Module):
    """Tables that step inside ``backward``.

    They are no ``nn.Parameter`` of this module and not in its ``state_dict``: nothing but their own optimiser may step
    them, ``model.parameters()`` is exactly what the dense optimiser holds, and ``.to(device)`` does not move them (the
    device is chosen here). :meth:`weights` and :meth:`optimizer_state` are what a checkpoint saves.

    A width that is no multiple of 4 is padded with columns of zeros that are never seen outside. Row-wise Adagrad
    averages a row's squared gradient over the padded width, so there it steps a little further than over plain tables.

    Args:
        shapes: table name to shape.
        optimizer_type: ``torchrec.optim.RowWiseAdagrad``, or torch's ``SGD``, ``Adagrad`` or (on a GPU only) ``Adam``.
        optimizer_kwargs: ``lr`` and what else FBGEMM's operator takes: ``eps``, ``beta1``, ``weight_decay``, …
        device: where the tables live.

    Raises:
        UserError: FBGEMM has no such optimiser, or not on this device.
    """

    def __init__(
        self,
        shapes: Mapping[str, TableShape],
        *,
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._shapes = dict(shapes)
        configs = [
            EmbeddingBagConfig(
                name=_module(name),
                num_embeddings=shape.rows,
                embedding_dim=-(-shape.dim // WIDTH_STEP) * WIDTH_STEP,
                feature_names=list(shape.features),
                pooling=PoolingType.SUM,
                weight_init_min=0.0,  # initial values are loaded; see recmtl.features.inputs.initial_table
                weight_init_max=0.0,
            )
            for name, shape in shapes.items()
        ]
        try:
            collection = FusedEmbeddingBagCollection(
                configs,
                optimizer_type=optimizer_type,
                # an id out of bounds stops the run: FBGEMM's default clamps it silently (FBGEMM issue 6215)
                optimizer_kwargs={**optimizer_kwargs, "bounds_check_mode": BoundsCheckMode.FATAL},
                is_weighted=any(shape.weighted for shape in shapes.values()),
                device=torch.device(device),
            )
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"FBGEMM has no fused {optimizer_type.__name__} with {dict(optimizer_kwargs)} on {device} ({error}); "
                "row-wise Adagrad, Adagrad and SGD work on every device"
            ) from error
        self._collection = (collection,)  # in a tuple, so that it is no child of this module: see above

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`.

        Raises:
            RuntimeError: a table row out of bounds (on a GPU the device's assertion fails instead).
        """
        if not sparse.keys:
            return {}
        steps = None if torch.is_grad_enabled() else self._operator.iter.clone()
        pooled: dict[str, Tensor] = self._collection[0](sparse.to_kjt()).to_dict()
        if steps is not None:  # FBGEMM counts a step at every forward; scoring is none
            self._set_steps(steps)
        return {
            feature: pooled[feature][:, : shape.dim] for shape in self._shapes.values() for feature in shape.features
        }

    def weights(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`."""
        return {
            name: self._collection[0].embedding_bags[_module(name)].weight.detach()[:, : shape.dim]
            for name, shape in self._shapes.items()
        }

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        have = self.weights()
        check_weights(have, weights)
        for name, weight in weights.items():
            have[name].copy_(weight)

    def fused_optimizer(self) -> Any:
        """TorchRec's KeyedOptimizer over the tables: ``zero_grad`` and ``step`` only hand on the learning rate."""
        return self._collection[0].fused_optimizer()

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next ``backward``."""
        optimizer = self.fused_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's state as live tensors by name: ``TABLE.momentum_1``, … and ``iter`` (steps so far)."""
        state: dict[str, Tensor] = {}
        for table, tensors in zip(self._shapes, self._operator.split_optimizer_states(), strict=False):
            state.update({f"{table}.momentum_{number}": tensor for number, tensor in enumerate(tensors, 1)})
        return {**state, "iter": self._operator.iter}

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what :meth:`optimizer_state` gave.

        Raises:
            RunError: it is the state of another optimiser or of other tables.
        """
        have = self.optimizer_state()
        if {name: tensor.shape for name, tensor in have.items()} != {n: tensor.shape for n, tensor in state.items()}:
            raise RunError(
                f"the saved state of the tables' optimiser ({', '.join(sorted(state))}) does not fit this one "
                f"({', '.join(sorted(have))}): it is of another optimiser or other data"
            )
        for name, tensor in have.items():
            tensor.copy_(state[name])
        self._set_steps(state["iter"])

    def _set_steps(self, steps: Tensor) -> None:
        self._operator.iter.copy_(steps)
        self._operator.iter_cpu.copy_(steps)  # FBGEMM counts a second time, on the host

    @property
    def _operator(self) -> Any:
        """FBGEMM's operator. Every table has the same pooling and type, so TorchRec makes one of them all."""
        (lookup,) = self._collection[0]._emb_modules
        return lookup._emb_module


def _module(table: str) -> str:
    """TorchRec keeps tables in an ``nn.ModuleDict``, which refuses names such as `items` and `type`."""
    return f"table_{table}"
