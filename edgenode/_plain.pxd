"""A definition that is plain, as it stands in a request: what `_draft.pyx` is made from."""

from libc.stdint cimport int64_t

cdef enum:
    LABELS_HELD = 32      # minoots.wire.definition.LABELS_MAX
    KIND_AFTER = 1
    KIND_AT = 2

cdef struct Span:         # bytes of the request; a text is without its quotes
    const char* at
    size_t size

cdef struct Plain:
    Span name
    Span payload          # its JSON; size 0: none was given
    Span when             # the text of the duration or the instant
    int64_t when_ns       # what it says
    int kind              # KIND_AFTER, KIND_AT
    bint name_is_ascii
    int labels_count
    size_t labels_bytes   # of all keys and values
    Span[LABELS_HELD] keys     # in the order of their bytes, all different
    Span[LABELS_HELD] values

cdef const char* skip_space(const char* at, const char* end) noexcept nogil
cdef const char* skip_value(const char* at, const char* end, int depth) noexcept nogil
cdef const char* read_text(
    const char* at, const char* end, Span* text, bint* ascii
) noexcept nogil
cdef bint is_word(const Span* text, const char* word, size_t size) noexcept nogil
cdef const char* read_definition(const char* at, const char* end, Plain* made) noexcept nogil
