/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The gates of the fmod_ret rung: short, without a loop or a digest, four copies of each. A gate is
 * skipped when another task was preempted inside the same copy on the same CPU; for a load to pass
 * unseen it takes one such task in each of the four.
 *
 * What a gate returns ends the matter, the other copies are not asked. So the first that refuses
 * counts, and none counts twice. Included by kmodgate.bpf.c behind the programs that answer.
 */
#ifndef KMODGATE_GATES_H
#define KMODGATE_GATES_H

#include "answer.h"

/*
 * The first hook is decided by the table alone, from facts at hand; the program before it is not
 * needed for that. Each copy forgets what an earlier load may have left behind.
 */
static __always_inline int kmg_gate_begin(enum kmg_api api, enum kmg_origin origin)
{
	struct kmg_load *load = kmg_load_current();
	struct kmg_ruling ruling;
	int answer = 0;

	if (load) {
		if (load->answered == KMG_HOOK_BEGIN)
			answer = load->answer;
		else
			load->answered = KMG_HOOK_NONE;
		load->noted = 0;
		if (answer)
			return answer;
	}
	kmg_decide(KMG_STAGE_SIGNATURE, api, origin, KMG_VERIFICATION_NOT_YET, &ruling);
	if (ruling.now.verdict != KMG_VERDICT_DENY)
		return 0;
	return kmg_stateless_ruling(api, &ruling.now);
}

/* Where no answer was left: the program that had to leave it was skipped, or had no state. */
static __always_inline int kmg_gate_answered(enum kmg_hook hook, enum kmg_api api, enum kmg_origin origin)
{
	struct kmg_load *load = kmg_load_current();
	struct kmg_ruling ruling;

	if (!load)
		return kmg_without_state(api, origin);
	if (load->answered == hook)
		return load->answer;
	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_STATE_MISSING,
		   &ruling);
	return kmg_load_decide(load, &ruling.now, KMG_VERIFICATION_STATE_MISSING);
}

static __always_inline int kmg_gate_bytes(enum kmg_api api, enum kmg_origin origin)
{
	struct kmg_ruling ruling;

	kmg_decide(KMG_STAGE_BYTES, api, origin, KMG_VERIFICATION_NOT_YET, &ruling);
	if (ruling.now.verdict != KMG_VERDICT_PENDING)
		return 0;
	return kmg_gate_answered(KMG_HOOK_BYTES, api, origin);
}

#define KMG_GATES(copy)                                                                                   \
	SEC("fmod_ret/security_kernel_read_file")                                                         \
	int BPF_PROG(kmg_gate_file_##copy, struct file *file, enum kernel_read_file_id id, bool contents, \
		     int ret)                                                                             \
	{                                                                                                 \
		if (ret || !kmg_reads_module(id))                                                         \
			return ret;                                                                       \
		return kmg_gate_begin(KMG_API_FINIT_MODULE, kmg_origin(file));                            \
	}                                                                                                 \
                                                                                                          \
	SEC("fmod_ret/security_kernel_load_data")                                                         \
	int BPF_PROG(kmg_gate_data_##copy, enum kernel_load_data_id id, bool contents, int ret)           \
	{                                                                                                 \
		if (ret || !kmg_loads_module(id))                                                         \
			return ret;                                                                       \
		return kmg_gate_begin(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);                            \
	}                                                                                                 \
                                                                                                          \
	SEC("fmod_ret/security_kernel_post_read_file")                                                    \
	int BPF_PROG(kmg_gate_read_##copy, struct file *file, char *buf, loff_t size,                     \
		     enum kernel_read_file_id id, int ret)                                                \
	{                                                                                                 \
		if (ret || !kmg_judges_read(id))                                                          \
			return ret;                                                                       \
		return kmg_gate_bytes(KMG_API_FINIT_MODULE, kmg_origin(file));                            \
	}                                                                                                 \
                                                                                                          \
	SEC("fmod_ret/security_kernel_post_load_data")                                                    \
	int BPF_PROG(kmg_gate_loaded_##copy, char *buf, loff_t size, enum kernel_load_data_id id,         \
		     char *description, int ret)                                                          \
	{                                                                                                 \
		if (ret || !kmg_judges_data(id))                                                          \
			return ret;                                                                       \
		return kmg_gate_bytes(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);                            \
	}                                                                                                 \
                                                                                                          \
	SEC("fmod_ret/security_locked_down")                                                              \
	int BPF_PROG(kmg_gate_signature_##copy, enum lockdown_reason what, int ret)                       \
	{                                                                                                 \
		if (ret || !kmg_asks_for_signature(what))                                                 \
			return ret;                                                                       \
		return kmg_gate_answered(KMG_HOOK_SIGNATURE, KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);     \
	}

KMG_GATES(1)
KMG_GATES(2)
KMG_GATES(3)
KMG_GATES(4)

#endif /* KMODGATE_GATES_H */
