/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Questions to the agent, its answers by digest, and the bounded wait for one.
 */
#ifndef KMODGATE_ASK_H
#define KMODGATE_ASK_H

#include "count.h"
#include "decide.h"
#include "facts.h"
#include "kernel.h"
#include "kmodgate.h"
#include "load.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} questions SEC(".maps");

struct kmg_digest {
	__u8 bytes[KMG_DIGEST_LEN];
};

/* Filled and bounded by the agent alone: a storm of unknown modules evicts nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct kmg_digest);
	__type(value, struct kmg_answer);
} answers SEC(".maps");

/*
 * Questions that the agent is done with, whether or not it could read the bytes: ends the
 * wait of a load whose own bytes turned out to have another digest.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} done SEC(".maps");

/* Never the same twice, whichever generation of programs or agent asks and answers. */
static __always_inline __u64 kmg_next_question(void)
{
	__u32 at = KMG_STAT_QUESTION_IDS;
	__u64 *cell = bpf_map_lookup_elem(&stats, &at);

	return cell ? __sync_fetch_and_add(cell, 1) + 1 : 0;
}

/* Files that need no question, each with the trust generation of its answer. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct kmg_file);
	__type(value, __u64);
} files SEC(".maps");

/* Loads that wait at this moment. Taken and given back within one run of one program. */
static __u64 waiting = 0;

static __noinline void kmg_ask(struct kmg_load *load)
{
	struct kmg_question *q;
	struct kmg_call call = {};
	__u64 id = kmg_next_question();

	kmg_call_arguments(&call);
	q = bpf_ringbuf_reserve(&questions, sizeof(*q), 0);
	if (!q) {
		kmg_stat(KMG_STAT_QUESTIONS_LOST);
		return;
	}
	q->id = id;
	q->start_time = load->event.start_time;
	q->inode = load->event.inode;
	q->device = load->event.device;
	q->tgid = load->event.tgid;
	q->tid = load->event.tid;
	q->api = load->event.api;
	q->padding = 0;
	q->fd = (__s32)call.first;
	q->address = call.first;
	q->length = call.second;
	load->event.question = q->id;
	kmg_stat(KMG_STAT_QUESTIONS);
	/* Somebody waits: no batching of wake-ups. */
	bpf_ringbuf_submit(q, BPF_RB_FORCE_WAKEUP);
}

/* KMG_VERIFICATION_NOT_YET when nothing valid is known of the load's digest. */
static __always_inline __u32 kmg_known(struct kmg_load *load)
{
	struct kmg_answer *answer = bpf_map_lookup_elem(&answers, load->event.digest);
	struct kmg_control *c = kmg_control();

	if (!answer || !c || answer->trust_generation != c->trust_generation)
		return KMG_VERIFICATION_NOT_YET;
	/* A compressed file is no module: it can only load as what it unpacks to. */
	if (load->as_read && answer->contents)
		return answer->contents;
	return answer->verification;
}

static __always_inline bool kmg_agent_alive(struct kmg_control *c)
{
	__u64 beat = *(volatile __u64 *)&c->heartbeat, now = bpf_ktime_get_ns();

	return beat && (now <= beat || now - beat < c->heartbeat_max_age);
}

/* Whether the agent has answered for this load's file, or for one that looked like it. */
static __always_inline bool kmg_answered_for(struct kmg_load *load)
{
	struct kmg_file file = {
		.inode = load->event.inode,
		.size = load->event.size,
		.device = load->event.device,
	};
	__u64 *generation = bpf_map_lookup_elem(&files, &file);
	struct kmg_control *c = kmg_control();

	return generation && c && *generation == c->trust_generation;
}

/*
 * A place to wait in. A wait keeps a CPU busy, and the agent needs one to end it: without a
 * bound, as many loaders as there are CPUs would starve it.
 */
static __always_inline bool kmg_wait_begin(struct kmg_control *c)
{
	if (__sync_fetch_and_add(&waiting, 1) < c->wait_limit)
		return true;
	__sync_fetch_and_add(&waiting, -1);
	kmg_stat(KMG_STAT_WAITS_REFUSED);
	return false;
}

static __always_inline void kmg_wait_end(void)
{
	__sync_fetch_and_add(&waiting, -1);
}

/* What the callbacks of bpf_loop() get: the rest lies in the load, off the stack. */
struct kmg_wait {
	struct kmg_load *load;
	__u64 deadline;
	__u32 verification;
	__u32 over;
};

/*
 * One look. Writes only when it ends the wait: the verifier follows a callback until its state
 * no longer changes, and a turn that changes nothing is followed once.
 */
static long kmg_wait_turn(__u32 turn, struct kmg_wait *wait)
{
	struct kmg_load *load = wait->load;
	/* Before the look-up by digest: the agent stores the answer first, then "done". */
	bool done_with = bpf_map_lookup_elem(&done, &load->event.question);
	__u32 verification = kmg_known(load);

	if (verification == KMG_VERIFICATION_NOT_YET) {
		if (done_with)
			/* The agent answered for other bytes than these, or could not read any. */
			verification = KMG_VERIFICATION_UNREADABLE;
		else if (bpf_ktime_get_ns() > wait->deadline)
			verification = KMG_VERIFICATION_TIMED_OUT;
		else
			return 0;
	}
	wait->verification = verification;
	wait->over = 1;
	return 1;
}

/* bpf_loop() stops at 2^23 turns, a fraction of a second on a fast machine: enter it again. */
static long kmg_wait_round(__u32 round, struct kmg_wait *wait)
{
	bpf_loop(1 << 23, kmg_wait_turn, wait, 0);
	return wait->over ? 1 : 0;
}

/*
 * The verification state of the load's digest, waiting for the agent if it may know soon.
 * Spins: neither locked_down nor the hooks behind a read may sleep.
 */
static __noinline __u32 kmg_verification(struct kmg_load *load)
{
	struct kmg_control *c = kmg_control();
	struct kmg_wait wait = { .load = load };
	__u64 start;

	wait.verification = kmg_known(load);
	if (wait.verification != KMG_VERIFICATION_NOT_YET)
		return wait.verification;
	if (!c || !kmg_agent_alive(c))
		return KMG_VERIFICATION_AGENT_AWAY;
	if (!load->event.question)
		kmg_ask(load);
	if (!load->event.question)
		return KMG_VERIFICATION_AGENT_AWAY;
	if (!kmg_wait_begin(c))
		return KMG_VERIFICATION_TIMED_OUT;

	start = bpf_ktime_get_ns();
	/* What was waited asleep is part of the same promise. */
	wait.deadline = start + (c->hold > load->event.hold ? c->hold - load->event.hold : 0);
	bpf_loop(64, kmg_wait_round, &wait, 0);
	kmg_wait_end();
	if (!wait.over)
		wait.verification = KMG_VERIFICATION_TIMED_OUT;
	start = bpf_ktime_get_ns() - start;
	/* Each load that waits counts once: what was waited asleep stands there already. */
	if (!load->event.hold)
		kmg_observe(KMG_HISTOGRAM_HOLD, start);
	load->event.hold += start;
	return wait.verification;
}

#ifdef KMG_FMOD_RET
/* No program of this rung may sleep. */
static __always_inline void kmg_wait_asleep(struct kmg_load *load)
{
}
#else
struct kmg_sleep {
	struct kmg_load *load;
	__u64 deadline;
};

static long kmg_sleep_turn(__u32 turn, struct kmg_sleep *sleep)
{
	__u8 byte;

	if (bpf_map_lookup_elem(&done, &sleep->load->event.question) || bpf_ktime_get_ns() > sleep->deadline)
		return 1;
	/* Its might_fault() reschedules: on one CPU the agent gets to run. */
	bpf_copy_from_user_task(&byte, 1, NULL, bpf_get_current_task_btf(), 0);
	return 0;
}

/* The wait for a single CPU, where a spin would starve the agent. Sleepable programs only. */
static __always_inline void kmg_wait_asleep(struct kmg_load *load)
{
	struct kmg_control *c = kmg_control();
	struct kmg_sleep sleep = { .load = load };
	__u64 start = bpf_ktime_get_ns();

	if (!c || !load->event.question || !kmg_agent_alive(c) || !kmg_wait_begin(c))
		return;
	sleep.deadline = start + c->hold;
	bpf_loop(1 << 23, kmg_sleep_turn, &sleep, 0);
	kmg_wait_end();
	load->event.hold += bpf_ktime_get_ns() - start;
	kmg_observe(KMG_HISTOGRAM_HOLD, load->event.hold);
}
#endif

#endif /* KMODGATE_ASK_H */
