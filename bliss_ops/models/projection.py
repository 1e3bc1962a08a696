"""Random projections of gradients to K numbers, block by block, so that no gradient is ever held whole.

By the Johnson-Lindenstrauss lemma inner products survive: both projections here are unbiased, with a variance of at most
(|x|^2 |y|^2 + <x, y>^2) / K, so a cosine is off by about 1/sqrt(K) (0.011 at K = 8192).

- `Rademacher`: a dense matrix of signs over sqrt(K), as LESS has it. P x K multiplications per vector of P numbers; the signs are made
  anew wherever they are needed.
- `CountSketch` (Charikar, Chen, Farach-Colton 2002; Kane and Nelson 2014): every number goes, with a random sign, into one of the K
  buckets (or into one of K/s, s times over). P additions. Runs of K/s numbers land in the buckets in order, rotated by a random
  offset: two numbers of a run never meet, two of different runs meet with probability s/K, which is all that the variance bound asks
  for. And a rotation is two additions of whole blocks, four times as fast as a gather on a CPU and, unlike a scatter, repeatable on a
  GPU.

Signs and offsets are a hash of (seed, coordinate), so they are the same on every device and however the blocks are cut.

Legend of shapes: B vectors, P numbers of each, K of its projection, N of a block, R rows of a table, T of
them per vector, D their size, C coordinates of a chunk.
"""

from typing import Protocol

import torch

_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}  # signs of a dense projection that are held at a time
_MASK = (1 << 64) - 1


class Projection(Protocol):
    """A linear map of P to K numbers, applied to pieces of the vector."""

    size: int
    adds_rows: bool

    def add(self, sums_BK: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        """Add to `sums_BK` the projection of vectors that are zero but for coordinates from `begin` on."""

    def add_rows(self, sums_BK: torch.Tensor, begin: int, row_BT: torch.Tensor, values_BTD: torch.Tensor) -> None:
        """The same for T rows, by number, of a table of rows of D numbers that begins there; only where `adds_rows`."""


class CountSketch:
    """See the module; `entries` is s."""

    adds_rows = True

    def __init__(self, num_numbers: int, size: int, *, seed: int, device: torch.device, entries: int = 1) -> None:
        assert size % entries == 0, f"{size} buckets cannot be shared by {entries} sketches"
        self.size, self.num_buckets, self.entries = size, size // entries, entries
        self.scale = entries**-0.5
        coordinate_P = torch.arange(num_numbers, device=device)
        self.sign_EP = torch.stack([1 - 2 * (hashed(coordinate_P, seed, 2 * e) & 1).to(torch.int8) for e in range(entries)])
        run_R = torch.arange(-(-num_numbers // self.num_buckets), device=device)
        self.offset_ER = torch.stack([(hashed(run_R, seed, 2 * e + 1) >> 1) % self.num_buckets for e in range(entries)])
        self._offsets: list[list[int]] = self.offset_ER.tolist()
        self._tables: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # of `add_rows`, by where a table begins

    def add(self, sums_BK: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        width = self.num_buckets
        for entry in range(self.entries):
            buckets = sums_BK[:, entry * width : (entry + 1) * width]
            sign_N = self.sign_EP[entry, begin : begin + values_BN.shape[1]].to(values_BN.dtype) * self.scale
            done = 0
            while done < values_BN.shape[1]:
                run, within = divmod(begin + done, width)
                bucket = (within + self._offsets[entry][run]) % width
                length = min(values_BN.shape[1] - done, width - within, width - bucket)  # up to the end of the run, or of the buckets
                buckets[:, bucket : bucket + length].addcmul_(values_BN[:, done : done + length], sign_N[done : done + length])
                done += length

    def add_rows(self, sums_BK: torch.Tensor, begin: int, row_BT: torch.Tensor, values_BTD: torch.Tensor) -> None:
        if begin not in self._tables:
            self._tables[begin] = self._table(begin, values_BTD)
        for bucket_RD, sign_RD in self._tables[begin]:
            _scatter_add(sums_BK, bucket_RD[row_BT].flatten(1), (values_BTD * sign_RD[row_BT]).flatten(1))

    def _table(self, begin: int, like_BTD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each entry, bucket and sign of every coordinate from `begin` on as rows of D: looked up faster than one by one."""
        size, width = like_BTD.shape[-1], self.num_buckets
        num_rows = (self.sign_EP.shape[1] - begin) // size
        coordinate_RD = torch.arange(begin, begin + num_rows * size, device=like_BTD.device).view(num_rows, size)
        tables = []
        for entry in range(self.entries):
            bucket_RD = (coordinate_RD + self.offset_ER[entry][coordinate_RD // width]) % width + entry * width
            tables.append((bucket_RD, self.sign_EP[entry][coordinate_RD].to(like_BTD.dtype) * self.scale))
        return tables


class Rademacher:
    """See the module."""

    adds_rows = False

    def __init__(self, size: int, *, seed: int) -> None:
        self.size, self.seed = size, seed

    def add(self, sums_BK: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        step = max(1, _CHUNK[values_BN.device.type] // self.size)
        product = torch.bfloat16 if values_BN.device.type == "cuda" else values_BN.dtype  # its rounding is far below the projection's error
        for done in range(0, values_BN.shape[1], step):
            values_BC = values_BN[:, done : done + step].to(product)
            sums_BK += (values_BC @ self.signs(begin + done, values_BC.shape[1], values_BC)) * self.size**-0.5

    def add_rows(self, sums_BK: torch.Tensor, begin: int, row_BT: torch.Tensor, values_BTD: torch.Tensor) -> None:
        raise NotImplementedError("signs are made for whole blocks, once for all vectors")

    def signs(self, begin: int, num_coordinates: int, like: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix, of shape C x K: 64 signs out of every hash, looked up a byte at a time."""
        words = -(-self.size // 64)
        word_CW = torch.arange(begin * words, (begin + num_coordinates) * words, device=like.device)
        byte_CY = hashed(word_CW, self.seed, 0).view(torch.uint8).view(num_coordinates, -1)
        table = 1 - 2 * ((torch.arange(256, device=like.device)[:, None] >> torch.arange(8, device=like.device)) & 1).to(like.dtype)
        return table[byte_CY.int()].view(num_coordinates, -1)[:, : self.size]


def hashed(number: torch.Tensor, seed: int, stream: int) -> torch.Tensor:
    """SplitMix64 of each number (int64), salted with seed and stream; int64 arithmetic wraps as that of uint64 does."""
    mixed = number ^ _mix(torch.tensor([_signed((seed << 8) + stream)], device=number.device))
    return _mix(mixed)


def _mix(value: torch.Tensor) -> torch.Tensor:
    mixed = value + _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return mixed ^ _shifted(mixed, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, filled with zeros as for an unsigned number."""
    return (value >> bits) & (_MASK >> bits)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _scatter_add(sums_BK: torch.Tensor, bucket_BN: torch.Tensor, values_BN: torch.Tensor) -> None:
    if sums_BK.device.type == "cpu":
        sums_BK.scatter_add_(1, bucket_BN, values_BN)
    else:  # sorts first, so that the order of additions, and every score, repeats
        row_BN = torch.arange(len(sums_BK), device=sums_BK.device)[:, None].expand_as(bucket_BN)
        sums_BK.index_put_((row_BN, bucket_BN), values_BN, accumulate=True)
