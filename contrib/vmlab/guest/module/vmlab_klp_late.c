// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_klp_late - replaces functions of the kernel, of a module that is there, of one that
 * comes, and of one that never does.
 */
#include "klp.h"

static int new_cmdline_proc_show(struct seq_file *file, void *unused)
{
	seq_puts(file, "livepatched\n");
	return 0;
}

NEW_NOTHING(vmlab_late_sleep)
NEW_NOTHING(vmlab_lp_late)
NEW_NOTHING(vmlab_never)

static struct klp_func kernel_functions[] = {
	REPLACED(cmdline_proc_show),
	{}
};

static struct klp_func late_functions[] = {
	REPLACED(vmlab_late_sleep),
	{}
};

static struct klp_func absent_functions[] = {
	REPLACED(vmlab_never),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_late),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_late", .funcs = late_functions },
	{ .name = "vmlab_absent", .funcs = absent_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
