// SPDX-License-Identifier: Apache-2.0
/*
 * Module loads that LoadPin has something to say about, each with the errno that came of it. The
 * same program asks the real LoadPin, as the first process of a small kernel, and kmodgate, as a
 * command in a guest with Debian's kernel.
 *
 *   loadpin-cases DEVICE PHASE...     run phases; DEVICE holds the ext4 file system to pin
 *   as process 1                      the device and the phases stand on the kernel command line,
 *                                     as loadpin.device= and loadpin.phases=A,B
 *
 * The file system to pin is mounted on /pin. In it:
 *
 *   name          what the modules are called when loaded
 *   good.ko       a module that the kernel's keyrings trust
 *   unsigned.ko   without signature
 *   bad.ko        with one byte changed after it was signed
 *   garbage       no module at all
 *   empty         nothing
 *   plain.img     an ext4 image with good.ko
 *   verity.img    another one, and verity.hash, its tree; verity.table has the dm-verity table
 *                 with %1 and %2 where the two devices belong
 *   digests       its root digest, in LoadPin's format
 *
 * Writes "case NAME ERRNO" (0 for success) and "phase NAME" at the end of each; "fail WHAT ERRNO"
 * when a step that is no load goes wrong, and ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIN "/pin"
#define ROOM "/room" /* a tmpfs for mount points and copies */
#define LOADPIN "/sys/kernel/security/loadpin/dm-verity"
#define LOADPIN_SET_DIGESTS _IOW('L', 0x00, unsigned int) /* include/uapi/linux/loadpin.h */

static const char *pinned_device;
static char module_name[56];
static int patience; /* seconds in which what is to change may change: kmodgate looks once a second */

static void finish(int status)
{
	fflush(stdout);
	if (getpid() == 1)
		reboot(RB_AUTOBOOT);
	exit(status);
}

static void fail(const char *what)
{
	printf("fail %s %d\n", what, errno);
	finish(1);
}

static void need(long result, const char *what)
{
	if (result < 0)
		fail(what);
}

/* Never freed: the program is short, and what it names lives as long. */
static const char *format(const char *text, ...)
{
	va_list arguments;
	char *buffer;

	va_start(arguments, text);
	need(vasprintf(&buffer, text, arguments), "memory");
	va_end(arguments);
	return buffer;
}

/* --- loads ------------------------------------------------------------------------------ */

static int unload(int result)
{
	if (!result)
		need(syscall(SYS_delete_module, module_name, O_NONBLOCK), "unload");
	return result;
}

static int load_fd(int fd, unsigned int flags)
{
	return unload(syscall(SYS_finit_module, fd, "", flags) ? errno : 0);
}

static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result;

	need(fd, path);
	result = load_fd(fd, 0);
	close(fd);
	return result;
}

static char *slurp(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *data;

	need(fd, path);
	need(fstat(fd, &st), path);
	data = calloc(1, st.st_size + 1);
	if (read(fd, data, st.st_size) != st.st_size)
		fail(path);
	close(fd);
	*size = st.st_size;
	return data;
}

static int load_memory(const char *path, size_t limit)
{
	size_t size;
	char *data = slurp(path, &size);
	int result;

	result = unload(syscall(SYS_init_module, data, size < limit ? size : limit, "") ? errno : 0);
	free(data);
	return result;
}

static void tell(const char *name, int result)
{
	printf("case %s %d\n", name, result);
	fflush(stdout);
}

/* Loads until it comes out as it should in the end, or patience is over; tells the last result. */
static void settle(const char *name, const char *path, int wanted)
{
	time_t end = time(NULL) + patience;
	int result;

	while ((result = load(path)) != wanted && time(NULL) < end)
		usleep(50000);
	tell(name, result);
}

/* --- files and mounts ------------------------------------------------------------------- */

static void copy_to(int out, const char *from)
{
	size_t size;
	char *data = slurp(from, &size);

	if (write(out, data, size) != (ssize_t)size)
		fail(from);
	free(data);
}

static const char *copy(const char *from, const char *to)
{
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	need(out, to);
	copy_to(out, from);
	close(out);
	return to;
}

static const char *folder(const char *name)
{
	const char *path = format(ROOM "/%s", name);

	if (mkdir(path, 0755) && errno != EEXIST)
		fail(path);
	return path;
}

static void put(const char *device, const char *point)
{
	need(mount(device, point, "ext4", MS_RDONLY, NULL), point);
}

static void take(const char *point)
{
	time_t end = time(NULL) + patience;

	/* Whoever looks at it may hold it for a moment. */
	while (umount(point)) {
		if (errno != EBUSY || time(NULL) > end)
			fail(point);
		usleep(20000);
	}
}

/* A second way to a descriptor's file, opened for reading only. */
static int reopen(int fd)
{
	int again = open(format("/proc/self/fd/%d", fd), O_RDONLY | O_CLOEXEC);

	need(again, "reopen");
	return again;
}

/* A loop device on a file; *holder is its descriptor, which ends it when closed. */
static const char *loop(const char *path, int *holder)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), number;
	struct loop_config config = { .info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR };
	const char *device;

	need(control, "loop-control");
	number = ioctl(control, LOOP_CTL_GET_FREE);
	need(number, "free loop device");
	close(control);
	device = format("/dev/loop%d", number);
	*holder = open(device, O_RDONLY | O_CLOEXEC);
	need(*holder, device);
	config.fd = open(path, O_RDONLY | O_CLOEXEC);
	need(config.fd, path);
	need(ioctl(*holder, LOOP_CONFIGURE, &config), "loop device");
	close(config.fd);
	return device;
}

/* --- device mapper ---------------------------------------------------------------------- */

struct request {
	struct dm_ioctl head;
	struct dm_target_spec target;
	char words[1024];
};

static unsigned long long mapper(unsigned int command, const char *name, unsigned int flags, const char *kind,
				 unsigned long long sectors, const char *table)
{
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	struct request request = {
		.head = {
			.version = { 4, 0, 0 },
			.data_size = sizeof(request),
			.data_start = sizeof(request.head),
			.target_count = table ? 1 : 0,
			.flags = flags,
		},
		.target = { .length = sectors },
	};

	need(control, "/dev/mapper/control");
	strncpy(request.head.name, name, sizeof(request.head.name) - 1);
	if (table) {
		strncpy(request.target.target_type, kind, sizeof(request.target.target_type) - 1);
		strncpy(request.words, table, sizeof(request.words) - 1);
	}
	need(ioctl(control, command, &request), format("%s, command %u", name, _IOC_NR(command)));
	close(control);
	return request.head.dev;
}

static void mapped_table(const char *name, const char *kind, unsigned long long sectors, const char *table)
{
	mapper(DM_TABLE_LOAD, name, DM_READONLY_FLAG, kind, sectors, table);
	mapper(DM_DEV_SUSPEND, name, 0, NULL, 0, NULL); /* without the suspend flag: resume */
}

/* The node of a new mapped device. */
static const char *mapped(const char *name, const char *kind, unsigned long long sectors, const char *table)
{
	unsigned long long device = mapper(DM_DEV_CREATE, name, 0, NULL, 0, NULL);
	const char *node = format(ROOM "/dm-%s", name);

	mapped_table(name, kind, sectors, table);
	need(mknod(node, S_IFBLK | 0600, device), node);
	return node;
}

static void unmapped(const char *name)
{
	time_t end = time(NULL) + 30;
	const char *node = format(ROOM "/dm-%s", name);
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	struct dm_ioctl head = {
		.version = { 4, 0, 0 },
		.data_size = sizeof(head),
		.data_start = sizeof(head),
	};

	need(control, "/dev/mapper/control");
	strncpy(head.name, name, sizeof(head.name) - 1);
	/* Whoever looked at it may hold it for a moment. */
	while (ioctl(control, DM_DEV_REMOVE, &head)) {
		if (errno != EBUSY || time(NULL) > end)
			fail(node);
		usleep(50000);
	}
	close(control);
	unlink(node);
}

static unsigned long long sectors(const char *path)
{
	struct stat st;

	need(stat(path, &st), path);
	return st.st_size / 512;
}

/* The table of verity.table with its devices in place; `digest` and `option` replace what is there. */
static const char *verity_table(const char *data, const char *hash, const char *digest, const char *option)
{
	static char text[1024];
	size_t size;
	char *words[16], *rest, *raw = slurp(PIN "/verity.table", &size);
	int count = 0;

	for (char *word = strtok_r(raw, " \n", &rest); word && count < 16;
	     word = strtok_r(NULL, " \n", &rest))
		words[count++] = word;
	if (count != 10)
		fail("verity.table");
	words[1] = (char *)data;
	words[2] = (char *)hash;
	if (digest)
		words[8] = (char *)digest;
	text[0] = 0;
	for (int i = 0; i < count; i++)
		strcat(strcat(text, i ? " " : ""), words[i]);
	if (option)
		strcat(strcat(text, " 1 "), option);
	free(raw);
	return text;
}

/* --- phases ----------------------------------------------------------------------------- */

static int open_pinned(const char *name, int flags)
{
	const char *path = format(PIN "/%s", name);
	int fd = open(path, flags | O_CLOEXEC);

	need(fd, path);
	return fd;
}

/* What fails before LoadPin is asked, wherever the file lies; none of it pins anything. */
static void early(const char *where, const char *prefix)
{
	int fd = open(format("%s/good.ko", where), O_RDONLY | O_CLOEXEC);

	need(fd, where);
	tell(format("%s/unknown-flags", prefix), load_fd(fd, 1U << 31));
	close(fd);
	fd = open(format("%s/good.ko", where), O_RDWR | O_CLOEXEC);
	need(fd, where);
	tell(format("%s/open-for-writing", prefix), load_fd(fd, 0));
	close(fd);
	fd = open(format("%s/good.ko", where), O_WRONLY | O_CLOEXEC);
	need(fd, where);
	tell(format("%s/write-only", prefix), load_fd(fd, 0));
	close(fd);
	fd = open(format("%s/good.ko", where), O_PATH | O_CLOEXEC);
	need(fd, where);
	tell(format("%s/path-only", prefix), load_fd(fd, 0));
	close(fd);
	fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	need(fd, where);
	tell(format("%s/folder", prefix), load_fd(fd, 0));
	close(fd);
	tell(format("%s/empty", prefix), load(format("%s/empty", where)));
}

static void copies(const char *where)
{
	static const char *const names[] = { "good.ko", "unsigned.ko", "bad.ko", "garbage", "empty" };

	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		copy(format(PIN "/%s", names[i]), format("%s/%s", where, names[i]));
}

/* Before anything was read: nothing here may pin. */
static void phase_before(void)
{
	early(PIN, "before");
	tell("before/memory", load_memory(PIN "/good.ko", ~0UL));
	tell("before/memory-63-bytes", load_memory(PIN "/good.ko", 63));
}

/* The first read: of a file that is no module. */
static void phase_first(void)
{
	tell("first/garbage", load(PIN "/garbage"));
}

/* The first read from somewhere else than the root. */
static void phase_elsewhere(void)
{
	copies(folder("tmp"));
	tell("elsewhere/tmpfs-first", load(ROOM "/tmp/good.ko"));
	tell("elsewhere/root-after-it", load(PIN "/good.ko"));
	tell("elsewhere/tmpfs-again", load(ROOM "/tmp/good.ko"));
}

static void in_a_namespace(const char *name)
{
	pid_t child = fork();
	int status;

	need(child, "fork");
	if (!child) {
		need(unshare(CLONE_NEWNS), "unshare");
		need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
		need(mount("none", folder("inner"), "tmpfs", 0, NULL), "inner");
		need(mount(pinned_device, folder("inner/root"), "ext4", 0, NULL), "inner root");
		copy(PIN "/good.ko", ROOM "/inner/good.ko");
		tell(format("%s/root", name), load(ROOM "/inner/root/good.ko"));
		tell(format("%s/tmpfs", name), load(ROOM "/inner/good.ko"));
		_exit(0);
	}
	need(waitpid(child, &status, 0), "wait");
	if (status)
		fail(name);
}

static void phase_root(void)
{
	int fd, again;

	tell("root/good", load(PIN "/good.ko"));
	tell("root/unsigned", load(PIN "/unsigned.ko"));
	tell("root/changed", load(PIN "/bad.ko"));
	tell("root/garbage", load(PIN "/garbage"));
	early(PIN, "root");

	unlink(ROOM "/link");
	need(symlink(PIN "/good.ko", ROOM "/link"), "symlink");
	tell("root/symlink-on-tmpfs", load(ROOM "/link"));
	fd = open_pinned("good.ko", O_RDONLY);
	again = reopen(fd);
	tell("root/through-proc", load_fd(again, 0));
	close(again);
	close(fd);

	copy(PIN "/good.ko", PIN "/gone.ko");
	fd = open_pinned("gone.ko", O_RDONLY);
	need(unlink(PIN "/gone.ko"), "unlink");
	tell("root/unlinked", load_fd(fd, 0));
	close(fd);

	fd = open(PIN, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	need(fd, "tmpfile");
	copy_to(fd, PIN "/good.ko");
	again = reopen(fd);
	close(fd);
	tell("root/nameless", load_fd(again, 0));
	close(again);

	need(mount(pinned_device, folder("second"), "ext4", 0, NULL), "second mount");
	tell("root/mounted-twice", load(ROOM "/second/good.ko"));
	take(ROOM "/second");
	need(mount(PIN, folder("bind"), NULL, MS_BIND, NULL), "bind");
	tell("root/bind", load(ROOM "/bind/good.ko"));
	need(mount(NULL, ROOM "/bind", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC, NULL), "remount");
	tell("root/bind-read-only-noexec", load(ROOM "/bind/good.ko"));
	take(ROOM "/bind");
	in_a_namespace("namespace");
}

static void phase_others(void)
{
	const char *options = "lowerdir=" PIN ",upperdir=" ROOM "/upper,workdir=" ROOM "/work";
	const char *device;
	int fd, again, holder;

	tell("memory/good", load_memory(PIN "/good.ko", ~0UL));
	tell("memory/changed", load_memory(PIN "/bad.ko", ~0UL));
	tell("memory/garbage", load_memory(PIN "/garbage", ~0UL));
	tell("memory/63-bytes", load_memory(PIN "/good.ko", 63));

	copies(folder("tmp"));
	tell("tmpfs/good", load(ROOM "/tmp/good.ko"));
	tell("tmpfs/unsigned", load(ROOM "/tmp/unsigned.ko"));
	tell("tmpfs/changed", load(ROOM "/tmp/bad.ko"));
	tell("tmpfs/garbage", load(ROOM "/tmp/garbage"));
	early(ROOM "/tmp", "tmpfs");

	fd = memfd_create("module", MFD_CLOEXEC);
	need(fd, "memfd");
	copy_to(fd, PIN "/good.ko");
	tell("memfd/writable", load_fd(fd, 0));
	again = reopen(fd);
	close(fd);
	tell("memfd/read-only", load_fd(again, 0));
	close(again);

	folder("upper");
	folder("work");
	need(mount("overlay", folder("overlay"), "overlay", 0, options), "overlay");
	tell("overlay/lower-on-the-root", load(ROOM "/overlay/good.ko"));
	take(ROOM "/overlay");
	options = "lowerdir=" PIN ":" ROOM "/tmp";
	need(mount("overlay", ROOM "/overlay", "overlay", MS_RDONLY, options), "overlay, read-only");
	tell("overlay/read-only", load(ROOM "/overlay/good.ko"));
	take(ROOM "/overlay");

	device = loop(PIN "/plain.img", &holder);
	put(device, folder("image"));
	tell("loop/image-on-the-root", load(ROOM "/image/good.ko"));
	take(ROOM "/image");
	close(holder);
}

/* dm-verity before any digest is trusted. */
static void phase_untrusted(void)
{
	int data, hash;
	const char *first = loop(PIN "/verity.img", &data), *second = loop(PIN "/verity.hash", &hash);
	const char *node = mapped("early", "verity", sectors(PIN "/verity.img"),
				  verity_table(first, second, NULL, NULL));

	put(node, folder("early"));
	tell("verity/no-digest-trusted", load(ROOM "/early/good.ko"));
	take(ROOM "/early");
	unmapped("early");
	close(data);
	close(hash);
}

/* Real LoadPin is told its digests; kmodgate's stand in its config. */
static void phase_digests(void)
{
	int control = open(LOADPIN, O_RDWR | O_CLOEXEC);
	unsigned int fd = open_pinned("digests", O_RDONLY);

	need(control, LOADPIN);
	printf("digests %d\n", ioctl(control, LOADPIN_SET_DIGESTS, &fd) ? errno : 0);
	close(fd);
	close(control);
}

static void phase_verity(void)
{
	static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
	unsigned long long length = sectors(PIN "/verity.img");
	int data, hash, fd;
	const char *first = loop(PIN "/verity.img", &data), *second = loop(PIN "/verity.hash", &hash);
	const char *node = mapped("trusted", "verity", length, verity_table(first, second, NULL, NULL));
	const char *other;

	put(node, folder("verity"));
	settle("verity/trusted", ROOM "/verity/good.ko", 0);
	tell("verity/trusted-garbage", load(ROOM "/verity/garbage"));
	tell("verity/trusted-changed", load(ROOM "/verity/bad.ko"));
	tell("verity/tmpfs-beside-it", load(ROOM "/tmp/good.ko"));
	tell("verity/root-beside-it", load(PIN "/good.ko"));
	need(mount(ROOM "/verity", folder("bind"), NULL, MS_BIND, NULL), "bind");
	tell("verity/bind", load(ROOM "/bind/good.ko"));
	take(ROOM "/bind");

	/* The same blocks without the check in between, and another device on top of it. */
	other = mapped("plain", "linear", length, format("%s 0", first));
	put(other, folder("other"));
	tell("verity/its-data-device", load(ROOM "/other/good.ko"));
	take(ROOM "/other");
	unmapped("plain");
	/* A second device of the same kind: the mount has the first one for itself. */
	other = mapped("below", "verity", length, verity_table(first, second, NULL, NULL));
	other = mapped("above", "linear", length, format("%s 0", other));
	put(other, ROOM "/other");
	tell("verity/linear-above-it", load(ROOM "/other/good.ko"));
	take(ROOM "/other");
	unmapped("above");
	unmapped("below");
	other = mapped("lax", "verity", length, verity_table(first, second, NULL, "ignore_corruption"));
	put(other, ROOM "/other");
	tell("verity/ignores-corruption", load(ROOM "/other/good.ko"));
	take(ROOM "/other");
	unmapped("lax");
	other = mapped("panics", "verity", length, verity_table(first, second, NULL, "panic_on_corruption"));
	put(other, ROOM "/other");
	settle("verity/panics-on-corruption", ROOM "/other/good.ko", 0);
	take(ROOM "/other");
	unmapped("panics");

	/*
	 * Another table under the file system that is mounted: of the same kind, since kernels
	 * (6.1 at least) let no other target take the place of dm-verity.
	 */
	mapper(DM_DEV_SUSPEND, "trusted", DM_SUSPEND_FLAG, NULL, 0, NULL);
	mapped_table("trusted", "verity", length, verity_table(first, second, zeros, NULL));
	settle("verity/digest-swapped", ROOM "/verity/good.ko", EPERM);
	mapper(DM_DEV_SUSPEND, "trusted", DM_SUSPEND_FLAG, NULL, 0, NULL);
	mapped_table("trusted", "verity", length, verity_table(first, second, NULL, NULL));
	settle("verity/table-back", ROOM "/verity/good.ko", 0);

	fd = open(ROOM "/verity/good.ko", O_RDONLY | O_CLOEXEC);
	need(fd, "verity file");
	need(umount2(ROOM "/verity", MNT_DETACH), "detach");
	tell("verity/detached-but-open", load_fd(fd, 0));
	close(fd);
	unmapped("trusted");
	node = mapped("trusted", "verity", length, verity_table(first, second, NULL, NULL));
	put(node, ROOM "/verity");
	settle("verity/mounted-again", ROOM "/verity/good.ko", 0);
	take(ROOM "/verity");
	unmapped("trusted");
	close(data);
	close(hash);
}

/* The pinned file system goes away, with a trusted dm-verity one beside it. */
static void phase_gone(void)
{
	int data, hash, fd;
	const char *first, *second, *node;

	/* Their files must not hold the root. */
	first = loop(copy(PIN "/verity.img", ROOM "/verity.img"), &data);
	second = loop(copy(PIN "/verity.hash", ROOM "/verity.hash"), &hash);
	node = mapped("trusted", "verity", sectors(ROOM "/verity.img"),
		      verity_table(first, second, NULL, NULL));
	put(node, folder("verity"));
	settle("gone/verity-before", ROOM "/verity/good.ko", 0);

	fd = open_pinned("good.ko", O_RDONLY);
	need(umount2(PIN, MNT_DETACH), "detach");
	tell("gone/detached-but-open", load_fd(fd, 0));
	need(mount(pinned_device, folder("second"), "ext4", 0, NULL), "second mount");
	tell("gone/mounted-again-in-time", load(ROOM "/second/good.ko"));
	take(ROOM "/second");
	tell("gone/still-open", load_fd(fd, 0));
	close(fd);

	need(mount(pinned_device, PIN, "ext4", 0, NULL), "again");
	tell("gone/mounted-again", load(PIN "/good.ko"));
	tell("gone/tmpfs", load(ROOM "/tmp/good.ko"));
	tell("gone/memory", load_memory(PIN "/good.ko", ~0UL));
	tell("gone/verity", load(ROOM "/verity/good.ko"));
	take(ROOM "/verity");
	unmapped("trusted");
}

static const struct phase {
	const char *name;
	void (*run)(void);
} phases[] = {
	{ "before", phase_before },   { "first", phase_first },	  { "elsewhere", phase_elsewhere },
	{ "root", phase_root },	      { "others", phase_others }, { "untrusted", phase_untrusted },
	{ "digests", phase_digests }, { "verity", phase_verity }, { "gone", phase_gone },
};

static void run(const char *name)
{
	for (unsigned int i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
		if (!strcmp(phases[i].name, name)) {
			phases[i].run();
			printf("phase %s\n", name);
			fflush(stdout);
			return;
		}
	errno = EINVAL;
	fail(name);
}

static void prepare(void)
{
	struct stat st, up;
	size_t size;
	char *name;

	mkdir(PIN, 0755);
	mkdir(ROOM, 0755);
	need(stat(ROOM, &st), ROOM);
	need(stat("/", &up), "/");
	if (st.st_dev == up.st_dev)
		need(mount("none", ROOM, "tmpfs", 0, NULL), ROOM);
	need(stat(PIN, &st), PIN);
	if (st.st_dev == up.st_dev)
		need(mount(pinned_device, PIN, "ext4", 0, NULL), PIN);
	name = slurp(PIN "/name", &size);
	strncpy(module_name, name, sizeof(module_name) - 1);
	free(name);
}

/* The value of a word of the kernel command line. */
static char *argument(const char *key)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t size = read(fd, line, sizeof(line) - 1);
	char *found;

	close(fd);
	line[size < 0 ? 0 : size] = 0;
	found = strstr(line, key);
	if (!found)
		fail(key);
	found += strlen(key);
	found[strcspn(found, " \n")] = 0;
	return strdup(found);
}

int main(int argc, char **argv)
{
	char *name, *rest;

	if (getpid() == 1) {
		mkdir("/proc", 0755);
		mkdir("/sys", 0755);
		mkdir("/dev", 0755);
		mount("proc", "/proc", "proc", 0, NULL);
		mount("sysfs", "/sys", "sysfs", 0, NULL);
		mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
		mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL);
		pinned_device = argument("loadpin.device=");
		prepare();
		rest = argument("loadpin.phases=");
		while ((name = strsep(&rest, ",")))
			run(name);
		printf("done\n");
		finish(0);
	}
	if (argc < 3) {
		fprintf(stderr, "usage: loadpin-cases DEVICE PHASE...\n");
		return 2;
	}
	patience = 30;
	pinned_device = argv[1];
	prepare();
	for (int i = 2; i < argc; i++)
		run(argv[i]);
	return 0;
}
