/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which file systems count as pinned: the pinned root, and those on a dm-verity device whose
 * root digest the config trusts.
 */
#ifndef KMODGATE_PINNED_H
#define KMODGATE_PINNED_H

#include "decide.h"
#include "kernel.h"
#include "kmodgate.h"

/*
 * Filled by the agent, which alone can read a device's table; emptied by the agent and by
 * kmg_superblock_freed, before the address is used again. Created whole, so that the sleepable
 * first hook may look into it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KMG_PINS);
	__type(key, struct kmg_pin);
	__type(value, __u32);
} pinned SEC(".maps");

/*
 * A superblock is known by its address and its device number together: anonymous device
 * numbers and freed addresses are both used again.
 *
 * Once the pinned root is gone nothing counts as pinned any more, as with LoadPin.
 */
static __always_inline bool kmg_is_pinned(struct super_block *sb)
{
	struct kmg_pin pin = { .superblock = (__u64)sb, .device = sb->s_dev };
	struct kmg_control *c = kmg_control();

	if (!c || !c->root_superblock)
		return false;
	if (c->root_superblock == pin.superblock && c->root_device == pin.device)
		return true;
	return bpf_map_lookup_elem(&pinned, &pin);
}

/* A superblock goes away, and its pin with it. */
static __always_inline void kmg_unpin(struct super_block *sb)
{
	struct kmg_pin pin = { .superblock = (__u64)sb, .device = sb->s_dev };
	struct kmg_control *c = kmg_control();

	if (c && c->root_superblock && c->root_superblock == pin.superblock)
		c->root_superblock = 0;
	bpf_map_delete_elem(&pinned, &pin);
}

#endif /* KMODGATE_PINNED_H */
