// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kmodgate's programs: ask early, digest late, wait only after the kernel's own "no".
 *
 *   kernel_read_file, kernel_load_data   a load begins: what the origin alone decides is
 *                                        decided; a file from elsewhere is put to the agent,
 *                                        which verifies while the kernel reads and checks
 *   kernel_post_read_file,               only where the table asks for the bytes of every load
 *   kernel_post_load_data                (revocations; the kernel's keyrings not trusted):
 *                                        digest, look-up, bounded wait, verdict
 *   module_sig_check (entry)             notes where the decompressed bytes are
 *   locked_down                          the kernel found no trusted signature and would go
 *                                        on: digest, look-up, bounded wait, verdict
 *   module_sig_check (exit)              notes what the kernel itself said
 *   module_load                          notes that it got in
 *   end of the system call               counts what nobody refused, tells the agent
 *
 * The tracing programs that note facts do so in every generation; what decides or counts acts in
 * one (generation.h).
 * Unless the table asks for every load's bytes, a module that the kernel's keyrings trust
 * passes no digest, no agent and no wait.
 * Only LSM programs refuse. The tracing programs note facts: the kernel may skip them
 * (recursion guard), and a load with a fact missing is refused, not let in. Where bpf is not
 * among the security modules the same source is compiled with KMG_FMOD_RET (answer.h, gates.h).
 */
#include "kmodgate.h"

#include "kernel.h"

#include "answer.h"
#include "ask.h"
#include "count.h"
#include "decide.h"
#include "facts.h"
#include "generation.h"
#include "judge.h"
#include "load.h"
#include "tell.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * The first hook. Returns what it must return; *pending says that only the signature can
 * decide.
 */
static __always_inline int kmg_first_look(struct kmg_load *load, bool *pending)
{
	struct kmg_ruling ruling;

	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_NOT_YET,
		   &ruling);
	load->trusted = ruling.trusted;
	*pending = ruling.now.verdict == KMG_VERDICT_PENDING;
	/* An allow is not final: the kernel may still refuse. It is counted at the end. */
	if (*pending || ruling.now.verdict == KMG_VERDICT_ALLOW)
		return 0;
	return kmg_load_decide(load, &ruling.now, KMG_VERIFICATION_NOT_YET);
}

/* Tasks whose load was decided without state, until its end: one load counts once. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} stateless SEC(".maps");

/* A verdict on a load of which nothing can be remembered; counted once. */
static __always_inline int kmg_stateless_ruling(enum kmg_api api, struct kmg_decision *decision)
{
	__u64 task = bpf_get_current_pid_tgid();
	__u8 one = 1;

	if (!bpf_map_lookup_elem(&stateless, &task)) {
		bpf_map_update_elem(&stateless, &task, &one, BPF_ANY);
		kmg_stat(api == KMG_API_FINIT_MODULE ? KMG_STAT_ATTEMPTS_FINIT : KMG_STAT_ATTEMPTS_INIT);
		kmg_count(decision->verdict, decision->reason, api, KMG_BY_KMODGATE);
	}
	return kmg_hook_result(decision);
}

/* No storage, so nothing of this load can be remembered: decide it here and now. */
static __noinline int kmg_without_state(enum kmg_api api, enum kmg_origin origin)
{
	struct kmg_ruling ruling;

	kmg_decide(KMG_STAGE_SIGNATURE, api, origin, KMG_VERIFICATION_STATE_MISSING, &ruling);
	return kmg_stateless_ruling(api, &ruling.now);
}

static __always_inline bool kmg_reads_module(enum kernel_read_file_id id)
{
	if (id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE))
		return true;
	return bpf_core_enum_value_exists(enum kernel_read_file_id, READING_MODULE_COMPRESSED) &&
	       id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE_COMPRESSED);
}

static __always_inline bool kmg_loads_module(enum kernel_load_data_id id)
{
	return id == bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE);
}

/* Whether the bytes of every load are looked at, and these are a module's. */
static __always_inline bool kmg_judges_read(enum kernel_read_file_id id)
{
	struct kmg_control *c = kmg_control();

	return c && c->every_load && id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE);
}

static __always_inline bool kmg_judges_data(enum kernel_load_data_id id)
{
	struct kmg_control *c = kmg_control();

	return c && c->every_load && kmg_loads_module(id);
}

static __always_inline bool kmg_asks_for_signature(enum lockdown_reason what)
{
	return what == bpf_core_enum_value(enum lockdown_reason, LOCKDOWN_MODULE_SIGNATURE);
}

#ifndef KMG_FMOD_RET
/*
 * Makes the state of a load before the sleepable program asks for it. Storage that a sleepable
 * program creates is allocated with GFP_KERNEL under the storage's per-CPU busy count (6.1), and
 * where that gives the CPU away every other load on it finds its storage busy and is refused.
 * Attached later than the sleepable one, and therefore run before it.
 */
SEC("lsm/kernel_read_file")
int BPF_PROG(kmg_make_state, struct file *file, enum kernel_read_file_id id, bool contents, int ret)
{
	if (!ret && kmg_reads_module(id))
		bpf_task_storage_get(&loads, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	return ret;
}
#endif

static __always_inline int kmg_begin_finit(struct file *file)
{
	struct kmg_control *c = kmg_control();
	struct kmg_load *load;
	bool pending = false;
	long length;
	int answer;

	load = kmg_load_state(BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!load) {
		kmg_stat(KMG_STAT_STORAGE_FAILED);
		return kmg_without_state(KMG_API_FINIT_MODULE, KMG_ORIGIN_OTHER_FILESYSTEM);
	}
	if (kmg_load_begin(load, KMG_API_FINIT_MODULE))
		kmg_stat(KMG_STAT_ATTEMPTS_FINIT);
	load->event.origin = kmg_file_facts(file, &load->event);
	length = kmg_file_path(load, file);
	if (length < 0)
		kmg_stat(KMG_STAT_PATH_FAILED);
	load->event.path_length = length < 0 ? 0 : length;

	answer = kmg_first_look(load, &pending);
	/*
	 * On the pinned root most modules are the kernel's own: ask only if it says no, unless
	 * every load needs an answer. Of a file that was answered for, the digest is known.
	 */
	if (pending && c && (c->every_load || load->event.origin != KMG_ORIGIN_PINNED_ROOT) &&
	    !kmg_answered_for(load) && kmg_agent_alive(c)) {
		kmg_ask(load);
		if (c->wait_asleep)
			kmg_wait_asleep(load);
	}
	return answer;
}

/* Sleepable, so that a load can wait here where a later spin would starve the agent. */
KMG_SLEEPABLE_HOOK(kernel_read_file)
int BPF_PROG(kmg_read_file, struct file *file, enum kernel_read_file_id id, bool contents, int ret)
{
	if (KMG_EARLIER(ret) || !kmg_reads_module(id) || kmg_inert())
		return KMG_EARLIER(ret);
	return kmg_answer(KMG_HOOK_BEGIN, kmg_begin_finit(file));
}

static __always_inline int kmg_begin_init(void)
{
	struct kmg_control *c = kmg_control();
	struct kmg_call call = {};
	struct kmg_load *load;
	bool pending = false;
	int answer;

	load = kmg_load_state(BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!load) {
		kmg_stat(KMG_STAT_STORAGE_FAILED);
		return kmg_without_state(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);
	}
	if (kmg_load_begin(load, KMG_API_INIT_MODULE))
		kmg_stat(KMG_STAT_ATTEMPTS_INIT);
	if (load->probe)
		kmg_stat(KMG_STAT_PROBE_FIRST_HOOK);
	kmg_call_arguments(&call);
	load->event.size = call.second;
	load->event.origin = KMG_ORIGIN_MEMORY;

	answer = kmg_first_look(load, &pending);
	if (load->probe)
		return !answer && c && c->kernel_refuses ? -EKEYREJECTED : answer;
	if (pending && c && kmg_agent_alive(c))
		kmg_ask(load);
	return answer;
}

KMG_HOOK(kernel_load_data)
int BPF_PROG(kmg_load_data, enum kernel_load_data_id id, bool contents, int ret)
{
	if (KMG_EARLIER(ret) || !kmg_loads_module(id) || kmg_inert())
		return KMG_EARLIER(ret);
	return kmg_answer(KMG_HOOK_BEGIN, kmg_begin_init());
}

/* The bytes are there, and the kernel has not looked at them yet. */
static __noinline int kmg_bytes_read(__u32 api, __u64 address, __u64 length)
{
	__u32 origin = api == KMG_API_FINIT_MODULE ? KMG_ORIGIN_OTHER_FILESYSTEM : KMG_ORIGIN_MEMORY;
	struct kmg_load *load = kmg_load_current();
	struct kmg_ruling ruling;

	if (!load) {
		/* Nothing was remembered of its first hook: refuse it where bytes are judged. */
		kmg_decide(KMG_STAGE_BYTES, api, origin, KMG_VERIFICATION_NOT_YET, &ruling);
		return ruling.now.verdict == KMG_VERDICT_PENDING ? kmg_without_state(api, origin) : 0;
	}
	if (load->probe) {
		kmg_stat(KMG_STAT_PROBE_BYTES);
		return 0; /* on to locked_down, which it is to prove as well */
	}
	return kmg_judge(load, address, length);
}

/* Since 7.0 a compressed file comes twice, the second time unpacked and as READING_MODULE. */
KMG_HOOK(kernel_post_read_file)
int BPF_PROG(kmg_post_read_file, struct file *file, char *buf, loff_t size, enum kernel_read_file_id id,
	     int ret)
{
	if (KMG_EARLIER(ret) || !kmg_judges_read(id))
		return KMG_EARLIER(ret);
	if (!kmg_load_turn(kmg_load_state(0), KMG_HOOK_BYTES))
		return 0;
	return kmg_answer(KMG_HOOK_BYTES, kmg_bytes_read(KMG_API_FINIT_MODULE, (__u64)buf, size));
}

KMG_HOOK(kernel_post_load_data)
int BPF_PROG(kmg_post_load_data, char *buf, loff_t size, enum kernel_load_data_id id, char *description,
	     int ret)
{
	if (KMG_EARLIER(ret) || !kmg_judges_data(id))
		return KMG_EARLIER(ret);
	if (!kmg_load_turn(kmg_load_state(0), KMG_HOOK_BYTES))
		return 0;
	return kmg_answer(KMG_HOOK_BYTES, kmg_bytes_read(KMG_API_INIT_MODULE, (__u64)buf, size));
}

/*
 * Two facts of the kernel's check, each noted by four copies of a program: where the kernel
 * preempts, it skips one that another task was preempted in on this CPU, and a load whose image
 * nobody noted is refused. Noting a fact twice changes nothing.
 */
static __always_inline int kmg_note_image(__u64 image, __u64 length, int flags)
{
	struct kmg_load *load = kmg_load_current();

	if (!load)
		return 0;
	load->image = image;
	load->length = length;
	load->event.flags = flags;
	load->noted = 1;
	return 0;
}

static __always_inline int kmg_note_check(int result)
{
	struct kmg_load *load = kmg_load_current();

	if (!load)
		return 0;
	load->signature_result = result;
	load->checked = 1;
	load->noted = 0; /* the bytes may be freed from here on */
	return 0;
}

#define KMG_SIGNATURE_FACTS(copy)                                                           \
	SEC("fentry/module_sig_check")                                                      \
	int BPF_PROG(kmg_signature_entry_##copy, struct load_info *info, int flags)         \
	{                                                                                   \
		return kmg_note_image((__u64)info->hdr, info->len, flags);                  \
	}                                                                                   \
                                                                                            \
	SEC("fexit/module_sig_check")                                                       \
	int BPF_PROG(kmg_signature_exit_##copy, struct load_info *info, int flags, int ret) \
	{                                                                                   \
		return kmg_note_check(ret);                                                 \
	}

KMG_SIGNATURE_FACTS(1)
KMG_SIGNATURE_FACTS(2)
KMG_SIGNATURE_FACTS(3)
KMG_SIGNATURE_FACTS(4)

/* What is known of the signature of a module that the kernel's keyrings do not trust. */
static __always_inline __u32 kmg_verify(struct kmg_load *load)
{
	/* Noted for this check alone: whatever comes later must note it again. */
	if (!load->noted)
		return KMG_VERIFICATION_STATE_MISSING;
	load->noted = 0;
	/* The kernel takes such a module for unsigned, whatever is appended to it. */
	if (load->event.flags & (MODULE_INIT_IGNORE_MODVERSIONS | MODULE_INIT_IGNORE_VERMAGIC))
		return KMG_VERIFICATION_IGNORE_FLAGS;
	return kmg_look_up(load, load->image, load->length);
}

static __always_inline int kmg_judge_signature(void)
{
	struct kmg_control *c = kmg_control();
	struct kmg_ruling ruling;
	struct kmg_load *load;
	__u32 verification;
	__u64 start;
	int answer;

	load = kmg_load_current();
	if (!load)
		/* No first hook was seen; of a load without a file least is granted. */
		return kmg_without_state(KMG_API_INIT_MODULE, KMG_ORIGIN_MEMORY);
	if (load->probe && load->noted)
		kmg_stat(KMG_STAT_PROBE_SIGNATURE);
	/* The bytes were read before the table asked for them. */
	if (c && c->every_load && load->noted && !load->judged && !load->probe) {
		answer = kmg_judge(load, load->image, load->length);
		if (answer)
			return answer;
	}
	start = bpf_ktime_get_ns();

	/*
	 * The policy may have changed since the first hook: ask it again from the start, so
	 * that the load is judged by one policy as a whole.
	 */
	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_NOT_YET,
		   &ruling);
	verification = KMG_VERIFICATION_NOT_YET;
	load->trusted = ruling.trusted;
	if (ruling.now.verdict == KMG_VERDICT_PENDING) {
		verification = kmg_verify(load);
		kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, verification, &ruling);
		/* PENDING was the last word only if the policy changed just now: it is old. */
		if (ruling.now.verdict == KMG_VERDICT_PENDING)
			kmg_refuse(&ruling.now);
	} else if (ruling.now.verdict == KMG_VERDICT_ALLOW) {
		load->noted = 0;
		/* Not a matter of signatures: counted at the end. */
		return load->probe ? -EKEYREJECTED : 0;
	}
	answer = kmg_load_decide(load, &ruling.now, verification);
	start = bpf_ktime_get_ns() - start;
	load->event.decision_time += start;
	if (load->probe)
		/* It never gets further than this, whatever the policy would let in. */
		return answer ? answer : -EKEYREJECTED;
	kmg_observe(KMG_HISTOGRAM_DECISION, start);
	return answer;
}

/*
 * Asked by the kernel when it found no signature, an unknown algorithm or an unknown key,
 * and sig_enforce is off (kernel/module/signing.c); nothing else asks with this reason.
 */
KMG_HOOK(locked_down)
int BPF_PROG(kmg_locked_down, enum lockdown_reason what, int ret)
{
	if (KMG_EARLIER(ret) || !kmg_asks_for_signature(what))
		return KMG_EARLIER(ret);
	if (!kmg_load_turn(kmg_load_state(0), KMG_HOOK_SIGNATURE))
		return 0;
	return kmg_answer(KMG_HOOK_SIGNATURE, kmg_judge_signature());
}

#ifdef KMG_FMOD_RET
#include "gates.h"
#endif

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
	load->unverified = bpf_core_field_exists(mod->sig_ok) && !mod->sig_ok;
	return 0;
}

/* Why the kernel refused by itself, from what module_sig_check returned. */
static __always_inline enum kmg_reason kmg_kernel_reason(__s32 result)
{
	struct kmg_control *c = kmg_control();

	switch (result) {
	case -EKEYREJECTED:
		/* Under sig_enforce this also stands for unsigned and for an unknown key. */
		return c && c->sig_enforce ? KMG_REASON_KERNEL_SIG_ENFORCE : KMG_REASON_BAD_SIGNATURE;
	case -EBADMSG:
	case -EINVAL:
	case -EMSGSIZE:
		return KMG_REASON_MALFORMED_SIGNATURE;
	case -EPERM:
		return KMG_REASON_KERNEL_LOCKDOWN;
	default:
		return KMG_REASON_NONE; /* out of memory and the like: no verdict */
	}
}

/*
 * A load that no hook refused, under a table that does not trust the kernel's keyrings: its
 * bytes were not judged because another table was in force by then. That one has the say.
 */
static __always_inline void kmg_reconsider(struct kmg_load *load)
{
	struct kmg_ruling ruling;

	if (load->trusted.verdict != KMG_VERDICT_DENY)
		return;
	kmg_decide(KMG_STAGE_SIGNATURE, load->event.api, load->event.origin, KMG_VERIFICATION_KERNEL_TRUSTED,
		   &ruling);
	load->trusted = ruling.now;
	if (ruling.now.verdict != KMG_VERDICT_DENY)
		return;
	/* And the first one again since: no table let it in, and it is too late to refuse. */
	load->trusted.verdict = KMG_VERDICT_PENDING;
	if (load->event.loaded)
		kmg_stat(KMG_STAT_LOADED_UNSEEN);
}

/* The verdict on a load that kmodgate itself did not decide. */
static __always_inline void kmg_conclude(struct kmg_load *load, __s32 result)
{
	struct kmg_event *event = &load->event;
	enum kmg_reason reason = KMG_REASON_NONE;

	event->by = KMG_BY_KERNEL;
	event->generation = load->trusted.generation;
	if (load->checked && load->signature_result)
		reason = kmg_kernel_reason(load->signature_result);
	else if (!load->checked && !event->loaded && (result == -EPERM || result == -EACCES))
		reason = KMG_REASON_OTHER_SECURITY_MODULE;
	else if (load->checked || event->loaded || !result) {
		kmg_reconsider(load);
		event->generation = load->trusted.generation;
		event->verdict = load->trusted.verdict;
		event->reason = load->trusted.reason;
		event->verification = load->read_verification;
		if (load->trusted.reason != KMG_REASON_TRUSTED_SIGNATURE ||
		    load->read_verification == KMG_VERIFICATION_TRUSTED)
			event->by = KMG_BY_KMODGATE;
		else
			event->verification = KMG_VERIFICATION_KERNEL_TRUSTED;
	}
	if (reason != KMG_REASON_NONE) {
		event->verdict = KMG_VERDICT_DENY;
		event->reason = reason;
		event->error = -result;
	}
	/* The kernel did not verify it, and nobody said yes: all that could have refused were skipped. */
	if (event->by == KMG_BY_KERNEL && event->loaded && load->unverified &&
	    event->reason == KMG_REASON_TRUSTED_SIGNATURE) {
		event->reason = KMG_REASON_STATE_MISSING;
		event->by = KMG_BY_KMODGATE;
		event->verification = KMG_VERIFICATION_STATE_MISSING;
		kmg_stat(KMG_STAT_LOADED_UNSEEN);
	}
	if (event->verdict == KMG_VERDICT_PENDING)
		kmg_stat(KMG_STAT_UNDECIDED);
	else
		kmg_count(event->verdict, event->reason, event->api, event->by);
}

static __always_inline void kmg_end(enum kmg_api api, __s32 result)
{
	struct kmg_control *c = kmg_control();
	/* While two generations are attached, the first that comes leaves a mark, whatever ends here. */
	struct kmg_load *load = kmg_load_state(c && c->handover ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);

	if (!kmg_load_turn(load, KMG_HOOK_END))
		return;
	if (!load || !load->active) {
		__u64 task = bpf_get_current_pid_tgid();

		if (!bpf_map_delete_elem(&stateless, &task))
			return; /* decided and counted at its hook */
		/*
		 * No hook ran. Since 6.5 tasks that load one file at once share the result of
		 * the first; all else failed before the first hook.
		 */
		if (result && result != -EKEYREJECTED && result != -EBADMSG) {
			kmg_stat(KMG_STAT_REFUSED_EARLY);
			return;
		}
		kmg_stat(api == KMG_API_FINIT_MODULE ? KMG_STAT_ATTEMPTS_FINIT : KMG_STAT_ATTEMPTS_INIT);
		kmg_count(result ? KMG_VERDICT_DENY : KMG_VERDICT_ALLOW, KMG_REASON_NONE, api, KMG_BY_SHARED);
		return;
	}
	load->active = 0;
	if (load->probe) {
		kmg_stat(KMG_STAT_PROBE_EXIT);
		return;
	}
	if (!load->decided)
		kmg_conclude(load, result);
	if (load->event.verdict == KMG_VERDICT_PENDING)
		return; /* undecided: there is nothing to tell */
	load->event.result = result;
	load->event.duration = bpf_ktime_get_ns() - load->event.time;
	kmg_tell(load);
}

/*
 * Every way into the two system calls. int 0x80 reaches the ia32 stubs only; a kernel
 * without them (no IA32_EMULATION) is attached without these programs.
 */
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
KMG_SUPERBLOCK_FREED
int BPF_PROG(kmg_superblock_freed, struct super_block *sb)
{
	kmg_unpin(sb);
	return 0;
}

/* Run by the agent: which superblock does this descriptor lie on, and which task am I? */
SEC("syscall")
int kmg_introduce(struct kmg_introduction *args)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct super_block *sb;
	struct file **slots;
	struct file *file = NULL;

	if (args->fd >= BPF_CORE_READ(table, max_fds))
		return -EINVAL;
	slots = BPF_CORE_READ(table, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), slots + args->fd) || !file)
		return -EINVAL;
	sb = BPF_CORE_READ(file, f_path.mnt, mnt_sb);
	args->superblock = (__u64)sb;
	args->device = BPF_CORE_READ(sb, s_dev);
	args->task = bpf_get_current_pid_tgid();
	return 0;
}

/*
 * Types that no map and no function signature names would be missing from the object's type
 * information, and the test that compares it with the agent's mirrors would be blind to them.
 */
struct kmg_types {
	enum kmg_api api;
	enum kmg_origin origin;
	enum kmg_stage stage;
	enum kmg_verdict verdict;
	enum kmg_by by;
	enum kmg_reason reason;
	enum kmg_verification verification;
	enum kmg_stat stat;
	enum kmg_histogram histogram;
	struct kmg_question question;
};
const struct kmg_types *kmg_types = NULL;
