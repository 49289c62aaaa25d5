// SPDX-License-Identifier: GPL-2.0
/* vmlab_klp_first - its new functions are what tasks sleep in; see vmlab_klp_second.c. */
#include "klp.h"

static int new_cmdline_proc_show(struct seq_file *file, void *unused)
{
	seq_puts(file, "livepatched once\n");
	return 0;
}

NEW_SLEEP(vmlab_lp_sleep, TASK_INTERRUPTIBLE)
NEW_SLEEP(vmlab_lp_dstate, TASK_UNINTERRUPTIBLE)
NEW_SLEEP(vmlab_lp_killable, TASK_KILLABLE)

static struct klp_func kernel_functions[] = {
	REPLACED(cmdline_proc_show),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_sleep),
	REPLACED(vmlab_lp_dstate),
	REPLACED(vmlab_lp_killable),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
