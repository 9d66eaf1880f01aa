/* Preloaded into a process (LD_PRELOAD). Before and after each call that creates, truncates, syncs, renames or removes a
 * file or folder below $POWER_CUT_ROOT, it sends a line to the socket $POWER_CUT_SOCKET and waits for a reply, so that
 * the recorder can look at the folder while the process stands still. Calls of all libraries are seen: Python, PyTorch,
 * safetensors, Arrow and SQLite. Writes need not be seen, because the recorder reads the files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int peer = -1;
static pid_t owner;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void fail(const char *what) {
    fprintf(stderr, "power_cut: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static void tell(const char *line) {
    char reply;
    if (owner != getpid()) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("POWER_CUT_SOCKET"));
        peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (connect(peer, (struct sockaddr *)&address, sizeof address)) fail("connect");
        owner = getpid();
    }
    if (send(peer, line, strlen(line), MSG_NOSIGNAL) < 0) fail("send");
    if (recv(peer, &reply, 1, 0) != 1) _exit(99);
}

/* The absolute path of a name in a folder; returns whether it is below the root. */
static int locate(int folder, const char *name, char *path) {
    const char *root = getenv("POWER_CUT_ROOT");
    char link[64], base[PATH_MAX] = "";
    size_t length = root ? strlen(root) : 0;
    if (!length || !name) return 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) return 0;
        base[size] = 0;
    }
    snprintf(path, PATH_MAX, "%s%s%s", base, base[0] && name[0] ? "/" : "", name);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* Run a call between the two lines about it if it concerns the root. */
#define AROUND(type, kind, folder1, name1, folder2, name2, call)                                     \
    do {                                                                                             \
        char first[PATH_MAX] = "", second[PATH_MAX] = "", line[2 * PATH_MAX + 32];                   \
        int error = errno, inside = locate(folder1, name1, first);                                   \
        inside |= locate(folder2, name2, second);                                                    \
        errno = error;                                                                               \
        if (!inside) return call;                                                                    \
        pthread_mutex_lock(&mutex);                                                                  \
        snprintf(line, sizeof line, "before\t%s\t%s\t%s", kind, first, second);                      \
        tell(line);                                                                                  \
        errno = error;                                                                               \
        type result = call;                                                                          \
        error = errno;                                                                               \
        memcpy(line, "after ", 6);                                                                   \
        tell(line);                                                                                  \
        pthread_mutex_unlock(&mutex);                                                                \
        errno = error;                                                                               \
        return result;                                                                               \
    } while (0)

#define ONE(kind, folder, name, call) AROUND(int, kind, folder, name, -1, NULL, call)

int fsync(int file) { ONE("sync", file, "", REAL(fsync)(file)); }
int fdatasync(int file) { ONE("sync", file, "", REAL(fdatasync)(file)); }
int ftruncate(int file, off_t size) { ONE("truncate", file, "", REAL(ftruncate)(file, size)); }
int ftruncate64(int file, off64_t size) { ONE("truncate", file, "", REAL(ftruncate64)(file, size)); }
int truncate(const char *name, off_t size) { ONE("truncate", AT_FDCWD, name, REAL(truncate)(name, size)); }
int unlink(const char *name) { ONE("unlink", AT_FDCWD, name, REAL(unlink)(name)); }
int unlinkat(int folder, const char *name, int flags) {
    ONE("unlink", folder, name, REAL(unlinkat)(folder, name, flags));
}
int remove(const char *name) { ONE("unlink", AT_FDCWD, name, REAL(remove)(name)); }
int rmdir(const char *name) { ONE("rmdir", AT_FDCWD, name, REAL(rmdir)(name)); }
int mkdir(const char *name, mode_t mode) { ONE("mkdir", AT_FDCWD, name, REAL(mkdir)(name, mode)); }
int mkdirat(int folder, const char *name, mode_t mode) { ONE("mkdir", folder, name, REAL(mkdirat)(folder, name, mode)); }
int rename(const char *from, const char *to) {
    AROUND(int, "rename", AT_FDCWD, from, AT_FDCWD, to, REAL(rename)(from, to));
}
int renameat(int folder1, const char *from, int folder2, const char *to) {
    AROUND(int, "rename", folder1, from, folder2, to, REAL(renameat)(folder1, from, folder2, to));
}
int renameat2(int folder1, const char *from, int folder2, const char *to, unsigned flags) {
    AROUND(int, "rename", folder1, from, folder2, to, REAL(renameat2)(folder1, from, folder2, to, flags));
}
int link(const char *from, const char *to) { AROUND(int, "link", AT_FDCWD, from, AT_FDCWD, to, REAL(link)(from, to)); }
int linkat(int folder1, const char *from, int folder2, const char *to, int flags) {
    AROUND(int, "link", folder1, from, folder2, to, REAL(linkat)(folder1, from, folder2, to, flags));
}

#define OPENS(flags) ((flags) & (O_CREAT | O_TRUNC))
#define KIND(flags) ((flags) & O_TRUNC ? "truncate" : "create")
#define OPEN(function)                                                                               \
    int function(const char *name, int flags, ...) {                                                 \
        va_list rest;                                                                                \
        va_start(rest, flags);                                                                       \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                                \
        if (!OPENS(flags)) return REAL(function)(name, flags, mode);                                 \
        ONE(KIND(flags), AT_FDCWD, name, REAL(function)(name, flags, mode));                         \
    }
#define OPENAT(function)                                                                             \
    int function(int folder, const char *name, int flags, ...) {                                     \
        va_list rest;                                                                                \
        va_start(rest, flags);                                                                       \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                                \
        if (!OPENS(flags)) return REAL(function)(folder, name, flags, mode);                         \
        ONE(KIND(flags), folder, name, REAL(function)(folder, name, flags, mode));                   \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(function)                                                                              \
    FILE *function(const char *name, const char *mode) {                                             \
        if (mode[0] != 'w' && mode[0] != 'a') return REAL(function)(name, mode);                     \
        AROUND(FILE *, mode[0] == 'w' ? "truncate" : "create", AT_FDCWD, name, -1, NULL,             \
               REAL(function)(name, mode));                                                          \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* Called by the process: everything that it did so far must survive. */
void power_cut_mark(const char *text) {
    char line[PATH_MAX];
    pthread_mutex_lock(&mutex);
    snprintf(line, sizeof line, "mark\t%s", text);
    tell(line);
    pthread_mutex_unlock(&mutex);
}
