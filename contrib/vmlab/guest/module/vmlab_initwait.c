// SPDX-License-Identifier: GPL-2.0
/* vmlab_initwait - a module whose initialisation never ends. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

static noinline void __init vmlab_init_sleep(void)
{
	while (!signal_pending(current)) {
		set_current_state(TASK_INTERRUPTIBLE);
		schedule();
	}
	barrier();
}

static int __init vmlab_initwait_init(void)
{
	vmlab_init_sleep();
	return -EINTR;
}

module_init(vmlab_initwait_init);
MODULE_DESCRIPTION("Stays in its init function");
MODULE_LICENSE("GPL");
