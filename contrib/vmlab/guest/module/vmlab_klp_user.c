// SPDX-License-Identifier: GPL-2.0
/* vmlab_klp_user - replaces functions that processes sleep in, of the kernel and a module. */
#include "klp.h"

static int new_cmdline_proc_show(struct seq_file *file, void *unused)
{
	seq_puts(file, "livepatched\n");
	return 0;
}

static ssize_t new_eventfd_read(struct kiocb *request, struct iov_iter *to)
{
	return -EINTR;
}

static ssize_t new_inotify_read(struct file *file, char __user *buffer, size_t count,
				loff_t *position)
{
	return -EINTR;
}

NEW_NOTHING(vmlab_lp_sleep)
NEW_NOTHING(vmlab_lp_dstate)
NEW_NOTHING(vmlab_lp_killable)
NEW_NOTHING(vmlab_lp_inner)
NEW_NOTHING(vmlab_lp_outer)
NEW_NOTHING(vmlab_lp_shallow)
NEW_NOTHING(vmlab_lp_unused)

static struct klp_func kernel_functions[] = {
	REPLACED(cmdline_proc_show),
	REPLACED(eventfd_read),
	REPLACED(inotify_read),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_sleep),
	REPLACED(vmlab_lp_dstate),
	REPLACED(vmlab_lp_killable),
	REPLACED(vmlab_lp_inner),
	REPLACED(vmlab_lp_outer),
	REPLACED(vmlab_lp_shallow),
	REPLACED(vmlab_lp_unused),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
