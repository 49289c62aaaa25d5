// SPDX-License-Identifier: GPL-2.0
/* vmlab_late - a module to be loaded when a livepatch for it is there already. */
#include "acts.h"
#include <linux/module.h>

static kept void vmlab_late_sleep(void)
{
	for (;;)
		schedule_timeout_idle(HZ);
}

static int __init vmlab_late_init(void)
{
	vmlab_late_is(vmlab_late_sleep);
	return 0;
}

/* No exit: somebody sleeps in it. */
module_init(vmlab_late_init);
MODULE_DESCRIPTION("A module that a livepatch waits for");
MODULE_LICENSE("GPL");
