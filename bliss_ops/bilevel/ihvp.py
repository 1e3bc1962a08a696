"""z, the inverse-Hessian-vector product: a family of approximations of (H + delta I)^-1 grad f behind one setting.

    identity             z = grad f                                        no curvature at all
    adam_diagonal        z = grad f / (sqrt(v) + delta)                    the proxy's own AdamW second moment as the curvature
    warm_start           z <- z - eta ((H + delta) z - grad f)             one step per outer step; Hz comes with the alignments
    conjugate_gradient   k damped steps from zero on this batch            stops where the curvature is negative
    neumann              k damped steps of z <- z - eta ((H + delta) z - grad f) from eta grad f
    released             three steps from a constant vector, each clipped to norm 1: what the released code does
    lookahead            a path instead of a slope: z <- rho z + eta clip(grad f(theta - z) / (sqrt(v) + delta), +-1)

`lookahead` is the penalty form of the lower level. theta - z is where the proxy would be had it also followed the validation set for
about 1 / (1 - rho) steps, and the alignment of a sequence is what those steps did to its loss, L_i(theta) - L_i(theta - z): the
integral of <z, grad L_i> along the path, with the curvature that an infinitesimal step does not see.

For all others only the direction of z matters: alignments are divided by their running spread before they reach the score model.
"""

import math
from collections.abc import Callable

import torch

from bliss_ops.bilevel.vectors import Tensors, combination, inner_product, norm, scaled
from bliss_ops.config import BilevelConfig

Product = Callable[[Tensors], list[torch.Tensor]]

DAMPING = {
    "adam_diagonal": 1e-4,
    "lookahead": 1e-6,
    "warm_start": 1.0,
    "conjugate_gradient": 1.0,
    "neumann": 1.0,
}  # delta, where the setting is empty

# The released z hardly leaves its constant: these give it the cosine of 0.02 with grad f that was measured for it.
RELEASED_START, RELEASED_STEPS, RELEASED_RATE = 0.01, 3, 0.05


def solve(
    config: BilevelConfig,
    gradient_f: Tensors,
    *,
    usual_size: Callable[[], list[torch.Tensor] | None],
    previous: Tensors | None,
    product: Product,
) -> list[torch.Tensor]:
    """z for this outer step.

    Args:
        config: `ihvp`, `damping`, `num_solver_steps`, `solver_learning_rate`.
        gradient_f: the smoothed validation gradient.
        usual_size: gives the root mean squares of the proxy's gradients, to be overwritten; called only by solvers that divide by them.
            None before the proxy's first step, when there is nothing to measure a gradient by but itself.
        previous: z of the last outer step, for `warm_start` and `lookahead`.
        product: v -> H v on this outer step's batch; called only by solvers that need it.
    """
    name, delta = config.ihvp, damping(config)
    if name == "conjugate_gradient":
        return conjugate_gradient(gradient_f, product, delta, config.num_solver_steps)
    if name == "neumann":
        z = scaled(gradient_f, config.solver_learning_rate)
        for _ in range(config.num_solver_steps):
            z = descend(z, product(z), gradient_f, delta, config.solver_learning_rate)
        return z
    if name == "released":
        return _released(gradient_f, product)
    if name == "lookahead":
        return look_ahead(config, gradient_f, usual_size(), previous)
    if name == "warm_start":
        return list(previous) if previous is not None else scaled(gradient_f, config.solver_learning_rate)
    if name == "adam_diagonal" and (sizes := usual_size()) is not None:
        torch._foreach_add_(sizes, delta)
        return [torch.div(g, size, out=size) for g, size in zip(gradient_f, sizes, strict=True)]
    return [g.clone() for g in gradient_f]


def look_ahead(
    config: BilevelConfig, gradient_f: Tensors, sizes: list[torch.Tensor] | None, previous: Tensors | None
) -> list[torch.Tensor]:
    """One more step of the path along validation: what was gone before fades, no coordinate goes further than the learning rate."""
    if sizes is None:
        sizes = [g.abs() for g in gradient_f]
    torch._foreach_add_(sizes, damping(config))
    step = [torch.div(g, size, out=size).clamp_(-1, 1) for g, size in zip(gradient_f, sizes, strict=True)]
    torch._foreach_mul_(step, config.lookahead_learning_rate)
    if previous is not None:
        torch._foreach_add_(step, list(previous), alpha=1 - 1 / config.num_lookahead_steps)
    return step


def damping(config: BilevelConfig) -> float:
    """delta: the setting, else the solver's own default."""
    return DAMPING.get(config.ihvp, 0.0) if config.damping is None else config.damping


def descend(z: Tensors, curvature: Tensors, gradient_f: Tensors, delta: float, rate: float) -> list[torch.Tensor]:
    """One step down 1/2 z'(H + delta)z - z'grad f, given Hz."""
    residual = combination(combination(curvature, delta, z), -1.0, gradient_f)
    return combination(z, -rate, residual)


def conjugate_gradient(gradient_f: Tensors, product: Product, delta: float, num_steps: int) -> list[torch.Tensor]:
    """`num_steps` steps from zero; at a direction of negative curvature it stops and keeps what it has (at first: grad f)."""
    z = [torch.zeros_like(g) for g in gradient_f]
    residual = [g.clone() for g in gradient_f]
    direction, size = residual, inner_product(residual, residual)
    for step in range(num_steps):
        image = combination(product(direction), delta, direction)
        curvature = inner_product(direction, image)
        if float(curvature) <= 0 or float(size) == 0:
            return [g.clone() for g in gradient_f] if step == 0 else z
        rate = float(size / curvature)
        z, residual = combination(z, rate, direction), combination(residual, -rate, image)
        before, size = size, inner_product(residual, residual)
        direction = combination(residual, float(size / before), direction)
    return z


def relative_residual(z: Tensors, curvature: Tensors, gradient_f: Tensors, delta: float) -> float:
    """|s (H + delta) z - grad f| / |grad f| at the best s >= 0: 0 for the exact direction, 1 for one that explains nothing."""
    image = combination(curvature, delta, z)
    size = norm(image) * norm(gradient_f)
    aligned = max(0.0, float(inner_product(image, gradient_f)) / size) if size > 0 else 0.0
    return math.sqrt(max(0.0, 1.0 - min(1.0, aligned) ** 2))


def _released(gradient_f: Tensors, product: Product) -> list[torch.Tensor]:
    z = [torch.full_like(g, RELEASED_START) for g in gradient_f]
    for _ in range(RELEASED_STEPS):
        residual = combination(product(z), -1.0, gradient_f)
        z = combination(z, -RELEASED_RATE / max(1.0, norm(residual)), residual)
    return z
