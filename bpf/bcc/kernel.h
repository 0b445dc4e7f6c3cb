/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel as BCC sees it: its own headers, found on the node, with the layout of the kernel that
 * runs. Stands where bpf/kernel.h stands for the compiled objects, so that headers which keep to the
 * macros below serve both.
 */
#ifndef KMODGATE_KERNEL_H
#define KMODGATE_KERNEL_H

#include <uapi/linux/ptrace.h>
#include <uapi/linux/magic.h>
#include <linux/cred.h>
#include <linux/errno.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/user_namespace.h>

/* fs/mount.h is private to the kernel: its first members, as they are since 3.3. For paths only. */
struct mount {
	struct hlist_node mnt_hash;
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

/*
 * Every read of kernel memory is spelled out: BCC would rewrite a plain "a->b" into one, but not
 * through each macro and cast. A read that fails gives zeros.
 */
#define BPF_CORE_READ(from, member)                                                      \
	({                                                                               \
		typeof((from)->member) value_;                                           \
		bpf_probe_read_kernel(&value_, sizeof(value_), (void *)&(from)->member); \
		value_;                                                                  \
	})
#define bpf_core_field_offset(type, member) offsetof(type, member)

/* BCC's loader knows no calls between functions. */
#undef __noinline
#define __noinline inline __attribute__((always_inline))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#endif /* KMODGATE_KERNEL_H */
