// SPDX-License-Identifier: GPL-2.0
/*
 * Acts inside probed and traced functions: kretprobes, kprobes, optimized kprobes,
 * ftrace callbacks. Functions named vmlab_fg_* are for the function graph tracer and
 * those named vmlab_fp_* for function probes, both set up through tracefs.
 */
#include "acts.h"
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>

/*
 * A ppc64 kernel that preempts itself (7.2, in QEMU 7.2 and newer) does not survive being
 * preempted in ftrace handlers again and again: stacks and registers of other tasks are
 * soon wrong. There each is called once, and none spins.
 */
#define FRAGILE (IS_ENABLED(CONFIG_PPC64) && IS_ENABLED(CONFIG_PREEMPTION))

/* Between two calls of a function with a handler. */
static void before_next(void)
{
	if (FRAGILE)
		sleep_in(TASK_INTERRUPTIBLE);
	else
		offer_cpu();
}

/* ---- kretprobes: the return address becomes a trampoline's ---- */

static kept void vmlab_krp_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_krp_spin(void)
{
	spin();
	stay();
}

static kept void vmlab_krp_read(const struct request *request)
{
	read_memory(request);
	stay();
}

static kept void vmlab_krp_outer(void)
{
	vmlab_krp_sleep();
	stay();
}

static void act_krp_sleep(const struct request *request)
{
	vmlab_krp_sleep();
	stay();
}

static void act_krp_spin(const struct request *request)
{
	vmlab_krp_spin();
	stay();
}

static void act_krp_read(const struct request *request)
{
	vmlab_krp_read(request);
	stay();
}

static void act_krp_twice(const struct request *request)
{
	vmlab_krp_outer();
	stay();
}

/* Returning from a kretprobed function over and over. */
static kept int vmlab_krp_short(int value)
{
	stay();
	return value + 1;
}

static void act_krp_return(const struct request *request)
{
	int value = 0;

	while (!signal_pending(current)) {
		value = vmlab_krp_short(value);
		before_next();
	}
}

static int on_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return 0;
}

/* Runs in the trampoline, in the task's context. */
static int on_return_slow(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	waste_ms(5);
	return 0;
}

#define KRETPROBE(name, function)						\
	static struct kretprobe name = {					\
		.kp.symbol_name = #function, .handler = on_return, .maxactive = 16 }

KRETPROBE(krp_sleep, vmlab_krp_sleep);
KRETPROBE(krp_spin, vmlab_krp_spin);
KRETPROBE(krp_read, vmlab_krp_read);
KRETPROBE(krp_outer, vmlab_krp_outer);
KRETPROBE(krp_graph, vmlab_fg_krp);
KRETPROBE(krp_chain, vmlab_chain_krp);
static struct kretprobe krp_short = {
	.kp.symbol_name = "vmlab_krp_short", .handler = on_return_slow, .maxactive = 16,
};

/* ---- for the function graph tracer and for function probes ---- */

static kept void vmlab_fg_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_fg_spin(void)
{
	spin();
	stay();
}

static kept void vmlab_fg_krp(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_fg_deep(int levels)
{
	if (levels)
		vmlab_fg_deep(levels - 1);
	else
		vmlab_krp_sleep();
	stay();
}

static kept void vmlab_fp_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_fp_spin(void)
{
	spin();
	stay();
}

/* For a BPF trampoline, attached by states_bpf.c. */
static kept void vmlab_bpf_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static void act_bpf_sleep(const struct request *request)
{
	vmlab_bpf_sleep();
	stay();
}

static void act_fg_sleep(const struct request *request)
{
	vmlab_fg_sleep();
	stay();
}

static void act_fg_spin(const struct request *request)
{
	vmlab_fg_spin();
	stay();
}

static void act_fg_krp(const struct request *request)
{
	vmlab_fg_krp();
	stay();
}

static void act_fg_deep(const struct request *request)
{
	vmlab_fg_deep(5);
	stay();
}

static void act_fp_sleep(const struct request *request)
{
	vmlab_fp_sleep();
	stay();
}

static void act_fp_spin(const struct request *request)
{
	vmlab_fp_spin();
	stay();
}

/* ---- ftrace: a trampoline calls back at a function's entry ---- */

#define TRACED(name)						\
	static kept void vmlab_##name(void)			\
	{							\
		stay();						\
	}							\
	static void act_##name(const struct request *request)	\
	{							\
		while (!signal_pending(current)) {		\
			vmlab_##name();				\
			before_next();			\
		}						\
	}

TRACED(ft_regs)
TRACED(ft_args)
TRACED(ft_spin)
TRACED(ft_list)

static void callback_wastes(unsigned long ip, unsigned long parent,
			    struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	waste_ms(5);
}

/*
 * Nobody unregisters, so nobody waits for these callbacks: they may sleep. But where an
 * architecture has one trampoline for all, the kernel goes through its list of ops there,
 * and it does so without preemption.
 */
static void callback_sleeps(unsigned long ip, unsigned long parent,
			    struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	if (in_atomic())
		waste_ms(5);
	else
		sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static void callback_spins(unsigned long ip, unsigned long parent,
			   struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	if (in_atomic())
		waste_ms(5);
	else if (FRAGILE)
		sleep_in(TASK_INTERRUPTIBLE);
	else
		spin();
	stay();
}

static struct ftrace_ops regs_ops = {
	.func = callback_sleeps,
#ifdef CONFIG_DYNAMIC_FTRACE_WITH_REGS
	.flags = FTRACE_OPS_FL_SAVE_REGS,
#endif
};
static struct ftrace_ops args_ops = { .func = callback_sleeps };
static struct ftrace_ops spin_ops = { .func = callback_spins };
/* Two on one function: the kernel goes through its list of ops. */
static struct ftrace_ops list_ops = { .func = callback_wastes };
static struct ftrace_ops other_ops = { .func = callback_wastes };

/* ---- kprobes ---- */

TRACED(kp_entry)

/* Keeps the CPU without preemption; whoever waits for it gets it right after. */
static int slow_handler(struct kprobe *probe, struct pt_regs *regs)
{
	waste_ms(5);
	return 0;
}

static struct kprobe entry_probe = {
	.symbol_name = "vmlab_kp_entry", .pre_handler = slow_handler,
};

#ifdef CONFIG_X86_64
/* Instructions long and plain enough to be replaced by a jump. */
static kept void vmlab_kp_opt(void)
{
	asm volatile(".globl vmlab_kp_here\n"
		     "vmlab_kp_here:\n\t"
		     "movl $0x12345678, %%eax\n\t"
		     "movl $0x12345678, %%ecx\n\t"
		     "movl $0x12345678, %%edx\n"
		     : : : "eax", "ecx", "edx");
}

static struct kprobe opt_probe = {
	.symbol_name = "vmlab_kp_here", .pre_handler = slow_handler,
};

static void act_kp_opt(const struct request *request)
{
	while (!signal_pending(current)) {
		vmlab_kp_opt();
		offer_cpu();
	}
}

static int opt_init(void)
{
	return register_kprobe(&opt_probe);
}
#else
static int opt_init(void)
{
	return 0;
}
#endif

/* ---- placing them ---- */

static int place_ops(struct ftrace_ops *ops, char *function)
{
	int error = ftrace_set_filter(ops, function, strlen(function), 1);

	if (!error)
		error = register_ftrace_function(ops);
	if (error)
		pr_err("vmlab: failed: ftrace of %s: %d\n", function, error);
	return 0;	/* not every kernel can: the act is then a plain loop */
}

static int place_all_ops(void)
{
	static char regs[] = "vmlab_ft_regs", args[] = "vmlab_ft_args";
	static char spins[] = "vmlab_ft_spin", list[] = "vmlab_ft_list";

	place_ops(&regs_ops, regs);
	place_ops(&args_ops, args);
	place_ops(&spin_ops, spins);
	place_ops(&list_ops, list);
	return place_ops(&other_ops, list);
}

int probed_init(void)
{
	static struct kretprobe *const returns[] = {
		&krp_sleep, &krp_spin, &krp_read, &krp_outer, &krp_graph, &krp_short,
		&krp_chain,
	};
	int error = register_kretprobes((struct kretprobe **)returns, ARRAY_SIZE(returns));

	if (!error)
		error = register_kprobe(&entry_probe);
	if (!error)
		error = opt_init();
	return error ? error : place_all_ops();
}

const struct act probed_acts[] = {
	{ "krp_sleep", act_krp_sleep },
	{ "krp_spin", act_krp_spin },
	{ "krp_read", act_krp_read, ACT_MEMORY },
	{ "krp_twice", act_krp_twice },
	{ "krp_return", act_krp_return },
	{ "bpf_sleep", act_bpf_sleep, ACT_MEMORY },
	{ "fg_sleep", act_fg_sleep },
	{ "fg_spin", act_fg_spin },
	{ "fg_krp", act_fg_krp },
	{ "fg_deep", act_fg_deep },
	{ "fp_sleep", act_fp_sleep },
	{ "fp_spin", act_fp_spin },
	{ "ft_regs", act_ft_regs },
	{ "ft_args", act_ft_args },
	{ "ft_spin", act_ft_spin },
	{ "ft_list", act_ft_list },
	{ "kp_entry", act_kp_entry },
#ifdef CONFIG_X86_64
	{ "kp_opt", act_kp_opt },
#endif
	{ "hurt_krp_lost", act_krp_sleep, ACT_THREAD },
	{ "hurt_krp_kept", act_krp_sleep, ACT_THREAD },
	{ "hurt_fg_lost", act_fg_sleep, ACT_THREAD },
	{ "hurt_fg_kept", act_fg_sleep, ACT_THREAD },
	{}
};
