// SPDX-License-Identifier: Apache-2.0
/*
 * The first and only process of the signature lab's guest.
 *
 *   /mods/N     modules that the kernel's crypto needs, loaded before enforcement
 *   /keys/N     certificates (DER), added to the secondary trusted keyring
 *   /cases/N.K  module files; K is f (finit_module) or i (init_module) and the flags
 *
 * Writes to the console: "mod NAME ERRNO", "key NAME ERRNO", "crypto NAME", "case N.K ERRNO",
 * and at last "done". An ERRNO of 0 is success. Then the machine ends.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int keyring;

static int result(long ret)
{
	return ret < 0 ? errno : 0;
}

static char *slurp(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	struct stat st = {};
	size_t have = 0;
	ssize_t got;
	char *data;

	if (fd < 0 || fstat(fd, &st))
		exit(1);
	data = malloc(st.st_size + 1);
	while ((got = read(fd, data + have, st.st_size - have)) > 0)
		have += got;
	close(fd);
	*size = have;
	return data;
}

static void load_module(const char *path, const char *name)
{
	int fd = open(path, O_RDONLY);
	long ret = syscall(SYS_finit_module, fd, "", 0);

	printf("mod %s %d\n", name, result(ret));
	close(fd);
}

static void add_key(const char *path, const char *name)
{
	size_t size;
	char *data = slurp(path, &size);
	long ret = syscall(SYS_add_key, "asymmetric", NULL, data, size, keyring);

	printf("key %s %d\n", name, result(ret));
	free(data);
}

static void load_case(const char *path, const char *name)
{
	const char *kind = strrchr(name, '.') + 1;
	long ret;

	if (kind[0] == 'i') {
		size_t size;
		char *data = slurp(path, &size);

		ret = syscall(SYS_init_module, data, size, "");
		printf("case %s %d\n", name, result(ret));
		free(data);
		return;
	}
	int fd = open(path, O_RDONLY);

	ret = syscall(SYS_finit_module, fd, "", atoi(kind + 1));
	printf("case %s %d\n", name, result(ret));
	close(fd);
}

static void each(const char *folder, void (*visit)(const char *path, const char *name))
{
	struct dirent **entries;
	int count = scandir(folder, &entries, NULL, alphasort);
	char path[512];

	for (int i = 0; i < count; i++) {
		if (entries[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
		visit(path, entries[i]->d_name);
	}
}

/* Lines of a file that begin with a word; `visit` gets each. */
static void lines(const char *path, void (*visit)(const char *line))
{
	FILE *file = fopen(path, "r");
	char line[512];

	while (file && fgets(line, sizeof(line), file))
		visit(line);
	if (file)
		fclose(file);
}

static void find_keyring(const char *line)
{
	if (strstr(line, ".secondary_trusted_keys"))
		keyring = (int)strtoul(line, NULL, 16);
}

static void tell_algorithm(const char *line)
{
	char name[128];

	if (sscanf(line, "name : %127s", name) == 1)
		printf("crypto %s\n", name);
}

int main(void)
{
	int fd;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	each("/mods", load_module);
	lines("/proc/keys", find_keyring);
	each("/keys", add_key);
	/* Not on the command line: the modules above are signed by a key that was taken away. */
	fd = open("/sys/module/module/parameters/sig_enforce", O_WRONLY);
	if (fd >= 0 && write(fd, "1", 1) == 1)
		printf("enforcing\n");
	each("/cases", load_case);
	lines("/proc/crypto", tell_algorithm);
	printf("done\n");
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	return 0;
}
