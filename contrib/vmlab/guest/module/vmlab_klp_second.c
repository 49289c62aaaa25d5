// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_klp_second - takes the place of vmlab_klp_first: one function is replaced anew, one for
 * the first time; what only the first replaced gets a nop.
 */
#include "klp.h"

static ssize_t new_eventfd_read(struct kiocb *request, struct iov_iter *to)
{
	return -EINTR;
}

NEW_NOTHING(vmlab_lp_sleep)

static struct klp_func kernel_functions[] = {
	REPLACED(eventfd_read),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_sleep),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, true);
