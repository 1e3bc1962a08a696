"""Initial weights as in the literature, drawn from a generator of their own: equal seeds give equal weights on every machine with a CPU.

`gpt_neox`, how the Pythia models were begun (`init_method: small_init`, `output_layer_init_method: wang_init` in their GPT-NeoX
configurations; Black et al. 2022, arXiv 2204.06745): embeddings, the output matrix and every matrix that reads the residual stream are
normal with standard deviation sqrt(2 / (5 d)) (Nguyen and Salazar 2019, arXiv 1910.05895); those that write to it, the last ones of
attention and MLP, with 2 / (L sqrt(d)) (Wang and Komatsuzaki 2021, GPT-J's code). d is the width, L the number of layers.

`megatron`, for LLaMA: normal with 0.02, and 0.02 / sqrt(2 L) where the residual stream is written (Radford et al. 2019; Shoeybi et al.
2019, arXiv 1909.08053). The LLaMA papers do not say how their weights were drawn; this is what libraries that train LLaMA do.

Biases are 0 and norms 1 in both. Tiny shapes and architectures by file have what the transformers library gives them.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# the last matrices of attention and MLP, as GPT-NeoX and LLaMA name them in the transformers library
_WRITES_TO_RESIDUAL = ("attention.dense.weight", "mlp.dense_4h_to_h.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight")


def initialise(model: "torch.nn.Module", scheme: Literal["gpt_neox", "megatron"], *, width: int, num_layers: int, seed: int) -> None:
    """Draw all parameters of a GPT-NeoX or LLaMA model anew, in place, one after the other in the order of their definition."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                reads, writes = standard_deviations(scheme, width, num_layers)
                parameter.normal_(0.0, writes if name.endswith(_WRITES_TO_RESIDUAL) else reads, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))


def standard_deviations(scheme: Literal["gpt_neox", "megatron"], width: int, num_layers: int) -> tuple[float, float]:
    """(of embeddings and of matrices that read the residual stream, of those that write to it)."""
    if scheme == "gpt_neox":
        return (2 / (5 * width)) ** 0.5, 2 / (num_layers * width**0.5)
    return 0.02, 0.02 / (2 * num_layers) ** 0.5
