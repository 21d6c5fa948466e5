/* Records every change of the files below a folder, for LD_PRELOAD: `crash_points_arm(folder, log)` begins to write the
   operations of this process to a log, in their order. `crash_points_no_sync()` makes flushes do nothing, as no test cuts
   the power while it runs.

   A record is the operation (a letter), two numbers of 64 bits, the lengths of two strings (32 bits), and the strings:

   C inode, path            a new file             M path          a new folder
   W inode, offset, bytes   written                R path          a removed folder
   T inode, size            truncated or extended  U path          a removed name of a file
   F inode, size            a flushed file         N path, path    renamed
   O path                   an opened file
   D -, names, path         a flushed folder       L path, path    a hard link     S target, path   a symbolic link

   What it does not see: writes of C's stdio (fwrite), and of a memory map before its file is flushed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int armed, no_sync, log_fd, mapped_count;
static char folder[PATH_MAX];
static ino_t mapped[1024];
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

int crash_points_arm(const char *below, const char *log) {
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, fd);
    snprintf(folder, sizeof folder, "%s", below);
    armed = log_fd >= 0;
    return armed;
}

void crash_points_no_sync(void) { no_sync = 1; }

static int inside(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* The path of a descriptor, or 0 if it is not one of the folder. */
static int path_of(int fd, char *path) {
    char name[64];
    if (!armed) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(name, path, PATH_MAX - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* The absolute path of a name, or 0 if it is not in the folder. */
static int resolve(int at, const char *name, char *path) {
    if (!armed || !name) return 0;
    char base[PATH_MAX] = "";
    int before = errno;
    if (name[0] != '/') {
        if (at == AT_FDCWD) {
            if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t length = readlink(link, base, sizeof base - 1);
            base[length < 0 ? 0 : length] = 0;
        }
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    snprintf(path, PATH_MAX, "%s%s", base, name);
    errno = before;
    return inside(path);
}

static void put(const void *bytes, size_t length) {
    while (length) {
        ssize_t written = syscall(SYS_write, log_fd, bytes, length);
        if (written < 0) abort();
        bytes = (const char *)bytes + written, length -= written;
    }
}

static void begin(void) { pthread_mutex_lock(&order); }

static void record(char what, uint64_t one, uint64_t two, const void *a, uint32_t length_a, const void *b, uint32_t length_b) {
    int before = errno;
    char head[25];
    head[0] = what;
    memcpy(head + 1, &one, 8), memcpy(head + 9, &two, 8), memcpy(head + 17, &length_a, 4), memcpy(head + 21, &length_b, 4);
    put(head, sizeof head), put(a, length_a), put(b, length_b);
    errno = before;
}

static long end(long result) {
    pthread_mutex_unlock(&order);
    return result;
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

/* Names. */

static int two(char what, int at, const char *from, int to_at, const char *to, long (*change)(int, const char *, int, const char *, int), int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    int known = resolve(at, from, a) | resolve(to_at, to, b);
    if (!known) return change(at, from, to_at, to, flags);
    begin();
    long result = change(at, from, to_at, to, flags);
    if (result == 0) record(what, 0, 0, a, strlen(a), b, strlen(b));
    return end(result);
}

static long rename_(int at, const char *from, int to_at, const char *to, int flags) { return syscall(SYS_renameat2, at, from, to_at, to, flags); }
static long link_(int at, const char *from, int to_at, const char *to, int flags) { return syscall(SYS_linkat, at, from, to_at, to, flags); }
int rename(const char *from, const char *to) { return two('N', AT_FDCWD, from, AT_FDCWD, to, rename_, 0); }
int renameat(int at, const char *from, int to_at, const char *to) { return two('N', at, from, to_at, to, rename_, 0); }
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags) { return two('N', at, from, to_at, to, rename_, flags); }
int link(const char *from, const char *to) { return two('L', AT_FDCWD, from, AT_FDCWD, to, link_, 0); }
int linkat(int at, const char *from, int to_at, const char *to, int flags) { return two('L', at, from, to_at, to, link_, flags); }

int symlinkat(const char *target, int at, const char *name) {
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return syscall(SYS_symlinkat, target, at, name);
    begin();
    long result = syscall(SYS_symlinkat, target, at, name);
    if (result == 0) record('S', 0, 0, target, strlen(target), path, strlen(path));
    return end(result);
}
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int unlinkat(int at, const char *name, int flags) {
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return syscall(SYS_unlinkat, at, name, flags);
    begin();
    long result = syscall(SYS_unlinkat, at, name, flags);
    if (result == 0) record(flags & AT_REMOVEDIR ? 'R' : 'U', 0, 0, path, strlen(path), "", 0);
    return end(result);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    if (unlink(name) == 0) return 0;
    return errno == EISDIR ? rmdir(name) : -1;
}

int mkdirat(int at, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return syscall(SYS_mkdirat, at, name, mode);
    begin();
    long result = syscall(SYS_mkdirat, at, name, mode);
    if (result == 0) record('M', 0, 0, path, strlen(path), "", 0);
    return end(result);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* Opening. */

/* What is known of a file before it is opened: 0 absent, 1 there. */
static int there(const char *path) {
    struct stat found;
    int before = errno, result = stat(path, &found) == 0;
    errno = before;
    return result;
}

static void opened(int fd, const char *path, int known, int truncated) {
    if (fd < 0) return;
    if (!known) record('C', inode_of(fd), 0, path, strlen(path), "", 0);
    else if (truncated) record('T', inode_of(fd), 0, "", 0, "", 0);
    else record('O', 0, 0, path, strlen(path), "", 0);
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
int openat(int at, const char *name, int flags, ...) {
    MODE(flags, mode)
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return syscall(SYS_openat, at, name, flags, mode);
    begin();
    int known = there(path), fd = syscall(SYS_openat, at, name, flags, mode);
    opened(fd, path, known, flags & O_TRUNC);
    return end(fd);
}
int openat64(int at, const char *name, int flags, ...) { MODE(flags, mode) return openat(at, name, flags, mode); }
int open(const char *name, int flags, ...) { MODE(flags, mode) return openat(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags, mode) return openat(AT_FDCWD, name, flags, mode); }
int creat(const char *name, mode_t mode) { return openat(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

static FILE *stdio(const char *symbol, const char *name, const char *mode) { /* C++ opens its streams so */
    FILE *(*real)(const char *, const char *) = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, symbol);
    char path[PATH_MAX];
    if (!resolve(AT_FDCWD, name, path)) return real(name, mode);
    begin();
    int known = there(path);
    FILE *file = real(name, mode);
    if (file) opened(fileno(file), path, known, mode[0] == 'w');
    end(0);
    return file;
}
FILE *fopen(const char *name, const char *mode) { return stdio("fopen", name, mode); }
FILE *fopen64(const char *name, const char *mode) { return stdio("fopen64", name, mode); }

/* Contents. */

static off_t place(int fd) {
    struct stat found;
    if (syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) return fstat(fd, &found) ? 0 : found.st_size;
    return syscall(SYS_lseek, fd, 0, SEEK_CUR);
}

static ssize_t written(int fd, off_t offset, const char *bytes, ssize_t result) {
    if (result > 0) record('W', inode_of(fd), offset, bytes, result, "", 0);
    return end(result);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_write, fd, bytes, length);
    begin();
    off_t offset = place(fd);
    return written(fd, offset, bytes, syscall(SYS_write, fd, bytes, length));
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_pwrite64, fd, bytes, length, offset);
    begin();
    return written(fd, offset, bytes, syscall(SYS_pwrite64, fd, bytes, length, offset));
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) { return pwrite(fd, bytes, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_writev, fd, parts, count);
    size_t length = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    char *bytes = malloc(length + 1), *at = bytes;
    for (int i = 0; i < count; i++) memcpy(at, parts[i].iov_base, parts[i].iov_len), at += parts[i].iov_len;
    ssize_t result = write(fd, bytes, length);
    free(bytes);
    return result;
}

static int unsupported(void) { /* the caller reads and writes instead */
    errno = EINVAL;
    return -1;
}
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    char path[PATH_MAX];
    return path_of(out, path) ? unsupported() : syscall(SYS_sendfile, out, in, offset, count);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t count) { return sendfile(out, in, offset, count); }
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags) {
    char path[PATH_MAX];
    return path_of(out, path) ? unsupported() : syscall(SYS_copy_file_range, in, from, out, to, count, flags);
}

int ftruncate(int fd, off_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_ftruncate, fd, size);
    begin();
    int result = syscall(SYS_ftruncate, fd, size);
    if (result == 0) record('T', inode_of(fd), size, "", 0, "", 0);
    return end(result);
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int posix_fallocate(int fd, off_t offset, off_t length) {
    char path[PATH_MAX];
    int known = path_of(fd, path);
    if (known) begin();
    int result = syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
    struct stat found;
    if (known && result == 0 && fstat(fd, &found) == 0) record('T', found.st_ino, found.st_size, "", 0, "", 0);
    return known ? end(result) : result;
}
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    char path[PATH_MAX];
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && path_of(fd, path) && mapped_count < 1024)
        mapped[mapped_count++] = inode_of(fd);
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}

/* Record what was written to a file through a memory map. */
static void record_map(int fd) {
    uint64_t inode = inode_of(fd);
    int found = 0;
    for (int i = 0; i < mapped_count; i++) found |= mapped[i] == inode;
    if (!found) return;
    char name[64], block[1 << 16];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int reader = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    off_t offset = 0;
    ssize_t got;
    while ((got = syscall(SYS_pread64, reader, block, sizeof block, offset)) > 0) {
        record('W', inode, offset, block, got, "", 0);
        offset += got;
    }
    syscall(SYS_close, reader);
}

static uint64_t names_in(const char *path) {
    DIR *folder = opendir(path);
    uint64_t count = 0;
    while (folder && readdir(folder)) count++;
    if (folder) closedir(folder);
    return count - 2; /* . and .. */
}

int fsync(int fd) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return no_sync ? 0 : syscall(SYS_fsync, fd);
    begin();
    struct stat found;
    if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode)) {
        record('D', 0, names_in(path), path, strlen(path), "", 0);
    } else {
        record_map(fd);
        record('F', found.st_ino, found.st_size, "", 0, "", 0);
    }
    return end(no_sync ? 0 : syscall(SYS_fsync, fd));
}
int fdatasync(int fd) { return fsync(fd); }
