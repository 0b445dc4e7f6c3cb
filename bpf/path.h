/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The path of a file where bpf_d_path() may not be called (LSM programs before 5.11): the names
 * from the file up to the root of its mount tree, as the kernel holds them. A rename meanwhile may
 * mix old and new names: the path is a label for people, never an identity.
 */
#ifndef KMODGATE_PATH_H
#define KMODGATE_PATH_H

#include "kernel.h"
#include "kmodgate.h"

#define KMG_PATH_STEPS 32 /* directories and mounts on the way up */
#define KMG_DNAME_MAX 255 /* NAME_MAX, include/uapi/linux/limits.h */

/* Written from its end; the rest of a name may reach over where the path would begin. */
struct kmg_walk {
	char text[KMG_PATH_LEN + KMG_DNAME_MAX + 1];
};

/* Puts "/" and a name in front; the place where it begins, or 0 when there is no room. */
static __always_inline __u32 kmg_prepend(struct kmg_walk *walk, __u32 at, struct dentry *dentry)
{
	__u32 length = BPF_CORE_READ(dentry, d_name.len);

	if (length > KMG_DNAME_MAX || length + 1 >= at)
		return 0;
	at -= length;
	bpf_probe_read_kernel(&walk->text[at & (KMG_PATH_LEN - 1)], length & KMG_DNAME_MAX,
			      BPF_CORE_READ(dentry, d_name.name));
	at -= 1;
	walk->text[at & (KMG_PATH_LEN - 1)] = '/';
	return at;
}

/* Bytes of the path with its NUL in out[KMG_PATH_LEN], or 0: too long, too deep. */
static __noinline __u32 kmg_path(struct kmg_walk *walk, struct dentry *dentry, struct vfsmount *mnt,
				 char *out)
{
	__u32 at = KMG_PATH_LEN - 1, length;

	walk->text[at] = 0;
	for (int step = 0; step < KMG_PATH_STEPS; step++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		/*
		 * Changes nothing. The verifier follows both branches of each step to the end
		 * unless it finds the same state again: so the bounds of "at" must not move.
		 */
		asm volatile("" : "+r"(at));
		at &= KMG_PATH_LEN - 1;
		if (dentry == BPF_CORE_READ(mnt, mnt_root) || dentry == parent) {
			struct mount *here = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
			struct mount *above = BPF_CORE_READ(here, mnt_parent);

			if (above != here) {
				dentry = BPF_CORE_READ(here, mnt_mountpoint);
				mnt = (void *)above + bpf_core_field_offset(struct mount, mnt);
				continue;
			}
			/* The top. A memfd is its own: then its name is all there is. */
			if (at == KMG_PATH_LEN - 1)
				at = kmg_prepend(walk, at, dentry);
			if (!at)
				return 0;
			length = (KMG_PATH_LEN - at) & (KMG_PATH_LEN - 1);
			bpf_probe_read_kernel(out, length, &walk->text[at & (KMG_PATH_LEN - 1)]);
			return length;
		}
		at = kmg_prepend(walk, at, dentry);
		if (!at)
			return 0;
		dentry = parent;
	}
	return 0;
}

#endif /* KMODGATE_PATH_H */
