/* Linked into wheels by build_wheels.sh, so that they run on systems whose glibc is older than the builder's.
 *
 * A static libstdc++ asks for a few functions in the version that the builder's glibc has. Those that exist
 * in old versions too are asked for in the oldest; the two newer ones are made here of old ones. What is
 * defined here is hidden: only this module uses it.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#ifdef __aarch64__
#define OLDEST "GLIBC_2.17"
#else
#define OLDEST "GLIBC_2.2.5"
#endif
#define OLD(name) __asm__(".symver old_" #name ", " #name "@" OLDEST)
#define HIDDEN __attribute__((visibility("hidden")))

OLD(pthread_create);
OLD(pthread_join);
OLD(pthread_once);
OLD(__pthread_key_create);

int old_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int old_pthread_join(pthread_t, void **);
int old_pthread_once(pthread_once_t *, void (*)(void));
int old___pthread_key_create(pthread_key_t *, void (*)(void *));

HIDDEN int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *with) {
  return old_pthread_create(thread, attributes, run, with);
}
HIDDEN int pthread_join(pthread_t thread, void **result) { return old_pthread_join(thread, result); }
HIDDEN int pthread_once(pthread_once_t *once, void (*run)(void)) { return old_pthread_once(once, run); }
HIDDEN int __pthread_key_create(pthread_key_t *key, void (*destroy)(void *)) {
  return old___pthread_key_create(key, destroy);
}

/* glibc 2.32: true while a process has one thread. Never said here, so counts are always atomic. */
HIDDEN char __libc_single_threaded = 0;

/* glibc 2.30: a deadline by any clock. The wait of the same length by the wall clock may end early or late
 * where that clock is set; callers wait in short turns and look at their own clock again. */
HIDDEN int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                                  const struct timespec *deadline) {
  struct timespec now, wall;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &wall);
  wall.tv_sec += deadline->tv_sec - now.tv_sec;
  wall.tv_nsec += deadline->tv_nsec - now.tv_nsec;
  if (wall.tv_nsec < 0) {
    wall.tv_nsec += 1000000000;
    wall.tv_sec -= 1;
  } else if (wall.tv_nsec >= 1000000000) {
    wall.tv_nsec -= 1000000000;
    wall.tv_sec += 1;
  }
  return pthread_cond_timedwait(condition, mutex, &wall);
}
