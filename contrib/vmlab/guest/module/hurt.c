// SPDX-License-Identifier: GPL-2.0
/*
 * What is done to tasks named hurt_* after their verdicts have been taken, by name. Each brings
 * about what no sound kernel does to a stack, in as few words as it takes; then the kernel is
 * asked again.
 */
#include "acts.h"
#include "hurt.h"
#include <linux/ftrace.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/rethook.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>

#ifdef CONFIG_X86_64
#include <asm/cpu_entry_area.h>
#include <asm/segment.h>
#endif

struct patient {
	struct task_struct *task;
	const unsigned long *entries;	/* what the kernel last made of its stack */
	int count;
	unsigned long low, high;	/* its stack */
};

struct recipe {
	const char *name;
	void (*apply)(const struct patient *patient);
};

/* The highest word of the stack with that value, or NULL. */
static unsigned long *word_with(const struct patient *patient, unsigned long value)
{
	unsigned long *word = (unsigned long *)patient->high;

	while (value && --word > (unsigned long *)patient->low)
		if (*word == value)
			return word;
	return NULL;
}

static unsigned long middle_of(const struct patient *patient)
{
	if (patient->count < 3)
		return 0;
	return vmlab_return_address(patient->entries[patient->count / 2]);
}

/* Put another address in place of the middle one of the trace. */
static void replace_middle(const struct patient *patient, unsigned long value)
{
	unsigned long *word = word_with(patient, middle_of(patient));

	if (word && value)
		vmlab_damage(patient->task, word, value);
}

/* ---- on every machine ---- */

static void overwrite_end(const struct patient *patient)
{
	vmlab_damage(patient->task, end_of_stack(patient->task), 0);
}

/* The address behind what follows the call. */
static void forget_call(const struct patient *patient)
{
	replace_middle(patient, middle_of(patient) + (IS_ENABLED(CONFIG_X86_64) ? 1 : 4));
}

/* A function of which only the first instruction is over: it has no frame yet. */
static void return_to_init(const struct patient *patient)
{
	replace_middle(patient, vmlab_address("start_kernel") +
				(IS_ENABLED(CONFIG_X86_64) ? 1 : 4));
}

#ifdef CONFIG_KRETPROBE_ON_RETHOOK
#define PROBED_RETURNS	rethooks
#define PROBED_FRAME	frame
#define PROBE_TRAMPOLINE	"arch_rethook_trampoline"
typedef struct rethook_node probed_return;
#else
#define PROBED_RETURNS	kretprobe_instances
#define PROBED_FRAME	fp
#define PROBE_TRAMPOLINE	"__kretprobe_trampoline"
typedef struct kretprobe_instance probed_return;
#endif

static probed_return *latest_probed(const struct patient *patient)
{
	struct llist_node *first = patient->task->PROBED_RETURNS.first;

	return first ? llist_entry(first, probed_return, llist) : NULL;
}

static void lose_probed_return(const struct patient *patient)
{
	probed_return *entry = latest_probed(patient);

	if (entry)
		vmlab_damage(patient->task, &entry->PROBED_FRAME,
			     (unsigned long)entry->PROBED_FRAME + 1);
}

/* Undo on the stack what the probe did, but not in its list. */
static void keep_probed_return(const struct patient *patient)
{
	probed_return *entry = latest_probed(patient);
	unsigned long *word = word_with(patient, vmlab_address(PROBE_TRAMPOLINE));

	if (entry && word)
		vmlab_damage(patient->task, word, (unsigned long)entry->ret_addr);
}

#if defined(CONFIG_FUNCTION_GRAPH_TRACER) && (defined(CONFIG_X86_64) || defined(CONFIG_ARM64))
/* The latest entry: of an array (before 6.11), or of words, with the way back after it. */
static struct ftrace_ret_stack *traced_return(struct task_struct *task)
{
	unsigned long *words = (unsigned long *)task->ret_stack;
	int last = task->curr_ret_stack;

	if (!words || last < 0)
		return NULL;
	if (sizeof(*task->ret_stack) > sizeof(*words))
		return (struct ftrace_ret_stack *)task->ret_stack + last;
	if (!last)
		return NULL;
	return (struct ftrace_ret_stack *)(words + last - 1 - (words[last - 1] & 0x3ff));
}

static void lose_traced_return(const struct patient *patient)
{
	struct ftrace_ret_stack *entry = traced_return(patient->task);

	if (entry)
		vmlab_damage(patient->task, &entry->retp, (unsigned long)entry->retp + 1);
}

static void keep_traced_return(const struct patient *patient)
{
	struct ftrace_ret_stack *entry = traced_return(patient->task);
	unsigned long *word = word_with(patient, vmlab_address("return_to_handler"));

	if (entry && word)
		vmlab_damage(patient->task, word, entry->ret);
}
#endif

/* ---- arm64: frame records ---- */

#ifdef CONFIG_ARM64
/* The record after so many others. */
static unsigned long *record_of(const struct patient *patient, int skipped)
{
	unsigned long at = patient->task->thread.cpu_context.fp;

	for (; at >= patient->low && at + 24 <= patient->high; at = *(unsigned long *)at)
		if (!skipped--)
			return (unsigned long *)at;
	return NULL;
}

static void misalign_record(const struct patient *patient)
{
	unsigned long *record = record_of(patient, 3);

	if (record)
		vmlab_damage(patient->task, record, *record + 4);
}

/* As the last record of a stack is. */
static void end_early(const struct patient *patient)
{
	unsigned long *record = record_of(patient, 3);

	if (!record)
		return;
	vmlab_damage(patient->task, record, 0);
	vmlab_damage(patient->task, record + 1, 0);
	vmlab_damage(patient->task, record + 2, 1);
}

static void return_to_tracer(const struct patient *patient)
{
	replace_middle(patient, vmlab_address("return_to_handler") + 8);
}

/* Of a function that was interrupted: its caller's record is left out. */
static void skip_record(const struct patient *patient)
{
	unsigned long *record;
	int skipped;

	for (skipped = 0; (record = record_of(patient, skipped)); skipped++)
		if (!record[0] && !record[1])
			break;
	if (!record || record[2] != 2)
		return;
	record = (unsigned long *)container_of((void *)record, struct pt_regs, stackframe)->regs[29];
	if ((unsigned long)record >= patient->low && record[0] >= patient->low &&
	    record[0] + 16 <= patient->high)
		vmlab_damage(patient->task, record, *(unsigned long *)record[0]);
}
#endif

/* ---- x86_64: ORC ---- */

#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)

static void end_early(const struct patient *patient)
{
	replace_middle(patient, patient->entries[patient->count - 1]);
}

static void return_to_vsyscall(const struct patient *patient)
{
	replace_middle(patient, 0xffffffffff600001UL);
}

static void return_to_slot(const struct patient *patient)
{
	struct kprobe *(*find)(void *) = (void *)vmlab_address("get_kprobe");
	struct kprobe *probe = find ? find((void *)vmlab_address("vmlab_kp_here")) : NULL;

	if (probe && probe->ainsn.insn)
		replace_middle(patient, (unsigned long)probe->ainsn.insn + 1);
}

/* Where the unwind data say that saved registers lie at the stack pointer. */
static unsigned long regs_here(void)
{
	return vmlab_address("error_return");
}

/* What was saved when the task was interrupted in the kernel, or NULL. */
static struct pt_regs *interrupted(const struct patient *patient)
{
	unsigned long at;

	for (at = patient->task->thread.sp; at + sizeof(struct pt_regs) <= patient->high; at += 8) {
		struct pt_regs *regs = (struct pt_regs *)at;

		if (regs->cs == __KERNEL_CS && regs->ss == __KERNEL_DS &&
		    regs->sp >= (unsigned long)(regs + 1) && regs->sp < patient->high)
			return regs;
	}
	return NULL;
}

static void move_regs(const struct patient *patient)
{
	struct pt_regs *regs = interrupted(patient);

	if (!regs || !regs_here())
		return;
	vmlab_damage(patient->task, &regs->ip, regs_here());
	vmlab_damage(patient->task, &regs->sp, patient->high - 64);
}

static void pretend_user(const struct patient *patient)
{
	struct pt_regs *regs = interrupted(patient);

	if (regs)
		vmlab_damage(patient->task, &regs->cs, __USER_CS);
}

/*
 * Interrupted where BP alone leads to the caller: let it lead to where the interrupt's entry
 * called on. The stack pointer would tell that the walk goes back, so it is on no stack.
 */
static void make_circle(const struct patient *patient)
{
	struct pt_regs *regs = interrupted(patient);

	if (!regs)
		return;
	vmlab_damage(patient->task, &regs->sp, patient->low - 64);
	vmlab_damage(patient->task, &regs->bp, (unsigned long)regs - 16);
}

/* Change bits of the unwind data of the module's function in the trace. */
static void change_rule(const struct patient *patient, const char *function, int mask, int bits)
{
	struct module *module = THIS_MODULE;
	unsigned long start = vmlab_address(function), pc = 0;
	unsigned long word;
	int i, found = -1;
	void *flags;

	for (i = 0; i < patient->count && start; i++)
		if (patient->entries[i] > start && patient->entries[i] < start + 64)
			pc = patient->entries[i] - 1;
	for (i = 0; i < module->arch.num_orcs && pc; i++)
		if ((unsigned long)&module->arch.orc_unwind_ip[i] +
		    module->arch.orc_unwind_ip[i] <= pc)
			found = i;
	if (found < 0)
		return;
	flags = (void *)&module->arch.orc_unwind[found] + 4;
	memcpy(&word, flags, sizeof(word));
	vmlab_damage(patient->task, flags, (word & ~(unsigned long)mask) | bits);
}

static void base_on_r13(const struct patient *patient)
{
	change_rule(patient, "vmlab_hurt_base", 0xf, 7);
}

static void base_on_nothing(const struct patient *patient)
{
	change_rule(patient, "vmlab_hurt_rule", 0xf, 15);
}

/*
 * A thread that holds its CPU is walked from the registers in the dump. Let its caller be an
 * interrupt's entry, and what was interrupted be on the NMI's stack, and came from here.
 */
static void cross_stacks(const struct patient *patient)
{
	unsigned long *word = (unsigned long *)patient->high, start, *copy;
	struct cea_exception_stacks *__percpu *stacks;
	struct pt_regs there = {}, back = {};
	unsigned long nmi;
	size_t i;

	/* Not through void *: per-CPU pointers can have an address space of their own (__seg_gs). */
	stacks = (typeof(stacks))vmlab_address("cea_exception_stacks");
	start = vmlab_address("smpboot_thread_fn");
	if (!stacks || !start || !regs_here())
		return;
	while (--word > (unsigned long *)patient->low)
		if (*word > start && *word < start + 0x200)
			break;
	nmi = CEA_ESTACK_TOP(*per_cpu_ptr(stacks, task_cpu(patient->task)), NMI) - 1024;
	there.ip = back.ip = regs_here();
	there.cs = back.cs = __KERNEL_CS;
	there.sp = nmi;
	back.sp = (unsigned long)(word + 1);
	vmlab_damage(patient->task, word, regs_here() + 1);
	for (i = 0, copy = (unsigned long *)&there; i < sizeof(there) / 8; i++)
		vmlab_damage(patient->task, word + 1 + i, copy[i]);
	for (i = 0, copy = (unsigned long *)&back; i < sizeof(back) / 8; i++)
		vmlab_damage(patient->task, (unsigned long *)nmi + i, copy[i]);
}
#endif

static const struct recipe recipes[] = {
	{ "hurt_end", overwrite_end },
	{ "hurt_call", forget_call },
	{ "hurt_init", return_to_init },
	{ "hurt_krp_lost", lose_probed_return },
	{ "hurt_krp_kept", keep_probed_return },
#if defined(CONFIG_FUNCTION_GRAPH_TRACER) && (defined(CONFIG_X86_64) || defined(CONFIG_ARM64))
	{ "hurt_fg_lost", lose_traced_return },
	{ "hurt_fg_kept", keep_traced_return },
#endif
#ifdef CONFIG_ARM64
	{ "hurt_aligned", misalign_record },
	{ "hurt_early", end_early },
	{ "hurt_traced", return_to_tracer },
	{ "hurt_skip", skip_record },
#endif
#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)
	{ "hurt_early", end_early },
	{ "hurt_vsyscall", return_to_vsyscall },
	{ "hurt_slot", return_to_slot },
	{ "hurt_regs", move_regs },
	{ "hurt_user", pretend_user },
	{ "hurt_circle", make_circle },
	{ "hurt_base", base_on_r13 },
	{ "hurt_rule", base_on_nothing },
	{ "migration/1", cross_stacks },
#endif
	{}
};

static bool hurt_by_name(struct task_struct *task, const unsigned long *entries, int count)
{
	const struct patient patient = {
		.task = task, .entries = entries, .count = count,
		.low = (unsigned long)task_stack_page(task),
		.high = (unsigned long)task_stack_page(task) + THREAD_SIZE,
	};
	const struct recipe *recipe;

	for (recipe = recipes; recipe->name; recipe++)
		if (!strcmp(recipe->name, task->comm)) {
			recipe->apply(&patient);
			return true;
		}
	return false;
}

void hurt_init(void)
{
	vmlab_hurt = hurt_by_name;
}

/* ---- acts whose unwind data nobody else uses ---- */

#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)
static kept void vmlab_hurt_base(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_hurt_rule(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static void act_base(const struct request *request)
{
	vmlab_hurt_base();
	stay();
}

static void act_rule(const struct request *request)
{
	vmlab_hurt_rule();
	stay();
}
#endif

const struct act hurt_acts[] = {
#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)
	{ "hurt_base", act_base, ACT_THREAD },
	{ "hurt_rule", act_rule, ACT_THREAD },
#endif
	{}
};
