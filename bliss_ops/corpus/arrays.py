"""Names of the numpy array types that the corpus hands around."""

from typing import Any

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer[Any]]
