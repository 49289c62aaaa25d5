// SPDX-License-Identifier: GPL-2.0
/* vmlab_klp_thread - replaces functions that kernel threads never leave. */
#include "klp.h"

static int new_oom_reaper(void *unused)
{
	return 0;
}

NEW_NOTHING(vmlab_lp_loop)
NEW_NOTHING(vmlab_lp_sleep)
NEW_NOTHING(vmlab_lp_dstate)

static struct klp_func kernel_functions[] = {
	REPLACED(oom_reaper),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_loop),
	REPLACED(vmlab_lp_sleep),
	REPLACED(vmlab_lp_dstate),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
