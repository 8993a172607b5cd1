"""Finds libzmq's functions inside pyzmq's own extension, by name. See the header."""

import zmq
import zmq.backend.cython._zmq as zmq_extension

cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *library, const char *name)
    enum:
        RTLD_LAZY
        RTLD_NOLOAD


cdef void *function(void *library, const char *name) except NULL:
    cdef void *found = dlsym(library, name)
    if found == NULL:
        raise ImportError(f"the libzmq of pyzmq {zmq.__version__} has no {name.decode()}")
    return found


cdef int find_functions() except -1:
    cdef bytes path = zmq_extension.__file__.encode()
    # Loaded already: NOLOAD makes sure that there is no second copy with sockets of its own.
    cdef void *library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY)
    if library == NULL:
        raise ImportError(f"pyzmq's extension {zmq_extension.__file__} can't be found in memory")
    libzmq.msg_init = <MessageInit>function(library, "zmq_msg_init")
    libzmq.msg_init_size = <MessageInitSize>function(library, "zmq_msg_init_size")
    libzmq.msg_send = <MessageMove>function(library, "zmq_msg_send")
    libzmq.msg_recv = <MessageMove>function(library, "zmq_msg_recv")
    libzmq.msg_data = <MessageData>function(library, "zmq_msg_data")
    libzmq.msg_size = <MessageSize>function(library, "zmq_msg_size")
    libzmq.msg_more = <MessageMore>function(library, "zmq_msg_more")
    libzmq.msg_close = <MessageClose>function(library, "zmq_msg_close")
    libzmq.send = <Send>function(library, "zmq_send")
    libzmq.getsockopt = <GetOption>function(library, "zmq_getsockopt")
    libzmq.setsockopt = <SetOption>function(library, "zmq_setsockopt")
    libzmq.last_error = <LastError>function(library, "zmq_errno")
    return 0


find_functions()
