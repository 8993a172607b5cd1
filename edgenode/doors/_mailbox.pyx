"""Many messages in or out of one ZeroMQ socket in one call.

pyzmq costs 12 to 26 us for each request and its reply, most of it in Python; here it is 1. Python
makes, configures and closes the socket; this class only reads and writes it, on the thread that
owns it, by libzmq's C API (`engine/_libzmq.pxd`).

Nothing here waits, so the GIL is kept: a frame costs less than giving it up and taking it back.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.errno cimport EAGAIN, EHOSTUNREACH, EINTR
from libc.stdint cimport uint64_t, uintptr_t

from engine._libzmq cimport ZMQ_DONTWAIT, ZMQ_EVENTS, ZMQ_SNDMORE, Message, libzmq

import zmq

cdef enum:
    FRAMES_LIMIT = 64  # the most that frames_max can be


@cython.final
cdef class Mailbox:
    """Reads and writes a socket that belongs to somebody else. One thread, that of the socket.

    dropped_full: messages not sent because the peer's queue was full.
    dropped_gone: messages not sent because the peer is not connected.
    """

    cdef readonly object socket
    cdef readonly uint64_t dropped_full, dropped_gone
    cdef readonly int fd
    cdef void *handle

    def __cinit__(self, socket not None):
        """socket: a zmq.Socket; it stays its owner's to configure and close."""
        self.socket = socket
        self.handle = <void *><uintptr_t>socket.underlying
        self.fd = socket.fd

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
        libzmq.msg_init(&message)
        try:
            while limit > 0:
                frames = self.receive(&message, frames_max)
                if frames is None:
                    break
                taken.append(frames)
                limit -= 1
        finally:
            libzmq.msg_close(&message)
        return taken

    cdef tuple receive(self, Message *message, int frames_max):
        """One message; None if there is none."""
        cdef list kept
        cdef bytes first
        if not self.receive_frame(message):
            return None
        first = frame_bytes(message)
        if not libzmq.msg_more(message):
            return (first,)
        kept = [first]
        # A message arrives whole or not at all, so the rest of it is here.
        while libzmq.msg_more(message):
            if not self.receive_frame(message):
                raise AssertionError("a message ended before its last frame")
            if len(kept) < frames_max:
                kept.append(frame_bytes(message))
        return tuple(kept)

    cdef bint receive_frame(self, Message *message) except -1:
        """One frame; False if there is none."""
        cdef int code
        while libzmq.msg_recv(message, self.handle, ZMQ_DONTWAIT) < 0:
            code = libzmq.last_error()
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
            elif code == EHOSTUNREACH:
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
            while libzmq.send(
                self.handle,
                PyBytes_AS_STRING(frame),
                PyBytes_GET_SIZE(frame),
                ZMQ_DONTWAIT | ZMQ_SNDMORE if at + 1 < count else ZMQ_DONTWAIT,
            ) < 0:
                code = libzmq.last_error()
                if code != EINTR:
                    return code
        return 0

    def pending(self) -> int:
        """What can be done now: zmq.POLLIN, POLLOUT. `fd` is edge-triggered: before waiting for it,
        and after each wake-up, this says whether there is something to drain."""
        self.check_open()
        return self.events()

    cdef int events(self) except -1:
        cdef int events = 0
        cdef size_t size = sizeof(events)
        while libzmq.getsockopt(self.handle, ZMQ_EVENTS, &events, &size) < 0:
            if libzmq.last_error() != EINTR:
                raise zmq.ZMQError(libzmq.last_error())
        return events

    cdef int check_open(self) except -1:
        # The handle of a closed socket points to memory that is somebody else's by now.
        if self.socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return 0


cdef inline bytes frame_bytes(Message *message):
    return PyBytes_FromStringAndSize(<const char *>libzmq.msg_data(message), libzmq.msg_size(message))


cdef int check_frames(object message) except -1:
    cdef object frame
    if type(message) is not tuple or not message:
        raise TypeError(f"a message is a tuple of bytes, and not empty; this is {message!r}")
    for frame in <tuple>message:
        if not PyBytes_CheckExact(frame):
            raise TypeError(f"a frame is bytes; this is {frame!r}")
    return 0
