/* Makes opens of paths with a given part fail with a given errno, a given number of times. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/types.h>

static char part[512];
static int number, most;
static atomic_int failed;

void errnos_arm(const char *path, int error, int times) {
  strncpy(part, path, sizeof part - 1);
  number = error, most = times, failed = 0;
}

int errnos_failed(void) { return failed; }

static int fails(const char *path) {
  if (!part[0] || !path || !strstr(path, part)) return 0;
  if (atomic_fetch_add(&failed, 1) >= most) { atomic_fetch_sub(&failed, 1); return 0; }
  errno = number;
  return 1;
}

#define MODE va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list)

#define OPEN(name) int name(const char *path, int flags, ...) { \
  MODE; static int (*real)(const char *, int, ...); \
  if (!real) real = dlsym(RTLD_NEXT, #name); \
  return fails(path) ? -1 : real(path, flags, mode); }
OPEN(open) OPEN(open64)

#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
  MODE; static int (*real)(int, const char *, int, ...); \
  if (!real) real = dlsym(RTLD_NEXT, #name); \
  return fails(path) ? -1 : real(folder, path, flags, mode); }
OPENAT(openat) OPENAT(openat64)
