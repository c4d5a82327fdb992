// Faults at file operations, for benchmarks/faults.py: a library to preload. Once armed, it counts the operations that
// change what lies below a folder; at the n-th one the process is killed, or from it on whatever needs space fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long count, fatal_at, full_from;

void faults_arm(const char *below, long kill_at, long no_space_from) {
  count = 0, fatal_at = kill_at, full_from = no_space_from;
  snprintf(folder, sizeof folder, "%s", below);
}

long faults_count(void) { return count; }

// Whether this operation on this path fails. `space`: it needs room on the disk.
static int fails(const char *path, int space) {
  if (!folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
  long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (fatal_at && now == fatal_at) kill(getpid(), SIGKILL), pause();
  if (full_from && now >= full_from && space) return errno = ENOSPC, 1;
  return 0;
}

static int file_fails(int descriptor) {
  if (!folder[0] || descriptor <= 2) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return fails(path, 1);
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                            \
  int name(const char *path, int flags, ...) {                                \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;   \
    va_end(rest);                                                             \
    if (flags & O_CREAT && fails(path, 1)) return -1;                         \
    return NEXT(int, name, const char *, int, ...)(path, flags, mode);        \
  }
OPEN(open)
OPEN(open64)

#define OPEN_AT(name)                                                         \
  int name(int at, const char *path, int flags, ...) {                        \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;   \
    va_end(rest);                                                             \
    if (flags & O_CREAT && fails(path, 1)) return -1;                         \
    return NEXT(int, name, int, const char *, int, ...)(at, path, flags, mode); \
  }
OPEN_AT(openat)
OPEN_AT(openat64)

#define ON_FILE(type, name, failed, declared, ...)                            \
  type name declared {                                                        \
    if (file_fails(descriptor)) return failed;                                \
    return ((type(*) declared)dlsym(RTLD_NEXT, #name))(__VA_ARGS__);          \
  }
ON_FILE(ssize_t, write, -1, (int descriptor, const void *bytes, size_t n), descriptor, bytes, n)
ON_FILE(ssize_t, writev, -1, (int descriptor, const struct iovec *parts, int n), descriptor, parts, n)
ON_FILE(ssize_t, pwrite64, -1, (int descriptor, const void *bytes, size_t n, off64_t at), descriptor, bytes, n, at)
ON_FILE(int, fsync, -1, (int descriptor), descriptor)
ON_FILE(int, fdatasync, -1, (int descriptor), descriptor)
ON_FILE(int, ftruncate64, -1, (int descriptor, off64_t length), descriptor, length)

#define ON_PATH(name, space, declared, path, ...)                             \
  int name declared {                                                         \
    if (fails(path, space)) return -1;                                        \
    return ((int(*) declared)dlsym(RTLD_NEXT, #name))(__VA_ARGS__);           \
  }
ON_PATH(mkdir, 1, (const char *path, mode_t mode), path, path, mode)
ON_PATH(rename, 0, (const char *from, const char *to), to, from, to)
ON_PATH(renameat, 0, (int a, const char *from, int b, const char *to), to, a, from, b, to)
ON_PATH(unlink, 0, (const char *path), path, path)
ON_PATH(unlinkat, 0, (int at, const char *path, int flags), path, at, path, flags)
ON_PATH(rmdir, 0, (const char *path), path, path)
