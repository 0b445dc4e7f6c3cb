/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a hook is attached to and answered, on each of two rungs.
 *
 * lsm: one program at each hook of the security modules; what it returns counts.
 *
 * fmod_ret (KMG_FMOD_RET): where bpf is not among the security modules, programs at the kernel's
 * own security_*() functions. The kernel skips such a program, and counts it as "allow", when the
 * same program is already active on that CPU: preemption is enough. So the long program runs
 * before the function (fentry) and only leaves its answer with the load. What refuses are gates,
 * short programs in several copies (gates.h), and they refuse where no answer was left.
 */
#ifndef KMODGATE_ANSWER_H
#define KMODGATE_ANSWER_H

#include "kernel.h"
#include "load.h"

#ifdef KMG_FMOD_RET

#define KMG_HOOK(name) SEC("fentry/security_" #name)
#define KMG_SLEEPABLE_HOOK(name) KMG_HOOK(name)
#define KMG_SUPERBLOCK_FREED SEC("fentry/security_sb_free")
#define KMG_EARLIER(ret) 0 /* nobody has answered before the function runs */

static __always_inline int kmg_answer(enum kmg_hook hook, int answer)
{
	struct kmg_load *load = kmg_load_current();

	if (load) {
		load->answer = answer;
		load->answered = hook;
	}
	return 0;
}

/* bpf_d_path() is not for programs at these functions. */
static __always_inline long kmg_file_path(struct kmg_load *load, struct file *file)
{
	__u32 length = kmg_path(&load->walk, file->f_path.dentry, file->f_path.mnt, load->event.path);

	return length ? length : -EPERM;
}

#else

#define KMG_HOOK(name) SEC("lsm/" #name)
#define KMG_SLEEPABLE_HOOK(name) SEC("lsm.s/" #name)
#define KMG_SUPERBLOCK_FREED SEC("lsm/sb_free_security")
#define KMG_EARLIER(ret) (ret)

static __always_inline int kmg_answer(enum kmg_hook hook, int answer)
{
	return answer;
}

static __always_inline long kmg_file_path(struct kmg_load *load, struct file *file)
{
	return bpf_d_path(&file->f_path, load->event.path, KMG_PATH_LEN);
}

#endif
#endif /* KMODGATE_ANSWER_H */
