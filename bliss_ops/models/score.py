"""The score model: the proxy's backbone, mean-pooled hidden states, one linear logit per sequence.

The head starts at zero, so training begins from equal weights for every sequence whatever the backbone. The untied output
matrix of the language model is not part of it.

Legend of shapes: B sequences, T tokens, D hidden size.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ScoreModel(nn.Module):
    """Maps input_ids_BT to score_B (float32 logits, higher is better)."""

    def __init__(self, language_model: "PreTrainedModel", head: str = "linear") -> None:
        super().__init__()
        self.backbone = language_model.base_model
        self.head = nn.Linear(language_model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.squash = head == "sigmoid"

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTD = self.backbone(input_ids=input_ids_BT).last_hidden_state
        logit_B: torch.Tensor = self.head(hidden_BTD.to(self.head.weight.dtype).mean(1)).squeeze(-1)
        return logit_B.sigmoid() if self.squash else logit_B
