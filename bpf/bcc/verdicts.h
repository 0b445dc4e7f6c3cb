/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the agent knows of a file, by the file and not by its bytes: a kprobe comes before they are
 * read, and can take no digest. A verdict counts while inode, size and time of the last change are
 * those that the agent saw before it read the file, on pinned file systems where every change of the
 * bytes moves that time. Twin: agent/kmodgate/hooks/bccabi.py.
 */
#ifndef KMODGATE_BCC_VERDICTS_H
#define KMODGATE_BCC_VERDICTS_H

#include "kernel.h"
#include "kmodgate.h"

#define KMG_VERDICTS 8192

struct kmg_version {
	u64 inode;
	u64 size;
	u64 changed; /* ctime in ns since 1970 */
	u32 device; /* s_dev */
	u32 padding;
};

/* A question with the way to the file: the loader does not wait for the answer. */
struct kmg_bcc_question {
	struct kmg_question question;
	u32 path_length;
	u32 padding;
	char path[KMG_PATH_LEN];
};

BPF_F_TABLE("lru_hash", struct kmg_version, struct kmg_answer, verdicts, KMG_VERDICTS, 0);

/* The member moved twice: 6.6 renamed it, 6.11 took it apart. Which one there is, is looked up. */
static __always_inline u64 kmg_changed(struct inode *inode)
{
#if defined(KMG_I_CTIME_SEC)
	return (u64)BPF_CORE_READ(inode, i_ctime_sec) * 1000000000ULL + BPF_CORE_READ(inode, i_ctime_nsec);
#elif defined(KMG_I_CTIME_HIDDEN)
	return (u64)BPF_CORE_READ(inode, __i_ctime.tv_sec) * 1000000000ULL +
	       BPF_CORE_READ(inode, __i_ctime.tv_nsec);
#else
	return (u64)BPF_CORE_READ(inode, i_ctime.tv_sec) * 1000000000ULL +
	       BPF_CORE_READ(inode, i_ctime.tv_nsec);
#endif
}

/*
 * Whether the bytes of a file cannot change without its ctime, short of writing to the device beneath.
 * Not so where a server or another file system keeps them (NFS, FUSE, overlay), on tmpfs (stores
 * through a mapping leave the time alone), on XFS (XFS_IOC_SWAPEXT) and on Btrfs (an inode number
 * there is one of a subvolume).
 */
static __always_inline bool kmg_keeps_time(struct super_block *sb)
{
	switch (BPF_CORE_READ(sb, s_magic)) {
	case EXT4_SUPER_MAGIC:
	case SQUASHFS_MAGIC:
	case ISOFS_SUPER_MAGIC:
		return true;
	default:
		return false;
	}
}

static __always_inline void kmg_version(struct file *file, struct super_block *sb,
					struct kmg_version *version)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	version->inode = BPF_CORE_READ(inode, i_ino);
	version->size = BPF_CORE_READ(inode, i_size);
	version->changed = kmg_changed(inode);
	version->device = BPF_CORE_READ(sb, s_dev);
	version->padding = 0;
}

/* What the agent found; NOT_YET for a file that it does not know as it is now. */
static __always_inline u32 kmg_known(struct kmg_version *version, bool unpacks)
{
	struct kmg_answer *answer = verdicts.lookup(version);
	struct kmg_control *c = kmg_control();

	if (!answer || !c || answer->trust_generation != c->trust_generation)
		return KMG_VERIFICATION_NOT_YET;
	return (unpacks ? answer->contents : answer->verification) & (KMG_VERIFICATION_SLOTS - 1);
}

#endif /* KMODGATE_BCC_VERDICTS_H */
