/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state of a load: one per task, from its first hook to the end of the system call.
 */
#ifndef KMODGATE_LOAD_H
#define KMODGATE_LOAD_H

#include "count.h"
#include "decide.h"
#include "facts.h"
#include "generation.h"
#include "kernel.h"
#include "kmodgate.h"
#include "path.h"
#include "sha256.h"

struct kmg_load {
	struct kmg_event event; /* filled as the load goes; sent as it is at the end */
	struct kmg_decision trusted; /* the decision in case the kernel's keyrings trust it */
	__u64 image; /* kernel address and length of the decompressed module, noted at the */
	__u64 length; /* entry of module_sig_check, valid while it runs */
	__u64 read_address; /* of the bytes that event.digest belongs to, when they were judged */
	__u64 read_length;
	__u32 read_verification; /* what was known of them then */
	__s32 signature_result; /* what module_sig_check returned */
	__u8 active; /* between first hook and end */
	__u8 decided; /* by kmodgate, and counted */
	__u8 noted; /* image, length and flags are valid */
	__u8 checked; /* signature_result is valid */
	__u8 judged; /* the bytes were judged as they were read */
	__u8 as_read; /* the digest is of bytes that the kernel may unpack yet */
	__u8 probe; /* the agent's self-probe: judged, neither counted nor told */
	__u8 unverified; /* it got in, and the kernel's keyrings do not vouch for it */
	__u8 answered; /* enum kmg_hook: what the gates of this hook are to return is in answer */
	__s32 answer;
	struct kmg_visit visit;
	struct kmg_sha256 sha256;
#ifdef KMG_FMOD_RET
	struct kmg_walk walk;
#endif
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kmg_load);
} loads SEC(".maps");

#define KMG_EVENTS_SIZE (1 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, KMG_EVENTS_SIZE);
} events SEC(".maps");

/*
 * The current task's state, whether or not it is of a load in progress. NULL where it has none, or
 * the kernel has no storage to give (its per-CPU lock is busy, 6.1).
 */
static __always_inline struct kmg_load *kmg_load_state(__u64 flags)
{
	return bpf_task_storage_get(&loads, bpf_get_current_task_btf(), 0, flags);
}

/* The load in progress of the current task, or NULL. */
static __always_inline struct kmg_load *kmg_load_current(void)
{
	struct kmg_load *load = kmg_load_state(0);

	return load && load->active ? load : NULL;
}

/* Whether this generation acts at a hook of this load, see generation.h. */
static __always_inline bool kmg_load_turn(struct kmg_load *load, enum kmg_hook hook)
{
	return kmg_turn(load ? &load->visit : NULL, hook);
}

/*
 * Starts a load. Never trusts the last one to have been cleaned up: its exit may have been missed.
 * For the same reason never takes a mark's word that it was started: two generations both start it.
 * Whether it is an attempt to be counted: not the second time, and not the agent's self-probe.
 */
static __always_inline bool kmg_load_begin(struct kmg_load *load, enum kmg_api api)
{
	bool first = kmg_load_turn(load, KMG_HOOK_BEGIN);
	struct kmg_control *c = kmg_control();

	if (first && load->active && !load->probe)
		kmg_stat(KMG_STAT_ABANDONED);
	if (first) {
		__builtin_memset(&load->event, 0, sizeof(load->event));
		load->decided = 0;
	} /* else what the other one decided here was counted: kmg_load_decide compares */
	load->noted = 0;
	load->checked = 0;
	load->judged = 0;
	load->as_read = 0;
	load->unverified = 0;
	load->answered = KMG_HOOK_NONE;
	load->read_address = 0;
	load->read_verification = KMG_VERIFICATION_NOT_YET;
	load->probe = c && c->probe && c->probe == bpf_get_current_pid_tgid();
	load->active = 1;
	load->event.api = api;
	kmg_task_facts(&load->event);
	return first && !load->probe;
}

/*
 * Takes a decision: the one place where kmodgate's own verdicts are counted, by the program
 * that takes them. Returns what the hook must return.
 */
static __always_inline int kmg_load_decide(struct kmg_load *load, struct kmg_decision *decision,
					   enum kmg_verification verification)
{
	bool same = load->decided && load->event.verdict == decision->verdict &&
		    load->event.reason == decision->reason;

	/*
	 * A later hook sees the same load again, and as a rule says the same. If the policy
	 * changed in between, both answers were given, and counters never go back.
	 */
	if (!same && !load->probe) {
		kmg_count(decision->verdict, decision->reason, load->event.api, KMG_BY_KMODGATE);
		if (load->decided)
			kmg_stat(KMG_STAT_REDECIDED);
	}
	load->event.verdict = decision->verdict;
	load->event.reason = decision->reason;
	load->event.error = decision->error;
	load->event.generation = decision->generation;
	load->event.verification = verification;
	load->event.by = KMG_BY_KMODGATE;
	load->decided = 1;
	return kmg_hook_result(decision);
}

#endif /* KMODGATE_LOAD_H */
