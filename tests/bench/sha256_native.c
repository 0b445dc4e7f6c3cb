// SPDX-License-Identifier: Apache-2.0
/*
 * bpf/sha256.h for a compiler of machine code: the same source, with C in place of the three
 * helpers it calls. Built by tests/bench/bench_sha256.py, which runs it beside BPF.
 *
 * With -DBEST the compiler gets what only BPF must do without: rotations, and a window that it
 * may keep where it likes.
 */
#include <linux/types.h>
#include <string.h>

#define KMODGATE_KERNEL_H /* none of its types is needed */
#define __noinline __attribute__((noinline))

static long bpf_probe_read_kernel(void *to, __u32 length, const void *from)
{
	memcpy(to, from, length);
	return 0;
}

#define bpf_loop(turns, body, context, flags)                   \
	do {                                                    \
		for (__u32 turn_ = 0; turn_ < (turns); turn_++) \
			if (body(turn_, context))               \
				break;                          \
	} while (0)

#ifdef BEST
#define KMG_SHA256_ROTATE
#define volatile
#endif
#include "sha256.h"

static struct kmg_sha256 state;

int digest(const void *data, __u64 length, __u8 *out)
{
	return kmg_sha256(&state, (__u64)data, length, out);
}
