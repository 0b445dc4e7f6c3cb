/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that the programs touch, each cut down to the members used.
 * preserve_access_index makes libbpf find the real offsets in the running kernel's BTF.
 */
#ifndef KMODGATE_KERNEL_H
#define KMODGATE_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef _Bool bool;
#define true 1
#define false 0
typedef long long loff_t;

#ifndef NULL
#define NULL ((void *)0)
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct file_system_type {
	const char *name;
};

struct super_block {
	__u32 s_dev;
	struct file_system_type *s_type;
};

struct qstr {
	__u32 len;
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

/* fs/mount.h */
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct inode {
	unsigned long i_ino;
	loff_t i_size;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

#if defined(__TARGET_ARCH_x86)
/* arch/x86/include/asm/thread_info.h, asm/ptrace.h */
struct thread_info {
	__u32 status;
};

struct pt_regs {
	unsigned long bx;
	unsigned long cx;
	unsigned long si;
	unsigned long di;
};
#define KMG_TS_COMPAT 0x0002 /* a 32-bit system call is being served (int 0x80 too) */
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
};

struct thread_info {
	unsigned long flags;
};
#else
#error "kmodgate knows the system call registers of x86 and arm64 only"
#endif

struct task_struct {
	struct thread_info thread_info;
	struct files_struct *files;
	struct task_struct *real_parent;
	__u32 tgid;
	__u64 start_boottime;
};

/* kernel/module/internal.h */
struct load_info {
	void *hdr;
	unsigned long len;
};

/* include/linux/module.h */
struct module {
	char name[KMG_NAME_LEN];
	bool sig_ok; /* CONFIG_MODULE_SIG */
};

#pragma clang attribute pop

/* Values move between kernels: always read them through bpf_core_enum_value(). */
enum kernel_read_file_id {
	READING_MODULE = 1000,
	READING_MODULE_COMPRESSED = 1001, /* since 7.x */
};

enum kernel_load_data_id {
	LOADING_MODULE = 1000,
};

enum lockdown_reason {
	LOCKDOWN_MODULE_SIGNATURE = 1000,
};

/* include/uapi/linux/module.h: each makes the kernel treat the module as unsigned. */
#define MODULE_INIT_IGNORE_MODVERSIONS 1
#define MODULE_INIT_IGNORE_VERMAGIC 2

/* The few errno values that the programs name; all others come out of the table. */
#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define ENOPKG 65
#define EBADMSG 74
#define EMSGSIZE 90
#define ENOKEY 126
#define EKEYREJECTED 129

#endif /* KMODGATE_KERNEL_H */
