// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Test programs: the headers of bpf/ run natively, with nothing attached.
 * Driven by tests/bpf/test_native.py.
 */
#include "kmodgate.h"

#include "kernel.h"

#include "ask.h"
#include "count.h"
#include "decide.h"
#include "path.h"
#include "sha256.h"
#include "tell.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define TEST_BYTES (4 << 20)

struct test_buffer {
	__u8 bytes[TEST_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_buffer);
} buffer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kmg_sha256);
} scratch SEC(".maps");

struct test_sha256 {
	__u64 offset;
	__u64 length;
	__u8 digest[KMG_DIGEST_LEN];
};

SEC("syscall")
int test_sha256(struct test_sha256 *args)
{
	__u32 zero = 0;
	struct test_buffer *b = bpf_map_lookup_elem(&buffer, &zero);
	struct kmg_sha256 *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!b || !s)
		return -EINVAL;
	/* Through memory the address becomes a number: arithmetic on the pointer is refused. */
	*(volatile __u64 *)s->chunk = (__u64)b;
	return kmg_sha256(s, *(volatile __u64 *)s->chunk + args->offset, args->length, args->digest);
}

struct test_decide {
	__u32 stage;
	__u32 api;
	__u32 origin;
	__u32 verification;
	struct kmg_decision now;
	struct kmg_decision trusted;
};

SEC("syscall")
int test_decide(struct test_decide *args)
{
	struct kmg_ruling ruling = {};

	kmg_decide(args->stage, args->api, args->origin, args->verification, &ruling);
	args->now = ruling.now;
	args->trusted = ruling.trusted;
	return 0;
}

struct test_observe {
	__u64 nanoseconds;
};

SEC("syscall")
int test_observe(struct test_observe *args)
{
	kmg_observe(KMG_HISTOGRAM_HOLD, args->nanoseconds);
	return 0;
}

struct test_walk {
	struct kmg_walk walk;
	char path[KMG_PATH_LEN];
};

struct test_path {
	__u32 fd;
	__u32 length;
	char path[KMG_PATH_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_walk);
} walk SEC(".maps");

SEC("syscall")
int test_path(struct test_path *args)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 zero = 0;
	struct test_walk *w = bpf_map_lookup_elem(&walk, &zero);
	struct file **slots = BPF_CORE_READ(task, files, fdt, fd);
	struct file *file = NULL;

	if (!w || bpf_probe_read_kernel(&file, sizeof(file), slots + args->fd) || !file)
		return -EINVAL;
	args->length = kmg_path(&w->walk, BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt),
				w->path);
	__builtin_memcpy(args->path, w->path, sizeof(args->path));
	return 0;
}

struct test_wait {
	__u32 turns; /* in the place, if there is one */
	__u32 got;
	__u64 inside; /* loads in a place at once, this one included: the most that was seen */
};

static __u64 inside = 0;

static long test_wait_turn(__u32 turn, struct test_wait *args)
{
	__u64 now = *(volatile __u64 *)&inside;

	if (now > args->inside)
		args->inside = now;
	return 0;
}

SEC("syscall")
int test_wait(struct test_wait *args)
{
	struct kmg_control *c = kmg_control();
	struct test_wait seen = {};

	if (!c)
		return -EINVAL;
	args->got = kmg_wait_begin(c);
	if (!args->got)
		return 0;
	__sync_fetch_and_add(&inside, 1);
	bpf_loop(args->turns, test_wait_turn, &seen, 0);
	__sync_fetch_and_add(&inside, -1);
	kmg_wait_end();
	args->inside = seen.inside;
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kmg_load);
} told SEC(".maps");

struct test_tell {
	__u64 question;
	__u32 verdict;
	__u32 has_digest;
	__u64 wakeup;
};

SEC("syscall")
int test_tell(struct test_tell *args)
{
	__u32 zero = 0;
	struct kmg_load *load = bpf_map_lookup_elem(&told, &zero);

	if (!load)
		return -EINVAL;
	load->event.question = args->question;
	load->event.verdict = args->verdict;
	load->event.has_digest = args->has_digest;
	args->wakeup = kmg_wakeup(&load->event);
	kmg_tell(load);
	return 0;
}
