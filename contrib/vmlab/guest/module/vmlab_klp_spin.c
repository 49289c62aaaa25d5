// SPDX-License-Identifier: GPL-2.0
/* vmlab_klp_spin - replaces a function that a task spins in. */
#include "klp.h"

NEW_NOTHING(vmlab_lp_spin)

static struct klp_func module_functions[] = {
	REPLACED(vmlab_lp_spin),
	{}
};

static struct klp_object objects[] = {
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

VMLAB_PATCH(objects, false);
