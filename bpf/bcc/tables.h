/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Maps and counts in BCC's dialect. Twins: bpf/count.h, bpf/decide.h and bpf/pinned.h, with the same
 * shapes, names and meaning. How the table is looked up is in bpf/ruling.h, for both.
 */
#ifndef KMODGATE_BCC_TABLES_H
#define KMODGATE_BCC_TABLES_H

#include "kernel.h"
#include "kmodgate.h"
#include "ruling.h"

BPF_F_TABLE("array", u32, u64, counters, KMG_COUNTERS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, stats, KMG_STAT_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, histograms, KMG_HISTOGRAM_COUNT *KMG_HISTOGRAM_ROW, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct kmg_control, control, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct kmg_decision, decisions, KMG_TABLE_COPIES *KMG_TABLE_SIZE, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct kmg_introduction, introduction, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", struct kmg_pin, u32, pinned, KMG_PINS, 0);

static __always_inline void kmg_stat(u32 stat)
{
	u64 *cell = stats.lookup(&stat);

	if (cell)
		__sync_fetch_and_add(cell, 1);
}

static __always_inline void kmg_count(u8 verdict, u8 reason, u8 api, u8 by)
{
	u32 index = ((verdict * KMG_REASON_SLOTS + reason) * KMG_API_COUNT + api) * KMG_BY_SLOTS + by;
	u64 *cell = counters.lookup(&index);

	if (cell)
		__sync_fetch_and_add(cell, 1);
}

static __always_inline void kmg_observe(u32 which, u64 nanoseconds)
{
	u32 row = which * KMG_HISTOGRAM_ROW, bucket = row, sum = row + KMG_HISTOGRAM_BUCKETS;
	u64 bound = 1000, *cell;

	for (int i = 0; i < KMG_HISTOGRAM_BUCKETS - 1; i++) {
		if (nanoseconds < bound)
			break;
		bound <<= 1;
		bucket++;
	}
	cell = histograms.lookup(&bucket);
	if (cell)
		__sync_fetch_and_add(cell, 1);
	cell = histograms.lookup(&sum);
	if (cell)
		__sync_fetch_and_add(cell, nanoseconds);
}

static __always_inline struct kmg_control *kmg_control(void)
{
	u32 zero = 0;

	return control.lookup(&zero);
}

static __always_inline struct kmg_decision *kmg_entry(u32 at)
{
	return decisions.lookup(&at);
}

static __always_inline u32 kmg_origin(struct super_block *sb)
{
	struct kmg_pin pin = { .superblock = (u64)sb, .device = BPF_CORE_READ(sb, s_dev) };
	struct kmg_control *c = kmg_control();

	/* Once the pinned root is gone nothing counts as pinned any more, as with LoadPin. */
	if (!c || !c->root_superblock)
		return KMG_ORIGIN_OTHER_FILESYSTEM;
	if (c->root_superblock == pin.superblock && c->root_device == pin.device)
		return KMG_ORIGIN_PINNED_ROOT;
	return pinned.lookup(&pin) ? KMG_ORIGIN_PINNED_ROOT : KMG_ORIGIN_OTHER_FILESYSTEM;
}

#endif /* KMODGATE_BCC_TABLES_H */
