/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which generation of the programs acts. Programs are pinned and outlive their agent; an agent
 * that starts attaches its own beside them, says in control.instance that these act from now on,
 * and then takes the old ones away. In between both are attached, over the same maps.
 *
 * The word can change between two programs at one hook. So while control.handover is set the
 * first of them that comes by leaves a mark in the load: whose turn it saw. The second one does
 * the opposite, whatever the word says by then: at each hook of each load exactly one acts.
 */
#ifndef KMODGATE_GENERATION_H
#define KMODGATE_GENERATION_H

#include "decide.h"
#include "kernel.h"
#include "kmodgate.h"

/* Set by the agent before it loads the object; the kernel knows it as a constant. */
const volatile __u32 kmg_instance SEC(".rodata.instance") = 0;

/* Hooks that must act once. Two that follow each other in a load differ. */
enum kmg_hook {
	KMG_HOOK_NONE = 0,
	KMG_HOOK_BEGIN,
	KMG_HOOK_BYTES,
	KMG_HOOK_SIGNATURE,
	KMG_HOOK_END,
};

struct kmg_visit {
	__u32 visitor; /* the generation that came first */
	__u8 hook;
	__u8 taken; /* it acted */
	__u8 padding[2];
};

static __always_inline bool kmg_in_force(struct kmg_control *c)
{
	return *(volatile __u32 *)&c->instance == kmg_instance;
}

/*
 * Whether this generation acts at this hook. Without state to mark both do while two are
 * attached: they refuse, and count once (struct stateless).
 */
static __noinline bool kmg_turn(struct kmg_visit *visit, enum kmg_hook hook)
{
	struct kmg_control *c = kmg_control();
	bool taken;

	if (!c)
		return true;
	if (!*(volatile __u32 *)&c->handover)
		return kmg_in_force(c);
	if (!visit)
		return true;
	if (visit->hook == hook && visit->visitor != kmg_instance) {
		taken = visit->taken;
		visit->hook = KMG_HOOK_NONE;
		return !taken;
	}
	visit->hook = hook;
	visit->visitor = kmg_instance;
	visit->taken = kmg_in_force(c);
	return visit->taken;
}

#endif /* KMODGATE_GENERATION_H */
