"""The score model: the proxy's backbone, pooled hidden states, one linear logit per sequence.

A mean of hidden states knows which words a sequence holds and next to nothing of their order. `next_token` pooling also looks at
whether every token fits what came before it: beside the mean hidden state stand the mean output vector of the tokens that follow and
the mean of the product of the two, whose sum is the logit the language model gave the true token. No output matrix is multiplied,
only its rows looked up. docs/experiments.md has what this is worth.

The head starts at zero, so training begins from equal weights for every sequence whatever the backbone.

Legend of shapes: B sequences, T tokens, D hidden size, V vocabulary, H pooling heads.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ScoreModel(nn.Module):
    """Maps input_ids_BT to score_B (float32 logits, higher is better)."""

    def __init__(self, language_model: "PreTrainedModel", head: str = "linear", *, pooling: str = "mean", num_heads: int = 4) -> None:
        super().__init__()
        width = language_model.config.hidden_size
        self.backbone = language_model.base_model
        self.pooling: MeanPooling | AttentionPooling | NextTokenPooling
        if pooling == "attention":
            self.pooling = AttentionPooling(width, num_heads)
        elif pooling == "next_token":
            self.pooling = NextTokenPooling(language_model.get_output_embeddings().weight)
        else:
            self.pooling = MeanPooling()
        self.head = nn.Linear(width * self.pooling.num_vectors, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.squash = head == "sigmoid"

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTD = self.backbone(input_ids=input_ids_BT).last_hidden_state.to(self.head.weight.dtype)
        logit_B: torch.Tensor = self.head(self.pooling(hidden_BTD, input_ids_BT)).squeeze(-1)
        return logit_B.sigmoid() if self.squash else logit_B


class MeanPooling(nn.Module):
    """[B, T, D] -> [B, D]."""

    num_vectors = 1

    def forward(self, hidden_BTD: torch.Tensor, _input_ids_BT: torch.Tensor) -> torch.Tensor:
        return hidden_BTD.mean(1)


class AttentionPooling(nn.Module):
    """[B, T, D] -> [B, (1 + H) D]: the mean, and one average per head weighted by softmax over T of <query, hidden>.

    The queries start at random, the same in every run, so that heads differ.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query_HD = nn.Parameter(torch.randn(num_heads, width, generator=torch.Generator().manual_seed(0)))
        self.num_vectors = 1 + num_heads

    def forward(self, hidden_BTD: torch.Tensor, _input_ids_BT: torch.Tensor) -> torch.Tensor:
        weight_BHT = (self.query_HD @ hidden_BTD.mT / hidden_BTD.shape[-1] ** 0.5).softmax(-1)
        return torch.cat([hidden_BTD.mean(1)[:, None], weight_BHT @ hidden_BTD], dim=1).flatten(1)


class NextTokenPooling(nn.Module):
    """[B, T, D] -> [B, 3 D]: means over positions t of h_t, of u_t and of h_t * u_t, with u_t the output vector of token t + 1.

    The output vectors are a frozen copy of the language model's, scaled to a root mean square of 1 per coordinate.
    """

    num_vectors = 3

    def __init__(self, output_matrix_VD: torch.Tensor) -> None:
        super().__init__()
        self.output_VD: torch.Tensor
        self.register_buffer("output_VD", output_matrix_VD.detach() / output_matrix_VD.detach().square().mean().sqrt().clamp(min=1e-12))

    def forward(self, hidden_BTD: torch.Tensor, input_ids_BT: torch.Tensor) -> torch.Tensor:
        before_BTD, following_BTD = hidden_BTD[:, :-1], self.output_VD[input_ids_BT[:, 1:]]
        return torch.cat([hidden_BTD.mean(1), following_BTD.mean(1), (before_BTD * following_BTD).mean(1)], dim=1)
