// SPDX-License-Identifier: GPL-2.0
/*
 * Acts in functions that the modules vmlab_klp_* replace, and such as keep a task from
 * being switched otherwise. They start when a scenario's step says so.
 */
#include "acts.h"
#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/objtool.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

static kept void vmlab_lp_dstate(void)
{
	sleep_in(TASK_UNINTERRUPTIBLE);
	stay();
}

static kept void vmlab_lp_killable(void)
{
	sleep_in(TASK_KILLABLE);
	stay();
}

/* A thread's main loop: it wakes up now and then, and never leaves the function. */
static kept void vmlab_lp_loop(void)
{
	while (!signal_pending(current))
		schedule_timeout_idle(HZ / 4);
	stay();
}

static __always_inline void vmlab_lp_inlined(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_lp_inner(void)
{
	vmlab_lp_inlined();
	stay();
}

static kept void vmlab_lp_outer(void)
{
	vmlab_lp_inner();
	stay();
}

static kept void vmlab_lp_spin(void)
{
	while (!signal_pending(current))
		cpu_relax();
	stay();
}

/* Replaced by a patch in which nobody sleeps. */
static kept void vmlab_lp_unused(void)
{
	stay();
}

static void act_lp_dstate(const struct request *request)
{
	vmlab_lp_dstate();
	stay();
}

static void act_lp_killable(const struct request *request)
{
	vmlab_lp_killable();
	stay();
}

static void act_lp_loop(const struct request *request)
{
	vmlab_lp_loop();
	vmlab_lp_unused();
	stay();
}

/* Two replaced functions on one stack. */
static void act_lp_nested(const struct request *request)
{
	vmlab_lp_outer();
	stay();
}

/* ---- unreliable, with and without a replaced function on the stack ---- */

static kept void vmlab_lp_no_data(void)
{
	vmlab_lp_dstate();
	stay();
}
STACK_FRAME_NON_STANDARD(vmlab_lp_no_data);

static void act_lp_nodata(const struct request *request)
{
	vmlab_lp_no_data();
	stay();
}

static kept void lp_deeper(unsigned int levels)
{
	if (levels)
		lp_deeper(levels - 1);
	else
		sleep_in(TASK_UNINTERRUPTIBLE);
	stay();
}

/* Below the deepest 100 entries, which is all that the kernel looks at. */
static kept void vmlab_lp_shallow(void)
{
	lp_deeper(120);
	stay();
}

static void act_lp_deep(const struct request *request)
{
	vmlab_lp_shallow();
	stay();
}

/* ---- running: each on a CPU of its own, which the scenario isolates ---- */

/* The last CPU is 0. */
static void go_to_cpu(unsigned int from_the_end)
{
	unsigned int cpu = num_online_cpus() - 1 - from_the_end;

	set_cpus_allowed_ptr(current, cpumask_of(cpu));
}

static void act_lp_spin(const struct request *request)
{
	go_to_cpu(1);
	vmlab_lp_spin();
	stay();
}

/* Nothing but its running keeps it from being switched. */
static void act_lp_busy(const struct request *request)
{
	go_to_cpu(0);
	while (!signal_pending(current))
		cpu_relax();
	stay();
}

/* ---- a function of a module that is loaded later ---- */

static void (*late_function)(void);
static DECLARE_WAIT_QUEUE_HEAD(late_queue);

/* Who waits below calls this function, out of the one that is replaced. */
void vmlab_late_is(void (*function)(void))
{
	late_function = function;
	wake_up_all(&late_queue);
}
EXPORT_SYMBOL_GPL(vmlab_late_is);

static kept void vmlab_lp_late(void)
{
	wait_event_idle(late_queue, READ_ONCE(late_function));
	late_function();
	stay();
}

static void act_lp_late(const struct request *request)
{
	vmlab_lp_late();
	stay();
}

const struct act patched_acts[] = {
	{ "lp_dstate", act_lp_dstate, ACT_ASKED },
	{ "lp_killable", act_lp_killable, ACT_ASKED },
	{ "lp_loop", act_lp_loop, ACT_ASKED },
	{ "lp_nested", act_lp_nested, ACT_ASKED },
	{ "lp_nodata", act_lp_nodata, ACT_ASKED },
	{ "lp_deep", act_lp_deep, ACT_ASKED },
	{ "lp_spin", act_lp_spin, ACT_ASKED },
	{ "lp_busy", act_lp_busy, ACT_ASKED },
	{ "lp_late", act_lp_late, ACT_ASKED },
	{}
};
