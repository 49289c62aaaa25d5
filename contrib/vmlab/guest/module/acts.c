// SPDX-License-Identifier: GPL-2.0
/* vmlab_states - tasks in every state of the kernel; see acts.h. */
#include "acts.h"
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

static const struct act *const catalogue[] = {
	plain_acts, probed_acts, odd_acts,
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
			if (!act->flags)
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

static void make_thread(const struct act *act)
{
	const char *prefix = act->flags & ACT_THREAD ? "" : "k_";
	struct task_struct *task;

	task = kthread_run(thread_main, (void *)act, "%s%s", prefix, act->name);
	if (IS_ERR(task))
		pr_err("vmlab: failed: thread %s: %ld\n", act->name, PTR_ERR(task));
}

static void make_threads(void)
{
	const struct act *act;
	int i;

	for (i = 0; i < ARRAY_SIZE(catalogue); i++)
		for (act = catalogue[i]; act->name; act++)
			if (!(act->flags & ACT_MEMORY))
				make_thread(act);
}

static int go(const char *text, const struct kernel_param *parameter)
{
	make_threads();
	return 0;
}

static const struct kernel_param_ops go_ops = { .set = go };

/* The threads start late, when tracers have been set up. */
module_param_cb(go, &go_ops, NULL, 0200);
MODULE_PARM_DESC(go, "write anything to start the threads");

static int __init vmlab_states_init(void)
{
	int error = probed_init();

	if (error)
		return error;
	return proc_create("vmlab_states", 0600, NULL, &states_ops) ? 0 : -ENOMEM;
}

/* No exit: threads and probes stay until the virtual machine ends. */
module_init(vmlab_states_init);
MODULE_DESCRIPTION("Puts tasks into the states that matter to a stack walk");
MODULE_LICENSE("GPL");
