/* A file system without hard links, locks and flushes of folders, for LD_PRELOAD: below $POOR_FOLDER, link, flock and
   the locks of fcntl fail with the error number $POOR_ERRNO, and fsync of a folder with EINVAL. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int below(const char *path) {
    const char *folder = getenv("POOR_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int inside(int fd) {
    char name[64], path[PATH_MAX + 1];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int failed(void) {
    errno = atoi(getenv("POOR_ERRNO"));
    return -1;
}

int link(const char *from, const char *to) {
    if (below(to)) return failed();
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link"))(from, to);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    if (below(to)) return failed();
    return ((int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat"))(from_fd, from, to_fd, to, flags);
}

int flock(int fd, int operation) {
    if (inside(fd)) return failed();
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

static int control(const char *symbol, int fd, int command, void *argument) {
    if ((command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) && inside(fd))
        return failed();
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, symbol))(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return control("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return control("fcntl64", fd, command, argument);
}

int fsync(int fd) {
    struct stat found;
    if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode) && inside(fd)) {
        errno = EINVAL;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
