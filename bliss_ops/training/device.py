"""Where a training or scoring process computes, with how many threads, how fast the device could be, and what to do when it is full."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from bliss_ops.config import ComputeConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h; 32 MB is the largest threshold that is taken

# Dense bfloat16 TFLOP/s with float32 sums, from the data sheets (which print twice that, "with sparsity", for most). Names as the driver
# gives them; the first whose words are all in the name counts, so a card comes before its form with fewer words.
PEAK_TERAFLOPS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("GH200", 989.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
)


def choose_device(config: ComputeConfig, *, num_threads: int | None = None) -> torch.device:
    """The device of this process; also pins the CPU threads, which float sums depend on.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    torch.set_num_threads(num_threads or config.num_threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("compute.device is 'cuda' but no GPU is visible here: set compute.device to 'auto' or 'cpu'")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GB of freed memory instead of giving it back to the system, where it can be told so (glibc).

    On a CPU, torch asks for every activation anew. Without this, each token of a forward pass of tiny-neox-64 touches a page that the
    system has to clear first: 140k instead of 194k tokens/s.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(option, value)


def peak_flops(device: torch.device, config: ComputeConfig) -> float | None:
    """Most FLOP/s that one device can do in bfloat16 products, for model FLOPs utilisation; None where it is not known."""
    if config.peak_teraflops is not None:
        return config.peak_teraflops * 1e12
    return known_peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def known_peak_flops(device_name: str) -> float | None:
    """Of a GPU by the name its driver gives; None for one that is not in the table."""
    words = set(device_name.replace("-", " ").split())
    return next((peak * 1e12 for name, peak in PEAK_TERAFLOPS if set(name.split()) <= words), None)


@contextlib.contextmanager
def explained_out_of_memory(title: str, setting: str, value: int, further: str = "") -> Iterator[None]:
    """Turn a GPU's out-of-memory error into one that says what to lower.

    Args:
        title: of the job.
        setting: that decides how much memory a pass takes.
        value: it has now.
        further: what else can be done.

    Raises:
        ValueError: instead of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        lower = f"lower {setting} (it is {value})" if value > 1 else f"{setting} is 1 already"
        reason = str(error).partition(". ")[0]
        raise ValueError(f"{title}: the GPU is out of memory: {lower}{further}. ({reason})") from error


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 matrix products over float32 weights on a GPU; plain float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compiled(model: torch.nn.Module, config: ComputeConfig) -> None:
    """torch.compile in place where it is asked for; names of parameters and so of checkpoints stay as they are."""
    if config.compile:
        getattr(model, "base_model", model).compile(dynamic=False)
