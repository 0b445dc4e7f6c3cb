/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one contract between the programs and the agent: enums, records, map shapes.
 *
 * Twin: agent/kmodgate/model.py (the enums) and agent/kmodgate/hooks/abi.py (the records).
 * tests/bpf/test_abi.py reads this header's types from the BTF of the compiled object and
 * compares every member's offset and every enumerator's value.
 *
 * Numbers are ABI: the programs may outlive the agent that loaded them. Add, never reuse,
 * and raise KMG_ABI when a record changes shape.
 */
#ifndef KMODGATE_H
#define KMODGATE_H

#include <linux/types.h>

#define KMG_ABI 3

#define KMG_PATH_LEN 512 /* bytes of path that an event can carry, NUL included */
#define KMG_NAME_LEN 56 /* MODULE_NAME_LEN on 64-bit, include/linux/moduleparam.h */
#define KMG_COMM_LEN 16 /* TASK_COMM_LEN */
#define KMG_FSTYPE_LEN 16
#define KMG_DIGEST_LEN 32
#define KMG_PINS 64 /* file systems that may be pinned beside the root */

enum kmg_api {
	KMG_API_FINIT_MODULE = 0,
	KMG_API_INIT_MODULE = 1,
	KMG_API_COUNT,
};

enum kmg_origin {
	KMG_ORIGIN_PINNED_ROOT = 0, /* or a file system with a trusted dm-verity digest */
	KMG_ORIGIN_OTHER_FILESYSTEM = 1,
	KMG_ORIGIN_MEMORY = 2,
	KMG_ORIGIN_COUNT,
};

/* The point of a load at which the table is consulted. */
enum kmg_stage {
	KMG_STAGE_SIGNATURE = 0, /* first hook; again where the kernel found no signature it trusts */
	KMG_STAGE_BYTES = 1, /* the bytes were read, the kernel has not checked them yet */
	KMG_STAGE_COUNT,
};

enum kmg_verdict {
	KMG_VERDICT_PENDING = 0,
	KMG_VERDICT_ALLOW = 1,
	KMG_VERDICT_DENY = 2,
	KMG_VERDICT_WOULD_DENY = 3,
	KMG_VERDICT_COUNT,
};

enum kmg_by {
	KMG_BY_KMODGATE = 0,
	KMG_BY_KERNEL = 1,
	KMG_BY_SHARED = 2,
};

enum kmg_reason {
	KMG_REASON_NONE = 0,

	KMG_REASON_PINNED_ROOT = 10,
	KMG_REASON_NOT_RESTRICTED = 11,
	KMG_REASON_TRUSTED_SIGNATURE = 12,
	KMG_REASON_FAILURE_POLICY_IGNORE = 13,

	KMG_REASON_OUTSIDE_PINNED_ROOT = 20,
	KMG_REASON_NO_FILE = 21,

	KMG_REASON_UNSIGNED = 30,
	KMG_REASON_UNTRUSTED_SIGNER = 31,
	KMG_REASON_BAD_SIGNATURE = 32,
	KMG_REASON_MALFORMED_SIGNATURE = 33,
	KMG_REASON_UNSUPPORTED_SIGNATURE = 34,
	KMG_REASON_REVOKED = 35,

	KMG_REASON_AGENT_UNAVAILABLE = 50,
	KMG_REASON_HOLD_TIMEOUT = 51,
	KMG_REASON_TOO_LARGE = 52,
	KMG_REASON_UNREADABLE = 53,
	KMG_REASON_STATE_MISSING = 54,

	KMG_REASON_KERNEL_SIG_ENFORCE = 60,
	KMG_REASON_KERNEL_LOCKDOWN = 61,
	KMG_REASON_OTHER_SECURITY_MODULE = 62,
};

enum kmg_verification {
	KMG_VERIFICATION_NOT_YET = 0,
	KMG_VERIFICATION_KERNEL_TRUSTED = 1,
	KMG_VERIFICATION_TRUSTED = 2,
	KMG_VERIFICATION_UNSIGNED = 3,
	KMG_VERIFICATION_UNTRUSTED_SIGNER = 4,
	KMG_VERIFICATION_BAD_SIGNATURE = 5,
	KMG_VERIFICATION_MALFORMED_EBADMSG = 6,
	KMG_VERIFICATION_MALFORMED_EINVAL = 7,
	KMG_VERIFICATION_MALFORMED_EMSGSIZE = 8,
	KMG_VERIFICATION_UNSUPPORTED = 9,
	KMG_VERIFICATION_REVOKED = 10,
	KMG_VERIFICATION_IGNORE_FLAGS = 11,
	KMG_VERIFICATION_AGENT_AWAY = 12,
	KMG_VERIFICATION_TIMED_OUT = 13,
	KMG_VERIFICATION_TOO_LARGE = 14,
	KMG_VERIFICATION_UNREADABLE = 15,
	KMG_VERIFICATION_STATE_MISSING = 16,
};

/*
 * Plain counts that are not verdicts. Position in the `stats` map.
 * Invariant: ATTEMPTS_* summed + REDECIDED = verdicts counted + UNDECIDED + what the recursion
 * guard made the exit programs miss (struct bpf_prog_info.recursion_misses).
 */
enum kmg_stat {
	KMG_STAT_ATTEMPTS_FINIT = 0, /* loads that reached the first hook, by call */
	KMG_STAT_ATTEMPTS_INIT = 1,
	KMG_STAT_UNDECIDED = 2, /* failed on their own before a decision was due (ENOEXEC, ENOMEM) */
	KMG_STAT_REFUSED_EARLY = 3, /* never reached a hook: EBADF, EINVAL, no CAP_SYS_MODULE */
	KMG_STAT_LOADED_UNSEEN = 4, /* module_load without a load in progress: critical */
	KMG_STAT_EVENTS_LOST = 5, /* event ring full */
	KMG_STAT_QUESTIONS_LOST = 6, /* question ring full */
	KMG_STAT_QUESTIONS = 7, /* questions sent to the agent */
	KMG_STAT_STORAGE_FAILED = 8, /* no task storage to be had: decided by STATE_MISSING */
	KMG_STAT_READ_FAILED = 9, /* module bytes that could not be read for the digest */
	KMG_STAT_PATH_FAILED = 10, /* bpf_d_path gave no path */
	KMG_STAT_TABLE_RACED = 11, /* decision table changed three times during one look-up */
	KMG_STAT_ABANDONED = 12, /* a load began while the task's last one had not been seen to end */
	KMG_STAT_PROBE_FIRST_HOOK = 13, /* self-probe reached kernel_load_data */
	KMG_STAT_PROBE_SIGNATURE = 14, /* self-probe reached locked_down with its bytes noted */
	KMG_STAT_PROBE_EXIT = 15, /* self-probe reached the end of the system call */
	KMG_STAT_REDECIDED = 16, /* the policy changed under a load: counted under both verdicts */
	KMG_STAT_PROBE_BYTES = 17, /* self-probe reached kernel_post_load_data while bytes are judged */
	KMG_STAT_QUESTION_IDS = 18, /* numbers given to questions */
	KMG_STAT_FORMER_MISSES = 19, /* recursion_misses of the programs that were replaced */
	KMG_STAT_WAITS_REFUSED = 20, /* loads that did not wait: as many as may wait did so already */
	KMG_STAT_COUNT,
};

enum kmg_histogram {
	KMG_HISTOGRAM_HOLD = 0, /* time a load waited for the agent */
	KMG_HISTOGRAM_DECISION = 1, /* time spent in the deciding program, the wait included */
	KMG_HISTOGRAM_COUNT,
};

/* Bucket i counts durations below 2^i microseconds; the last one counts all the rest. */
#define KMG_HISTOGRAM_BUCKETS 24
/* One row: the buckets, then the sum in nanoseconds. */
#define KMG_HISTOGRAM_ROW (KMG_HISTOGRAM_BUCKETS + 1)

/* Position in the `counters` map: every verdict by reason, call and decider. */
#define KMG_REASON_SLOTS 64
#define KMG_BY_SLOTS 4
#define KMG_COUNTERS (KMG_VERDICT_COUNT * KMG_REASON_SLOTS * KMG_API_COUNT * KMG_BY_SLOTS)

/* Position in one copy of the `decisions` map. */
#define KMG_VERIFICATION_SLOTS 32
#define KMG_TABLE_SIZE (KMG_STAGE_COUNT * KMG_API_COUNT * KMG_ORIGIN_COUNT * KMG_VERIFICATION_SLOTS)
#define KMG_TABLE_COPIES 2

struct kmg_decision {
	__u32 generation; /* of the table that this entry belongs to */
	__u8 verdict;
	__u8 reason;
	__u16 error; /* positive errno; 0 for allow and pending */
};

/* What the agent tells the programs. One entry, mapped into the agent's memory. */
struct kmg_control {
	__u64 generation; /* of the table in force; its copy is generation % KMG_TABLE_COPIES */
	__u64 trust_generation; /* verdicts of another one do not count */
	__u64 heartbeat; /* CLOCK_MONOTONIC ns of the agent's last sign of life */
	__u64 heartbeat_max_age; /* ns after which nobody waits for the agent */
	__u64 hold; /* ns a load may wait */
	__u64 max_size; /* bytes of the largest module that gets a digest */
	__u64 probe; /* pid_tgid of the agent's probing thread, 0 for none */
	__u64 root_superblock; /* struct super_block * of the pinned root, 0 for none */
	__u32 root_device; /* its s_dev */
	__u32 wait_asleep; /* 1: wait in the sleepable first hook (single CPU) */
	__u32 sig_enforce; /* 1: the kernel's own module.sig_enforce is on */
	/*
	 * 1: sig_enforce or lockdown answer before locked_down is asked. The self-probe then ends
	 * at the first hook, or the kernel would log a refusal for each.
	 */
	__u32 kernel_refuses;
	/*
	 * 1: the table may ask for the bytes of every load. A hint that saves the look-up where it
	 * does not; on before such a table is in force, off after it.
	 */
	__u32 every_load;
	__u32 wait_limit; /* loads that may wait at once */
	__u64 seen; /* CLOCK_BOOTTIME ns of the last heartbeat; unlike it, stays when the agent ends */
	__u64 trust_key; /* of the anchors behind trust_generation: the same ones, the same number */
	__u64 programs; /* which compiled programs act: the same ones, the same number */
	__u32 instance; /* the generation of programs that acts, see generation.h */
	__u32 handover; /* 1: two generations are attached */
	__u32 quiet; /* 1: a load that was let in without the agent does not wake it */
	__u32 padding;
};

/* A question to the agent: verify what this task is about to load. */
struct kmg_question {
	__u64 id;
	__u64 start_time; /* of the task, CLOCK_BOOTTIME ns */
	__u64 inode;
	__u64 address; /* init_module: user address and length of the image */
	__u64 length;
	__u32 tgid;
	__u32 tid;
	__u32 device;
	__s32 fd; /* finit_module: descriptor in the task's own table */
	__u32 api;
	__u32 padding;
};

/* What the agent knows of a digest. */
struct kmg_answer {
	__u64 trust_generation;
	__u32 verification;
	__u32 contents; /* the same of what the file unpacks to, 0 where it is not compressed */
};

/*
 * A file whose digest the agent has answered for. A hint, never an identity: it spares a
 * question that nobody needs. What may load is decided by the digest alone.
 */
struct kmg_file {
	__u64 inode;
	__u64 size;
	__u32 device; /* kernel dev_t */
	__u32 padding;
};

/* One load, as it is told to the agent when the system call ends. */
struct kmg_event {
	__u64 time; /* CLOCK_MONOTONIC ns at the first hook */
	__u64 duration; /* ns from the first hook to the end of the call */
	__u64 hold; /* ns waited for the agent */
	__u64 decision_time; /* ns spent deciding, the wait included */
	__u64 question; /* id of the question asked, 0 for none */
	__u64 start_time; /* of the task, CLOCK_BOOTTIME ns */
	__u64 cgroup; /* id of the task's cgroup in the v2 hierarchy */
	__u64 inode;
	__u64 size; /* of the file in bytes; for init_module of the buffer */
	__u32 generation; /* of the table that decided */
	__u32 tgid;
	__u32 tid;
	__u32 parent;
	__u32 uid;
	__u32 device; /* kernel dev_t: major << 20 | minor */
	__s32 result; /* what the system call returned */
	__u32 flags; /* MODULE_INIT_* */
	__u16 error; /* errno of a refusal, or of the refusal that audit withheld */
	__u16 path_length; /* bytes with the NUL, 0 for none */
	__u8 verdict;
	__u8 reason;
	__u8 api;
	__u8 origin;
	__u8 by;
	__u8 verification;
	__u8 has_digest;
	__u8 loaded; /* the module_load tracepoint was seen */
	__u8 padding[4];
	/*
	 * SHA-256 of the decompressed file with its signature; of the compressed one where a load
	 * was refused before the kernel unpacked it.
	 */
	__u8 digest[KMG_DIGEST_LEN];
	char comm[KMG_COMM_LEN];
	char fstype[KMG_FSTYPE_LEN];
	char module[KMG_NAME_LEN];
	char path[KMG_PATH_LEN];
};

/* Key of the `pinned` map: a superblock on a dm-verity device that the agent found trusted. */
struct kmg_pin {
	__u64 superblock; /* struct super_block * */
	__u32 device; /* its s_dev */
	__u32 padding;
};

/*
 * Argument of the kmg_introduce program, which the agent runs in its own context: what only
 * the kernel can tell it of itself.
 */
struct kmg_introduction {
	__u32 fd; /* in: a descriptor on the file system in question */
	__u32 device; /* out: s_dev of its superblock */
	__u64 superblock; /* out: identity only, never followed */
	__u64 task; /* out: pid_tgid of the calling thread in the initial PID namespace */
};

#endif /* KMODGATE_H */
