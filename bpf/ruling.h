/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the decision table says of a load: one text for the compiled objects and for BCC. The maps
 * are declared in each one's own way, and reached through the three functions below (decide.h and
 * count.h; bcc/tables.h).
 */
#ifndef KMODGATE_RULING_H
#define KMODGATE_RULING_H

#include "kernel.h"
#include "kmodgate.h"

static __always_inline struct kmg_control *kmg_control(void);
static __always_inline struct kmg_decision *kmg_entry(__u32 at);
static __always_inline void kmg_stat(__u32 stat);

/* Twin: table_index() in agent/kmodgate/policy.py. */
static __always_inline __u32 kmg_table_index(__u32 stage, __u32 api, __u32 origin, __u32 verification)
{
	__u32 row = (stage * KMG_API_COUNT + api) * KMG_ORIGIN_COUNT + origin;

	return row * KMG_VERIFICATION_SLOTS + verification;
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
		struct kmg_decision *now = kmg_entry(now_at);
		struct kmg_decision *trusted = kmg_entry(trusted_at);

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

#endif /* KMODGATE_RULING_H */
