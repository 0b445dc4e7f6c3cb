/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Facts about the file and the task of a load.
 */
#ifndef KMODGATE_FACTS_H
#define KMODGATE_FACTS_H

#include "kernel.h"
#include "kmodgate.h"
#include "pinned.h"

/* The first two arguments of the system call that the current task is in. */
struct kmg_call {
	__u64 first;
	__u64 second;
};

static __always_inline void kmg_call_arguments(struct kmg_call *call)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

#if defined(__TARGET_ARCH_x86)
	/* int 0x80 keeps its arguments elsewhere, whatever the width of the process. */
	if (BPF_CORE_READ(task, thread_info.status) & KMG_TS_COMPAT) {
		call->first = (__u32)BPF_CORE_READ(regs, bx);
		call->second = (__u32)BPF_CORE_READ(regs, cx);
		return;
	}
	call->first = BPF_CORE_READ(regs, di);
	call->second = BPF_CORE_READ(regs, si);
#elif defined(__TARGET_ARCH_arm64)
	call->first = BPF_CORE_READ(regs, regs[0]);
	call->second = BPF_CORE_READ(regs, regs[1]);
#endif
}

/* Linux 5.10 has only the untyped helper. What is read through it is read by probing anyway. */
#ifdef KMG_BASIC
#define kmg_current_task() ((struct task_struct *)bpf_get_current_task())
#else
#define kmg_current_task() bpf_get_current_task_btf()
#endif

static __always_inline void kmg_task_facts(struct kmg_event *event)
{
	struct task_struct *task = kmg_current_task();
	__u64 id = bpf_get_current_pid_tgid();

	event->time = bpf_ktime_get_ns();
	event->tgid = id >> 32;
	event->tid = (__u32)id;
	event->uid = (__u32)bpf_get_current_uid_gid();
	event->parent = BPF_CORE_READ(task, real_parent, tgid);
	event->start_time = BPF_CORE_READ(task, start_boottime);
	event->cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

static __always_inline enum kmg_origin kmg_origin(struct file *file)
{
	return kmg_is_pinned(file->f_path.mnt->mnt_sb) ? KMG_ORIGIN_PINNED_ROOT : KMG_ORIGIN_OTHER_FILESYSTEM;
}

static __always_inline enum kmg_origin kmg_file_facts(struct file *file, struct kmg_event *event)
{
	struct super_block *sb = file->f_path.mnt->mnt_sb;

	event->inode = file->f_inode->i_ino;
	event->size = file->f_inode->i_size;
	event->device = sb->s_dev;
	bpf_probe_read_kernel_str(event->fstype, sizeof(event->fstype), BPF_CORE_READ(sb, s_type, name));
	return kmg_origin(file);
}

#endif /* KMODGATE_FACTS_H */
