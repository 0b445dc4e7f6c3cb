// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The guard (`hardened: true`): keeps the off switches of kmodgate's programs from everybody
 * but the agent. It decides nothing about modules.
 *
 *   cgroup/sysctl                kernel.ftrace_enabled, which disables attached programs
 *   sb_umount, sb_mount,         the BPF file system that holds the pins: unmounting it, lazily
 *   move_mount                   with a mount above it too, moving it, mounting over it
 *   inode_unlink, rmdir,         the pins themselves
 *   rename, create, mkdir, symlink
 *   bpf, bpf_map, bpf_prog       descriptors of kmodgate's maps, programs and links
 *   ptrace_access_check          the agent's memory and descriptors
 *
 * The agent is a registered task. Any privileged task may register while no agent lives: how
 * else could the agent be started again? So the guard raises the cost and leaves traces; it
 * does not shut host root out. docs/hardening.md says what stays open.
 *
 * Left alone, because nothing hangs on it: modes and owners of pins (each use of one passes
 * the hooks above), signals to the agent (whoever runs it must be able to stop it),
 * pivot_root (it unmounts nothing), and detaching or updating a link by its descriptor (links
 * of LSM and tracing programs know neither).
 */
#include "guard.h"

#include "guard_kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define KMG_FTRACE_SYSCTL "kernel/ftrace_enabled"
#define KMG_DEPTH 32 /* of directories and of mounts; deeper is not ours */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct kmg_guard_control);
} guard_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KMG_SWITCH_COUNT);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct kmg_guard_denied);
} guard_denied SEC(".maps");

/* Numbers of kmodgate's maps, programs and links; the kind is in the upper half. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KMG_GUARD_OBJECTS);
	__type(key, __u64);
	__type(value, __u32);
} guard_objects SEC(".maps");

static __always_inline struct kmg_guard_control *kmg_guard(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&guard_control, &zero);
}

/* A dead task's memory may hold another task by now: the start time tells them apart. */
static __always_inline bool kmg_is(struct kmg_guard_control *c, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	return c->leader && c->leader == (__u64)leader &&
	       c->start_time == BPF_CORE_READ(leader, start_boottime);
}

/* A thread of the registered agent has not exited yet. */
static __always_inline bool kmg_agent_lives(struct kmg_guard_control *c)
{
	struct task_struct *leader = (struct task_struct *)c->leader;
	struct signal_struct *signal;
	int live = 0;

	if (!leader || BPF_CORE_READ(leader, start_boottime) != c->start_time)
		return false;
	/*
	 * A reaped task's memory may stand there unused for long, while its signals' memory belongs to
	 * another process by now, whose threads live.
	 */
	if (BPF_CORE_READ(leader, exit_state) & KMG_EXIT_DEAD)
		return false;
	signal = BPF_CORE_READ(leader, signal);
	if (!signal || bpf_core_read(&live, sizeof(live), &signal->live.counter))
		return false;
	return live > 0;
}

/* The agent may do everything, and so may everybody while a token lifts the guard. */
static __always_inline bool kmg_may(struct kmg_guard_control *c)
{
	return kmg_is(c, (struct task_struct *)bpf_get_current_task()) ||
	       bpf_ktime_get_ns() < *(volatile __u64 *)&c->lifted_until;
}

static __noinline int kmg_refuse(enum kmg_switch which)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 at = which;
	struct kmg_guard_denied *denied = bpf_map_lookup_elem(&guard_denied, &at);

	if (denied) {
		__sync_fetch_and_add(&denied->count, 1);
		denied->tgid = BPF_CORE_READ(task, tgid);
		denied->uid = BPF_CORE_READ(task, cred, uid.val);
		bpf_core_read(denied->comm, sizeof(denied->comm), &task->comm);
	}
	return -EPERM;
}

/* --- kernel.ftrace_enabled ------------------------------------------------------------- */

SEC("cgroup/sysctl")
int kmg_guard_sysctl(struct bpf_sysctl *ctx)
{
	const char wanted[] = KMG_FTRACE_SYSCTL;
	struct kmg_guard_control *c = kmg_guard();
	char name[sizeof(wanted) + 1] = {};

	if (!ctx->write || !c)
		return 1;
	if (bpf_sysctl_get_name(ctx, name, sizeof(name), 0) != sizeof(wanted) - 1)
		return 1;
	for (int i = 0; i < sizeof(wanted) - 1; i++)
		if (name[i] != wanted[i])
			return 1;
	if (kmg_may(c))
		return 1;
	kmg_refuse(KMG_SWITCH_FTRACE);
	return 0;
}

/* --- the BPF file system --------------------------------------------------------------- */

/* struct mount around a struct vfsmount; the verifier wants the offset taken from it at once. */
static __always_inline struct mount *kmg_mount_of(struct vfsmount *mnt)
{
	void *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);

	barrier_var(mount);
	return mount;
}

/*
 * Whether unmounting `target` takes the mount with the pins along: it is that mount, or one
 * above it (a lazy unmount takes what is below), or one of these in another mount namespace
 * whose unmounting propagates here. A container's own copy is none of these.
 */
static __noinline bool kmg_carries_pins(struct kmg_guard_control *c, struct vfsmount *target)
{
	struct mount *hit = kmg_mount_of(target);
	struct dentry *point = BPF_CORE_READ(hit, mnt_mountpoint);
	int group = BPF_CORE_READ(hit, mnt_parent, mnt_group_id);
	struct mount *at = kmg_mount_of((struct vfsmount *)c->mount);

	for (int i = 0; i < KMG_DEPTH && at; i++) {
		struct mount *parent = BPF_CORE_READ(at, mnt_parent);

		if (at == hit)
			return true;
		if (!parent || parent == at)
			return false;
		if (group && point == BPF_CORE_READ(at, mnt_mountpoint) &&
		    (group == BPF_CORE_READ(parent, mnt_group_id) ||
		     group == BPF_CORE_READ(parent, mnt_master, mnt_group_id)))
			return true;
		at = parent;
	}
	return false;
}

static __always_inline bool kmg_holds_pins(struct kmg_guard_control *c, struct vfsmount *mnt)
{
	return c->mount && c->mount == (__u64)mnt;
}

SEC("lsm/sb_umount")
int BPF_PROG(kmg_guard_umount, struct vfsmount *mnt, int flags)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!c || !c->mount || !kmg_carries_pins(c, mnt) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_UNMOUNT);
}

/* Over it, or anew with other options: `path` is where it is to be mounted. */
SEC("lsm/sb_mount")
int BPF_PROG(kmg_guard_mount, const char *dev_name, const struct path *path, const char *type,
	     unsigned long flags, void *data)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!c || !kmg_holds_pins(c, path->mnt) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_UNMOUNT);
}

SEC("lsm/move_mount")
int BPF_PROG(kmg_guard_move_mount, const struct path *from_path, const struct path *to_path)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!c || (!kmg_holds_pins(c, from_path->mnt) && !kmg_holds_pins(c, to_path->mnt)) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_UNMOUNT);
}

/* --- the pins -------------------------------------------------------------------------- */

static __noinline bool kmg_is_below(struct dentry *dentry, struct dentry *directory)
{
	for (int i = 0; i < KMG_DEPTH; i++) {
		struct dentry *parent;

		if (dentry == directory)
			return true;
		parent = BPF_CORE_READ(dentry, d_parent);
		if (!parent || parent == dentry)
			return false;
		dentry = parent;
	}
	return false;
}

/* The dentry is the directory with the pins, or below it, or above it. */
static __always_inline bool kmg_touches_pins(struct kmg_guard_control *c, struct inode *dir,
					     struct dentry *dentry)
{
	struct super_block *sb = dir->i_sb;
	struct dentry *pins = (struct dentry *)c->directory;

	if (!c->superblock || c->superblock != (__u64)sb || c->device != sb->s_dev)
		return false;
	return kmg_is_below(dentry, pins) || kmg_is_below(pins, dentry);
}

static __always_inline int kmg_pins(struct inode *dir, struct dentry *dentry)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!c || !kmg_touches_pins(c, dir, dentry) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_PINS);
}

SEC("lsm/inode_unlink")
int BPF_PROG(kmg_guard_unlink, struct inode *dir, struct dentry *dentry)
{
	return kmg_pins(dir, dentry);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(kmg_guard_rmdir, struct inode *dir, struct dentry *dentry)
{
	return kmg_pins(dir, dentry);
}

SEC("lsm/inode_create")
int BPF_PROG(kmg_guard_create, struct inode *dir, struct dentry *dentry)
{
	return kmg_pins(dir, dentry);
}

SEC("lsm/inode_mkdir")
int BPF_PROG(kmg_guard_mkdir, struct inode *dir, struct dentry *dentry)
{
	return kmg_pins(dir, dentry);
}

SEC("lsm/inode_symlink")
int BPF_PROG(kmg_guard_symlink, struct inode *dir, struct dentry *dentry)
{
	return kmg_pins(dir, dentry);
}

SEC("lsm/inode_rename")
int BPF_PROG(kmg_guard_rename, struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir,
	     struct dentry *new_dentry)
{
	int refused = kmg_pins(old_dir, old_dentry);

	return refused ? refused : kmg_pins(new_dir, new_dentry);
}

/* --- maps, programs, links ------------------------------------------------------------- */

static __always_inline bool kmg_protected(enum kmg_object kind, __u32 id)
{
	__u64 key = (__u64)kind << 32 | id;

	return bpf_map_lookup_elem(&guard_objects, &key);
}

/*
 * Each way to a descriptor of a map passes here: by number, by pin. Reading is refused too: a
 * program may write to any map that its loader has a descriptor of, a read-only one included.
 */
SEC("lsm/bpf_map")
int BPF_PROG(kmg_guard_map, struct bpf_map *map)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!c || !kmg_protected(KMG_OBJECT_MAP, map->id) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_OBJECTS);
}

/* The same for programs. A descriptor of one could detach it from its cgroup. */
SEC("lsm/bpf_prog")
int BPF_PROG(kmg_guard_prog, struct bpf_prog *prog)
{
	struct kmg_guard_control *c = kmg_guard();
	__u32 id = prog->aux->id;

	if (!c)
		return 0;
	if (kmg_protected(KMG_OBJECT_REGISTER, id)) {
		if (!kmg_agent_lives(c) || kmg_may(c))
			return 0;
	} else if (!kmg_protected(KMG_OBJECT_PROGRAM, id) || kmg_may(c)) {
		return 0;
	}
	return kmg_refuse(KMG_SWITCH_OBJECTS);
}

/* Links have no hook of their own. `attr` is the kernel's copy: it cannot change any more. */
SEC("lsm/bpf")
int BPF_PROG(kmg_guard_bpf, int cmd, union bpf_attr *attr)
{
	struct kmg_guard_control *c = kmg_guard();

	if (cmd != BPF_LINK_GET_FD_BY_ID || !c || !kmg_protected(KMG_OBJECT_LINK, attr->link_id) ||
	    kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_OBJECTS);
}

/* --- the agent ------------------------------------------------------------------------- */

/* PTRACE_MODE_ATTACH: ptrace, /proc/PID/mem, process_vm_writev, pidfd_getfd. */
SEC("lsm/ptrace_access_check")
int BPF_PROG(kmg_guard_ptrace, struct task_struct *child, unsigned int mode)
{
	struct kmg_guard_control *c = kmg_guard();

	if (!(mode & PTRACE_MODE_ATTACH) || !c || !kmg_is(c, child) || kmg_may(c))
		return 0;
	return kmg_refuse(KMG_SWITCH_PTRACE);
}

/*
 * Registers the calling task as the agent and notes what to protect. Refused while another
 * registered agent lives, and to a task that is being traced: its tracer would be the agent.
 */
SEC("syscall")
int kmg_guard_register(struct kmg_guard_candidate *candidate)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct kmg_guard_control *c = kmg_guard();
	struct file **slots;
	struct file *file = NULL;
	struct vfsmount *mnt;
	struct super_block *sb;
	__u64 former;

	if (!c || candidate->fd >= BPF_CORE_READ(table, max_fds))
		return -EINVAL;
	slots = BPF_CORE_READ(table, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), slots + candidate->fd) || !file)
		return -EINVAL;
	if (BPF_CORE_READ(task, ptrace) || BPF_CORE_READ(leader, ptrace))
		return -EPERM;
	former = c->leader;
	if (!kmg_is(c, task)) {
		if (kmg_agent_lives(c))
			return -EBUSY;
		/* Of two candidates one wins; leader and start time agree only when it is done. */
		if (__sync_val_compare_and_swap(&c->leader, former, (__u64)leader) != former)
			return -EBUSY;
		c->start_time = BPF_CORE_READ(leader, start_boottime);
	}
	mnt = BPF_CORE_READ(file, f_path.mnt);
	sb = BPF_CORE_READ(mnt, mnt_sb);
	c->superblock = (__u64)sb;
	c->device = BPF_CORE_READ(sb, s_dev);
	c->mount = (__u64)mnt;
	c->directory = (__u64)BPF_CORE_READ(file, f_path.dentry);
	return 0;
}

/* Types that nothing else names would be missing from the object's type information. */
struct kmg_guard_types {
	enum kmg_switch which;
	enum kmg_object object;
};
const struct kmg_guard_types *kmg_guard_types = NULL;
