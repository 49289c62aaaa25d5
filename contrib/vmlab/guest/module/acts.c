// SPDX-License-Identifier: GPL-2.0
/* vmlab_states - tasks in every state of the kernel; see acts.h. */
#include "acts.h"
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

static const struct act *const catalogue[] = {
	plain_acts, probed_acts, odd_acts, chain_acts, hurt_acts, patched_acts,
};

static const struct act *find_act(const char *name)
{
	const struct act *act;
	int i;

	for (i = 0; i < ARRAY_SIZE(catalogue); i++)
		for (act = catalogue[i]; act->name; act++)
			if (!strcmp(act->name, name))
				return act;
	return NULL;
}

/* Whether this kernel can run it, in a way that "unwanted" does not rule out. */
static bool usable(const struct act *act, unsigned int unwanted)
{
	if ((act->flags & ACT_PREEMPTED) && !preempt_model_preemptible())
		return false;
	return !(act->flags & unwanted);
}

/* ---- processes ---- */

static ssize_t states_write(struct file *file, const char __user *text, size_t size,
			    loff_t *offset)
{
	char copy[80] = {}, name[32] = {};
	struct request request = {};
	const struct act *act;
	unsigned long address;

	if (size >= sizeof(copy) || copy_from_user(copy, text, size))
		return -EINVAL;
	if (sscanf(copy, "%31s %lx %zu", name, &address, &request.size) != 3)
		return -EINVAL;
	request.memory = (void __user *)address;
	act = find_act(name);
	if (!act)
		return -ENOENT;
	act->run(&request);
	stay();
	return size;
}

static int states_list(struct seq_file *list, void *unused)
{
	const struct act *act;
	int i;

	for (i = 0; i < ARRAY_SIZE(catalogue); i++)
		for (act = catalogue[i]; act->name; act++)
			if (usable(act, ACT_MEMORY | ACT_THREAD | ACT_ASKED))
				seq_printf(list, "%s\n", act->name);
	return 0;
}

static int states_open(struct inode *inode, struct file *file)
{
	return single_open(file, states_list, NULL);
}

static const struct proc_ops states_ops = {
	.proc_open = states_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = states_write,
};

/* ---- threads ---- */

static int thread_main(void *data)
{
	const struct act *act = data;
	const struct request nothing = {};

	set_user_nice(current, MAX_NICE);
	act->run(&nothing);
	sleep_in(TASK_IDLE);	/* never leave: the module stays loaded anyway */
	return 0;
}

static void name_thread(const struct act *act, char *name, size_t size)
{
	snprintf(name, size, "%s%s", act->flags & ACT_THREAD ? "" : "k_", act->name);
}

static int make_thread(const char *text, const struct kernel_param *parameter)
{
	struct task_struct *task;
	const struct act *act;
	char name[32];
	int i;

	for (i = 0; i < ARRAY_SIZE(catalogue); i++)
		for (act = catalogue[i]; act->name; act++) {
			name_thread(act, name, sizeof(name));
			if (!usable(act, ACT_MEMORY) || !sysfs_streq(name, text))
				continue;
			task = kthread_run(thread_main, (void *)act, "%s", name);
			return PTR_ERR_OR_ZERO(task);
		}
	return -ENOENT;
}

static int list_threads(char *page, const struct kernel_param *parameter)
{
	const struct act *act;
	int i, length = 0;
	char name[32];

	for (i = 0; i < ARRAY_SIZE(catalogue); i++)
		for (act = catalogue[i]; act->name; act++) {
			name_thread(act, name, sizeof(name));
			if (usable(act, ACT_MEMORY | ACT_ASKED))
				length += scnprintf(page + length, PAGE_SIZE - length, "%s\n", name);
		}
	return length;
}

static const struct kernel_param_ops thread_ops = { .set = make_thread, .get = list_threads };

/* The threads start late, when tracers have been set up. */
module_param_cb(thread, &thread_ops, NULL, 0600);
MODULE_PARM_DESC(thread, "write a name to start that thread; reading lists those there are");

static int __init vmlab_states_init(void)
{
	int error = probed_init();

	if (error)
		return error;
	hurt_init();
	return proc_create("vmlab_states", 0600, NULL, &states_ops) ? 0 : -ENOMEM;
}

/* No exit: threads and probes stay until the virtual machine ends. */
module_init(vmlab_states_init);
MODULE_DESCRIPTION("Puts tasks into the states that matter to a stack walk");
MODULE_LICENSE("GPL");
