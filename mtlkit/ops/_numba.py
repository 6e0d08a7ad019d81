"""How kernels are compiled."""

from __future__ import annotations

import numba

kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


# "reassoc" would strike out a number that is added and subtracted again; where a division by 0
# gives inf, as here, it does not keep a loop from being vectorised
exact_kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
