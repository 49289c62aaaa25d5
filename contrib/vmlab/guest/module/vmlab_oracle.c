// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_oracle - ask the running kernel for its own reliable-stack verdicts.
 *
 * Writing anything to /proc/vmlab_oracle stops every CPU, asks
 * stack_trace_save_tsk_reliable() about every thread and every idle task,
 * writes one text row for each into a buffer, and what the kernel has of livepatches
 * after that, and then holds all CPUs until the virtual machine ends, or panics, for a
 * crash kernel to take the dump. A dump taken while they are held is that very instant,
 * and contains the rows.
 *
 * Writing "glance" asks all the same, but has everything go on. The rows, of which the
 * first says how many glances there were ("N 3"), can be read from the file.
 *
 * The host finds the rows by the physical address of the header, which is
 * printed when the module is loaded, long before anything is stopped. It knows
 * that the rows are complete when the header says VMLAB_READY. Nothing is
 * printed while the CPUs are stopped: consoles may need a thread to do so.
 */
#include "hurt.h"
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kallsyms.h>
#include <linux/kmsg_dump.h>
#include <linux/kprobes.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/nmi.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/io.h>

#define VMLAB_MAGIC	"VMLAB-ORACLE-01"
#define VMLAB_ARMED	1
#define VMLAB_READY	2
#define VMLAB_OVERFLOW	3
#define MAX_ENTRIES	100	/* what livepatch asks for */
#define HURT_PREFIX	"hurt"
#define HURT_VALUE	0x00dead00beef0000UL

/* Contiguous pages, read by the host through physical memory; little-endian on all machines. */
struct vmlab_header {
	char magic[16];
	__le64 state;
	__le64 length;		/* bytes of text in the buffer */
	__le64 page_size;
	__le64 page_count;
	__le64 page_address[];	/* physical, one for each page of the buffer */
};

static unsigned int buffer_kb = 1024;
module_param(buffer_kb, uint, 0444);
MODULE_PARM_DESC(buffer_kb, "room for the rows, in KiB");

static bool crashing;
module_param_named(crash, crashing, bool, 0644);
MODULE_PARM_DESC(crash, "after the verdicts, panic instead of holding the CPUs");

static bool hurting;
module_param_named(hurt, hurting, bool, 0644);
MODULE_PARM_DESC(hurt, "after the verdicts, damage the stacks of tasks named hurt*");

static bool interrupting;
module_param_named(interrupt, interrupting, bool, 0644);
MODULE_PARM_DESC(interrupt, "hold the CPUs by interrupts, and so what runs on them");

static unsigned long (*lookup_name)(const char *name);
static int (*save_reliable)(struct task_struct *task, unsigned long *store,
			    unsigned int size);
static unsigned int (*save_plain)(struct task_struct *task, unsigned long *store,
				  unsigned int size, unsigned int skip);
static struct task_struct *(*idle_of)(int cpu);

static struct vmlab_header *header;
static size_t header_size;
static char *rows;
static size_t rows_size, rows_used;
static unsigned long entries[MAX_ENTRIES];
static struct proc_dir_entry *proc_entry;

static void set_state(u64 state)
{
	WRITE_ONCE(header->state, cpu_to_le64(state));
}

/* ---- rows ---- */

static __printf(1, 2) void put(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	rows_used += vsnprintf(rows + rows_used, rows_size - rows_used, format, args);
	va_end(args);
	if (rows_used >= rows_size) {	/* truncated: say so, never wrap */
		rows_used = rows_size - 1;
		set_state(VMLAB_OVERFLOW);
	}
}

static bool is_plain(char c, bool spaces)
{
	return c > ' ' ? c < 0x7f && c != '\\' : c == ' ' && spaces;
}

/* A name or a line, which can be any bytes: others than printable ASCII as \xNN. */
static void put_text(const char *text, bool spaces)
{
	for (; *text; text++)
		put(is_plain(*text, spaces) ? "%c" : "\\x%02x", *text & 0xff);
}

static void put_word(const char *text)
{
	put_text(text, false);
	put(" ");
}

static void put_entries(unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		put("%lx,", entries[i]);
}

static void judge(const char *kind, struct task_struct *task)
{
	unsigned long switches = task->nvcsw + task->nivcsw;
	int on_cpu = READ_ONCE(task->on_cpu);
	int verdict = save_reliable ? -EBUSY : -ENOSYS;

	if (save_reliable && !on_cpu)
		verdict = save_reliable(task, entries, MAX_ENTRIES);
	put("T %s %lx %d %d %lu %d %u %d ", kind, (unsigned long)task, task->pid,
	    task->tgid, switches, on_cpu, READ_ONCE(task->__state), verdict);
	if (verdict > 0)
		put_entries(verdict);
	put(" B ");
	if (!on_cpu)
		put_entries(save_plain(task, entries, MAX_ENTRIES, 0));
	put(" ");
	put_text(task->comm, true);
	put("\n");
}

static void visit_everyone(void (*visit)(const char *kind, struct task_struct *task))
{
	struct task_struct *leader, *task;
	int cpu;

	rcu_read_lock();
	for_each_process_thread(leader, task)
		visit("task", task);
	rcu_read_unlock();
	for_each_possible_cpu(cpu)
		visit("idle", idle_of(cpu));
}

/* ---- livepatches, if there are any ---- */

#ifdef CONFIG_LIVEPATCH
static struct list_head *klp_patches, *klp_ops;
static struct klp_patch **klp_transition_patch;
static int *klp_target_state;
static unsigned int *klp_signals_cnt;

/* As "struct klp_ops" begins, which only the kernel's own files know. */
struct klp_ops_head {
	struct list_head node;
	struct list_head func_stack;
};

static void find_livepatch(void)
{
	klp_patches = (void *)lookup_name("klp_patches");
	klp_ops = (void *)lookup_name("klp_ops");
	klp_transition_patch = (void *)lookup_name("klp_transition_patch");
	klp_target_state = (void *)lookup_name("klp_target_state");
	klp_signals_cnt = (void *)lookup_name("klp_signals_cnt");
}

/* How many newer versions of the same function there are; -1 when it is not applied. */
static int place_on_stack(struct klp_func *func)
{
	struct klp_ops_head *ops;
	struct klp_func *other;
	int place;

	list_for_each_entry(ops, klp_ops, node) {
		place = 0;
		list_for_each_entry(other, &ops->func_stack, stack_node) {
			if (other == func)
				return place;
			place++;
		}
	}
	return -1;
}

static void tell_function(struct klp_patch *patch, const char *object, struct klp_func *func)
{
	put("F ");
	put_word(patch->mod->name);
	put_word(object);
	put_word(func->old_name);
	put("%lx %lu %lx %lu %d %d %d %d\n", (unsigned long)func->old_func, func->old_size,
	    (unsigned long)func->new_func, func->new_size, func->nop, func->patched,
	    func->transition, place_on_stack(func));
}

static void tell_patch(struct klp_patch *patch)
{
	struct klp_object *object;
	struct klp_func *func;

	put("P %lx ", (unsigned long)patch);
	put_word(patch->mod->name);
	put("%d %d %d\n", patch->enabled, patch->replace, patch->forced);
	list_for_each_entry(object, &patch->obj_list, node) {
		const char *name = object->name ?: "vmlinux";

		put("O ");
		put_word(patch->mod->name);
		put_word(name);
		put("%d %d\n", !object->name || object->mod, object->patched);
		list_for_each_entry(func, &object->func_list, node)
			tell_function(patch, name, func);
	}
}

static void tell_state(const char *kind, struct task_struct *task)
{
	put("S %lx %d %d\n", (unsigned long)task, task->patch_state,
	    test_tsk_thread_flag(task, TIF_PATCH_PENDING));
}

/* The kernel's own words about livepatches, as its log has them. */
static void tell_log(void)
{
	static char line[512];
	struct kmsg_dump_iter iterator;
	size_t length;

	kmsg_dump_rewind(&iterator);
	while (kmsg_dump_get_line(&iterator, false, line, sizeof(line) - 1, &length)) {
		line[length] = 0;
		if (!strstr(line, "] livepatch: "))
			continue;
		put("K ");
		put_text(strim(line), true);
		put("\n");
	}
}

static void tell_livepatches(void)
{
	struct klp_patch *patch, *changing;

	if (!klp_patches || !klp_ops || !klp_transition_patch || !klp_target_state ||
	    !klp_signals_cnt)
		return;
	changing = *klp_transition_patch;
	if (!changing && list_empty(klp_patches))
		return;
	put("L ");
	put_word(changing ? changing->mod->name : "-");
	put("%d %u\n", *klp_target_state, *klp_signals_cnt);
	list_for_each_entry(patch, klp_patches, list)
		tell_patch(patch);
	visit_everyone(tell_state);
	tell_log();
}
#else
static void find_livepatch(void)
{
}

static void tell_livepatches(void)
{
}
#endif

/* ---- deliberate damage, after the verdict ---- */

bool (*vmlab_hurt)(struct task_struct *task, const unsigned long *entries, int count);
EXPORT_SYMBOL_GPL(vmlab_hurt);

/* Some of it is read-only to everybody. */
static void overwrite(void *word, unsigned long value)
{
#ifdef CONFIG_X86_64
	unsigned long cr0 = read_cr0();

	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(word, &value, sizeof(value));
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
#else
	memcpy(word, &value, sizeof(value));
#endif
}

void vmlab_damage(struct task_struct *task, void *word, unsigned long value)
{
	unsigned long old;

	memcpy(&old, word, sizeof(old));	/* it need not be aligned */
	overwrite(word, value);
	put("D %lx %d %lx %lx %lx %s\n", (unsigned long)task, task->pid,
	    (unsigned long)word, old, value, task->comm);
}
EXPORT_SYMBOL_GPL(vmlab_damage);

unsigned long vmlab_address(const char *name)
{
	return lookup_name(name);
}
EXPORT_SYMBOL_GPL(vmlab_address);

/* Overwrite the middle return address of a task's stack. */
static void hurt_middle(struct task_struct *task, int count)
{
	unsigned long *word = task_stack_page(task);
	unsigned long *end = (void *)word + THREAD_SIZE;

	if (count < 3)
		return;
	while (--end > word && *end != vmlab_return_address(entries[count / 2]))
		;
	if (end > word)
		vmlab_damage(task, end, HURT_VALUE);
}

/*
 * The verdict that was put down is the one from before. A row marks the task, each place, and
 * the values; another what the kernel says of it now.
 */
static void hurt(struct task_struct *task)
{
	int on_cpu = READ_ONCE(task->on_cpu);
	int verdict, count = 0;
	bool named = !strncmp(task->comm, HURT_PREFIX, strlen(HURT_PREFIX));

	if (save_reliable && !on_cpu)
		count = save_reliable(task, entries, MAX_ENTRIES);
	if (!(vmlab_hurt && vmlab_hurt(task, entries, count)) && named)
		hurt_middle(task, count);
	if (!named || !save_reliable || on_cpu)
		return;
	verdict = save_reliable(task, entries, MAX_ENTRIES);
	put("H %lx %d %d ", (unsigned long)task, task->pid, verdict);
	if (verdict > 0)
		put_entries(verdict);
	put(" ");
	put_text(task->comm, true);
	put("\n");
}

static void hurt_the_willing(void)
{
	struct task_struct *leader, *task;

	rcu_read_lock();
	for_each_process_thread(leader, task)
		hurt(task);
	rcu_read_unlock();
}

/* ---- stopping the machine ---- */

static void finish_rows(void)
{
	put("END\n");
	header->length = cpu_to_le64(rows_used);
	smp_wmb();
	if (header->state == cpu_to_le64(VMLAB_ARMED))
		set_state(VMLAB_READY);
}

static void write_rows(void)
{
	visit_everyone(judge);
	tell_livepatches();
	if (hurting)
		hurt_the_willing();
	finish_rows();
	if (crashing)
		panic("vmlab: the verdicts are taken");
}

static void stay_here(void)
{
	for (;;) {
		touch_nmi_watchdog();
		cpu_relax();
	}
}

/* Runs on every CPU at once, interrupts off. One asks, then all wait for good. */
static int stopped(void *unused)
{
	static atomic_t first = ATOMIC_INIT(1);

	if (atomic_xchg(&first, 0))
		write_rows();
	stay_here();
	return 0;
}

/* Runs on one CPU, while the others wait. */
static int glance(void *unused)
{
	static unsigned int number;

	set_state(VMLAB_ARMED);
	smp_wmb();
	rows_used = 0;
	put("N %u\n", ++number);
	visit_everyone(judge);
	tell_livepatches();
	finish_rows();
	return 0;
}

/* ---- holding the CPUs by interrupts: what runs on them goes on running ---- */

static atomic_t held = ATOMIC_INIT(0);

static void hold(void *unused)
{
	atomic_inc(&held);
	stay_here();
}

static void interrupt_everyone(void)
{
	preempt_disable();
	smp_call_function(hold, NULL, 0);
	while (atomic_read(&held) < num_online_cpus() - 1)
		cpu_relax();
	local_irq_disable();
	write_rows();
	stay_here();
}

static ssize_t trigger(struct file *file, const char __user *text, size_t size,
		       loff_t *offset)
{
	char word[8] = "";
	int error;

	if (copy_from_user(word, text, min(size, sizeof(word) - 1)))
		return -EFAULT;
	if (!strncmp(word, "glance", 6)) {
		error = stop_machine(glance, NULL, NULL);
		return error ? error : size;
	}
	if (interrupting)
		interrupt_everyone();
	error = stop_machine(stopped, NULL, cpu_online_mask);
	return error ? error : size;
}

static ssize_t tell(struct file *file, char __user *buffer, size_t size, loff_t *offset)
{
	return simple_read_from_buffer(buffer, size, offset, rows, rows_used);
}

static const struct proc_ops trigger_ops = {
	.proc_write = trigger,
	.proc_read = tell,
	.proc_lseek = default_llseek,
};

/* ---- finding what is not exported ---- */

/*
 * A kprobe tells an address. With IBT or a global entry point it lies past the symbol,
 * where a module must not always enter, so the kernel is asked how far.
 */
static int find_lookup_name(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int error = register_kprobe(&probe);
	unsigned long address, offset;
	char text[KSYM_SYMBOL_LEN];

	if (error)
		return error;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	sprint_symbol(text, address);
	if (sscanf(text, "kallsyms_lookup_name+%lx", &offset) != 1)
		return -ENOENT;
	lookup_name = (void *)(address - offset);
	return 0;
}

static int find_functions(void)
{
	int error = find_lookup_name();

	if (error)
		return error;
	save_reliable = (void *)lookup_name("stack_trace_save_tsk_reliable");
	save_plain = (void *)lookup_name("stack_trace_save_tsk");
	idle_of = (void *)lookup_name("idle_task");
	find_livepatch();
	return save_plain && idle_of ? 0 : -ENOENT;	/* not all have the reliable walk */
}

static int make_buffer(void)
{
	size_t page_count, i;

	rows_size = PAGE_ALIGN((size_t)buffer_kb << 10);
	page_count = rows_size / PAGE_SIZE;
	header_size = struct_size(header, page_address, page_count);
	header = alloc_pages_exact(header_size, GFP_KERNEL | __GFP_ZERO);
	rows = vzalloc(rows_size);
	if (!header || !rows)
		return -ENOMEM;
	memcpy(header->magic, VMLAB_MAGIC, sizeof(header->magic));
	header->page_size = cpu_to_le64(PAGE_SIZE);
	header->page_count = cpu_to_le64(page_count);
	for (i = 0; i < page_count; i++)
		header->page_address[i] =
			cpu_to_le64(PFN_PHYS(vmalloc_to_pfn(rows + i * PAGE_SIZE)));
	set_state(VMLAB_ARMED);
	return 0;
}

static void release(void)
{
	if (proc_entry)
		proc_remove(proc_entry);
	vfree(rows);
	if (header)
		free_pages_exact(header, header_size);
}

static int __init vmlab_oracle_init(void)
{
	int error = find_functions();

	if (!error)
		error = make_buffer();
	if (!error) {
		proc_entry = proc_create("vmlab_oracle", 0600, NULL, &trigger_ops);
		error = proc_entry ? 0 : -ENOMEM;
	}
	if (error) {
		release();
		return error;
	}
	pr_emerg("vmlab: oracle header at physical 0x%llx\n",
		 (unsigned long long)virt_to_phys(header));
	return 0;
}

static void __exit vmlab_oracle_exit(void)
{
	release();
}

module_init(vmlab_oracle_init);
module_exit(vmlab_oracle_exit);
MODULE_DESCRIPTION("Records the kernel's own reliable stack verdicts");
MODULE_LICENSE("GPL");
