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

#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_FRAME_POINTER)
/* Sleeps with a frame pointer of one's choice. */
static kept void vmlab_sleep_with(unsigned long frame)
{
	asm volatile("pushq %%rbp\n\t"
		     "movq %0, %%rbp\n\t"
		     "call vmlab_alien_sleep\n\t"
		     "popq %%rbp"
		     : : "r"(frame)
		     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11",
		       "memory", "cc");
}
STACK_FRAME_NON_STANDARD(vmlab_sleep_with);

static void act_bp_zero(const struct request *request)
{
	vmlab_sleep_with(0);
	stay();
}

/* As code does that uses the register for something else. */
static void act_bp_data(const struct request *request)
{
	vmlab_sleep_with((unsigned long)vmlab_sleep_with);
	stay();
}

/* The caller's frame: a function is missing from the chain. */
static kept void act_bp_skip(const struct request *request)
{
	vmlab_sleep_with(*(unsigned long *)__builtin_frame_address(0));
	stay();
}

/* An odd one stands for saved registers. */
static void act_bp_odd(const struct request *request)
{
	vmlab_sleep_with((unsigned long)__builtin_frame_address(0) | 1);
	stay();
}

/* A frame that is its own caller. */
static void act_bp_loop(const struct request *request)
{
	unsigned long frame[2];

	frame[0] = (unsigned long)frame;
	frame[1] = (unsigned long)__builtin_return_address(0);
	vmlab_sleep_with(frame[0]);
	stay();
}

/* A frame whose return address is none. */
static void act_bp_ra(const struct request *request)
{
	unsigned long frame[2];

	frame[0] = (unsigned long)__builtin_frame_address(0);
	frame[1] = (unsigned long)frame;
	vmlab_sleep_with((unsigned long)frame);
	stay();
}
#endif

const struct act odd_acts[] = {
	{ "nodata", act_nodata },
	{ "nodata_spin", act_nodata_spin },
#ifdef CONFIG_X86_64
	{ "alien", act_alien },
#endif
#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_FRAME_POINTER)
	{ "bp_zero", act_bp_zero },
	{ "bp_data", act_bp_data },
	{ "bp_skip", act_bp_skip },
	{ "bp_odd", act_bp_odd },
	{ "bp_loop", act_bp_loop },
	{ "bp_ra", act_bp_ra },
#endif
	{}
};
