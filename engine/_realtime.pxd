"""What a thread that keeps time asks of the kernel. Each returns 0, or the error number."""

cdef enum:
    PULSE_PRIORITY = 50   # SCHED_FIFO: above the I/O thread that carries its events
    SOCKET_PRIORITY = 40

cdef int be_fifo(int priority) noexcept nogil      # the calling thread
cdef int be_ordinary() noexcept nogil
cdef int set_slack(unsigned long ns) noexcept nogil
cdef int lock_pages(void *at, size_t size) noexcept nogil  # those that are used, as they are used
