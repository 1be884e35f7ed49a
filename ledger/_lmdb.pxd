# Leaf: liblmdb's C API, as far as it is used here, and a guard against its crashes on damaged pages.
# Not for what is stored (ledger/_journal.pyx, ledger/_ids.pyx, who alone cimport this).

from libc.stdint cimport int64_t

cdef extern from "lmdb.h" nogil:
    ctypedef struct MDB_env:
        pass
    ctypedef struct MDB_txn:
        pass
    ctypedef struct MDB_cursor:
        pass
    ctypedef unsigned int MDB_dbi
    ctypedef struct MDB_val:
        size_t mv_size
        void* mv_data
    ctypedef struct MDB_stat:
        unsigned int ms_psize
    ctypedef struct MDB_envinfo:
        size_t me_last_pgno
    ctypedef enum MDB_cursor_op:
        MDB_SET_RANGE
        MDB_FIRST
        MDB_NEXT
        MDB_PREV
        MDB_LAST
    enum:
        MDB_NOTLS
        MDB_NORDAHEAD
        MDB_NOSYNC
        MDB_RDONLY
        MDB_CREATE
        MDB_INTEGERKEY
        MDB_APPEND
        MDB_SUCCESS
        MDB_NOTFOUND
        MDB_MAP_FULL
    int mdb_env_create(MDB_env** env)
    int mdb_env_set_mapsize(MDB_env* env, size_t size)
    int mdb_env_set_maxdbs(MDB_env* env, MDB_dbi count)
    int mdb_env_open(MDB_env* env, const char* path, unsigned int flags, unsigned int mode)
    int mdb_env_get_fd(MDB_env* env, int* fd)
    int mdb_env_stat(MDB_env* env, MDB_stat* stat)
    int mdb_env_sync(MDB_env* env, int force)
    int mdb_env_info(MDB_env* env, MDB_envinfo* info)
    void mdb_env_close(MDB_env* env)
    int mdb_reader_check(MDB_env* env, int* dead)
    int mdb_txn_begin(MDB_env* env, MDB_txn* parent, unsigned int flags, MDB_txn** txn)
    int mdb_txn_commit(MDB_txn* txn)
    void mdb_txn_abort(MDB_txn* txn)
    void mdb_txn_reset(MDB_txn* txn)
    int mdb_txn_renew(MDB_txn* txn)
    int mdb_dbi_open(MDB_txn* txn, const char* name, unsigned int flags, MDB_dbi* dbi)
    int mdb_put(MDB_txn* txn, MDB_dbi dbi, MDB_val* key, MDB_val* data, unsigned int flags)
    int mdb_get(MDB_txn* txn, MDB_dbi dbi, MDB_val* key, MDB_val* data)
    int mdb_cursor_open(MDB_txn* txn, MDB_dbi dbi, MDB_cursor** cursor)
    int mdb_cursor_renew(MDB_txn* txn, MDB_cursor* cursor)
    void mdb_cursor_close(MDB_cursor* cursor)
    int mdb_cursor_get(MDB_cursor* cursor, MDB_val* key, MDB_val* data, MDB_cursor_op op)
    int mdb_cursor_del(MDB_cursor* cursor, unsigned int flags)
    const char* mdb_strerror(int code)

cdef extern from *:
    """
    #include <setjmp.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <sys/stat.h>
    #include <lmdb.h>

    /* Runs body(argument) and turns a fault or failed assertion inside it into -(signal number). Only the thread that asked is caught;
       a fault anywhere else dies as usual. What body held stays as it was: the caller gives the environment up. */
    static __thread sigjmp_buf *lmdb_guard_at;
    static void lmdb_guard_signal(int number) {
        if (lmdb_guard_at) siglongjmp(*lmdb_guard_at, number);
        signal(number, SIG_DFL);
        raise(number);
    }
    static void lmdb_guard_assert(MDB_env *env, const char *text) {
        if (lmdb_guard_at) siglongjmp(*lmdb_guard_at, SIGABRT);
        fprintf(stderr, "daybook: LMDB found its own pages damaged: %s\\n", text);
        abort();
    }
    static int lmdb_guarded(int (*body)(void *), void *argument) {
        struct sigaction ours, old_bus, old_segv;
        sigjmp_buf here;
        int number;
        volatile int result = 0;
        ours.sa_handler = lmdb_guard_signal;
        ours.sa_flags = SA_NODEFER;
        sigemptyset(&ours.sa_mask);
        sigaction(SIGBUS, &ours, &old_bus);
        sigaction(SIGSEGV, &ours, &old_segv);
        number = sigsetjmp(here, 1);
        if (number == 0) { lmdb_guard_at = &here; result = body(argument); } else result = -number;
        lmdb_guard_at = NULL;
        sigaction(SIGBUS, &old_bus, NULL);
        sigaction(SIGSEGV, &old_segv, NULL);
        return result;
    }
    static void lmdb_set_assert(MDB_env *env) { mdb_env_set_assert(env, lmdb_guard_assert); }
    static int64_t lmdb_file_bytes(int fd) {
        struct stat facts;
        return fstat(fd, &facts) == 0 ? (int64_t)facts.st_size : -1;
    }
    """
    int lmdb_guarded(int (*body)(void*) noexcept nogil, void* argument) noexcept nogil
    void lmdb_set_assert(MDB_env* env) noexcept nogil
    int64_t lmdb_file_bytes(int fd) noexcept nogil


cdef inline int lmdb_open_reader(MDB_env* env, MDB_dbi dbi, MDB_txn** txn, MDB_cursor** cursor) noexcept nogil:
    # A read transaction with a cursor, reset: renewed before each look, so that it pins no pages between two.
    cdef int code = mdb_txn_begin(env, NULL, MDB_RDONLY, txn)
    if code != MDB_SUCCESS:
        return code
    code = mdb_cursor_open(txn[0], dbi, cursor)
    mdb_txn_reset(txn[0])
    return code
