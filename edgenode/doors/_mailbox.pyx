"""Many messages in or out of one ZeroMQ socket in one call.

pyzmq costs 12 to 26 us for each request and its reply, most of it in Python; here it is 1. The
wheels of pyzmq bring neither a header nor a library to link, but the libzmq that they load has its
C API: its functions are looked up by name in what is loaded already. Python makes, configures and
closes the socket; this class only reads and writes it, on the thread that owns it.

Nothing here waits, so the GIL is kept: a frame costs less than giving it up and taking it back.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.errno cimport EAGAIN, EHOSTUNREACH, EINTR
from libc.stdint cimport uint64_t, uintptr_t

import zmq
import zmq.backend.cython._zmq as zmq_extension

cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *library, const char *name)
    enum:
        RTLD_LAZY
        RTLD_NOLOAD

# From libzmq's zmq.h, whose numbers are its binary interface.
cdef enum:
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2
    ZMQ_XPUB = 9
    ZMQ_EVENTS = 15
    ZMQ_XPUB_NODROP = 69

cdef enum:
    FRAMES_LIMIT = 64  # the most that frames_max can be

cdef struct Message:  # zmq_msg_t: 64 opaque bytes
    uint64_t opaque[8]

ctypedef int (*MessageInit)(Message *) noexcept nogil
ctypedef int (*MessageReceive)(Message *, void *socket, int flags) noexcept nogil
ctypedef void *(*MessageData)(Message *) noexcept nogil
ctypedef size_t (*MessageSize)(const Message *) noexcept nogil
ctypedef int (*MessageMore)(const Message *) noexcept nogil
ctypedef int (*MessageClose)(Message *) noexcept nogil
ctypedef int (*Send)(void *socket, const void *data, size_t size, int flags) noexcept nogil
ctypedef int (*GetOption)(void *socket, int option, void *value, size_t *size) noexcept nogil
ctypedef int (*SetOption)(void *socket, int option, const void *value, size_t size) noexcept nogil
ctypedef int (*LastError)() noexcept nogil

cdef MessageInit message_init
cdef MessageReceive message_receive
cdef MessageData message_data
cdef MessageSize message_size
cdef MessageMore message_more
cdef MessageClose message_close
cdef Send frame_send
cdef GetOption get_option
cdef SetOption set_option
cdef LastError last_error


cdef void *function(void *library, const char *name) except NULL:
    cdef void *found = dlsym(library, name)
    if found == NULL:
        raise ImportError(f"the libzmq of pyzmq {zmq.__version__} has no {name.decode()}")
    return found


cdef int find_functions() except -1:
    global message_init, message_receive, message_data, message_size, message_more, message_close
    global frame_send, get_option, set_option, last_error
    cdef bytes path = zmq_extension.__file__.encode()
    # Loaded already: NOLOAD makes sure that there is no second copy with sockets of its own.
    cdef void *library = dlopen(path, RTLD_NOLOAD | RTLD_LAZY)
    if library == NULL:
        raise ImportError(f"pyzmq's extension {zmq_extension.__file__} can't be found in memory")
    message_init = <MessageInit>function(library, "zmq_msg_init")
    message_receive = <MessageReceive>function(library, "zmq_msg_recv")
    message_data = <MessageData>function(library, "zmq_msg_data")
    message_size = <MessageSize>function(library, "zmq_msg_size")
    message_more = <MessageMore>function(library, "zmq_msg_more")
    message_close = <MessageClose>function(library, "zmq_msg_close")
    frame_send = <Send>function(library, "zmq_send")
    get_option = <GetOption>function(library, "zmq_getsockopt")
    set_option = <SetOption>function(library, "zmq_setsockopt")
    last_error = <LastError>function(library, "zmq_errno")
    return 0


find_functions()


@cython.final
cdef class Mailbox:
    """Reads and writes a socket that belongs to somebody else. One thread, that of the socket.

    dropped_full: messages not sent because the peer's queue was full. On an XPUB socket: messages
    that some subscriber, whose queue was full, has missed as the first since it was last on time;
    the others got them.
    dropped_gone: messages not sent because the peer is not connected.
    """

    cdef readonly object socket
    cdef readonly uint64_t dropped_full, dropped_gone
    cdef readonly int fd
    cdef void *handle
    cdef bint publishes

    def __cinit__(self, socket not None):
        """socket: a zmq.Socket; it stays its owner's to configure and close."""
        self.socket = socket
        self.handle = <void *><uintptr_t>socket.underlying
        self.fd = socket.fd
        self.publishes = socket.type == ZMQ_XPUB
        if self.publishes:
            self.drop_when_full(False)

    def drain(self, int limit, int frames_max=12) -> list:
        """Take the messages that are there, at most `limit`, each a tuple of its frames.

        frames_max: of a longer message the first so many are kept, and the rest is dropped; at most
        64. Raises zmq.ZMQError. 0.1 us a frame.
        """
        cdef list taken = []
        cdef tuple frames
        cdef Message message
        if not 0 < frames_max <= FRAMES_LIMIT:
            raise ValueError(f"frames_max is {frames_max}; it is from 1 to {FRAMES_LIMIT}")
        self.check_open()
        message_init(&message)
        try:
            while limit > 0:
                frames = self.receive(&message, frames_max)
                if frames is None:
                    break
                taken.append(frames)
                limit -= 1
        finally:
            message_close(&message)
        return taken

    cdef tuple receive(self, Message *message, int frames_max):
        """One message; None if there is none."""
        cdef list kept
        cdef bytes first
        if not self.receive_frame(message):
            return None
        first = frame_bytes(message)
        if not message_more(message):
            return (first,)
        kept = [first]
        # A message arrives whole or not at all, so the rest of it is here.
        while message_more(message):
            if not self.receive_frame(message):
                raise AssertionError("a message ended before its last frame")
            if len(kept) < frames_max:
                kept.append(frame_bytes(message))
        return tuple(kept)

    cdef bint receive_frame(self, Message *message) except -1:
        """One frame; False if there is none."""
        cdef int code
        while message_receive(message, self.handle, ZMQ_DONTWAIT) < 0:
            code = last_error()
            if code == EAGAIN:
                return False
            if code != EINTR:
                raise zmq.ZMQError(code)
        return True

    def send(self, messages) -> int:
        """Send messages, each a tuple of bytes; return how many went.

        One whose peer's queue is full or that is not connected is dropped and counted, so it goes
        whole or not at all. Raises TypeError before the message that is none, and zmq.ZMQError.
        0.05 us a frame.
        """
        cdef int sent = 0
        cdef int code
        cdef object message
        self.check_open()
        for message in messages:
            check_frames(message)
            code = self.send_frames(<tuple>message)
            if code == EAGAIN:
                # libzmq may not have looked for a millisecond whether the peer has taken some.
                self.events()
                code = self.send_frames(<tuple>message)
            if code == EAGAIN:
                self.dropped_full += 1
                if not self.publishes:
                    continue
                self.drop_when_full(True)
                code = self.send_frames(<tuple>message)
                self.drop_when_full(False)
            if code == EHOSTUNREACH:
                self.dropped_gone += 1
            elif code:
                raise zmq.ZMQError(code)
            else:
                sent += 1
        return sent

    cdef int send_frames(self, tuple frames) noexcept:
        """Send one message; 0, or the error number, and then nothing was sent."""
        cdef Py_ssize_t count = PyTuple_GET_SIZE(frames)
        cdef Py_ssize_t at
        cdef int code
        cdef object frame
        for at in range(count):
            frame = <object>PyTuple_GET_ITEM(frames, at)
            while frame_send(
                self.handle,
                PyBytes_AS_STRING(frame),
                PyBytes_GET_SIZE(frame),
                ZMQ_DONTWAIT | ZMQ_SNDMORE if at + 1 < count else ZMQ_DONTWAIT,
            ) < 0:
                code = last_error()
                if code != EINTR:
                    return code
        return 0

    cdef int drop_when_full(self, bint lossy) except -1:
        """Whether a subscriber whose queue is full loses a message, or the whole send is refused.

        Refused as a rule, so that it is noticed and counted; then sent again, to all but that one,
        which libzmq leaves out from then on until it has caught up.
        """
        cdef int refuse = not lossy
        if set_option(self.handle, ZMQ_XPUB_NODROP, &refuse, sizeof(refuse)) < 0:
            raise zmq.ZMQError(last_error())
        return 0

    def pending(self) -> int:
        """What can be done now: zmq.POLLIN, POLLOUT. `fd` is edge-triggered: before waiting for it,
        and after each wake-up, this says whether there is something to drain."""
        self.check_open()
        return self.events()

    cdef int events(self) except -1:
        cdef int events = 0
        cdef size_t size = sizeof(events)
        while get_option(self.handle, ZMQ_EVENTS, &events, &size) < 0:
            if last_error() != EINTR:
                raise zmq.ZMQError(last_error())
        return events

    cdef int check_open(self) except -1:
        # The handle of a closed socket points to memory that is somebody else's by now.
        if self.socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return 0


cdef inline bytes frame_bytes(Message *message):
    return PyBytes_FromStringAndSize(<const char *>message_data(message), message_size(message))


cdef int check_frames(object message) except -1:
    cdef object frame
    if type(message) is not tuple or not message:
        raise TypeError(f"a message is a tuple of bytes, and not empty; this is {message!r}")
    for frame in <tuple>message:
        if not PyBytes_CheckExact(frame):
            raise TypeError(f"a frame is bytes; this is {frame!r}")
    return 0
