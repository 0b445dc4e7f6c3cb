// SPDX-License-Identifier: Apache-2.0
/*
 * The only program of the cluster test's own image: `pause` waits for SIGTERM, `load FILE` asks the
 * kernel to load a module and says what came of it, and when, as one line of JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void leave(int number)
{
	(void)number;
	_exit(0);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_REALTIME, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	double before, after;
	int error = 0;

	if (fd < 0) {
		perror(path);
		return 2;
	}
	before = now();
	if (syscall(SYS_finit_module, fd, "", 0) != 0)
		error = errno;
	after = now();
	printf("{\"errno\": %d, \"before\": %.6f, \"after\": %.6f}\n", error, before, after);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "load") == 0)
		return load(argv[2]);
	signal(SIGTERM, leave);
	signal(SIGINT, leave);
	for (;;)
		pause();
}
