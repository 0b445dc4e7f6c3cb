/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Judging a load by its bytes: digest, look-up, bounded wait, and the verdict on bytes that the
 * kernel has not checked yet.
 */
#ifndef KMODGATE_JUDGE_H
#define KMODGATE_JUDGE_H

#include "ask.h"
#include "count.h"
#include "decide.h"
#include "kernel.h"
#include "kmodgate.h"
#include "load.h"
#include "sha256.h"

/*
 * What is known of the bytes at a kernel address. The digest is not taken again of bytes that
 * were judged as they were read: they lie where they lay, in memory that belongs to this load.
 */
static __noinline __u32 kmg_look_up(struct kmg_load *load, __u64 address, __u64 length)
{
	struct kmg_control *c = kmg_control();

	if (!c)
		return KMG_VERIFICATION_STATE_MISSING;
	if (length > c->max_size)
		return KMG_VERIFICATION_TOO_LARGE;
	if (!load->event.has_digest || load->read_address != address || load->read_length != length) {
		load->event.has_digest = 0;
		if (kmg_sha256(&load->sha256, address, length, load->event.digest)) {
			kmg_stat(KMG_STAT_READ_FAILED);
			return KMG_VERIFICATION_STATE_MISSING;
		}
		load->event.has_digest = 1;
	}
	if (load->probe)
		return KMG_VERIFICATION_UNSIGNED;
	return kmg_verification(load);
}

/*
 * The verdict on bytes as they were read, where the table asks for it. Returns what the hook
 * must return. An allow is not final: the kernel has not checked the signature yet.
 */
static __noinline int kmg_judge(struct kmg_load *load, __u64 address, __u64 length)
{
	__u32 verification = KMG_VERIFICATION_NOT_YET;
	struct kmg_ruling ruling;
	__u64 start = bpf_ktime_get_ns();

	kmg_decide(KMG_STAGE_BYTES, load->event.api, load->event.origin, verification, &ruling);
	if (ruling.now.verdict == KMG_VERDICT_PENDING) {
		load->as_read = 1;
		verification = kmg_look_up(load, address, length);
		load->as_read = 0;
		load->judged = 1;
		load->read_address = address;
		load->read_length = length;
		load->read_verification = verification;
		kmg_decide(KMG_STAGE_BYTES, load->event.api, load->event.origin, verification, &ruling);
		/* The table changed just now, and asks again: it gets no second answer. */
		if (ruling.now.verdict == KMG_VERDICT_PENDING)
			kmg_refuse(&ruling.now);
		start = bpf_ktime_get_ns() - start;
		load->event.decision_time += start;
		kmg_observe(KMG_HISTOGRAM_DECISION, start);
	}
	if (ruling.now.verdict != KMG_VERDICT_ALLOW)
		return kmg_load_decide(load, &ruling.now, verification);
	load->trusted = ruling.now;
	return 0;
}

#endif /* KMODGATE_JUDGE_H */
