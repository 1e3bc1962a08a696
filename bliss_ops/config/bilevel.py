"""Settings of the bilevel training of the score model."""

from typing import Literal

from pydantic import Field

from bliss_ops.config.settings import Settings, neutral


class BilevelConfig(Settings):
    """Bilevel training of the score model (symbols as in docs/method.md)."""

    num_steps: int = Field(default=3000, ge=1, description="Outer steps: score-model updates per round.")
    batch_sequences: int = Field(default=32, ge=2, le=65_536, description="Sequences whose weights are normalised together (B).")
    micro_batch_sequences: int = neutral(
        default=64, ge=1, le=65_536, description="Sequences per forward pass and worker; lower it when memory is short."
    )
    validation_batch_sequences: int = Field(default=8, ge=1, le=65_536, description="Validation rows per outer step.")
    num_inner_steps: int = Field(default=1, ge=1, le=100, description="Proxy AdamW steps per outer step.")
    outer_batch: Literal["fresh", "trained"] = Field(
        default="fresh", description="Take the hypergradient on a batch before the proxy trains on it, or on the batch just trained on."
    )
    proxy_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW learning rate of the proxy.")
    score_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="AdamW learning rate of the score model.")
    score_decay: float = Field(
        default=0.5, ge=0, le=1, description="Share of the outer steps, the last ones, over which that learning rate falls to zero."
    )
    score_head: Literal["linear", "sigmoid"] = Field(
        default="linear", description="Score head: the logit itself, or its sigmoid as released."
    )
    score_pooling: Literal["next_token", "mean", "attention"] = Field(
        default="next_token", description="How hidden states become one vector (models/score.py); only next_token sees the order of words."
    )
    num_pooling_heads: int = Field(default=4, ge=1, le=64, description="Attention heads of the pooling.")
    score_start: Literal["inherited", "reset"] = Field(
        default="inherited", description="From round 2 on: the previous round's score model, or the warmed-up proxy's backbone again."
    )
    weights: Literal["softmax", "naive"] = Field(
        default="softmax", description="Sample weights: softmax over the global batch, or independent sigmoids."
    )
    stale_denominator: bool = Field(
        default=False, description="Train the proxy with the previous batch's softmax denominator, as released."
    )
    temperature: float = Field(default=1.0, gt=0, le=100, description="Softmax temperature of the sample weights.")
    min_effective_sample_size: float = Field(
        default=0.5,
        ge=0,
        le=0.95,
        description="Floor on the effective sample size, as a share of the batch, held by a per-batch temperature.",
    )
    ihvp: Literal["lookahead", "adam_diagonal", "identity", "warm_start", "conjugate_gradient", "neumann", "released"] = Field(
        default="lookahead", description="Inverse-Hessian approximation applied to the validation gradient (bilevel/ihvp.py)."
    )
    num_lookahead_steps: int = Field(default=40, ge=1, le=10_000, description="Steps that lookahead follows the validation set for.")
    lookahead_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Size of one of them, per coordinate.")
    damping: float | None = Field(default=None, gt=0, le=100, description="Added to the curvature (delta); empty takes the solver's own.")
    num_solver_steps: int = Field(default=5, ge=1, le=100, description="Steps of conjugate_gradient and neumann.")
    solver_learning_rate: float = Field(
        default=0.03, gt=0, le=1, description="Step size of warm_start and neumann; above 2 / (largest curvature + delta) they diverge."
    )
    gradient_smoothing: float = Field(default=0.9, ge=0, lt=1, description="EMA factor of the validation gradient; 0 uses the batch's own.")
    alignment: Literal["auto", "central_difference", "double_backward", "forward_mode"] = Field(
        default="auto", description="Route to the directional derivatives a_i and to Hessian-vector products (bilevel/hypergradient.py)."
    )
    shift_norm: float | None = Field(
        default=None, gt=0, le=10, description="Size of the shift of central differences; empty suits the precision."
    )
    normalise_alignments: bool = Field(
        default=True, description="Divide the alignments by their running spread: the hypergradient does not depend on the scale of z."
    )
    max_hypergradient_norm: float = Field(default=1.0, gt=0, le=1e6, description="Clipping of the score model's gradient.")
    hypergradient_weight: float = Field(default=1.0, ge=0, le=100, description="Weight of the hypergradient in the score model's loss.")
    distillation_weight: float = Field(
        default=3.0, ge=0, le=100, description="Weight of regressing the scores on the standardised alignments; 0 leaves it out."
    )
    num_replays: int = Field(
        default=0, ge=0, le=100, description="Further steps of that regression per outer step, on batches whose alignments are known."
    )
    replay_batches: int = Field(default=128, ge=1, le=100_000, description="Batches kept for it, the latest ones.")
    kl_weight: float = Field(default=0.0, ge=0, le=100, description="Weight of the KL term between proxy and reference model (gamma).")
    kl_direction: Literal["proxy_reference", "reference_proxy"] = Field(
        default="proxy_reference", description="KL(proxy||reference) or its reverse."
    )
    l2_weight: float = Field(default=0.0, ge=0, le=1, description="Weight of the squared norm of the proxy's parameters (lambda).")
    probe_every_steps: int = Field(
        default=25, ge=1, description="Steps between two looks at a fixed set of candidates (curves and guards of the score model)."
    )
    num_probes: int = Field(default=128, ge=16, le=65_536, description="Candidates in that set.")
    checkpoint_every_steps: int = neutral(default=100, ge=1, description="A killed job loses at most this many outer steps.")
