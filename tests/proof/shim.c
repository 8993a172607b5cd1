/* Writes down what a process does to the data files of its store, in the order in which it does it.
 *
 * Preloaded, it stands between LMDB and libc: it follows the descriptors of `log/data.mdb` and
 * `tables/data.mdb` and appends a record to MINOOTS_TRACE before each write and sync, and one after
 * it. A write that another thread began meanwhile lies between the two, as it may have on a disk.
 *
 * MINOOTS_SWALLOW=meta takes O_DSYNC away from the descriptor that LMDB writes its meta pages
 * through, which is what MDB_NOMETASYNC does; =all drops every sync too: MDB_NOSYNC. Both lose data
 * in a power cut; they are here to show that the checks would find it.
 *
 * What the store must never do ends the process: a map of a data file that can be written to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 1024

/* If you change this, change trace.py. */
enum { WRITE = 1, WRITTEN, SYNC, SYNCED, TRUNCATE, MARK };
struct record {
    uint8_t what, file, durable, spare;  /* durable: the write is its own sync (O_DSYNC) */
    uint32_t id;                         /* pairs WRITE with WRITTEN, SYNC with SYNCED */
    uint64_t at, size;                   /* of a MARK: what, and a number */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t file_of[FDS];     /* 1 log, 2 tables, 0 none of ours */
static uint8_t durable_of[FDS];
static uint32_t next_id;
static int trace = -1, swallow_meta, swallow_all;

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

static void die(const char *why) {
    fprintf(stderr, "shim: %s\n", why);
    abort();
}

static void put(const void *at, size_t size) {
    while (size) {
        ssize_t wrote = real_write(trace, at, size);
        if (wrote <= 0) die("the trace cannot be written");
        at = (const char *)at + wrote;
        size -= wrote;
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MINOOTS_TRACE"), *swallow = getenv("MINOOTS_SWALLOW");
    real_open = dlsym(RTLD_NEXT, "open");
    real_close = dlsym(RTLD_NEXT, "close");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_mmap = dlsym(RTLD_NEXT, "mmap");
    if (!path) return;
    trace = real_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (trace < 0) die("the trace cannot be opened");
    swallow_all = swallow && !strcmp(swallow, "all");
    swallow_meta = swallow_all || (swallow && !strcmp(swallow, "meta"));
}

static int ours(int fd) {
    return trace >= 0 && fd >= 0 && fd < FDS && file_of[fd];
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), size = strlen(end);
    return length >= size && !strcmp(text + length - size, end);
}

/* Take down the begin of an operation, with what it writes; the number that pairs it. */
static uint32_t before(int fd, int what, off_t at, const struct iovec *parts, int count) {
    struct record record = {.what = what, .file = file_of[fd], .durable = durable_of[fd], .at = at};
    int i;
    for (i = 0; i < count; i++) record.size += parts[i].iov_len;
    pthread_mutex_lock(&lock);
    record.id = ++next_id;
    put(&record, sizeof record);
    for (i = 0; i < count; i++) put(parts[i].iov_base, parts[i].iov_len);
    pthread_mutex_unlock(&lock);
    return record.id;
}

static ssize_t after(int fd, int what, uint32_t id, ssize_t result, size_t wanted) {
    struct record record = {
        .what = what, .file = file_of[fd], .durable = durable_of[fd], .id = id};
    int error = errno;
    if (result != (ssize_t)wanted) die("a write or sync failed, or was cut short");
    pthread_mutex_lock(&lock);
    put(&record, sizeof record);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

/* For the workload: a mark in the trace. */
void proof_mark(uint64_t what, uint64_t number) {
    struct record record = {.what = MARK, .at = what, .size = number};
    if (trace < 0) return;
    pthread_mutex_lock(&lock);
    put(&record, sizeof record);
    pthread_mutex_unlock(&lock);
}

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    int file = 0, fd;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list more;
        va_start(more, flags);
        mode = va_arg(more, mode_t);
        va_end(more);
    }
    if (trace >= 0 && (flags & O_ACCMODE) != O_RDONLY)
        file = ends_with(path, "/log/data.mdb") ? 1 : ends_with(path, "/tables/data.mdb") ? 2 : 0;
    if (file && swallow_meta) flags &= ~(O_DSYNC | O_SYNC);
    fd = real_open(path, flags, mode);
    if (fd >= FDS && file) die("too many open files");
    if (fd >= 0 && fd < FDS) {
        file_of[fd] = file;
        durable_of[fd] = file && (flags & O_DSYNC) == O_DSYNC;
    }
    return fd;
}

int close(int fd) {
    if (fd >= 0 && fd < FDS) file_of[fd] = 0;
    return real_close(fd);
}

ssize_t pwrite(int fd, const void *at, size_t size, off_t offset) {
    struct iovec part = {(void *)at, size};
    if (!ours(fd)) return real_pwrite(fd, at, size, offset);
    uint32_t id = before(fd, WRITE, offset, &part, 1);
    return after(fd, WRITTEN, id, real_pwrite(fd, at, size, offset), size);
}

ssize_t write(int fd, const void *at, size_t size) {
    struct iovec part = {(void *)at, size};
    if (!ours(fd)) return real_write(fd, at, size);
    uint32_t id = before(fd, WRITE, lseek(fd, 0, SEEK_CUR), &part, 1);
    return after(fd, WRITTEN, id, real_write(fd, at, size), size);
}

static size_t sum(const struct iovec *parts, int count) {
    size_t size = 0;
    while (count--) size += parts[count].iov_len;
    return size;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!ours(fd)) return real_writev(fd, parts, count);
    uint32_t id = before(fd, WRITE, lseek(fd, 0, SEEK_CUR), parts, count);
    return after(fd, WRITTEN, id, real_writev(fd, parts, count), sum(parts, count));
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    if (!ours(fd)) return real_pwritev(fd, parts, count, offset);
    uint32_t id = before(fd, WRITE, offset, parts, count);
    return after(fd, WRITTEN, id, real_pwritev(fd, parts, count, offset), sum(parts, count));
}

static int sync_by(int (*real)(int), int fd) {
    if (!ours(fd)) return real(fd);
    if (swallow_all) return 0;
    uint32_t id = before(fd, SYNC, 0, NULL, 0);
    return after(fd, SYNCED, id, real(fd), 0);
}

int fsync(int fd) { return sync_by(real_fsync, fd); }
int fdatasync(int fd) { return sync_by(real_fdatasync, fd); }

int ftruncate(int fd, off_t size) {
    if (ours(fd)) before(fd, TRUNCATE, size, NULL, 0);
    return real_ftruncate(fd, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (ours(fd) && (protection & PROT_WRITE) && (flags & MAP_SHARED))
        die("a data file was mapped to be written through the map");
    return real_mmap(at, size, protection, flags, fd, offset);
}

/* glibc's names for the same with 64-bit offsets. */
int open64(const char *, int, ...) __attribute__((alias("open")));
ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));
void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));
