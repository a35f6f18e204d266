/* A shim for LD_PRELOAD: the n-th call of one kind on a file below a folder fails, or kills.
   FAULT_FOLDER, FAULT_CALL (write, fsync, link, rename, open), FAULT_AT (1, 2, ...),
   FAULT_KIND (ENOSPC, EIO, EINTR, short, kill). FAULT_COUNT names a file to count the calls in. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int calls;

static int below(const char *path) {
  const char *folder = getenv("FAULT_FOLDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int below_descriptor(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

/* 0: go on; 1: fail with errno; 2: write less than asked for. */
static int struck(const char *call) {
  const char *wanted = getenv("FAULT_CALL"), *kind = getenv("FAULT_KIND");
  if (!wanted || strcmp(wanted, call)) return 0;
  if (__sync_add_and_fetch(&calls, 1) != atoi(getenv("FAULT_AT"))) return 0;
  const char *told = getenv("FAULT_TOLD");
  if (told) close(creat(told, 0600));
  if (!strcmp(kind, "kill")) raise(SIGKILL);
  if (!strcmp(kind, "short")) return 2;
  errno = !strcmp(kind, "ENOSPC") ? ENOSPC : !strcmp(kind, "EINTR") ? EINTR : EIO;
  return 1;
}

ssize_t write(int descriptor, const void *data, size_t size) {
  static ssize_t (*next)(int, const void *, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "write");
  int fault = below_descriptor(descriptor) ? struck("write") : 0;
  if (fault == 1) return -1;
  return next(descriptor, data, fault == 2 && size > 1 ? size / 2 : size);
}

int fsync(int descriptor) {
  static int (*next)(int);
  if (!next) next = dlsym(RTLD_NEXT, "fsync");
  return below_descriptor(descriptor) && struck("fsync") ? -1 : next(descriptor);
}

int linkat(int from, const char *source, int to, const char *target, int flags) {
  static int (*next)(int, const char *, int, const char *, int);
  if (!next) next = dlsym(RTLD_NEXT, "linkat");
  return below(target) && struck("link") ? -1 : next(from, source, to, target, flags);
}

int rename(const char *source, const char *target) {
  static int (*next)(const char *, const char *);
  if (!next) next = dlsym(RTLD_NEXT, "rename");
  return below(target) && struck("rename") ? -1 : next(source, target);
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
  int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
  if ((flags & (O_WRONLY | O_RDWR)) && below(path) && struck("open")) return -1;
  return next(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = va_arg(more, mode_t);
  va_end(more);
  return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = va_arg(more, mode_t);
  va_end(more);
  return opened("open64", path, flags, mode);
}
