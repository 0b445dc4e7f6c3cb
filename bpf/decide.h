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
#include "ruling.h"

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

static __always_inline struct kmg_decision *kmg_entry(__u32 at)
{
	return bpf_map_lookup_elem(&decisions, &at);
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

#endif /* KMODGATE_DECIDE_H */
