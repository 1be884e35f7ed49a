/* A preloaded shim that watches, fails and delays what a process does to its disk, and watches what it sends.

   For tests alone; Python's side is shim.py, the idea and the control words are explained in README.md. Two files, both mapped:
   SHIM_CONTROL  64 words of 8 bytes: what to do (written by the test) and counters (written here).
   SHIM_LOG      a header (bytes used) and records, appended by all threads.

   Only regular files of a data directory and sockets are looked at; everything else goes straight through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FILE_NONE = 0, FILE_TAIL = 1, FILE_JOURNAL = 2, FILE_META = 4, FILE_OTHER = 8, FILE_SOCKET = 16 };
enum { OP_WRITE = 1, OP_FLUSH = 2, OP_TRUNCATE = 3, OP_SEND = 4 };
enum { /* control words */
    C_OPS = 0,          /* out: writes and flushes of watched files so far */
    C_FILES = 1,        /* in: FILE_* mask that counts and can fail */
    C_FAIL_AT = 2,      /* in: number (from 1) of the operation that fails; 0: none */
    C_FAIL_ERRNO = 3,   /* in */
    C_FAIL_COUNT = 4,   /* in: how many from there on fail */
    C_FAILED = 5,       /* out: operations failed */
    C_DELAY_US = 6,     /* in: the next flush of the tail takes this much longer; set to 0 when taken */
    C_DELAYED = 7,      /* out: flushes delayed */
    C_FREE_SET = 8,     /* in: 1: statvfs tells C_FREE_BYTES as free */
    C_FREE_BYTES = 9,   /* in */
    C_CLOCK_STEP_US = 10, /* in: added to CLOCK_REALTIME */
    C_DROP_FLUSH = 11,  /* in: 1: flushes of the tail return at once and are not logged: what a build without the flush would do */
    C_SHORT_WRITE = 12, /* in: 1: the failing write writes half instead */
};
#define CAPTURE_MAX 65536

typedef struct {        /* 64 bytes, then `captured` bytes, padded to 8 */
    uint64_t begin, end;    /* places in the order of all operations: taken before and after the system call */
    uint16_t op, file;
    int32_t fd;
    int64_t result;
    uint64_t size, offset;
    uint32_t captured, thread;
    uint64_t time_ns;
} Record;

static volatile uint64_t *control;
static uint8_t *log_at;
static uint64_t log_size, clock_ticks;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static int (*real_statvfs)(const char *, struct statvfs *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static void *map(const char *variable, uint64_t *size) {
    const char *path = getenv(variable);
    struct stat facts;
    void *at;
    int fd;
    if (!path || (fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC)) < 0) return NULL;
    if (fstat(fd, &facts) != 0) return NULL;
    at = mmap(NULL, (size_t)facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    *size = (uint64_t)facts.st_size;
    return at == MAP_FAILED ? NULL : at;
}

__attribute__((constructor)) static void start(void) {
    uint64_t size;
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev64");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_send = dlsym(RTLD_NEXT, "send");
    real_sendto = dlsym(RTLD_NEXT, "sendto");
    real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
    real_statvfs = dlsym(RTLD_NEXT, "statvfs64");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    control = map("SHIM_CONTROL", &size);
    log_at = map("SHIM_LOG", &log_size);
}

static int file_of(int fd) {
    struct stat facts;
    char link[64], path[512];
    const char *name;
    ssize_t size;
    if (!control || fd < 3 || fstat(fd, &facts) != 0) return FILE_NONE;
    if (S_ISSOCK(facts.st_mode)) return FILE_SOCKET;
    if (!S_ISREG(facts.st_mode)) return FILE_NONE;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if ((size = readlink(link, path, sizeof path - 1)) < 0) return FILE_NONE;
    path[size] = 0;
    name = strrchr(path, '/');
    name = name ? name + 1 : path;
    if (!strcmp(name, "tail") || !strcmp(name, "tail.new")) return FILE_TAIL;
    if (!strcmp(name, "data.mdb")) return fcntl(fd, F_GETFL) & O_DSYNC ? FILE_META : FILE_JOURNAL;
    if (!strcmp(name, "identity.key") || !strcmp(name, "FORMAT.new")) return FILE_OTHER;
    return FILE_NONE;
}

static uint64_t tick(void) { return __atomic_add_fetch(&clock_ticks, 1, __ATOMIC_SEQ_CST); }

static void note(uint64_t begin, int op, int file, int fd, int64_t result, uint64_t size, uint64_t offset, const struct iovec *parts, int count) {
    uint64_t captured = 0, room, at, done = 0;
    struct timespec now;
    Record record;
    int i;
    if (!log_at) return;
    if (op == OP_SEND) captured = result > 0 ? (uint64_t)result : 0;
    else if (op == OP_WRITE && file == FILE_TAIL) captured = size < 128 ? size : 128;
    if (captured > CAPTURE_MAX) captured = CAPTURE_MAX;
    room = sizeof record + ((captured + 7) & ~7ull);
    at = __atomic_fetch_add((uint64_t *)log_at, room, __ATOMIC_SEQ_CST);
    if (at + 8 + room > log_size) return;
    real_clock_gettime(CLOCK_MONOTONIC, &now);
    record = (Record){begin, 0, (uint16_t)op, (uint16_t)file, fd, result, size, offset, (uint32_t)captured, (uint32_t)syscall(SYS_gettid),
                      (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec};
    record.end = tick();
    for (i = 0; i < count && done < captured; i++) {
        uint64_t piece = parts[i].iov_len < captured - done ? parts[i].iov_len : captured - done;
        memcpy(log_at + 8 + at + sizeof record + done, parts[i].iov_base, piece);
        done += piece;
    }
    memcpy(log_at + 8 + at, &record, sizeof record);
}

/* Counts an operation and says whether it fails: 0, or the errno. */
static int fails(int file) {
    uint64_t number;
    if (!control || !((uint64_t)file & control[C_FILES])) return 0;
    number = __atomic_add_fetch((uint64_t *)&control[C_OPS], 1, __ATOMIC_SEQ_CST);
    if (control[C_FAIL_AT] == 0 || number < control[C_FAIL_AT] || number >= control[C_FAIL_AT] + control[C_FAIL_COUNT]) return 0;
    __atomic_add_fetch((uint64_t *)&control[C_FAILED], 1, __ATOMIC_SEQ_CST);
    return (int)control[C_FAIL_ERRNO];
}

static uint64_t total(const struct iovec *parts, int count) {
    uint64_t size = 0;
    int i;
    for (i = 0; i < count; i++) size += parts[i].iov_len;
    return size;
}

static ssize_t written(int fd, const struct iovec *parts, int count, int64_t offset) {
    int file = file_of(fd), error;
    uint64_t begin = tick();
    ssize_t result;
    if (file == FILE_NONE || file == FILE_SOCKET) error = 0;
    else error = fails(file);
    if (error) {
        if (control[C_SHORT_WRITE] && count == 1) {
            result = offset < 0 ? real_write(fd, parts[0].iov_base, parts[0].iov_len / 2)
                                : real_pwrite(fd, parts[0].iov_base, parts[0].iov_len / 2, offset);
        } else { errno = error; result = -1; }
    } else if (count == 1) {
        result = offset < 0 ? real_write(fd, parts[0].iov_base, parts[0].iov_len) : real_pwrite(fd, parts[0].iov_base, parts[0].iov_len, offset);
    } else {
        result = offset < 0 ? real_writev(fd, parts, count) : real_pwritev(fd, parts, count, offset);
    }
    if (file != FILE_NONE) {
        int saved = errno;
        note(begin, file == FILE_SOCKET ? OP_SEND : OP_WRITE, file, fd, result, total(parts, count), offset < 0 ? 0 : (uint64_t)offset, parts, count);
        errno = saved;
    }
    return result;
}

static int flushed(int fd, int (*real)(int)) {
    int file = file_of(fd), error, result, saved;
    uint64_t begin = tick(), delay;
    if (file == FILE_NONE || file == FILE_SOCKET) return real(fd);
    error = fails(file);
    if (file == FILE_TAIL && control[C_DROP_FLUSH]) return 0;
    if (error) { errno = error; result = -1; }
    else {
        if (file == FILE_TAIL && control[C_DELAY_US] && (delay = __atomic_exchange_n((uint64_t *)&control[C_DELAY_US], 0, __ATOMIC_SEQ_CST))) {
            __atomic_add_fetch((uint64_t *)&control[C_DELAYED], 1, __ATOMIC_SEQ_CST);
            usleep((useconds_t)delay);
        }
        result = real(fd);
    }
    saved = errno;
    note(begin, OP_FLUSH, file, fd, result, 0, 0, NULL, 0);
    errno = saved;
    return result;
}

#define PART(data, size) (&(struct iovec){(void *)(data), (size)})

ssize_t write(int fd, const void *data, size_t size) { return written(fd, PART(data, size), 1, -1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return written(fd, PART(data, size), 1, offset); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return written(fd, PART(data, size), 1, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) { return written(fd, parts, count, offset); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return written(fd, parts, count, offset); }
int fdatasync(int fd) { return flushed(fd, real_fdatasync); }
int fsync(int fd) { return flushed(fd, real_fsync); }

int ftruncate64(int fd, off_t size) {
    int file = file_of(fd), error = file == FILE_NONE ? 0 : fails(file), result;
    uint64_t begin = tick();
    if (error) { errno = error; result = -1; } else result = real_ftruncate(fd, size);
    if (file != FILE_NONE) { int saved = errno; note(begin, OP_TRUNCATE, file, fd, result, (uint64_t)size, 0, NULL, 0); errno = saved; }
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

ssize_t send(int fd, const void *data, size_t size, int flags) {
    uint64_t begin = tick();
    ssize_t result = real_send(fd, data, size, flags);
    int saved = errno;
    if (control) note(begin, OP_SEND, FILE_SOCKET, fd, result, size, 0, PART(data, size), 1);
    errno = saved;
    return result;
}
ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size) {
    uint64_t begin = tick();
    ssize_t result = real_sendto(fd, data, size, flags, to, to_size);
    int saved = errno;
    if (control) note(begin, OP_SEND, FILE_SOCKET, fd, result, size, 0, PART(data, size), 1);
    errno = saved;
    return result;
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    uint64_t begin = tick();
    ssize_t result = real_sendmsg(fd, message, flags);
    int saved = errno;
    if (control) note(begin, OP_SEND, FILE_SOCKET, fd, result, total(message->msg_iov, (int)message->msg_iovlen), 0, message->msg_iov,
                      (int)message->msg_iovlen);
    errno = saved;
    return result;
}

int statvfs64(const char *path, struct statvfs64 *facts) {
    int result = real_statvfs(path, (struct statvfs *)facts);
    if (result == 0 && control && control[C_FREE_SET]) facts->f_bavail = control[C_FREE_BYTES] / facts->f_frsize;
    return result;
}
int statvfs(const char *path, struct statvfs *facts) { return statvfs64(path, (struct statvfs64 *)facts); }

int clock_gettime(clockid_t which, struct timespec *now) {
    int result;
    if (!real_clock_gettime) return (int)syscall(SYS_clock_gettime, which, now);
    result = real_clock_gettime(which, now);
    if (which == CLOCK_REALTIME && control && control[C_CLOCK_STEP_US]) {
        int64_t us = (int64_t)now->tv_sec * 1000000 + now->tv_nsec / 1000 + (int64_t)control[C_CLOCK_STEP_US];
        now->tv_sec = us / 1000000;
        now->tv_nsec = us % 1000000 * 1000;
    }
    return result;
}
