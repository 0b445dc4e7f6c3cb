/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts: verdicts, plain statistics, histograms. Arrays of __u64, added to atomically (a
 * plain add on per-CPU memory loses counts where a program can be preempted) and mapped
 * into the agent, so that a scrape costs no system call.
 */
#ifndef KMODGATE_COUNT_H
#define KMODGATE_COUNT_H

#include "kernel.h"
#include "kmodgate.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KMG_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KMG_STAT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KMG_HISTOGRAM_COUNT *KMG_HISTOGRAM_ROW);
	__type(key, __u32);
	__type(value, __u64);
} histograms SEC(".maps");

/* A call of its own: inlined, each would take a slot of its caller's 512 bytes of stack. */
static __noinline void kmg_add(void *map, __u32 index, __u64 amount)
{
	__u64 *cell = bpf_map_lookup_elem(map, &index);

	if (cell)
		__sync_fetch_and_add(cell, amount);
}

static __always_inline void kmg_stat(enum kmg_stat stat)
{
	kmg_add(&stats, stat, 1);
}

static __always_inline void kmg_count(__u8 verdict, __u8 reason, __u8 api, __u8 by)
{
	__u32 index = ((verdict * KMG_REASON_SLOTS + reason) * KMG_API_COUNT + api) * KMG_BY_SLOTS + by;

	kmg_add(&counters, index, 1);
}

static __always_inline void kmg_observe(enum kmg_histogram which, __u64 nanoseconds)
{
	__u64 bound = 1000;
	__u32 bucket = 0, row = which * KMG_HISTOGRAM_ROW;

	for (; bucket < KMG_HISTOGRAM_BUCKETS - 1; bucket++) {
		if (nanoseconds < bound)
			break;
		bound <<= 1;
	}
	kmg_add(&histograms, row + bucket, 1);
	kmg_add(&histograms, row + KMG_HISTOGRAM_BUCKETS, nanoseconds);
}

#endif /* KMODGATE_COUNT_H */
