// SPDX-License-Identifier: Apache-2.0
/*
 * Runs inside the guest: the calls whose cost is measured, and a clock around each.
 *
 *   loader load FILE MODULE COUNT alone|among   loads and unloads; a line "nanoseconds result" each
 *   loader calls COUNT                          other system calls; a line "name nanoseconds" each
 *
 * There is one processor. "alone": no other task runs before the call is over (SCHED_FIFO), so that
 * the time is that of the call. "among": as any task, so that whoever is woken by the call may
 * run before it returns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Long enough for the agent to read its ring and go back to sleep. */
#define SETTLE_MICROSECONDS 60000

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int alone(void)
{
	struct sched_param parameters = { .sched_priority = 50 };

	if (sched_setscheduler(0, SCHED_FIFO, &parameters)) {
		perror("SCHED_FIFO");
		return 1;
	}
	return 0;
}

static int load(const char *file, const char *module, int count)
{
	for (int i = 0; i < count; i++) {
		int fd = open(file, O_RDONLY | O_CLOEXEC), result;
		long long start;

		if (fd < 0) {
			perror(file);
			return 1;
		}
		start = now();
		result = syscall(SYS_finit_module, fd, "", 0) ? errno : 0;
		start = now() - start;
		close(fd);
		usleep(SETTLE_MICROSECONDS);
		if (!result && syscall(SYS_delete_module, module, O_NONBLOCK)) {
			perror(module);
			return 1;
		}
		usleep(SETTLE_MICROSECONDS);
		printf("%lld %s\n", start, result ? strerrorname_np(result) : "ok");
	}
	return 0;
}

#define MEASURE(name, call)                                                           \
	do {                                                                          \
		long long start = now();                                              \
		for (int i = 0; i < count; i++)                                       \
			call;                                                         \
		printf("%s %.3f\n", name, (double)(now() - start) / (double)(count)); \
	} while (0)

static int calls(int count)
{
	static char page[4096];
	int fd = open("/usr/bin/env", O_RDONLY | O_CLOEXEC), sink = 0;

	if (fd < 0 || pread(fd, page, sizeof(page), 0) != sizeof(page)) {
		perror("/usr/bin/env");
		return 1;
	}
	MEASURE("getpid", sink += syscall(SYS_getpid));
	MEASURE("pread of a page", sink += pread(fd, page, sizeof(page), 0));
	MEASURE("openat and close", sink += close(open("/usr/bin/env", O_RDONLY | O_CLOEXEC)));
	return sink == -1;
}

/* What any other program does that wants to know of changes in one directory of this file system. */
static int watch(void)
{
	if (inotify_add_watch(inotify_init1(IN_CLOEXEC), "/", IN_CREATE) >= 0)
		return 0;
	perror("inotify");
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "load") && !strcmp(argv[5], "among"))
		return load(argv[2], argv[3], atoi(argv[4]));
	if (argc == 6 && !strcmp(argv[1], "load") && !strcmp(argv[5], "alone"))
		return alone() || load(argv[2], argv[3], atoi(argv[4]));
	if (argc == 3 && !strcmp(argv[1], "calls"))
		return alone() || calls(atoi(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "calls") && !strcmp(argv[3], "watched"))
		return alone() || watch() || calls(atoi(argv[2]));
	fprintf(stderr, "usage: loader load FILE MODULE COUNT alone|among | loader calls COUNT [watched]\n");
	return 2;
}
