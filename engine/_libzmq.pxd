"""libzmq's C API, as far as we use it: messages, sending, receiving, options.

The wheels of pyzmq bring neither a header nor a library to link, but the libzmq that they load has
its C API: its functions are looked up by name in what is loaded already (`_libzmq.pyx`). Python
makes, configures and closes context and socket; who holds `socket.underlying` reads and writes it,
one thread at a time.
"""

from libc.stdint cimport uint64_t

# From libzmq's zmq.h, whose numbers are its binary interface.
cdef enum:
    ZMQ_POLLIN = 1
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2
    ZMQ_XPUB = 9
    ZMQ_EVENTS = 15
    ZMQ_XPUB_NODROP = 69

cdef struct Message:  # zmq_msg_t: 64 opaque bytes; 33 bytes of content stand inside it
    uint64_t opaque[8]

ctypedef int (*MessageInit)(Message *) noexcept nogil
ctypedef int (*MessageInitSize)(Message *, size_t size) noexcept nogil
ctypedef int (*MessageMove)(Message *, void *socket, int flags) noexcept nogil
ctypedef void *(*MessageData)(Message *) noexcept nogil
ctypedef size_t (*MessageSize)(const Message *) noexcept nogil
ctypedef int (*MessageMore)(const Message *) noexcept nogil
ctypedef int (*MessageClose)(Message *) noexcept nogil
ctypedef int (*Send)(void *socket, const void *data, size_t size, int flags) noexcept nogil
ctypedef int (*GetOption)(void *socket, int option, void *value, size_t *size) noexcept nogil
ctypedef int (*SetOption)(void *socket, int option, const void *value, size_t size) noexcept nogil
ctypedef int (*LastError)() noexcept nogil

cdef struct LibZmq:
    MessageInit msg_init
    MessageInitSize msg_init_size
    MessageMove msg_send
    MessageMove msg_recv
    MessageData msg_data
    MessageSize msg_size
    MessageMore msg_more
    MessageClose msg_close
    Send send
    GetOption getsockopt
    SetOption setsockopt
    LastError last_error

cdef LibZmq libzmq
