/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the guard's programs and the agent. Twin:
 * agent/kmodgate/hooks/guardabi.py; tests/bpf/test_guard_abi.py compares the two.
 */
#ifndef KMODGATE_GUARD_H
#define KMODGATE_GUARD_H

#include <linux/types.h>

#define KMG_GUARD_COMM_LEN 16
#define KMG_GUARD_DIGEST_LEN 32
#define KMG_GUARD_OBJECTS 1024

/* What was tried. Position in guard_denied. */
enum kmg_switch {
	KMG_SWITCH_FTRACE = 0, /* kernel.ftrace_enabled written */
	KMG_SWITCH_UNMOUNT = 1, /* the BPF file system unmounted, moved or mounted over */
	KMG_SWITCH_PINS = 2, /* a pin removed, renamed, or a foreign one put beside them */
	KMG_SWITCH_OBJECTS = 3, /* a map, program or link of kmodgate's opened by another task */
	KMG_SWITCH_PTRACE = 4, /* ptrace, /proc/PID/mem and the like on the agent */
	KMG_SWITCH_COUNT,
};

/* What a protected number is the number of. */
enum kmg_object {
	KMG_OBJECT_MAP = 0,
	KMG_OBJECT_PROGRAM = 1,
	KMG_OBJECT_LINK = 2,
	KMG_OBJECT_REGISTER = 3, /* the program that registers an agent: open while there is none */
	KMG_OBJECT_COUNT,
};

struct kmg_guard_control {
	/* SHA-256 of the last token that lifted the guard. First, where a later version finds it. */
	__u8 used[KMG_GUARD_DIGEST_LEN];
	__u64 leader; /* the registered agent: kernel address and start of its first thread */
	__u64 start_time;
	__u64 superblock; /* of the BPF file system with the pins */
	__u64 mount; /* where it is mounted for process 1 (struct vfsmount) */
	__u64 directory; /* the directory with the pins (struct dentry) */
	__u64 lifted_until; /* CLOCK_MONOTONIC ns: until then nothing is denied */
	__u32 device;
	__u32 padding;
};

struct kmg_guard_denied {
	__u64 count;
	__u32 tgid; /* of the last one */
	__u32 uid;
	__u8 comm[KMG_GUARD_COMM_LEN];
};

/* To kmg_guard_register: a descriptor of the directory with the pins, seen by process 1. */
struct kmg_guard_candidate {
	__u32 fd;
	__u32 padding;
};

#endif /* KMODGATE_GUARD_H */
