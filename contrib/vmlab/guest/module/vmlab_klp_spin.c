// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_klp_spin - replaces a function that a task spins in, and one that no idle task ever
 * leaves. Those are switched in their loop, but where a task spins they do not get to it.
 */
#include "klp.h"

NEW_NOTHING(cpu_startup_entry)
NEW_NOTHING(vmlab_lp_spin)

static struct klp_func kernel_functions[] = {
	REPLACED(cpu_startup_entry),
	{}
};

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_spin),
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
