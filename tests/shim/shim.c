/* A preloaded shim that watches, fails and delays what a process does to its disk, and watches what it sends.

   For tests alone; Python's side is shim.py, the idea and the control words are explained in README.md. Two files, both mapped:
   SHIM_CONTROL  64 words of 8 bytes: what to do (written by the test) and counters (written here).
   SHIM_LOG      a header (bytes used) and records, appended by all threads of all processes, before the system call that they tell of.
   SHIM_DISK     a folder. With it everything below counts as the disk: all its files and names are watched, and with C_CAPTURE the
                 bytes of every write are kept, so that the log can be turned into what a power loss may leave (tests/power/).

   Only regular files of a data directory and sockets are looked at; everything else goes straight through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FILE_NONE = 0, FILE_TAIL = 1, FILE_JOURNAL = 2, FILE_META = 4, FILE_OTHER = 8, FILE_SOCKET = 16, FILE_NAMES = 32 };
enum {
    OP_WRITE = 1, OP_FLUSH = 2, OP_TRUNCATE = 3, OP_SEND = 4,
    /* Names, only below SHIM_DISK; the content is the path (two with a zero between them for a rename). */
    OP_CREATE = 5, OP_RENAME = 6, OP_UNLINK = 7, OP_MKDIR = 8, OP_RMDIR = 9, OP_FLUSH_NAMES = 10,
    OP_STRANGE = 11,    /* something that the log cannot express; the content says what */
};
enum { FLAG_DSYNC = 1 };
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
    C_DIE_AT = 13,      /* in: number of the operation at which the process kills itself; 0: none */
    C_DIE_AFTER = 14,   /* in: 1: right after it; 0: right before it */
    C_TICKS = 15,       /* places given out so far: one order for all processes */
    C_CAPTURE = 16,     /* in: 1: the content of all writes below SHIM_DISK goes into the log */
    C_EPOLL_ERRNO = 17, /* in: epoll_wait of the checkout port's loop fails with it; 0: it does not */
};
#define CAPTURE_MAX 65536

typedef struct {        /* 80 bytes, then `captured` bytes, padded to 8 */
    uint64_t begin, end;    /* places in the order of all operations: taken before and after the system call; end 0: it never returned */
    uint16_t op, file;
    int32_t fd;
    int64_t result;
    uint64_t size, offset;
    uint32_t captured, thread;
    uint64_t time_ns, inode;
    uint32_t flags, reserved;
} Record;

static volatile uint64_t *control;
static uint8_t *log_at;
static uint64_t log_size, own_ticks;
static char disk[512];
static size_t disk_size;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_rmdir)(const char *);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static int (*real_epoll_wait)(int, struct epoll_event *, int, int);
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
    real_open = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat64");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    real_rmdir = dlsym(RTLD_NEXT, "rmdir");
    real_mmap = dlsym(RTLD_NEXT, "mmap64");
    real_send = dlsym(RTLD_NEXT, "send");
    real_sendto = dlsym(RTLD_NEXT, "sendto");
    real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
    real_epoll_wait = dlsym(RTLD_NEXT, "epoll_wait");
    real_statvfs = dlsym(RTLD_NEXT, "statvfs64");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    control = map("SHIM_CONTROL", &size);
    log_at = map("SHIM_LOG", &log_size);
    if (getenv("SHIM_DISK")) disk_size = (size_t)snprintf(disk, sizeof disk, "%s/", getenv("SHIM_DISK"));
}

static int on_disk(const char *path) { return control && disk_size && strncmp(path, disk, disk_size) == 0; }

static int path_of(int fd, char *path, size_t room) {
    char link[64];
    ssize_t size;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if ((size = readlink(link, path, room - 1)) < 0) return -1;
    path[size] = 0;
    return 0;
}

static int file_of(int fd, uint64_t *inode) {
    struct stat facts;
    char path[512];
    const char *name;
    *inode = 0;
    if (!control || fd < 3 || fstat(fd, &facts) != 0) return FILE_NONE;
    if (S_ISSOCK(facts.st_mode)) return FILE_SOCKET;
    if (!S_ISREG(facts.st_mode) || path_of(fd, path, sizeof path) != 0 || (disk_size && !on_disk(path))) return FILE_NONE;
    *inode = facts.st_ino;
    name = strrchr(path, '/');
    name = name ? name + 1 : path;
    if (!strcmp(name, "tail") || !strcmp(name, "tail.new")) return FILE_TAIL;
    if (!strcmp(name, "data.mdb")) return fcntl(fd, F_GETFL) & O_DSYNC ? FILE_META : FILE_JOURNAL;
    if (!strcmp(name, "identity.key") || !strcmp(name, "FORMAT.new")) return FILE_OTHER;
    if (!strcmp(name, "lock.mdb")) return FILE_NONE;    /* memory that processes share, not data */
    return disk_size ? FILE_OTHER : FILE_NONE;
}

static uint64_t tick(void) { return __atomic_add_fetch(control ? (uint64_t *)&control[C_TICKS] : &own_ticks, 1, __ATOMIC_SEQ_CST); }

/* A record is in the log before its system call is made; done() fills in what came of it. NULL: no log, or it is full. */
static Record *note(int op, int file, int fd, uint64_t inode, uint64_t size, uint64_t offset, const struct iovec *parts, int count) {
    uint64_t captured = size, room, at, done = 0;
    struct timespec now;
    Record *record;
    int i;
    if (!log_at) return NULL;
    if (op == OP_WRITE && !(disk_size && control[C_CAPTURE])) captured = file == FILE_TAIL ? (size < 128 ? size : 128) : 0;
    if (op == OP_SEND && captured > CAPTURE_MAX) captured = CAPTURE_MAX;
    if (op == OP_FLUSH || op == OP_TRUNCATE) captured = 0;
    room = sizeof *record + ((captured + 7) & ~7ull);
    at = __atomic_fetch_add((uint64_t *)log_at, room, __ATOMIC_SEQ_CST);
    if (at + 8 + room > log_size) return NULL;
    record = (Record *)(log_at + 8 + at);
    real_clock_gettime(CLOCK_MONOTONIC, &now);
    *record = (Record){tick(), 0, (uint16_t)op, (uint16_t)file, fd, -EINPROGRESS, size, offset, (uint32_t)captured,
                       (uint32_t)syscall(SYS_gettid), (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, inode, 0, 0};
    if (op == OP_WRITE && fcntl(fd, F_GETFL) & O_DSYNC) record->flags |= FLAG_DSYNC;
    for (i = 0; i < count && done < captured; i++) {
        uint64_t piece = parts[i].iov_len < captured - done ? parts[i].iov_len : captured - done;
        memcpy((uint8_t *)(record + 1) + done, parts[i].iov_base, piece);
        done += piece;
    }
    return record;
}

static void done(Record *record, int64_t result) {
    if (!record) return;
    record->result = result;
    __atomic_store_n(&record->end, tick(), __ATOMIC_SEQ_CST);
}

static void die(void) { syscall(SYS_kill, syscall(SYS_getpid), 9); }

/* Counts an operation and says whether it fails: 0, or the errno. `*dies`: the process is to end behind it. */
static int fails(int file, int *dies) {
    uint64_t number;
    *dies = 0;
    if (!control || !((uint64_t)file & control[C_FILES])) return 0;
    number = __atomic_add_fetch((uint64_t *)&control[C_OPS], 1, __ATOMIC_SEQ_CST);
    if (control[C_DIE_AT] == number) {
        if (!control[C_DIE_AFTER]) die();
        *dies = 1;
    }
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
    uint64_t inode;
    int file = file_of(fd, &inode), error, dies = 0, saved;
    Record *record = NULL;
    ssize_t result;
    error = file == FILE_NONE || file == FILE_SOCKET ? 0 : fails(file, &dies);
    if (file == FILE_SOCKET) record = note(OP_SEND, file, fd, 0, total(parts, count), 0, parts, count);
    else if (file != FILE_NONE) {
        int64_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
        record = note(OP_WRITE, file, fd, inode, total(parts, count), (uint64_t)from, parts, count);
    }
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
    saved = errno;
    done(record, result);
    if (dies) die();
    errno = saved;
    return result;
}

static int flushed(int fd, int (*real)(int)) {
    char path[512];
    struct stat facts;
    uint64_t inode;
    int file = file_of(fd, &inode), error, result, saved, dies;
    uint64_t delay;
    Record *record;
    if (file == FILE_NONE && disk_size && fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode) && path_of(fd, path, sizeof path - 1) == 0) {
        strcat(path, "/");
        if (!on_disk(path)) return real(fd);
        path[strlen(path) - 1] = 0;
        if ((error = fails(FILE_NAMES, &dies))) { errno = error; return -1; }
        record = note(OP_FLUSH_NAMES, FILE_NAMES, fd, facts.st_ino, strlen(path), 0, &(struct iovec){path, strlen(path)}, 1);
        result = real(fd);
        saved = errno;
        done(record, result);
        if (dies) die();
        errno = saved;
        return result;
    }
    if (file == FILE_NONE || file == FILE_SOCKET) return real(fd);
    error = fails(file, &dies);
    if (file == FILE_TAIL && control[C_DROP_FLUSH]) return 0;
    record = note(OP_FLUSH, file, fd, inode, 0, 0, NULL, 0);
    if (error) { errno = error; result = -1; }
    else {
        if (file == FILE_TAIL && control[C_DELAY_US] && (delay = __atomic_exchange_n((uint64_t *)&control[C_DELAY_US], 0, __ATOMIC_SEQ_CST))) {
            __atomic_add_fetch((uint64_t *)&control[C_DELAYED], 1, __ATOMIC_SEQ_CST);
            usleep((useconds_t)delay);
        }
        result = real(fd);
    }
    saved = errno;
    done(record, result);
    if (dies) die();
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
    uint64_t inode;
    int file = file_of(fd, &inode), result, saved, dies = 0;
    int error = file == FILE_NONE ? 0 : fails(file, &dies);
    Record *record = file == FILE_NONE ? NULL : note(OP_TRUNCATE, file, fd, inode, (uint64_t)size, 0, NULL, 0);
    if (error) { errno = error; result = -1; } else result = real_ftruncate(fd, size);
    saved = errno;
    done(record, result);
    if (dies) die();
    errno = saved;
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static Record *sending(int fd, uint64_t size, const struct iovec *parts, int count) {
    return control ? note(OP_SEND, FILE_SOCKET, fd, 0, size, 0, parts, count) : NULL;
}
static ssize_t sent(Record *record, ssize_t result) {
    int saved = errno;
    done(record, result);
    errno = saved;
    return result;
}
ssize_t send(int fd, const void *data, size_t size, int flags) {
    Record *record = sending(fd, size, PART(data, size), 1);
    return sent(record, real_send(fd, data, size, flags));
}
ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size) {
    Record *record = sending(fd, size, PART(data, size), 1);
    return sent(record, real_sendto(fd, data, size, flags, to, to_size));
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    Record *record = sending(fd, total(message->msg_iov, (int)message->msg_iovlen), message->msg_iov, (int)message->msg_iovlen);
    return sent(record, real_sendmsg(fd, message, flags));
}

/* --- the loop ---------------------------------------------------------------------------------------------------------- */

/* Not asyncio's and not gRPC's: the loop is known by the module that calls. */
static int from_module(const void *caller, const char *name) {
    Dl_info facts;
    return dladdr(caller, &facts) && facts.dli_fname && strstr(facts.dli_fname, name);
}
int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout_ms) {
    if (control && control[C_EPOLL_ERRNO] && from_module(__builtin_return_address(0), "/_transport.")) {
        errno = (int)control[C_EPOLL_ERRNO];
        return -1;
    }
    return real_epoll_wait(epoll, events, count, timeout_ms);
}

/* --- names ------------------------------------------------------------------------------------------------------------- */

static const char *whole_path(const char *path, char *room) {
    char here[256];
    if (path[0] == '/' || !getcwd(here, sizeof here)) return path;
    snprintf(room, 512, "%.250s/%.250s", here, path);
    return room;
}

static void strange(const char *what, const char *path) {
    char room[512], text[600];
    path = whole_path(path, room);
    if (!on_disk(path)) return;
    snprintf(text, sizeof text, "%s %.500s", what, path);
    done(note(OP_STRANGE, FILE_NAMES, -1, 0, strlen(text), 0, PART(text, strlen(text)), 1), 0);
}
static void strange_fd(const char *what, int fd) {
    char path[512];
    if (disk_size && path_of(fd, path, sizeof path) == 0 && on_disk(path)) strange(what, path);
}

static int opened(int at, const char *path, int flags, mode_t mode) {
    char room[512];
    const char *whole, *name;
    struct stat facts;
    Record *record = NULL;
    int result, saved, error, dies = 0, there;
    if (!real_open) real_open = dlsym(RTLD_NEXT, "open64");
    if (!real_openat) real_openat = dlsym(RTLD_NEXT, "openat64");
    whole = at == AT_FDCWD ? whole_path(path, room) : path;
    if (!on_disk(whole) || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE)
        return at == AT_FDCWD ? real_open(path, flags, mode) : real_openat(at, path, flags, mode);
    name = strrchr(whole, '/');
    there = stat(whole, &facts) == 0;
    if (there && flags & O_TRUNC && facts.st_size) strange("truncation by open of", whole);
    if (there || !strcmp(name, "/lock.mdb")) return real_open(path, flags, mode);
    if ((error = fails(FILE_NAMES, &dies))) { errno = error; return -1; }
    record = note(OP_CREATE, FILE_NAMES, -1, 0, strlen(whole), 0, PART(whole, strlen(whole)), 1);
    result = real_open(path, flags, mode);
    saved = errno;
    if (record && result >= 0 && fstat(result, &facts) == 0) record->inode = facts.st_ino;
    done(record, result);
    if (dies) die();
    errno = saved;
    return result;
}

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }

static int named(int op, const char *path, const char *other, mode_t mode) {
    char room[512], room_other[512], text[1100];
    const char *whole = whole_path(path, room), *whole_other = other ? whole_path(other, room_other) : NULL;
    int watched = on_disk(whole) && !strstr(whole, "/lock.mdb"), error, dies = 0, result, saved;
    size_t size;
    struct stat facts = {0};
    Record *record = NULL;
    if (watched) {
        if ((error = fails(FILE_NAMES, &dies))) { errno = error; return -1; }
        lstat(whole, &facts);
        size = (size_t)snprintf(text, sizeof text, "%s", whole);
        if (other) size += 1 + (size_t)snprintf(text + size + 1, sizeof text - size - 1, "%s", whole_other);
        record = note(op, FILE_NAMES, -1, facts.st_ino, size, 0, PART(text, size), 1);
    }
    switch (op) {
    case OP_RENAME: result = real_rename(path, other); break;
    case OP_UNLINK: result = real_unlink(path); break;
    case OP_MKDIR: result = real_mkdir(path, mode); break;
    default: result = real_rmdir(path);
    }
    saved = errno;
    done(record, result);
    if (dies) die();
    errno = saved;
    return result;
}
static const char *path_at(int at, const char *path, char *room) {
    size_t size;
    if (at == AT_FDCWD || path[0] == '/' || path_of(at, room, 400) != 0) return path;
    size = strlen(room);
    snprintf(room + size, 512 - size, "/%.100s", path);
    return room;
}
int unlinkat(int at, const char *path, int flags) {
    char room[512];
    return named(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, path_at(at, path, room), NULL, 0);
}
int mkdirat(int at, const char *path, mode_t mode) {
    char room[512];
    return named(OP_MKDIR, path_at(at, path, room), NULL, mode);
}
int renameat(int at, const char *path, int to, const char *other) {
    char room[512], room_other[512];
    return named(OP_RENAME, path_at(at, path, room), path_at(to, other, room_other), 0);
}
int rename(const char *path, const char *other) { return named(OP_RENAME, path, other, 0); }
int unlink(const char *path) { return named(OP_UNLINK, path, NULL, 0); }
int mkdir(const char *path, mode_t mode) { return named(OP_MKDIR, path, NULL, mode); }
int rmdir(const char *path) { return named(OP_RMDIR, path, NULL, 0); }

/* --- what the log cannot express, so that nobody comes to rely on it unseen (sync_file_range promises nothing: as if not called) --- */

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    char path[512];
    if (!real_mmap) real_mmap = dlsym(RTLD_NEXT, "mmap64");
    if (disk_size && fd >= 0 && protection & PROT_WRITE && (flags & MAP_TYPE) != MAP_PRIVATE && path_of(fd, path, sizeof path) == 0
            && !strstr(path, "/lock.mdb"))
        strange_fd("writable map of", fd);
    return real_mmap(at, size, protection, flags, fd, offset);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) { return mmap64(at, size, protection, flags, fd, offset); }

#define STRANGE_FD(name, declaration, call, fd) \
    int name declaration { static int (*real) declaration; if (!real) real = dlsym(RTLD_NEXT, #name); strange_fd(#name " of", fd); return real call; }
#define STRANGE_PATH(name, declaration, call, path) \
    int name declaration { static int (*real) declaration; if (!real) real = dlsym(RTLD_NEXT, #name); strange(#name " of", path); return real call; }
STRANGE_FD(fallocate64, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size), fd)
STRANGE_FD(posix_fallocate64, (int fd, off_t offset, off_t size), (fd, offset, size), fd)
STRANGE_PATH(truncate64, (const char *path, off_t size), (path, size), path)
STRANGE_PATH(link, (const char *from, const char *to), (from, to), to)
STRANGE_PATH(symlink, (const char *from, const char *to), (from, to), to)
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    strange_fd("sendfile into", out);
    return real(out, in, offset, size);
}
ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags) {
    static ssize_t (*real)(int, off_t *, int, off_t *, size_t, unsigned);
    if (!real) real = dlsym(RTLD_NEXT, "copy_file_range");
    strange_fd("copy_file_range into", out);
    return real(in, in_offset, out, out_offset, size, flags);
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
