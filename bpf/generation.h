/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which generation of the programs acts. Programs are pinned and outlive their agent; an agent with
 * other programs attaches its own beside them, over the same maps, says in control.instance that
 * these act from now on, and then takes the old ones away. From before the first is attached until
 * after the last is gone control.handover is set: at each hook of a load the generation that comes
 * first acts, and leaves a mark; the one that comes second sees it and does nothing. A task may have
 * entered a hook before the new programs were there, so neither may rely on the other.
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
	__u32 hook;
};

static __always_inline bool kmg_in_force(struct kmg_control *c)
{
	return *(volatile __u32 *)&c->instance == kmg_instance;
}

/* Attached, but not in force: of an agent that has not come so far yet, or never will. */
static __always_inline bool kmg_inert(void)
{
	struct kmg_control *c = kmg_control();

	return c && !*(volatile __u32 *)&c->handover && !kmg_in_force(c);
}

/*
 * Whether this generation acts at this hook. Without state to mark both do while two are
 * attached: they refuse, and count once (struct stateless).
 */
static __noinline bool kmg_turn(struct kmg_visit *visit, enum kmg_hook hook)
{
	struct kmg_control *c = kmg_control();

	if (!c)
		return true;
	if (!*(volatile __u32 *)&c->handover)
		return kmg_in_force(c);
	if (!visit)
		return true;
	if (visit->hook == hook && visit->visitor != kmg_instance) {
		visit->hook = KMG_HOOK_NONE;
		return false;
	}
	visit->hook = hook;
	visit->visitor = kmg_instance;
	return true;
}

#endif /* KMODGATE_GENERATION_H */
