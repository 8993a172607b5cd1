from libc.stdint cimport int64_t, uint64_t

from engine._fold cimport Fold, Standing
from engine._slice cimport Fault, Slice

cdef int fold_forget(Fold* fold, Slice* piece, Fault* fault) noexcept nogil
cdef int fold_sweep(
    Fold* fold, int64_t before_ns, uint64_t looks, Standing* standing, Fault* fault
) noexcept nogil
