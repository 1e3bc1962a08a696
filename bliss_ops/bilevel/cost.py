"""Model FLOPs of bilevel training, counted from what an outer step does (outer_step.py) with the settings it is given.

With F, S and R the FLOPs per token of a forward pass of the proxy, of the score model (the proxy's backbone) and of the reference, T
tokens per sequence, B sequences in a batch, V validation rows of t tokens, n inner steps and r replays, an outer step costs

    3 F V t                        the validation gradient
    (a + k c) F B T                alignments and the proxy's training gradient, and k Hessian-vector products of the solver
    3 (1 + r) S B T                the score model: the scores and their backward pass, the replays
    (n - 1) (3 F + S) B T          inner steps on batches of their own (n of them where the outer batch is one trained on)
    R B T                          for each of those batches, where there is a KL term

with (a, c) by route: central differences 4 and 6, double backward 5 and 9, forward mode 6 and 9; `warm_start` takes its curvature along,
so a = c there. A look at the fixed probes costs their scores and three passes of the proxy or a little more. Optimizer steps and
vector operations are no model FLOPs, and neither is what micro-batches compute again.
"""

from bliss_ops.config import BilevelConfig
from bliss_ops.models.flops import ModelFlops

ALIGNMENTS = {"central_difference": 4, "double_backward": 5, "forward_mode": 6}  # a
PRODUCT = {"central_difference": 6, "double_backward": 9, "forward_mode": 9}  # c
GRADIENTS_OF_PRODUCT = {"central_difference": 2, "double_backward": 1, "forward_mode": 1}  # each meets the reference's output matrix
RELEASED_PRODUCTS = 3
ROWS_OF_LOOK, CHECKED_ROWS = 64, 32  # validation rows scored at a look; probes whose shift error and residual are checked


def training_flops(
    settings: BilevelConfig,
    proxy: ModelFlops,
    *,
    sequence_length: int,
    reference: ModelFlops | None = None,
    validation_row_tokens: float | None = None,
) -> float:
    """FLOPs of all outer steps and looks of one fit.

    Args:
        settings: the bilevel settings.
        proxy: of the proxy; its backbone is the score model's.
        sequence_length: T.
        reference: of the target, where there is a KL term.
        validation_row_tokens: t, T unless given: validation rows are padded to T and their padding is cut off before they are computed.
    """
    batch_tokens = settings.batch_sequences * sequence_length
    row_tokens = sequence_length if validation_row_tokens is None else validation_row_tokens
    route = "central_difference" if settings.alignment == "auto" else settings.alignment
    warm, ahead = settings.ihvp == "warm_start", settings.ihvp == "lookahead"
    of_alignments = 4 if ahead else PRODUCT[route] if warm else ALIGNMENTS[route]
    num_products = {
        "conjugate_gradient": settings.num_solver_steps,
        "neumann": settings.num_solver_steps,
        "released": RELEASED_PRODUCTS,
    }.get(settings.ihvp, 0)
    num_inner = settings.num_inner_steps - (settings.outer_batch == "fresh")
    num_gradients = num_inner + (GRADIENTS_OF_PRODUCT[route] if warm else 1) + num_products * GRADIENTS_OF_PRODUCT[route]
    num_batches = settings.num_inner_steps  # of candidates, in one outer step
    num_replays = settings.num_replays if settings.distillation_weight else 0

    step = 3 * proxy.forward * settings.validation_batch_sequences * row_tokens
    step += (of_alignments + num_products * PRODUCT[route]) * proxy.forward * batch_tokens
    step += 3 * proxy.backbone_forward * batch_tokens
    step += num_inner * (3 * proxy.forward + proxy.backbone_forward) * batch_tokens
    if reference is not None:
        step += (num_batches * reference.backbone_forward + num_gradients * reference.head_forward) * batch_tokens
    replays = (settings.num_steps - 1) * num_replays * 3 * proxy.backbone_forward * batch_tokens

    num_looks = -(-settings.num_steps // settings.probe_every_steps)
    scored = proxy.backbone_forward * (settings.num_probes + ROWS_OF_LOOK)
    checked = 2 if warm else 2 + PRODUCT[route]
    look = proxy.forward * (2 * settings.num_probes + checked * min(CHECKED_ROWS, settings.num_probes))
    looks = ((1 + num_looks) * scored + num_looks * look) * sequence_length  # the first one knows no alignments yet
    return settings.num_steps * step + replays + looks
