/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types that the guard touches, cut down to the members used; libbpf finds the
 * real offsets in the running kernel's BTF.
 */
#ifndef KMODGATE_GUARD_KERNEL_H
#define KMODGATE_GUARD_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef _Bool bool;
#define true 1
#define false 0

#ifndef NULL
#define NULL ((void *)0)
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	__u32 s_dev;
};

struct inode {
	struct super_block *i_sb;
};

struct dentry {
	struct dentry *d_parent;
};

struct vfsmount {
	struct super_block *mnt_sb;
};

/* fs/mount.h */
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mount *mnt_master;
	int mnt_group_id;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct path f_path;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not exited */
};

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct task_struct {
	struct files_struct *files;
	struct task_struct *group_leader;
	struct signal_struct *signal;
	const struct cred *cred;
	__u32 tgid;
	__u32 ptrace;
	__u32 exit_state;
	__u64 start_boottime;
	char comm[16];
};

struct bpf_map {
	__u32 id;
};

struct bpf_prog_aux {
	__u32 id;
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

#pragma clang attribute pop

#define KMG_EXIT_DEAD 0x10 /* EXIT_DEAD, include/linux/sched.h */
#define PTRACE_MODE_ATTACH 0x02 /* include/linux/ptrace.h */

#define EPERM 1
#define EBUSY 16
#define EINVAL 22

#endif /* KMODGATE_GUARD_KERNEL_H */
