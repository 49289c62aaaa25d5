// SPDX-License-Identifier: GPL-2.0
/* vmlab_noorc - a module without unwind data: objtool does not see it. */
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>

static noinline void vmlab_noorc_sleep(void)
{
	for (;;) {
		set_current_state(TASK_IDLE);
		schedule();
	}
	barrier();
}

static int thread_main(void *unused)
{
	vmlab_noorc_sleep();
	return 0;
}

static int __init vmlab_noorc_init(void)
{
	return PTR_ERR_OR_ZERO(kthread_run(thread_main, NULL, "k_noorc"));
}

/* No exit: its thread stays until the virtual machine ends. */
module_init(vmlab_noorc_init);
MODULE_DESCRIPTION("Sleeps in code without unwind data");
MODULE_LICENSE("GPL");
