// Preloaded into a process, makes each read of a file whose path holds HUNG_FILE hang for ever, as on a file system that is gone.
// HUNG_MARK appears when one does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void hang_if_chosen(int file) {
  const char* chosen = getenv("HUNG_FILE");
  char link[64];
  char path[4096];
  if (chosen == NULL) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return;
  path[length] = 0;
  if (strstr(path, chosen) == NULL) return;
  close(creat(getenv("HUNG_MARK"), 0600));
  for (;;) pause();
}

ssize_t read(int file, void* bytes, size_t count) {
  hang_if_chosen(file);
  return ((ssize_t(*)(int, void*, size_t))dlsym(RTLD_NEXT, "read"))(file, bytes, count);
}

ssize_t pread(int file, void* bytes, size_t count, off_t offset) {
  hang_if_chosen(file);
  return ((ssize_t(*)(int, void*, size_t, off_t))dlsym(RTLD_NEXT, "pread"))(file, bytes, count, offset);
}

ssize_t pread64(int file, void* bytes, size_t count, off64_t offset) {
  hang_if_chosen(file);
  return ((ssize_t(*)(int, void*, size_t, off64_t))dlsym(RTLD_NEXT, "pread64"))(file, bytes, count, offset);
}
