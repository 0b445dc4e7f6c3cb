// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kmodgate's programs for kernels without type information (BTF), compiled on the node by BCC:
 * the rung bcc.
 *
 *   the two system calls (entry)         what origin, or what is known of the file, decides is
 *                                        decided; a refusal ends the call (bpf_override_return)
 *   security_kernel_read_file,           the load has begun; is it still the file that was judged?
 *   security_kernel_load_data
 *   mod_verify_sig (return)              notes what the kernel's keyrings say of the signature
 *   module_load                          notes that it got in
 *   the two system calls (return)        counts what nobody refused, tells the agent
 *   security_sb_free                     a pinned file system goes away
 *
 * A kprobe can refuse only where the kernel lets errors be injected, and of all that a load passes
 * these are the system calls alone. So a refusal comes before the file is opened for reading: it
 * looks at the descriptor and at the file as they are now. docs/adr/0016-what-a-kprobe-can-refuse.md says what that is
 * worth. Contract, table and counters are those of kmodgate.bpf.c.
 *
 * Defined by the agent (agent/kmodgate/hooks/bcc.py): KMG_OVERRIDE where the kernel lets these
 * programs refuse, KMG_X86 or KMG_ARM64, and which name inode times have.
 */
#include "kernel.h"
#include "kmodgate.h"

#include "tables.h"
#include "verdicts.h"

#include "../path.h"

#define KMG_LOADS_MAX 1024
#define KMG_CAP_SYS_MODULE (1 << 16) /* include/uapi/linux/capability.h */
#define KMG_IGNORE 3 /* MODULE_INIT_IGNORE_MODVERSIONS, MODULE_INIT_IGNORE_VERMAGIC */
#define KMG_COMPRESSED 4 /* MODULE_INIT_COMPRESSED_FILE */

/* One load, from the entry of the system call to its return. */
struct kmg_load {
	struct kmg_event event; /* filled as the load goes; sent as it is at the end */
	struct kmg_decision trusted; /* the decision in case the kernel's keyrings trust it */
	struct kmg_version version; /* of the file, as it was judged */
	u64 superblock; /* identity of its file system */
	s32 signature_result; /* what mod_verify_sig returned */
	u8 begun; /* the kernel has begun to read: an attempt, and counted as one */
	u8 checked; /* signature_result is valid: there is something like a signature */
	u8 late; /* audit: left to what the kernel's keyrings say */
	u8 decided; /* by kmodgate, and counted */
	u8 ended; /* refused at the entry: counted and told */
	u8 shared; /* another task could change its descriptors */
	u8 slipped; /* what is read is not what was judged */
	u8 probe; /* the agent's self-probe: judged, neither counted nor told */
	struct kmg_walk walk;
};

/* By task. What an end that was not seen leaves behind is thrown out by others. */
BPF_F_TABLE("lru_hash", u64, struct kmg_load, loads, KMG_LOADS_MAX, 0);
/* Never written: what a new load begins as, too large for the stack. */
BPF_F_TABLE("array", u32, struct kmg_load, blank, 1, 0);
/* Never written but under one task's key: too large for the stack as well. */
BPF_F_TABLE("lru_hash", u64, struct kmg_bcc_question, drafts, 64, 0);
BPF_F_TABLE("array", u32, struct kmg_bcc_question, no_question, 1, 0);
BPF_RINGBUF_OUTPUT(events, 256);
BPF_RINGBUF_OUTPUT(questions, 32);

static __always_inline struct kmg_load *kmg_load_current(void)
{
	u64 task = bpf_get_current_pid_tgid();

	return loads.lookup(&task);
}

static __always_inline void kmg_task_facts(struct kmg_event *event)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	u64 id = bpf_get_current_pid_tgid();

	event->time = bpf_ktime_get_ns();
	event->tgid = id >> 32;
	event->tid = (u32)id;
	event->uid = (u32)bpf_get_current_uid_gid();
	event->parent = BPF_CORE_READ(parent, tgid);
	event->start_time = BPF_CORE_READ(task, start_boottime);
	event->cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

static __always_inline struct kmg_load *kmg_load_begin(u32 api)
{
	u64 task = bpf_get_current_pid_tgid();
	struct kmg_control *c = kmg_control();
	struct kmg_load *load, *fresh;
	u32 zero = 0;

	load = loads.lookup(&task);
	if (load && load->begun && !load->ended && !load->probe)
		kmg_stat(KMG_STAT_ABANDONED); /* the return of its last load was not seen */
	fresh = blank.lookup(&zero);
	if (!fresh)
		return NULL;
	loads.update(&task, fresh);
	load = loads.lookup(&task);
	if (!load)
		return NULL;
	load->probe = c && c->probe && c->probe == task;
	load->event.api = api;
	kmg_task_facts(&load->event);
	return load;
}

/* capable(CAP_SYS_MODULE), which the kernel asks first. Without it nothing is decided here. */
static __always_inline bool kmg_may_load(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct cred *cred = (struct cred *)BPF_CORE_READ(task, cred);
	struct user_namespace *ns = BPF_CORE_READ(cred, user_ns);
	u32 effective = 0;

	/* The type changed with 6.3; the low word is where it was. */
	bpf_probe_read_kernel(&effective, sizeof(effective), &cred->cap_effective);
	return (effective & KMG_CAP_SYS_MODULE) && !BPF_CORE_READ(ns, level);
}

/* The file behind a descriptor of the current task, or NULL. */
static __always_inline struct file *kmg_file(u64 fd, bool *shared)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = BPF_CORE_READ(task, files);
	struct fdtable *table = BPF_CORE_READ(files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd);
	struct file *file = NULL;

	*shared = BPF_CORE_READ(files, count.counter) > 1;
	fd = (u32)fd;
	if (fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

static __always_inline void kmg_file_facts(struct kmg_load *load, struct file *file)
{
	struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);
	struct super_block *sb = BPF_CORE_READ(mnt, mnt_sb);
	struct file_system_type *type = BPF_CORE_READ(sb, s_type);

	kmg_version(file, sb, &load->version);
	load->superblock = (u64)sb;
	load->event.inode = load->version.inode;
	load->event.size = load->version.size;
	load->event.device = load->version.device;
	load->event.origin = kmg_origin(sb);
	bpf_probe_read_kernel_str(load->event.fstype, sizeof(load->event.fstype), BPF_CORE_READ(type, name));
}

static __always_inline void kmg_path_of(struct kmg_load *load, struct file *file)
{
	load->event.path_length = kmg_path(&load->walk, BPF_CORE_READ(file, f_path.dentry),
					   BPF_CORE_READ(file, f_path.mnt), load->event.path);
	if (!load->event.path_length)
		kmg_stat(KMG_STAT_PATH_FAILED);
}

/* The load has begun, or is refused before: an attempt. What was decided before counts now. */
static __always_inline void kmg_attempt(struct kmg_load *load)
{
	struct kmg_event *event = &load->event;

	if (!load->begun && !load->probe) {
		kmg_stat(event->api == KMG_API_FINIT_MODULE ? KMG_STAT_ATTEMPTS_FINIT
							    : KMG_STAT_ATTEMPTS_INIT);
		if (load->decided)
			kmg_count(event->verdict, event->reason, event->api, KMG_BY_KMODGATE);
	}
	load->begun = 1;
}

/* Takes a decision and counts it, once for each that was given. */
static __always_inline void kmg_load_decide(struct kmg_load *load, struct kmg_decision *decision,
					    u32 verification)
{
	struct kmg_event *event = &load->event;
	bool same = load->decided && event->verdict == decision->verdict && event->reason == decision->reason;

	if (!same && load->begun && !load->probe) {
		kmg_count(decision->verdict, decision->reason, event->api, KMG_BY_KMODGATE);
		if (load->decided)
			kmg_stat(KMG_STAT_REDECIDED);
	}
	event->verdict = decision->verdict;
	event->reason = decision->reason;
	event->error = decision->error;
	event->generation = decision->generation;
	event->verification = verification;
	event->by = KMG_BY_KMODGATE;
	load->decided = 1;
}

static __always_inline void kmg_tell(struct kmg_load *load, s32 result)
{
	load->event.result = result;
	load->event.duration = bpf_ktime_get_ns() - load->event.time;
	if (events.ringbuf_output(&load->event, sizeof(load->event), 0))
		kmg_stat(KMG_STAT_EVENTS_LOST);
}

/* Asks the agent to verify a file, for the next try. */
static __always_inline void kmg_ask(struct kmg_load *load, u64 fd)
{
	u32 which = KMG_STAT_QUESTION_IDS, zero = 0;
	u64 task = bpf_get_current_pid_tgid();
	struct kmg_bcc_question *draft = no_question.lookup(&zero);
	u64 *ids = stats.lookup(&which);

	if (!draft || !ids)
		return;
	drafts.update(&task, draft);
	draft = drafts.lookup(&task);
	if (!draft)
		return;
	/* The add that returns the old value came with 5.12: a number that two share harms nobody. */
	__sync_fetch_and_add(ids, 1);
	draft->question.id = *ids;
	draft->question.start_time = load->event.start_time;
	draft->question.inode = load->event.inode;
	draft->question.tgid = load->event.tgid;
	draft->question.tid = load->event.tid;
	draft->question.device = load->event.device;
	draft->question.fd = (s32)fd;
	draft->question.api = load->event.api;
	draft->path_length = load->event.path_length;
	bpf_probe_read_kernel(draft->path, sizeof(draft->path), load->event.path);
	load->event.question = draft->question.id;
	if (questions.ringbuf_output(draft, sizeof(*draft), 0))
		kmg_stat(KMG_STAT_QUESTIONS_LOST);
	else
		kmg_stat(KMG_STAT_QUESTIONS);
	drafts.delete(&task);
}

/* What is to be said of a load whose bytes nobody can know yet. */
static __always_inline u32 kmg_unknown(void)
{
	struct kmg_control *c = kmg_control();
	u64 now = bpf_ktime_get_ns();

	if (!c || !c->heartbeat || now - c->heartbeat > c->heartbeat_max_age)
		return KMG_VERIFICATION_AGENT_AWAY;
	return KMG_VERIFICATION_TIMED_OUT;
}

static __always_inline u32 kmg_verification(struct kmg_load *load, u64 fd)
{
	struct super_block *sb = (struct super_block *)load->superblock;
	u32 known;

	if (load->event.api == KMG_API_INIT_MODULE)
		return KMG_VERIFICATION_UNREADABLE; /* memory may change until the kernel copies it */
	if (load->event.flags & KMG_IGNORE)
		return KMG_VERIFICATION_IGNORE_FLAGS;
	if (!load->late && (load->event.origin != KMG_ORIGIN_PINNED_ROOT || !kmg_keeps_time(sb)))
		return KMG_VERIFICATION_UNREADABLE;
	known = kmg_known(&load->version, load->event.flags & KMG_COMPRESSED);
	if (known != KMG_VERIFICATION_NOT_YET)
		return known;
	kmg_ask(load, fd);
	return kmg_unknown();
}

/* Ends the call at its entry. */
static __always_inline int kmg_end_here(struct pt_regs *ctx, struct kmg_load *load, u32 error)
{
#ifdef KMG_OVERRIDE
	bpf_override_return(ctx, -(u64)error);
	if (load) {
		kmg_attempt(load);
		if (!load->probe)
			kmg_tell(load, -error);
		load->ended = 1;
	}
#endif
	return 0;
}

/* Nothing of this load can be remembered: decide it here and now. */
static __always_inline int kmg_without_state(struct pt_regs *ctx, u32 api)
{
	u32 origin = api == KMG_API_INIT_MODULE ? KMG_ORIGIN_MEMORY : KMG_ORIGIN_OTHER_FILESYSTEM;
	struct kmg_ruling ruling = {};

	kmg_stat(KMG_STAT_STORAGE_FAILED);
	kmg_decide(KMG_STAGE_SIGNATURE, api, origin, KMG_VERIFICATION_STATE_MISSING, &ruling);
	kmg_stat(api == KMG_API_FINIT_MODULE ? KMG_STAT_ATTEMPTS_FINIT : KMG_STAT_ATTEMPTS_INIT);
	kmg_count(ruling.now.verdict, ruling.now.reason, api, KMG_BY_KMODGATE);
	return ruling.now.verdict == KMG_VERDICT_DENY ? kmg_end_here(ctx, NULL, ruling.now.error) : 0;
}

/* The self-probe never gets further than this where it can be helped, whatever the policy lets in. */
static __always_inline int kmg_probed(struct pt_regs *ctx, struct kmg_load *load,
				      struct kmg_decision *decision)
{
	kmg_stat(KMG_STAT_PROBE_FIRST_HOOK);
	kmg_stat(KMG_STAT_PROBE_SIGNATURE);
	kmg_stat(KMG_STAT_PROBE_BYTES);
	return kmg_end_here(ctx, load,
			    decision->verdict == KMG_VERDICT_DENY ? decision->error : EKEYREJECTED);
}

/* The entry of either call, its facts gathered. */
static __always_inline int kmg_judge(struct pt_regs *ctx, struct kmg_load *load, u64 fd)
{
	u32 verification = load->shared ? KMG_VERIFICATION_STATE_MISSING : KMG_VERIFICATION_NOT_YET;
	struct kmg_ruling ruling = {};
	u64 start = bpf_ktime_get_ns();

	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, verification, &ruling);
	load->trusted = ruling.trusted;
	if (ruling.now.verdict == KMG_VERDICT_PENDING) {
		/* Whatever is enforced, what is revoked is refused. */
		kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_REVOKED,
			   &ruling);
		if (ruling.now.verdict != KMG_VERDICT_DENY) {
			if (load->probe)
				return kmg_probed(ctx, load, &ruling.now);
			/* Audit. Time enough to see what the kernel says, and the agent. */
			load->late = 1;
			if (load->event.api == KMG_API_FINIT_MODULE &&
			    load->event.origin != KMG_ORIGIN_PINNED_ROOT)
				kmg_verification(load, fd);
			return 0;
		}
		verification = kmg_verification(load, fd);
		kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, verification, &ruling);
		if (ruling.now.verdict == KMG_VERDICT_PENDING)
			kmg_refuse(&ruling.now);
	}
	if (load->probe)
		return kmg_probed(ctx, load, &ruling.now);
	if (ruling.now.verdict == KMG_VERDICT_ALLOW && verification == KMG_VERIFICATION_NOT_YET)
		return 0; /* nobody minds so far: that is counted at the end */
	kmg_load_decide(load, &ruling.now, verification);
	load->event.decision_time = bpf_ktime_get_ns() - start;
	kmg_observe(KMG_HISTOGRAM_DECISION, load->event.decision_time);
	if (ruling.now.verdict == KMG_VERDICT_DENY)
		return kmg_end_here(ctx, load, ruling.now.error);
	return 0;
}

struct kmg_arguments {
	u64 first;
	u64 second;
	u64 third;
};

static __always_inline void kmg_arguments(struct pt_regs *ctx, bool compat, struct kmg_arguments *call)
{
	struct pt_regs *regs = (struct pt_regs *)PT_REGS_PARM1(ctx);

#if defined(KMG_X86)
	/* int 0x80 keeps its arguments elsewhere. */
	if (compat) {
		call->first = (u32)BPF_CORE_READ(regs, bx);
		call->second = (u32)BPF_CORE_READ(regs, cx);
		call->third = (u32)BPF_CORE_READ(regs, dx);
		return;
	}
	call->first = BPF_CORE_READ(regs, di);
	call->second = BPF_CORE_READ(regs, si);
	call->third = BPF_CORE_READ(regs, dx);
#elif defined(KMG_ARM64)
	call->first = BPF_CORE_READ(regs, regs[0]);
	call->second = BPF_CORE_READ(regs, regs[1]);
	call->third = BPF_CORE_READ(regs, regs[2]);
#else
#error "kmodgate knows the system call registers of x86 and arm64 only"
#endif
}

static __always_inline int kmg_enter_finit_module(struct pt_regs *ctx, bool compat)
{
	struct kmg_arguments call = {};
	struct kmg_load *load;
	struct file *file;
	bool shared;

	if (!kmg_may_load())
		return 0;
	load = kmg_load_begin(KMG_API_FINIT_MODULE);
	if (!load)
		return kmg_without_state(ctx, KMG_API_FINIT_MODULE);
	kmg_arguments(ctx, compat, &call);
	load->event.flags = (u32)call.third;
	file = kmg_file(call.first, &shared);
	load->shared = shared;
	if (!file && !shared)
		return 0; /* EBADF: nobody else could put a file there meanwhile */
	if (file) {
		kmg_file_facts(load, file);
		kmg_path_of(load, file);
	}
	if (shared)
		/* Another thread may put another file there before the kernel looks: it lies nowhere. */
		load->event.origin = KMG_ORIGIN_OTHER_FILESYSTEM;
	return kmg_judge(ctx, load, call.first);
}

static __always_inline int kmg_enter_init_module(struct pt_regs *ctx, bool compat)
{
	struct kmg_arguments call = {};
	struct kmg_load *load;

	if (!kmg_may_load())
		return 0;
	load = kmg_load_begin(KMG_API_INIT_MODULE);
	if (!load)
		return kmg_without_state(ctx, KMG_API_INIT_MODULE);
	kmg_arguments(ctx, compat, &call);
	load->event.size = call.second;
	load->event.origin = KMG_ORIGIN_MEMORY;
	return kmg_judge(ctx, load, 0);
}

int kmg_finit_module(struct pt_regs *ctx)
{
	return kmg_enter_finit_module(ctx, false);
}

int kmg_finit_module_compat(struct pt_regs *ctx)
{
	return kmg_enter_finit_module(ctx, true);
}

int kmg_init_module(struct pt_regs *ctx)
{
	return kmg_enter_init_module(ctx, false);
}

int kmg_init_module_compat(struct pt_regs *ctx)
{
	return kmg_enter_init_module(ctx, true);
}

/*
 * The file that is about to be read, write-denied from here on. If it is not the one that was
 * judged, or has changed since, nobody can refuse any more: but it is not let in unseen.
 */
int kmg_read_file(struct pt_regs *ctx)
{
	struct file *file = (struct file *)PT_REGS_PARM1(ctx);
	struct kmg_load *load = kmg_load_current();
	struct kmg_version judged;
	struct kmg_ruling ruling = {};
	u64 superblock;

	/* The module's own init may read firmware: a second file is none of ours. */
	if (!load || load->event.api != KMG_API_FINIT_MODULE || load->begun)
		return 0;
	kmg_attempt(load);
	judged = load->version;
	superblock = load->superblock;
	kmg_file_facts(load, file);
	if (load->shared)
		load->event.origin = KMG_ORIGIN_OTHER_FILESYSTEM;
	if (superblock == load->superblock && judged.inode == load->version.inode &&
	    judged.size == load->version.size && judged.changed == load->version.changed)
		return 0;
	load->slipped = 1;
	kmg_path_of(load, file);
	kmg_decide(KMG_STAGE_SIGNATURE, KMG_API_FINIT_MODULE, load->event.origin, KMG_VERIFICATION_NOT_YET,
		   &ruling);
	load->trusted = ruling.trusted;
	if (ruling.now.verdict == KMG_VERDICT_PENDING && !load->late)
		kmg_decide(KMG_STAGE_SIGNATURE, KMG_API_FINIT_MODULE, load->event.origin,
			   KMG_VERIFICATION_STATE_MISSING, &ruling);
	if (ruling.now.verdict == KMG_VERDICT_DENY || ruling.now.verdict == KMG_VERDICT_WOULD_DENY)
		kmg_load_decide(load, &ruling.now, KMG_VERIFICATION_STATE_MISSING);
	return 0;
}

int kmg_load_data(struct pt_regs *ctx)
{
	struct kmg_load *load = kmg_load_current();

	if (load && load->event.api == KMG_API_INIT_MODULE && !load->begun)
		kmg_attempt(load);
	return 0;
}

/* Called only for what ends like a signed module, and without MODULE_INIT_IGNORE_*. */
int kmg_signature_return(struct pt_regs *ctx)
{
	struct kmg_load *load = kmg_load_current();

	if (load) {
		load->signature_result = (s32)PT_REGS_RC(ctx);
		load->checked = 1;
	}
	return 0;
}

int kmg_module_load(struct bpf_raw_tracepoint_args *ctx)
{
	struct module *mod = (struct module *)ctx->args[0];
	struct kmg_load *load = kmg_load_current();

	if (!load || load->ended || !load->begun ||
	    (load->slipped && load->decided && load->event.verdict == KMG_VERDICT_DENY))
		kmg_stat(KMG_STAT_LOADED_UNSEEN);
	if (!load)
		return 0;
	bpf_probe_read_kernel_str(load->event.module, sizeof(load->event.module), mod->name);
	load->event.loaded = 1;
	return 0;
}

/* Of a module that the kernel's keyrings do not trust: why not. */
static __always_inline u32 kmg_why_untrusted(struct kmg_load *load)
{
	if (load->checked && load->signature_result == -ENOKEY)
		return KMG_VERIFICATION_UNTRUSTED_SIGNER;
	if (load->checked && load->signature_result == -ENOPKG)
		return KMG_VERIFICATION_UNSUPPORTED;
	return KMG_VERIFICATION_UNSIGNED;
}

/* See kmodgate_basic.bpf.c: why somebody else refused. */
static __always_inline u32 kmg_other_reason(struct kmg_load *load, s32 result)
{
	bool soft = !load->checked || load->signature_result == -ENOKEY || load->signature_result == -ENOPKG;
	struct kmg_control *c = kmg_control();

	if (!soft && load->signature_result) {
		if (load->signature_result == -EKEYREJECTED)
			return KMG_REASON_BAD_SIGNATURE;
		return load->signature_result == -EBADMSG || load->signature_result == -EINVAL ||
				       load->signature_result == -EMSGSIZE
			       ? KMG_REASON_MALFORMED_SIGNATURE
			       : KMG_REASON_NONE;
	}
	if (load->event.loaded || (load->checked && !load->signature_result))
		return KMG_REASON_NONE;
	if (result == -EKEYREJECTED)
		return KMG_REASON_KERNEL_SIG_ENFORCE;
	if (result == -EPERM && c && c->kernel_refuses && !c->sig_enforce)
		return KMG_REASON_KERNEL_LOCKDOWN;
	if (result == -EPERM || result == -EACCES)
		return KMG_REASON_OTHER_SECURITY_MODULE;
	return KMG_REASON_NONE;
}

/* The verdict on a load that kmodgate itself did not decide. */
static __always_inline void kmg_conclude(struct kmg_load *load, s32 result)
{
	struct kmg_event *event = &load->event;
	u32 reason = kmg_other_reason(load, result);

	event->by = KMG_BY_KERNEL;
	event->generation = load->trusted.generation;
	if (reason != KMG_REASON_NONE) {
		event->verdict = KMG_VERDICT_DENY;
		event->reason = reason;
		event->error = -result;
	} else if (event->loaded || !result || (load->checked && !load->signature_result)) {
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

/* Audit: what the policy would have said of a load that is over. */
static __always_inline void kmg_conclude_late(struct kmg_load *load, s32 result)
{
	u32 verification = kmg_why_untrusted(load), known = KMG_VERIFICATION_NOT_YET;
	struct kmg_ruling ruling = {};

	if (load->event.api == KMG_API_FINIT_MODULE)
		known = kmg_known(&load->version, load->event.flags & KMG_COMPRESSED);
	if (load->checked && !load->signature_result && known != KMG_VERIFICATION_REVOKED) {
		kmg_conclude(load, result);
		return;
	}
	if (load->event.flags & KMG_IGNORE)
		verification = KMG_VERIFICATION_IGNORE_FLAGS;
	else if (known != KMG_VERIFICATION_NOT_YET)
		verification = known;
	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, verification, &ruling);
	kmg_load_decide(load, &ruling.now, verification);
}

/* The return of either call. */
int kmg_return(struct pt_regs *ctx)
{
	u64 task = bpf_get_current_pid_tgid();
	struct kmg_load *load = loads.lookup(&task);
	s32 result = (s32)PT_REGS_RC(ctx);

	if (!load) {
		kmg_stat(KMG_STAT_REFUSED_EARLY);
		return 0;
	}
	if (load->probe) {
		kmg_stat(KMG_STAT_PROBE_EXIT);
	} else if (!load->ended && !load->begun) {
		kmg_stat(KMG_STAT_REFUSED_EARLY);
	} else if (!load->ended) {
		if (load->late && !load->decided && (load->event.loaded || !result))
			kmg_conclude_late(load, result);
		else if (!load->decided)
			kmg_conclude(load, result);
		if (load->event.verdict != KMG_VERDICT_PENDING)
			kmg_tell(load, result);
	}
	loads.delete(&task);
	return 0;
}

/* A pinned superblock that goes away takes the pin along: its address will be used again. */
int kmg_superblock_freed(struct pt_regs *ctx)
{
	struct super_block *sb = (struct super_block *)PT_REGS_PARM1(ctx);
	struct kmg_pin pin = { .superblock = (u64)sb, .device = BPF_CORE_READ(sb, s_dev) };
	struct kmg_control *c = kmg_control();

	if (c && c->root_superblock && c->root_superblock == pin.superblock)
		c->root_superblock = 0;
	pinned.delete(&pin);
	return 0;
}

/*
 * Run by the agent in its own context, never attached: which superblock does this descriptor lie
 * on, and which task am I?
 */
int kmg_introduce(struct bpf_raw_tracepoint_args *ctx)
{
	struct kmg_introduction *who;
	struct super_block *sb;
	struct vfsmount *mnt;
	struct file *file;
	u32 zero = 0;
	bool shared;

	who = introduction.lookup(&zero);
	if (!who)
		return -EINVAL;
	file = kmg_file(who->fd, &shared);
	if (!file)
		return -EINVAL;
	mnt = BPF_CORE_READ(file, f_path.mnt);
	sb = BPF_CORE_READ(mnt, mnt_sb);
	who->superblock = (u64)sb;
	who->device = BPF_CORE_READ(sb, s_dev);
	who->task = bpf_get_current_pid_tgid();
	return 0;
}
