"""Subscriptions on their way from the pulse to the turn: rare, so a list behind a lock will do."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from engine._threads cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef struct Subscription:
    Subscription *next
    size_t size               # bytes behind it

cdef struct Subscriptions:
    pthread_mutex_t lock
    Subscription *first
    Subscription *last


cdef inline void subscriptions_begin(Subscriptions *came) noexcept nogil:
    pthread_mutex_init(&came.lock, NULL)
    came.first = came.last = NULL


cdef inline void subscription_put(
    Subscriptions *came, const void *data, size_t size
) noexcept nogil:
    cdef Subscription *one = <Subscription *>malloc(sizeof(Subscription) + size)
    if one == NULL:
        return  # its subscriber hears no heartbeat that greets it, and goes on asking
    one.next, one.size = NULL, size
    memcpy(one + 1, data, size)
    pthread_mutex_lock(&came.lock)
    if came.first == NULL:
        came.first = one
    else:
        came.last.next = one
    came.last = one
    pthread_mutex_unlock(&came.lock)


cdef inline Subscription *subscriptions_take(Subscriptions *came) noexcept nogil:
    """All of them, in their order."""
    cdef Subscription *first
    if came.first == NULL:  # one that comes now is seen by the next look
        return NULL
    pthread_mutex_lock(&came.lock)
    first = came.first
    came.first = came.last = NULL
    pthread_mutex_unlock(&came.lock)
    return first


cdef inline Subscription *subscription_free(Subscription *one) noexcept nogil:
    """The one behind it."""
    cdef Subscription *next = one.next
    free(one)
    return next


cdef inline void subscriptions_end(Subscriptions *came) noexcept nogil:
    cdef Subscription *each = subscriptions_take(came)
    while each != NULL:
        each = subscription_free(each)
    pthread_mutex_destroy(&came.lock)
