/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision table. The agent compiles its policy (agent/kmodgate/policy.py) into the copy
 * that is not in force and then advances control.generation: programs see the old policy or
 * the new one, never a mixture. There is no policy in these programs.
 */
#ifndef KMODGATE_DECIDE_H
#define KMODGATE_DECIDE_H

#include "count.h"
#include "kernel.h"
#include "kmodgate.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kmg_control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KMG_TABLE_COPIES *KMG_TABLE_SIZE);
	__type(key, __u32);
	__type(value, struct kmg_decision);
} decisions SEC(".maps");

static __always_inline struct kmg_control *kmg_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

/* Twin: table_index() in agent/kmodgate/policy.py. */
static __always_inline __u32 kmg_table_index(__u32 stage, __u32 api, __u32 origin, __u32 verification)
{
	__u32 row = (stage * KMG_API_COUNT + api) * KMG_ORIGIN_COUNT + origin;

	return row * KMG_VERIFICATION_SLOTS + verification;
}

/*
 * What a hook returns for a decision. Since 6.12 the verifier takes nothing outside
 * [-MAX_ERRNO, 0] from an LSM program. It follows a subtraction but not a negation, which is
 * what the compiler would make of it: hence the mask and the assembly.
 */
static __always_inline int kmg_hook_result(const struct kmg_decision *decision)
{
	long result = 0, error = decision->error & 0xfff;

	if (decision->verdict != KMG_VERDICT_DENY)
		return 0;
	asm volatile("%[result] -= %[error]" : [result] "+r"(result) : [error] "r"(error));
	return result;
}

/* What one generation of the table says of a load now, and what it would say if the kernel trusts it. */
struct kmg_ruling {
	struct kmg_decision now;
	struct kmg_decision trusted;
};

static __always_inline void kmg_refuse(struct kmg_decision *decision)
{
	decision->generation = 0;
	decision->verdict = KMG_VERDICT_DENY;
	decision->reason = KMG_REASON_STATE_MISSING;
	decision->error = EPERM;
}

/*
 * Looks both entries up in the copy in force. An entry carries the generation it was written
 * for; when that is not the one in force, the agent was writing meanwhile: look again. A
 * program that finds no stable table in three tries refuses.
 */
static __noinline void kmg_decide(__u32 stage, __u32 api, __u32 origin, __u32 verification,
				  struct kmg_ruling *ruling)
{
	struct kmg_control *c = kmg_control();

	for (int attempt = 0; c && attempt < 3; attempt++) {
		__u64 generation = *(volatile __u64 *)&c->generation;
		__u32 base = (generation % KMG_TABLE_COPIES) * KMG_TABLE_SIZE;
		__u32 now_at = base + kmg_table_index(stage, api, origin, verification);
		__u32 trusted_at = base + kmg_table_index(KMG_STAGE_SIGNATURE, api, origin,
							  KMG_VERIFICATION_KERNEL_TRUSTED);
		struct kmg_decision *now = bpf_map_lookup_elem(&decisions, &now_at);
		struct kmg_decision *trusted = bpf_map_lookup_elem(&decisions, &trusted_at);

		if (!now || !trusted)
			break;
		ruling->now = *now;
		ruling->trusted = *trusted;
		if (ruling->now.generation == (__u32)generation &&
		    ruling->trusted.generation == (__u32)generation)
			return;
	}
	kmg_stat(KMG_STAT_TABLE_RACED);
	kmg_refuse(&ruling->now);
	kmg_refuse(&ruling->trusted);
}

#endif /* KMODGATE_DECIDE_H */
