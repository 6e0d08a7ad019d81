"""How kernels are compiled."""

from __future__ import annotations

import numba

# for sums whose order does not matter
kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})

# for formulas: "reassoc" would strike out a number that is added and subtracted again. Where a
# division by 0 gives inf, as here, it does not keep a loop from becoming vectors
exact_kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
