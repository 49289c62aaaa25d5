// SPDX-License-Identifier: GPL-2.0
/* Acts that no unwinder can follow: code without unwind data, a stack of their own. */
#include "acts.h"
#include <linux/align.h>
#include <linux/irqflags.h>
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

/* ---- a stack that the kernel knows nothing about ---- */

/* Each calls vmlab_alien_sleep() on the stack that ends at "top". */
#if defined(CONFIG_X86_64)
#define ON_STACK(top)						\
	asm volatile("movq %%rsp, %%rbx\n\t"			\
		     "movq %0, %%rsp\n\t"			\
		     "call vmlab_alien_sleep\n\t"		\
		     "movq %%rbx, %%rsp"			\
		     : : "r"(top)				\
		     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", \
		       "memory", "cc")
#elif defined(CONFIG_ARM64)
#define ON_STACK(top)						\
	asm volatile("mov x19, sp\n\t"				\
		     "mov sp, %0\n\t"				\
		     "bl vmlab_alien_sleep\n\t"			\
		     "mov sp, x19"				\
		     : : "r"(top)				\
		     : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", \
		       "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x19", "x30", \
		       "memory", "cc")
#elif defined(CONFIG_S390)
#define ON_STACK(top)						\
	asm volatile("lgr %%r10,%%r15\n\t"			\
		     "lgr %%r15,%0\n\t"				\
		     "aghi %%r15,-160\n\t"			\
		     "xc 0(8,%%r15),0(%%r15)\n\t"		\
		     "brasl %%r14,vmlab_alien_sleep\n\t"	\
		     "lgr %%r15,%%r10"				\
		     : : "a"(top)				\
		     : "r0", "r1", "r2", "r3", "r4", "r5", "r10", "r14", "memory", "cc")
#elif defined(CONFIG_PPC64)
#define ON_STACK(top)						\
	asm volatile("mr 30,1\n\t"				\
		     "mr 1,%0\n\t"				\
		     "li 0,0\n\t"				\
		     "stdu 0,-64(1)\n\t"			\
		     "bl vmlab_alien_sleep\n\t"			\
		     "nop\n\t"					\
		     "mr 1,30"					\
		     : : "b"(top)				\
		     : "r0", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", \
		       "r30", "lr", "ctr", "cr0", "memory")
#elif defined(CONFIG_LOONGARCH)
#define ON_STACK(top)						\
	asm volatile("move $s0, $sp\n\t"			\
		     "move $sp, %0\n\t"				\
		     "bl vmlab_alien_sleep\n\t"			\
		     "move $sp, $s0"				\
		     : : "r"(top)				\
		     : "$ra", "$a0", "$a1", "$a2", "$a3", "$a4", "$a5", "$a6", "$a7", "$t0", \
		       "$t1", "$t2", "$t3", "$t4", "$t5", "$t6", "$t7", "$t8", "$s0", \
		       "memory")
#endif

#ifdef ON_STACK
void vmlab_alien_sleep(void);

/*
 * Some architectures take a stack that they do not know for an overflow, and die of it
 * when an exception comes: it must not, and schedule() does not mind.
 */
kept void vmlab_alien_sleep(void)
{
	if (!IS_ENABLED(CONFIG_X86_64))
		local_irq_disable();
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

static kept void vmlab_alien_stack(char *top)
{
	ON_STACK(top);
}
STACK_FRAME_NON_STANDARD(vmlab_alien_stack);

/* The stack lies where a bit of its addresses, by which arm64 tells overflows, is clear. */
static void act_alien(const struct request *request)
{
	char *memory = vmalloc(3 * THREAD_SIZE), *stack;

	stack = PTR_ALIGN(memory, 2 * THREAD_SIZE);
	if (memory)
		vmlab_alien_stack(stack + THREAD_SIZE);
	vfree(memory);
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
#ifdef ON_STACK
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
