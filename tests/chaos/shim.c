/* A library to be preloaded: counts the calls that change files under one folder, and disturbs the n-th of them.
 *
 * In: a file of `struct state`, mapped by every process of the disturbed command and by the harness. CHAOS_STATE names
 * it in started processes; a forked one calls chaos_attach(). Out: the n-th counted call fails, or the process is
 * killed in its place, and every other process of the command at its next call. With `trace`, each change is appended
 * to a log outside the folder, with copies of what was flushed and links to what was removed: what a loss of power
 * leaves behind is worked out from that (injector.py).
 *
 * Calls go straight to the kernel by syscall(), so nothing depends on the order in which libraries are loaded.
 * Not seen: writes by stdio's own buffers and through memory maps. fsync itself is not carried out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, MKDIR, UNLINK, CLASSES };
enum { COUNT, ERROR, FULL, KILL, TORN };

struct state { /* injector.py knows this layout */
    int32_t kind, error;
    int64_t target;  /* the n-th counted call, from 1 */
    int64_t counted; /* so far, by all processes */
    int32_t classes; /* bits: which calls count */
    int32_t fired, fired_class, dead, trace, unused;
    int64_t sequence;
    char root[512], log[512], shadow[512];
    char path[1024]; /* of the call that was disturbed */
};

static struct state *state;

void chaos_attach(const char *path) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map != MAP_FAILED) state = map;
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CHAOS_STATE");
    if (path) chaos_attach(path);
}

/* Paths. */

static void collapse(char *path) { /* /a/./b/../c to /a/c, in place */
    char *parts[256], *save = NULL, copy[PATH_MAX];
    int count = 0;
    strncpy(copy, path, sizeof copy - 1);
    copy[sizeof copy - 1] = 0;
    for (char *part = strtok_r(copy, "/", &save); part && count < 256; part = strtok_r(NULL, "/", &save)) {
        if (!strcmp(part, ".")) continue;
        if (!strcmp(part, "..")) { if (count) count--; continue; }
        parts[count++] = part;
    }
    char *end = path;
    *end = 0;
    for (int i = 0; i < count; i++) end += sprintf(end, "/%s", parts[i]);
}

static int absolute(int at, const char *path, char *out) { /* out: PATH_MAX */
    char base[PATH_MAX] = "";
    if (!path) return 0;
    if (path[0] != '/') {
        if (at == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            sprintf(link, "/proc/self/fd/%d", at);
            ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (n <= 0) return 0;
            base[n] = 0;
        }
    }
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    collapse(out);
    return 1;
}

static int inside(const char *path) {
    size_t n = strlen(state->root);
    return n && !strncmp(path, state->root, n) && (path[n] == '/' || !path[n]);
}

static int ours(int at, const char *path, char *out) {
    int before = errno;
    int found = state && absolute(at, path, out) && inside(out);
    errno = before;
    return found;
}

static int ours_fd(int fd, char *out) {
    int before = errno, found = 0;
    char link[64];
    if (state && fd > 2) {
        sprintf(link, "/proc/self/fd/%d", fd);
        ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
        if (n > 0) { out[n] = 0; found = inside(out); }
    }
    errno = before;
    return found;
}

static void note(const char *format, ...);

/* The disturbance. */

static void die(void) {
    state->dead = 1;
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: fail with errno set; 2 (of WRITE alone): do half of it, then what `half_done` says. */
static int disturbed(int class, const char *path) {
    if (state->dead) die();
    if (!(state->classes >> class & 1)) return 0;
    if (state->kind == COUNT && state->trace) note("#\t%d\t%s\n", class, path);
    int64_t number = __sync_add_and_fetch(&state->counted, 1);
    if (!state->target || number < state->target) return 0;
    if (number > state->target && state->kind != FULL) return 0;
    if (number == state->target) {
        strncpy(state->path, path, sizeof state->path - 1);
        state->fired_class = class;
        state->fired = 1;
    }
    switch (state->kind) {
    case ERROR: errno = state->error; return 1;
    case FULL:
        if (class == UNLINK) return 0; /* a full disk still forgets files */
        if (class == WRITE && number == state->target) return 2;
        errno = state->error;
        return 1;
    case KILL: die();
    case TORN:
        if (class == WRITE) return 2;
        die();
    }
    return 0;
}

static void half_done(void) { if (state->kind == TORN) die(); }

/* The log: a line a change, as injector.py reads it. */

static void note(const char *format, ...) {
    char line[3 * PATH_MAX];
    va_list given;
    va_start(given, format);
    int n = vsnprintf(line, sizeof line, format, given);
    va_end(given);
    int fd = syscall(SYS_openat, AT_FDCWD, state->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, (size_t)n);
    syscall(SYS_close, fd);
}

static uint64_t number_of(const char *path) { /* 0: nothing there */
    struct stat about;
    int before = errno;
    int failed = fstatat(AT_FDCWD, path, &about, AT_SYMLINK_NOFOLLOW);
    errno = before;
    return failed ? 0 : about.st_ino;
}

static const char *name_of(const char *path) { return strrchr(path, '/') + 1; }

static uint64_t parent_of(const char *path) {
    char parent[PATH_MAX];
    strcpy(parent, path);
    *strrchr(parent, '/') = 0;
    return number_of(parent);
}

static int64_t kept_link(const char *path) { /* the number of a link to it among the shadows; 0: none */
    char to[PATH_MAX];
    int before = errno;
    int64_t number = __sync_add_and_fetch(&state->sequence, 1);
    snprintf(to, sizeof to, "%s/%lld", state->shadow, (long long)number);
    long failed = syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, to, 0);
    errno = before;
    return failed ? 0 : number;
}

static int64_t kept_copy(const char *path) {
    char to[PATH_MAX], buffer[1 << 16];
    int before = errno;
    int64_t number = __sync_add_and_fetch(&state->sequence, 1);
    snprintf(to, sizeof to, "%s/%lld", state->shadow, (long long)number);
    int in = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    int out = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ssize_t n;
    while (in >= 0 && out >= 0 && (n = syscall(SYS_read, in, buffer, sizeof buffer)) > 0) syscall(SYS_write, out, buffer, n);
    if (in >= 0) syscall(SYS_close, in);
    if (out >= 0) syscall(SYS_close, out);
    errno = before;
    return number;
}

/* open */

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

static int opened(int at, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if ((flags & O_TMPFILE) == O_TMPFILE || !writes(flags) || !ours(at, path, full))
        return syscall(SYS_openat, at, path, flags, mode);
    if (disturbed(OPEN, full)) return -1;
    if (!state->trace) return syscall(SYS_openat, at, path, flags, mode);
    uint64_t before = number_of(full);
    if (before) note("O\t%llu\t%lld\n", (unsigned long long)before, (long long)kept_copy(full));
    int fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && !before) {
        int saved = errno;
        note("C\t%llu\t%s\t%llu\n", (unsigned long long)parent_of(full), name_of(full), (unsigned long long)number_of(full));
        errno = saved;
    }
    return fd;
}

#define OPENING(NAME, HEAD, AT, LAST)                                          \
    int NAME(HEAD const char *path, int flags, ...) {                          \
        mode_t mode = 0;                                                       \
        if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {                  \
            va_list given;                                                     \
            va_start(given, flags);                                            \
            mode = va_arg(given, int);                                         \
            va_end(given);                                                     \
        }                                                                      \
        return opened(AT, path, flags, mode);                                  \
    }
OPENING(open, , AT_FDCWD, )
OPENING(open64, , AT_FDCWD, )
#define WITH_AT int at,
OPENING(openat, WITH_AT, at, )
OPENING(openat64, WITH_AT, at, )
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static FILE *stream(const char *name, const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    char full[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !ours(AT_FDCWD, path, full)) return real(path, mode);
    if (disturbed(OPEN, full)) return NULL;
    if (!state->trace) return real(path, mode);
    uint64_t before = number_of(full);
    if (before) note("O\t%llu\t%lld\n", (unsigned long long)before, (long long)kept_copy(full));
    FILE *file = real(path, mode);
    if (file && !before)
        note("C\t%llu\t%s\t%llu\n", (unsigned long long)parent_of(full), name_of(full), (unsigned long long)number_of(full));
    return file;
}
FILE *fopen(const char *path, const char *mode) { return stream("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return stream("fopen64", path, mode); }

/* write */

ssize_t write(int fd, const void *data, size_t size) {
    char full[PATH_MAX];
    if (ours_fd(fd, full)) {
        int how = disturbed(WRITE, full);
        if (how == 1) return -1;
        if (how == 2) {
            ssize_t done = size > 1 ? syscall(SYS_write, fd, data, size / 2) : -1;
            half_done();
            if (done < 0) errno = ENOSPC;
            return done;
        }
    }
    return syscall(SYS_write, fd, data, size);
}

static ssize_t written_at(int fd, const void *data, size_t size, off_t at) {
    char full[PATH_MAX];
    if (ours_fd(fd, full)) {
        int how = disturbed(WRITE, full);
        if (how == 1) return -1;
        if (how == 2) {
            ssize_t done = size > 1 ? syscall(SYS_pwrite64, fd, data, size / 2, at) : -1;
            half_done();
            if (done < 0) errno = ENOSPC;
            return done;
        }
    }
    return syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written_at(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return written_at(fd, data, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char full[PATH_MAX];
    if (ours_fd(fd, full)) {
        int how = disturbed(WRITE, full);
        if (how == 1) return -1;
        if (how == 2) {
            half_done();
            errno = ENOSPC;
            return -1;
        }
    }
    return syscall(SYS_writev, fd, parts, count);
}

static ssize_t copied(int out) { /* 0: go on */
    char full[PATH_MAX];
    if (!ours_fd(out, full)) return 0;
    int how = disturbed(WRITE, full);
    if (how == 2) {
        half_done();
        errno = ENOSPC;
    }
    return how ? -1 : 0;
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return copied(out) ? -1 : syscall(SYS_sendfile, out, in, at, size); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) { return copied(out) ? -1 : syscall(SYS_sendfile, out, in, at, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    return copied(out) ? -1 : syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}

/* fsync */

static int flushed(int fd) {
    char full[PATH_MAX];
    struct stat about;
    if (!ours_fd(fd, full)) return syscall(SYS_fdatasync, fd);
    if (disturbed(FSYNC, full)) return -1;
    if (state->trace && !fstat(fd, &about)) {
        char link[64];
        sprintf(link, "/proc/self/fd/%d", fd);
        if (S_ISDIR(about.st_mode)) note("Y\t%llu\n", (unsigned long long)about.st_ino);
        else note("F\t%llu\t%lld\n", (unsigned long long)about.st_ino, (long long)kept_copy(link));
    }
    return 0;
}
int fsync(int fd) { return flushed(fd); }
int fdatasync(int fd) { return flushed(fd); }

/* Names. */

static int renamed(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char before[PATH_MAX], after[PATH_MAX];
    if (!ours(to_at, to, after) || !absolute(from_at, from, before))
        return syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (disturbed(RENAME, after)) return -1;
    if (!state->trace) return syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    uint64_t old_parent = parent_of(before), new_parent = parent_of(after);
    uint64_t number = number_of(before), victim = number_of(after);
    int64_t kept = victim && victim != number && !(flags & 2) ? kept_link(after) : 0;
    int failed = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (!failed && victim != number)
        note("%c\t%llu\t%s\t%llu\t%s\t%lld\n", flags & 2 ? 'X' : 'R', (unsigned long long)old_parent, name_of(before),
             (unsigned long long)new_parent, name_of(after), (long long)kept);
    return failed;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) { return renamed(from_at, from, to_at, to, 0); }
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) { return renamed(from_at, from, to_at, to, flags); }

static int made(int at, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!ours(at, path, full)) return syscall(SYS_mkdirat, at, path, mode);
    if (number_of(full)) return syscall(SYS_mkdirat, at, path, mode); /* there already: changes nothing */
    if (disturbed(MKDIR, full)) return -1;
    int failed = syscall(SYS_mkdirat, at, path, mode);
    if (!failed && state->trace)
        note("M\t%llu\t%s\t%llu\n", (unsigned long long)parent_of(full), name_of(full), (unsigned long long)number_of(full));
    return failed;
}
int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return made(at, path, mode); }

static int removed(int at, const char *path, int flags) {
    char full[PATH_MAX];
    if (!ours(at, path, full) || !number_of(full)) return syscall(SYS_unlinkat, at, path, flags);
    if (disturbed(UNLINK, full)) return -1;
    if (!state->trace) return syscall(SYS_unlinkat, at, path, flags);
    uint64_t parent = parent_of(full), number = number_of(full);
    int64_t kept = flags & AT_REMOVEDIR ? 0 : kept_link(full);
    int failed = syscall(SYS_unlinkat, at, path, flags);
    if (!failed && flags & AT_REMOVEDIR) note("D\t%llu\t%s\t%llu\n", (unsigned long long)parent, name_of(full), (unsigned long long)number);
    else if (!failed) note("U\t%llu\t%s\t%lld\n", (unsigned long long)parent, name_of(full), (long long)kept);
    return failed;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return removed(at, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int failed = removed(AT_FDCWD, path, 0);
    return failed && errno == EISDIR ? removed(AT_FDCWD, path, AT_REMOVEDIR) : failed;
}

static int linked(int from_at, const char *from, int to_at, const char *to, int flags) {
    char full[PATH_MAX];
    if (!ours(to_at, to, full)) return syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (disturbed(OPEN, full)) return -1;
    int failed = syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (!failed && state->trace) note("L\t%llu\t%s\n", (unsigned long long)parent_of(full), name_of(full));
    return failed;
}
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) { return linked(from_at, from, to_at, to, flags); }
