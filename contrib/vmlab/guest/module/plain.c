// SPDX-License-Identifier: GPL-2.0
/* Acts without tricks: sleeping, spinning, faulting, in a work item, deep down. */
#include "acts.h"
#include <linux/delay.h>
#include <linux/export.h>
#include <linux/kthread.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

kept void sleep_in(unsigned int state)
{
	while (!signal_pending(current)) {
		set_current_state(state);
		schedule();
	}
	stay();
}
EXPORT_SYMBOL_GPL(sleep_in);

/* For kernels that do not preempt themselves; those that do never get here in need. */
void offer_cpu(void)
{
	if (need_resched())
		cond_resched();
}

kept void spin(void)
{
	while (!signal_pending(current)) {
		cpu_relax();
		offer_cpu();
	}
	stay();
}

void waste_ms(unsigned int ms)
{
	while (ms--)
		udelay(1000);
}

kept void read_memory(const struct request *request)
{
	char buffer[128];

	if (copy_from_user(buffer, request->memory, min(request->size, sizeof(buffer))))
		pr_err("vmlab: nothing to read\n");
	stay();
}

static void act_sleep(const struct request *request)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

/* The livepatch module replaces this function; nobody leaves it. */
static kept void vmlab_lp_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static void act_lp_sleep(const struct request *request)
{
	vmlab_lp_sleep();
	stay();
}

static void act_dstate(const struct request *request)
{
	sleep_in(TASK_UNINTERRUPTIBLE);
	stay();
}

static void act_spin(const struct request *request)
{
	spin();
	stay();
}

/* Preempted wherever division, string copies and the allocator happen to be. */
static void act_work(const struct request *request)
{
	while (!signal_pending(current)) {
		void *memory = kvmalloc(256 << 10, GFP_KERNEL);

		if (memory)
			memset(memory, 1, 256 << 10);
		kvfree(memory);
		offer_cpu();
	}
}

static void blocking_work(struct work_struct *work)
{
	sleep_in(TASK_IDLE);
	stay();
}

static DECLARE_WORK(work, blocking_work);

static void act_queue(const struct request *request)
{
	queue_work(system_unbound_wq, &work);
	sleep_in(TASK_IDLE);
}

static int never_called(void *unused)
{
	return 0;
}

/* A thread that exists, and waits to be woken for the first time. */
static void act_create(const struct request *request)
{
	kthread_create(never_called, NULL, "k_created");
	sleep_in(TASK_IDLE);
}

/* ---- a stack of a chosen depth ---- */

static kept void deeper(unsigned int levels)
{
	if (levels)
		deeper(levels - 1);
	else
		sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

#define DEEP(depth)						\
	static void act_deep##depth(const struct request *request)	\
	{							\
		deeper(depth);					\
		stay();						\
	}
#define DEEP_ACT(depth) { "deep" #depth, act_deep##depth }

/* Around 100 entries, where a trace becomes too long for livepatch. */
DEEP(5) DEEP(82) DEEP(83) DEEP(84) DEEP(85) DEEP(86) DEEP(87) DEEP(88)
DEEP(89) DEEP(90) DEEP(91) DEEP(92) DEEP(120)

const struct act plain_acts[] = {
	{ "sleep", act_sleep },
	{ "dstate", act_dstate },
	{ "lp_sleep", act_lp_sleep },
	{ "spin", act_spin },
	{ "work", act_work },
	{ "read", read_memory, ACT_MEMORY },
	{ "queue", act_queue, ACT_THREAD },
	{ "create", act_create, ACT_THREAD },
	{ "hurt_deep", act_deep5, ACT_THREAD },
	{ "hurt_sleep", act_sleep, ACT_THREAD },
	{ "hurt_end", act_deep5, ACT_THREAD },
	{ "hurt_call", act_deep5, ACT_THREAD },
	{ "hurt_init", act_deep5, ACT_THREAD },
#ifdef CONFIG_ARM64
	{ "hurt_early", act_deep5, ACT_THREAD },
	{ "hurt_aligned", act_deep5, ACT_THREAD },
	{ "hurt_traced", act_deep5, ACT_THREAD },
#endif
#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)
	{ "hurt_early", act_deep5, ACT_THREAD },
	{ "hurt_vsyscall", act_deep5, ACT_THREAD },
	{ "hurt_slot", act_deep5, ACT_THREAD },
	{ "hurt_regs", act_spin, ACT_THREAD | ACT_PREEMPTED },
	{ "hurt_user", act_spin, ACT_THREAD | ACT_PREEMPTED },
#endif
	DEEP_ACT(82), DEEP_ACT(83), DEEP_ACT(84), DEEP_ACT(85), DEEP_ACT(86), DEEP_ACT(87),
	DEEP_ACT(88), DEEP_ACT(89), DEEP_ACT(90), DEEP_ACT(91), DEEP_ACT(92), DEEP_ACT(120),
	{}
};
