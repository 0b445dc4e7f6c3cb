/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Telling the agent of a load that is over.
 */
#ifndef KMODGATE_TELL_H
#define KMODGATE_TELL_H

#include "count.h"
#include "decide.h"
#include "kernel.h"
#include "kmodgate.h"
#include "load.h"

/*
 * Whether to wake the agent for a record. Woken, it runs at once, on a single CPU before the
 * load's system call has returned. For a load that was let in without it, it reads the ring
 * once a second instead, or when that is half full. A record that does wake it must force that:
 * by itself the ring wakes nobody who is behind.
 */
static __always_inline __u64 kmg_wakeup(const struct kmg_event *event)
{
	struct kmg_control *c = kmg_control();

	if (!c || !c->quiet)
		return 0;
	if (event->verdict != KMG_VERDICT_ALLOW || event->question || event->has_digest)
		return BPF_RB_FORCE_WAKEUP;
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < KMG_EVENTS_SIZE / 2 ? BPF_RB_NO_WAKEUP
										   : BPF_RB_FORCE_WAKEUP;
}

static __always_inline void kmg_tell(struct kmg_load *load)
{
	if (bpf_ringbuf_output(&events, &load->event, sizeof(load->event), kmg_wakeup(&load->event)))
		kmg_stat(KMG_STAT_EVENTS_LOST);
}

#endif /* KMODGATE_TELL_H */
