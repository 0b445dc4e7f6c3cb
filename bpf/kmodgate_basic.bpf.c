// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kmodgate's programs for kernels without bpf_loop() (Linux 5.10 to 5.16): the rung bpf-lsm-basic.
 *
 *   kernel_read_file, kernel_load_data   a load begins: what the origin alone decides is decided
 *   kernel_post_read_file,               notes that the bytes were read, and how many
 *   kernel_post_load_data
 *   mod_verify_sig (exit)                notes what the kernel's keyrings say of the signature
 *   locked_down                          the kernel found no signature that it trusts: verdict
 *   module_load                          notes that it got in
 *   end of the system call               counts what nobody refused, tells the agent
 *
 * The kernel's keyrings are the only judges here: such a kernel can take no digest of a module
 * inside a program, so no answer of the agent could be tied to the bytes that are loaded, and none
 * is asked for. Everything that these programs call exists in 5.10: no task storage, no sleepable
 * program, no bpf_get_current_task_btf(), no bpf_d_path(). Contract, table and counters are those
 * of kmodgate.bpf.c.
 */
#define KMG_BASIC

#include "kmodgate.h"

#include "kernel.h"

#include "count.h"
#include "decide.h"
#include "facts.h"
#include "generation.h"
#include "path.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define KMG_LOADS_MAX 1024 /* tasks that load at the same moment; others are decided without state */

/* One load, from the first hook to the end of the system call. */
struct kmg_load {
	struct kmg_event event; /* filled as the load goes; sent as it is at the end */
	struct kmg_decision trusted; /* the decision in case the kernel's keyrings trust it */
	__s32 signature_result; /* what mod_verify_sig returned */
	__u8 checked; /* signature_result is valid: there is something like a signature */
	__u8 read; /* the bytes are in the kernel's memory */
	__u8 passed; /* no signature that the kernel trusts, and let in for all that */
	__u8 decided; /* by kmodgate, and counted */
	__u8 probe; /* the agent's self-probe: judged, neither counted nor told */
	__u8 attempt; /* begun by the generation that came first: counts */
	struct kmg_walk walk;
};

/* By task. Each entry goes away at the end of its system call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KMG_LOADS_MAX);
	__type(key, __u64);
	__type(value, struct kmg_load);
} loads SEC(".maps");

/* Never written: what a new load begins as, too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kmg_load);
} blank SEC(".maps");

/* Tasks whose load was decided without state, until its end: one load counts once. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} stateless SEC(".maps");

/* Marks of the time when two generations are attached (generation.h), by task. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct kmg_visit);
} visits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* In and out of kmg_introduce: a program of this type returns nothing through its context. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kmg_introduction);
} introduction SEC(".maps");

/* The load in progress of the current task, or NULL. */
static __always_inline struct kmg_load *kmg_load_current(void)
{
	__u64 task = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&loads, &task);
}

/* Whether this generation acts at a hook of this task's load. */
static __noinline bool kmg_task_turn(enum kmg_hook hook)
{
	__u64 task = bpf_get_current_pid_tgid();
	struct kmg_control *c = kmg_control();
	struct kmg_visit none = {}, *visit;

	if (!c || !*(volatile __u32 *)&c->handover)
		return kmg_turn(NULL, hook);
	visit = bpf_map_lookup_elem(&visits, &task);
	if (!visit) {
		bpf_map_update_elem(&visits, &task, &none, BPF_NOEXIST);
		visit = bpf_map_lookup_elem(&visits, &task);
	}
	return kmg_turn(visit, hook);
}

/* Starts a load, the second of two generations as well (load.h says why). NULL when as many tasks load as there is room for. */
static __noinline struct kmg_load *kmg_load_begin(enum kmg_api api)
{
	__u64 task = bpf_get_current_pid_tgid();
	bool first = kmg_task_turn(KMG_HOOK_BEGIN), decided = false;
	struct kmg_control *c = kmg_control();
	enum kmg_verdict verdict = KMG_VERDICT_PENDING;
	enum kmg_reason reason = KMG_REASON_NONE;
	struct kmg_load *load, *fresh;
	__u32 zero = 0;

	load = bpf_map_lookup_elem(&loads, &task);
	if (load && first && !load->probe)
		kmg_stat(KMG_STAT_ABANDONED); /* the end of its last load was not seen */
	if (load && !first) {
		decided = load->decided; /* and counted */
		verdict = load->event.verdict;
		reason = load->event.reason;
	}
	fresh = bpf_map_lookup_elem(&blank, &zero);
	if (!fresh || bpf_map_update_elem(&loads, &task, fresh, BPF_ANY))
		goto none;
	load = bpf_map_lookup_elem(&loads, &task);
	if (!load)
		goto none;
	load->probe = c && c->probe && c->probe == task;
	load->attempt = first && !load->probe;
	load->decided = decided;
	load->event.verdict = verdict;
	load->event.reason = reason;
	load->event.api = api;
	kmg_task_facts(&load->event);
	return load;
none:
	kmg_stat(KMG_STAT_STORAGE_FAILED);
	return NULL;
}

/* Nothing of this load can be remembered: decide it here and now. */
static __noinline int kmg_without_state(enum kmg_api api, enum kmg_origin origin)
{
	__u64 task = bpf_get_current_pid_tgid();
	struct kmg_ruling ruling;
	__u8 one = 1;

	kmg_decide(KMG_STAGE_SIGNATURE, api, origin, KMG_VERIFICATION_STATE_MISSING, &ruling);
	if (!bpf_map_lookup_elem(&stateless, &task)) {
		bpf_map_update_elem(&stateless, &task, &one, BPF_ANY);
		kmg_stat(api == KMG_API_FINIT_MODULE ? KMG_STAT_ATTEMPTS_FINIT : KMG_STAT_ATTEMPTS_INIT);
		kmg_count(ruling.now.verdict, ruling.now.reason, api, KMG_BY_KMODGATE);
	}
	return kmg_hook_result(&ruling.now);
}

/* Takes a decision and counts it, once for each that was given. Returns what the hook must. */
static __always_inline int kmg_load_decide(struct kmg_load *load, struct kmg_decision *decision,
					   enum kmg_verification verification)
{
	bool same = load->decided && load->event.verdict == decision->verdict &&
		    load->event.reason == decision->reason;

	if (!same && !load->probe) {
		kmg_count(decision->verdict, decision->reason, load->event.api, KMG_BY_KMODGATE);
		if (load->decided)
			kmg_stat(KMG_STAT_REDECIDED);
	}
	load->event.verdict = decision->verdict;
	load->event.reason = decision->reason;
	load->event.error = decision->error;
	load->event.generation = decision->generation;
	load->event.verification = verification;
	load->event.by = KMG_BY_KMODGATE;
	load->decided = 1;
	return kmg_hook_result(decision);
}

/* The first hook: returns what it must return. */
static __always_inline int kmg_first_look(struct kmg_load *load)
{
	struct kmg_ruling ruling;

	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_NOT_YET,
		   &ruling);
	load->trusted = ruling.trusted;
	/* Only the signature can decide, or nobody minds so far: that is counted at the end. */
	if (ruling.now.verdict == KMG_VERDICT_PENDING || ruling.now.verdict == KMG_VERDICT_ALLOW)
		return 0;
	return kmg_load_decide(load, &ruling.now, KMG_VERIFICATION_NOT_YET);
}

static __always_inline bool kmg_reads_module(enum kernel_read_file_id id)
{
	if (id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE))
		return true;
	return bpf_core_enum_value_exists(enum kernel_read_file_id, READING_MODULE_COMPRESSED) &&
	       id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE_COMPRESSED);
}

SEC("lsm/kernel_read_file")
int BPF_PROG(kmg_read_file, struct file *file, enum kernel_read_file_id id, bool contents, int ret)
{
	struct kmg_load *load;
	__u32 length;

	if (ret || !kmg_reads_module(id) || kmg_inert())
		return ret;
	load = kmg_load_begin(KMG_API_FINIT_MODULE);
	if (!load)
		return kmg_without_state(KMG_API_FINIT_MODULE, KMG_ORIGIN_OTHER_FILESYSTEM);
	if (load->attempt)
		kmg_stat(KMG_STAT_ATTEMPTS_FINIT);
	load->event.origin = kmg_file_facts(file, &load->event);
	length = kmg_path(&load->walk, file->f_path.dentry, file->f_path.mnt, load->event.path);
	if (!length)
		kmg_stat(KMG_STAT_PATH_FAILED);
	load->event.path_length = length;
	return kmg_first_look(load);
}

SEC("lsm/kernel_load_data")
int BPF_PROG(kmg_load_data, enum kernel_load_data_id id, bool contents, int ret)
{
	struct kmg_control *c = kmg_control();
	struct kmg_load *load;
	int answer;

	if (ret || id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE) || kmg_inert())
		return ret;
	load = kmg_load_begin(KMG_API_INIT_MODULE);
	if (!load)
		return kmg_without_state(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);
	if (load->probe)
		kmg_stat(KMG_STAT_PROBE_FIRST_HOOK);
	if (load->attempt)
		kmg_stat(KMG_STAT_ATTEMPTS_INIT);
	load->event.origin = KMG_ORIGIN_MEMORY;
	answer = kmg_first_look(load);
	return load->probe && !answer && c && c->kernel_refuses ? -EKEYREJECTED : answer;
}

SEC("lsm/kernel_post_read_file")
int BPF_PROG(kmg_post_read_file, struct file *file, char *buf, loff_t size, enum kernel_read_file_id id,
	     int ret)
{
	struct kmg_load *load = kmg_load_current();

	if (!ret && load && kmg_reads_module(id))
		load->read = 1;
	return ret;
}

SEC("lsm/kernel_post_load_data")
int BPF_PROG(kmg_post_load_data, char *buf, loff_t size, enum kernel_load_data_id id, char *description,
	     int ret)
{
	struct kmg_load *load = kmg_load_current();

	if (!ret && load && id == bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE)) {
		load->event.size = size;
		load->read = 1;
	}
	return ret;
}

/* Called only for what ends like a signed module, and without MODULE_INIT_IGNORE_*. */
SEC("fexit/mod_verify_sig")
int BPF_PROG(kmg_signature_exit, const void *mod, void *info, int ret)
{
	struct kmg_load *load = kmg_load_current();

	if (load) {
		load->signature_result = ret;
		load->checked = 1;
	}
	return 0;
}

/* Of a module that the kernel's keyrings do not trust: why not. */
static __always_inline enum kmg_verification kmg_why_untrusted(struct kmg_load *load)
{
	if (!load->checked)
		return KMG_VERIFICATION_UNSIGNED;
	switch (load->signature_result) {
	case -ENOKEY:
		return KMG_VERIFICATION_UNTRUSTED_SIGNER;
	case -ENOPKG:
		return KMG_VERIFICATION_UNSUPPORTED;
	default:
		return KMG_VERIFICATION_UNSIGNED;
	}
}

/*
 * Asked by the kernel when it found no signature, an unknown algorithm or an unknown key,
 * and sig_enforce is off; nothing else asks with this reason.
 */
SEC("lsm/locked_down")
int BPF_PROG(kmg_locked_down, enum lockdown_reason what, int ret)
{
	enum kmg_verification verification;
	struct kmg_ruling ruling;
	struct kmg_load *load;
	__u64 start;
	int answer;

	if (ret || what != bpf_core_enum_value(enum lockdown_reason, LOCKDOWN_MODULE_SIGNATURE) ||
	    kmg_inert())
		return ret;
	load = kmg_load_current();
	if (!load)
		/* No first hook was seen; of a load without a file least is granted. */
		return kmg_without_state(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);
	start = bpf_ktime_get_ns();
	if (load->probe)
		kmg_stat(KMG_STAT_PROBE_SIGNATURE);
	verification = kmg_why_untrusted(load);
	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, verification, &ruling);
	load->trusted = ruling.trusted;
	if (ruling.now.verdict == KMG_VERDICT_ALLOW) {
		/* Not a matter of signatures: counted at the end. */
		load->passed = 1;
		return load->probe ? -EKEYREJECTED : 0;
	}
	/* No table has one for what is known now; if this one does, nobody will find out more. */
	if (ruling.now.verdict == KMG_VERDICT_PENDING)
		kmg_refuse(&ruling.now);
	answer = kmg_load_decide(load, &ruling.now, verification);
	if (load->probe)
		/* It never gets further than this, whatever the policy would let in. */
		return answer ? answer : -EKEYREJECTED;
	start = bpf_ktime_get_ns() - start;
	load->event.decision_time = start;
	kmg_observe(KMG_HISTOGRAM_DECISION, start);
	return answer;
}

SEC("tp_btf/module_load")
int BPF_PROG(kmg_module_load, struct module *mod)
{
	struct kmg_load *load = kmg_load_current();
	struct kmg_control *c = kmg_control();

	if (!load) {
		if (!c || kmg_in_force(c))
			kmg_stat(KMG_STAT_LOADED_UNSEEN);
		return 0;
	}
	bpf_probe_read_kernel_str(load->event.module, sizeof(load->event.module), mod->name);
	load->event.loaded = 1;
	return 0;
}

/*
 * Why somebody else refused. What module_sig_check said is not seen where the compiler inlined
 * it; what it is made of is: the result for the signature, and that of the whole call.
 */
static __always_inline enum kmg_reason kmg_other_reason(struct kmg_load *load, __s32 result)
{
	struct kmg_control *c = kmg_control();
	bool soft = !load->checked || load->signature_result == -ENOKEY || load->signature_result == -ENOPKG;

	if (!soft && load->signature_result) {
		if (load->signature_result == -EKEYREJECTED)
			return KMG_REASON_BAD_SIGNATURE;
		return load->signature_result == -EBADMSG || load->signature_result == -EINVAL ||
				       load->signature_result == -EMSGSIZE
			       ? KMG_REASON_MALFORMED_SIGNATURE
			       : KMG_REASON_NONE; /* out of memory and the like: no verdict */
	}
	/* What comes after the signature check is no refusal of ours or of the kernel's policy. */
	if (load->passed || load->event.loaded || (load->checked && !load->signature_result))
		return KMG_REASON_NONE;
	if (result == -EKEYREJECTED && load->read)
		return KMG_REASON_KERNEL_SIG_ENFORCE;
	if (result == -EPERM && load->read && c && c->kernel_refuses && !c->sig_enforce)
		return KMG_REASON_KERNEL_LOCKDOWN;
	if (result == -EPERM || result == -EACCES)
		return KMG_REASON_OTHER_SECURITY_MODULE;
	return KMG_REASON_NONE;
}

/* The verdict on a load that kmodgate itself did not decide. */
static __always_inline void kmg_conclude(struct kmg_load *load, __s32 result)
{
	struct kmg_event *event = &load->event;
	enum kmg_reason reason = kmg_other_reason(load, result);

	event->by = KMG_BY_KERNEL;
	event->generation = load->trusted.generation;
	if (reason != KMG_REASON_NONE) {
		event->verdict = KMG_VERDICT_DENY;
		event->reason = reason;
		event->error = -result;
	} else if (load->passed || event->loaded || !result || (load->checked && !load->signature_result)) {
		event->verdict = load->trusted.verdict;
		event->reason = load->trusted.reason;
		if (event->reason == KMG_REASON_TRUSTED_SIGNATURE)
			event->verification = KMG_VERIFICATION_KERNEL_TRUSTED;
		else
			event->by = KMG_BY_KMODGATE;
	}
	if (event->verdict == KMG_VERDICT_PENDING)
		kmg_stat(KMG_STAT_UNDECIDED);
	else
		kmg_count(event->verdict, event->reason, event->api, event->by);
}

static __always_inline void kmg_end(enum kmg_api api, __s32 result)
{
	__u64 task = bpf_get_current_pid_tgid();
	struct kmg_load *load = bpf_map_lookup_elem(&loads, &task);

	if (!kmg_task_turn(KMG_HOOK_END))
		return;
	if (!load) {
		/* Decided and counted at its hook, or no hook ran: it failed before the first. */
		if (bpf_map_delete_elem(&stateless, &task))
			kmg_stat(KMG_STAT_REFUSED_EARLY);
		return;
	}
	if (load->probe) {
		kmg_stat(KMG_STAT_PROBE_EXIT);
	} else {
		if (!load->decided)
			kmg_conclude(load, result);
		/* Of an undecided one there is nothing to tell. */
		if (load->event.verdict != KMG_VERDICT_PENDING) {
			load->event.result = result;
			load->event.duration = bpf_ktime_get_ns() - load->event.time;
			if (bpf_ringbuf_output(&events, &load->event, sizeof(load->event), 0))
				kmg_stat(KMG_STAT_EVENTS_LOST);
		}
	}
	bpf_map_delete_elem(&loads, &task);
}

/* Every way into the two system calls; those that a kernel lacks are left out when attaching. */
#if defined(__TARGET_ARCH_x86)
SEC("fexit/__x64_sys_finit_module")
int BPF_PROG(kmg_end_finit, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_FINIT_MODULE, ret);
	return 0;
}

SEC("fexit/__x64_sys_init_module")
int BPF_PROG(kmg_end_init, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_INIT_MODULE, ret);
	return 0;
}

SEC("fexit/__ia32_sys_finit_module")
int BPF_PROG(kmg_end_finit_ia32, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_FINIT_MODULE, ret);
	return 0;
}

SEC("fexit/__ia32_sys_init_module")
int BPF_PROG(kmg_end_init_ia32, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_INIT_MODULE, ret);
	return 0;
}
#elif defined(__TARGET_ARCH_arm64)
SEC("fexit/__arm64_sys_finit_module")
int BPF_PROG(kmg_end_finit, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_FINIT_MODULE, ret);
	return 0;
}

SEC("fexit/__arm64_sys_init_module")
int BPF_PROG(kmg_end_init, const struct pt_regs *regs, long ret)
{
	kmg_end(KMG_API_INIT_MODULE, ret);
	return 0;
}
#endif

/* A pinned superblock that goes away takes the pin along: its address will be used again. */
SEC("lsm/sb_free_security")
int BPF_PROG(kmg_superblock_freed, struct super_block *sb)
{
	kmg_unpin(sb);
	return 0;
}

/*
 * Run by the agent in its own context, never attached: which superblock does this descriptor lie
 * on, and which task am I? A raw tracepoint program, because 5.10 can test-run nothing else there.
 */
SEC("raw_tp/module_load")
int kmg_introduce(void *context)
{
	struct task_struct *task = kmg_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct kmg_introduction *who;
	struct super_block *sb;
	struct file **slots;
	struct file *file = NULL;
	__u32 zero = 0;

	who = bpf_map_lookup_elem(&introduction, &zero);
	if (!who || who->fd >= BPF_CORE_READ(table, max_fds))
		return -EINVAL;
	slots = BPF_CORE_READ(table, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), slots + who->fd) || !file)
		return -EINVAL;
	sb = BPF_CORE_READ(file, f_path.mnt, mnt_sb);
	who->superblock = (__u64)sb;
	who->device = BPF_CORE_READ(sb, s_dev);
	who->task = bpf_get_current_pid_tgid();
	return 0;
}
