// SPDX-License-Identifier: GPL-2.0
/* Acts that no unwinder can follow: code without unwind data, a stack of their own. */
#include "acts.h"
#include <linux/objtool.h>
#include <linux/vmalloc.h>

/* objtool leaves this function out: its addresses have no unwind data. */
static kept void vmlab_no_data(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}
STACK_FRAME_NON_STANDARD(vmlab_no_data);

static void act_nodata(const struct request *request)
{
	vmlab_no_data();
	stay();
}

/* In a leaf-like function whose frame the unwind data does not know about either. */
static kept void vmlab_no_data_spin(void)
{
	spin();
	stay();
}
STACK_FRAME_NON_STANDARD(vmlab_no_data_spin);

static void act_nodata_spin(const struct request *request)
{
	vmlab_no_data_spin();
	stay();
}

#ifdef CONFIG_X86_64
#define ALIEN_SIZE (16 << 10)

void vmlab_alien_sleep(void);

kept void vmlab_alien_sleep(void)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

/* Sleeps on a stack that the kernel knows nothing about. */
static kept void vmlab_alien_stack(char *top)
{
	asm volatile("movq %%rsp, %%rbx\n\t"
		     "movq %0, %%rsp\n\t"
		     "call vmlab_alien_sleep\n\t"
		     "movq %%rbx, %%rsp"
		     : : "r"(top)
		     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11",
		       "memory", "cc");
}
STACK_FRAME_NON_STANDARD(vmlab_alien_stack);

static void act_alien(const struct request *request)
{
	char *stack = vmalloc(ALIEN_SIZE);

	if (stack)
		vmlab_alien_stack(stack + ALIEN_SIZE);
	vfree(stack);
}
#endif

const struct act odd_acts[] = {
	{ "nodata", act_nodata },
	{ "nodata_spin", act_nodata_spin },
#ifdef CONFIG_X86_64
	{ "alien", act_alien },
#endif
	{}
};
