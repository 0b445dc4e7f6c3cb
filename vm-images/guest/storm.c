// SPDX-License-Identifier: Apache-2.0
/*
 * A storm of module loads, for counting what comes of them.
 *
 *   storm PROCESSES ATTEMPTS MODULE HOLD FILE...
 *
 * PROCESSES loaders make ATTEMPTS loads in all. Each load takes one of the files at random, by
 * finit_module or by init_module. A loader whose load of MODULE succeeds keeps it for HOLD attempts
 * and removes it then, so that others find it loaded meanwhile. Prints, for each file, call and
 * errno that occurred: "INDEX CALL ERRNO COUNT", CALL being f or i and ERRNO 0 for success; and at
 * last "done". The counts add up to ATTEMPTS, or there is no "done".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_FILES 32
#define MAX_ERRNO 4096

struct file {
	int fd;
	void *data;
	size_t size;
};

struct tally {
	unsigned long counts[MAX_FILES][2][MAX_ERRNO];
};

static struct file files[MAX_FILES];
static int file_count;

static void fail(const char *what)
{
	perror(what);
	exit(3);
}

static void open_file(const char *path)
{
	struct file *file = &files[file_count++];
	struct stat st;

	file->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (file->fd < 0 || fstat(file->fd, &st))
		fail(path);
	file->size = st.st_size;
	file->data = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file->fd, 0);
	if (file->data == MAP_FAILED)
		fail(path);
}

/* xorshift: the same storm every time, as far as the loaders go. */
static uint32_t next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void unload(const char *module)
{
	/* In use for a moment, or another loader was faster: both end by themselves. */
	while (syscall(SYS_delete_module, module, O_NONBLOCK) && errno != ENOENT)
		sched_yield();
}

static void load_on(struct tally *tally, uint32_t state, long attempts, const char *module, long hold)
{
	long remove_at = -1;

	for (long n = 0; n < attempts; n++) {
		uint32_t random = next(&state);
		int index = (random >> 8) % file_count, memory = random & 1;
		struct file *file = &files[index];
		long ret;

		if (memory)
			ret = syscall(SYS_init_module, file->data, file->size, "");
		else
			ret = syscall(SYS_finit_module, file->fd, "", 0);
		__atomic_fetch_add(&tally->counts[index][memory][ret ? errno : 0], 1, __ATOMIC_RELAXED);
		if (!ret)
			remove_at = n + hold;
		if (n == remove_at)
			unload(module);
	}
	if (remove_at >= attempts)
		unload(module);
}

static long told(const struct tally *tally)
{
	long total = 0;

	for (int index = 0; index < file_count; index++) {
		for (int memory = 0; memory < 2; memory++) {
			for (int error = 0; error < MAX_ERRNO; error++) {
				unsigned long count = tally->counts[index][memory][error];

				if (count)
					printf("%d %c %d %lu\n", index, memory ? 'i' : 'f', error, count);
				total += count;
			}
		}
	}
	return total;
}

int main(int argc, char **argv)
{
	struct tally *tally;
	long processes, attempts, hold;

	if (argc < 6 || argc - 5 > MAX_FILES) {
		fprintf(stderr, "usage: storm PROCESSES ATTEMPTS MODULE HOLD FILE... (at most %d)\n",
			MAX_FILES);
		return 2;
	}
	processes = atol(argv[1]);
	attempts = atol(argv[2]);
	hold = atol(argv[4]);
	for (int i = 5; i < argc; i++)
		open_file(argv[i]);
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tally == MAP_FAILED)
		fail("mmap");
	for (long i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child < 0)
			fail("fork");
		if (!child) {
			load_on(tally, 2654435761u * (i + 1),
				attempts / processes + (i < attempts % processes), argv[3], hold);
			_exit(0);
		}
	}
	for (long i = 0; i < processes; i++) {
		int status;

		if (wait(&status) < 0 || status)
			return 1;
	}
	if (told(tally) != attempts)
		return 1;
	puts("done");
	return 0;
}
