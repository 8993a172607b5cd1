/* Which edges of C were taken: gcc's -fsanitize-coverage=trace-pc calls this at each of them. Loaded
   ahead of the extensions; asked by tests/fuzz/mutate.py through ctypes. */
#include <stdint.h>
#include <string.h>

#define SIZE 65536

static uint8_t map[SIZE], seen[SIZE];

__attribute__((no_sanitize_address)) void __sanitizer_cov_trace_pc(void) {
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uint8_t *at = &map[(pc ^ pc >> 16) & (SIZE - 1)];
    if (*at != 255) ++*at;
}

static uint8_t grade(uint8_t hits) {
    return hits == 0 ? 0 : hits < 2 ? 1 : hits < 4 ? 2 : hits < 16 ? 4 : hits < 128 ? 8 : 16;
}

/* How many edges were taken, or taken so often, for the first time since the last call. */
int coverage_new(void) {
    int found = 0;
    for (uint32_t word = 0; word < SIZE; word += 8) {
        uint64_t any;
        memcpy(&any, map + word, 8);
        if (!any) continue;
        for (uint32_t at = word; at < word + 8; ++at) {
            uint8_t now = grade(map[at]);
            if (now & ~seen[at]) { seen[at] |= now; ++found; }
        }
    }
    memset(map, 0, SIZE);
    return found;
}
