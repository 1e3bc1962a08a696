"""One model over several workers: a whole copy in each (DDP), or a part of every matrix in each (FSDP2, block by block).

What is spread is not the model but its *objective*, a module whose forward is the weighted loss: the loss applies the output matrix
outside of the model's own forward, where no wrapper would see it. Gradients are summed over the workers, not averaged; whoever sets the
weights of the sequences knows the global batch, so a step is the mean over all of its tokens however unevenly the rows are divided.

A replicated model sums its gradients once per step, in buckets while the backward pass still runs. A fully sharded one does so in every
micro-batch: keeping them would need the memory of a whole gradient, which is what sharding is to save.

Legend of shapes: B sequences, T tokens.
"""

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from bliss_ops.models.token_loss import compile_loss, weighted_loss
from bliss_ops.training.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Sharding = Literal["auto", "replicated", "full"]

# A replica needs 4 bytes per parameter each for weight, gradient and two moments, and 2 for the bfloat16 copies that autocast keeps
# during a step. When that is over half of the device, activations want the rest.
REPLICA_BYTES_PER_PARAMETER = 18
SHARE_OF_MEMORY = 0.5


class Objective(nn.Module):
    """A language model whose forward is its weighted loss, summed losses and token counts (`weighted_loss`)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, weight_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return weighted_loss(self.model, input_ids_BT, labels_BT, weight_B)


def choose_sharding(wanted: Sharding, num_parameters: int, device: torch.device, workers: Workers = ALONE) -> Literal["replicated", "full"]:
    """`auto` shards when a whole copy with its optimizer would take over half of a GPU's memory; one worker has nothing to shard."""
    if workers.count == 1:
        return "replicated"
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "replicated"
    memory = torch.cuda.get_device_properties(device).total_memory
    return "full" if num_parameters * REPLICA_BYTES_PER_PARAMETER > SHARE_OF_MEMORY * memory else "replicated"


def spread(
    model: "PreTrainedModel",
    device: torch.device,
    workers: Workers = ALONE,
    *,
    sharding: Literal["replicated", "full"] = "replicated",
    activation_checkpointing: bool = False,
    compile_blocks: bool = False,
) -> nn.Module:
    """The objective of `model` over the workers; the model is moved to the device, or this worker's part of it is.

    Args:
        model: on the CPU, or on the device when it is not sharded.
        device: of this worker.
        workers: the processes that share each step.
        sharding: how; of no effect for one worker.
        activation_checkpointing: recompute every block in the backward pass.
        compile_blocks: torch.compile; block by block where there are several workers, so that gradients are sent as blocks are done.

    Returns:
        A module called like `Objective`. Parameters keep their names in `model`; an optimizer must be made afterwards.
    """
    if activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(model)
    if compile_blocks:
        compile_loss()
        for module in [model.base_model] if workers.count == 1 else blocks(model):
            module.compile(dynamic=False)
    if workers.count == 1:
        return objective.to(device)
    if sharding == "full":
        return _sharded(objective, device, workers)
    return _replicated(objective, device)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def without_exchange(objective: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Around forward and backward of a micro-batch: a replicated model exchanges gradients in the last one only."""
    if not is_last and isinstance(objective, nn.parallel.DistributedDataParallel):
        return objective.no_sync()
    return contextlib.nullcontext()


def after_evaluation(objective: nn.Module) -> None:
    """Free what a forward pass without a backward pass has gathered."""
    from torch.distributed.fsdp import FSDPModule

    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts that are elsewhere; every worker must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor laid out, and on the device, as `like` is; nothing is sent, every worker has the whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    here = tensor.to(like.device)
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return here
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _replicated(objective: Objective, device: torch.device) -> nn.Module:
    replica = nn.parallel.DistributedDataParallel(
        objective.to(device),
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # the models have none that training changes
        gradient_as_bucket_view=True,
    )
    replica.register_comm_hook(None, _sum)
    return replica


def _sum(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Instead of the mean, which divides by the number of workers."""
    exchange = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    assert exchange is not None
    summed: torch.futures.Future[torch.Tensor] = exchange.get_future().then(lambda done: done.value()[0])
    return summed


def _sharded(objective: Objective, device: torch.device, workers: Workers) -> nn.Module:
    """Blocks are gathered in bfloat16 on a GPU, one ahead of use; what is around them (embeddings, last norm, output matrix) in float32.

    Inputs are not cast: under autocast the residual stream stays float32 as in a replicated model, so that both compute the same.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (workers.count,))
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = low if device.type == "cuda" else MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in blocks(objective):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    return objective
