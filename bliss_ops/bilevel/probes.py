"""A look at the score model on a fixed set of candidates: does it learn the influence, and does it say anything at all?

The candidates are the same at every look, so the curves are comparable over steps. The most useful number is the rank correlation
between scores and alignments; the others tell how a score model fails.

Legend of shapes: P probes, G validation rows, T tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bliss_ops.bilevel import hypergradient, ihvp
from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.state import BilevelState
from bliss_ops.bilevel.vectors import norm
from bliss_ops.config import BilevelConfig
from bliss_ops.rank_correlation import area_under_curve, spearman
from bliss_ops.training.device import autocast

CHECKED_ROWS = 32  # probes whose shift error and residual are measured


@dataclass(frozen=True)
class Probes:
    """Candidates and validation rows that are looked at again and again, the same on every worker."""

    input_ids_PT: torch.Tensor
    validation_ids_GT: torch.Tensor


def look(state: BilevelState, probes: Probes, config: BilevelConfig) -> dict[str, float]:
    """The score model's state in numbers.

    Returns:
        probe_score_std and probe_tied (share of the distinct probes whose score another one has); validation_auc, the chance that a
        validation row scores above a candidate; and, once there is a z: probe_correlation (Spearman of scores and alignments),
        shift_error (relative change of the alignments when the shift is halved) and residual (of the system z is to solve, at the
        best scaling).
    """
    score_P = _scores(state.score.model, probes.input_ids_PT)
    score_G = _scores(state.score.model, probes.validation_ids_GT)
    _, first = np.unique(probes.input_ids_PT.cpu().numpy(), axis=0, return_index=True)  # copies of a text share its score rightly
    _, counts = np.unique(score_P[first], return_counts=True)
    numbers = {
        "probe_score_std": float(score_P.std()),
        "probe_tied": float(counts[counts > 1].sum() / len(first)),
        "validation_auc": area_under_curve(score_G, score_P),
    }
    if not state.z:
        return numbers
    lower = LowerLevel(state.proxy.model, probes.input_ids_PT, len(probes.input_ids_PT), config)
    alignment_P = hypergradient.alignments_only(lower, state.z)
    few = LowerLevel(state.proxy.model, probes.input_ids_PT[:CHECKED_ROWS], CHECKED_ROWS, config)
    halved_P = hypergradient.alignments_only(few, state.z, shift=hypergradient.shift_of(few) / 2)
    change = norm([alignment_P[:CHECKED_ROWS] - halved_P]) / max(norm([halved_P]), 1e-30)
    numbers |= {"probe_correlation": spearman(score_P, alignment_P.cpu().numpy()), "shift_error": change}
    if config.ihvp != "warm_start":  # which logs its residual at every step
        weight_P = torch.full_like(halved_P, 1 / len(halved_P))
        # the smoothed gradient is not bias-corrected, but its scale does not enter the residual
        product = hypergradient.curvature_product(few, weight_P, state.z)
        numbers["residual"] = ihvp.relative_residual(
            state.z, product, state.smoothed_gradient, ihvp.damping(config) if _solves(config) else 0.0
        )
    return numbers


def _scores(model: torch.nn.Module, input_ids_NT: torch.Tensor) -> np.ndarray:
    with torch.no_grad(), autocast(input_ids_NT.device):
        scores: np.ndarray = torch.cat([model(rows) for rows in torch.split(input_ids_NT, 64)]).float().cpu().numpy()
    return scores


def _solves(config: BilevelConfig) -> bool:
    """Whether damping is that of the linear system; for the diagonal it is a floor under the denominator."""
    return config.ihvp in ("conjugate_gradient", "neumann")
