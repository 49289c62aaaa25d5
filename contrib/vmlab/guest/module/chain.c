// SPDX-License-Identifier: GPL-2.0
/*
 * Acts whose callers are known for certain: act_chain_NAME() calls vmlab_chain_a(), which
 * calls vmlab_chain_b(), which calls vmlab_chain_c(), which calls vmlab_chain_NAME(). What
 * differs is where that one is when it is preempted: before its frame is there, in it, after
 * it, or in a leaf that never has one. See ../../chains.yaml.
 */
#include "acts.h"
#include <linux/compiler.h>
#include <linux/math.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#define KEPT_VALUES 10

typedef void (*chain_end)(const struct request *request);

static unsigned long values[KEPT_VALUES], room_size = 200;

/* ---- what leads there ---- */

/* A frame larger than the reach of short displacements. */
static kept void vmlab_chain_c(chain_end end, const struct request *request)
{
	unsigned long room[80];

	barrier_data(room);
	end(request);
	barrier_data(room);
}

/* Values that outlive a call need registers that the function has to save. */
#define REMEMBER(call)						\
	unsigned long v0 = READ_ONCE(values[0]), v1 = READ_ONCE(values[1]);	\
	unsigned long v2 = READ_ONCE(values[2]), v3 = READ_ONCE(values[3]);	\
	unsigned long v4 = READ_ONCE(values[4]), v5 = READ_ONCE(values[5]);	\
	unsigned long v6 = READ_ONCE(values[6]), v7 = READ_ONCE(values[7]);	\
	unsigned long v8 = READ_ONCE(values[8]), v9 = READ_ONCE(values[9]);	\
								\
	call;							\
	WRITE_ONCE(values[0], v0);				\
	WRITE_ONCE(values[1], v1);				\
	WRITE_ONCE(values[2], v2);				\
	WRITE_ONCE(values[3], v3);				\
	WRITE_ONCE(values[4], v4);				\
	WRITE_ONCE(values[5], v5);				\
	WRITE_ONCE(values[6], v6);				\
	WRITE_ONCE(values[7], v7);				\
	WRITE_ONCE(values[8], v8);				\
	WRITE_ONCE(values[9], v9)

static kept void vmlab_chain_b(chain_end end, const struct request *request)
{
	REMEMBER(vmlab_chain_c(end, request));
}

static kept void vmlab_chain_a(chain_end end, const struct request *request)
{
	vmlab_chain_b(end, request);
	stay();
}

/* ---- where it ends ---- */

static kept void vmlab_chain_sleep(const struct request *request)
{
	sleep_in(TASK_INTERRUPTIBLE);
	stay();
}

/* A leaf: it needs no frame, nor to save where it returns to. */
static kept void vmlab_chain_leaf(const struct request *request)
{
	while (!signal_pending(current))
		barrier();
}

/* Leaves whose return address, still in a register, is that of a trampoline: see probed.c ... */
static kept void vmlab_chain_krp(const struct request *request)
{
	while (!signal_pending(current))
		barrier();
}

/* ... and, for the function graph tracer, init. */
static kept void vmlab_fg_leaf(const struct request *request)
{
	while (!signal_pending(current))
		barrier();
}

/* A leaf that waits for a page: its exception is not an interrupt. */
static kept void vmlab_chain_touch(const struct request *request)
{
	const unsigned long __user *word = request->memory;
	unsigned long value;

	if (!user_read_access_begin(word, sizeof(*word)))
		return;
	unsafe_get_user(value, word, failed);
	WRITE_ONCE(values[0], value);
failed:
	user_read_access_end();
}

/* A leaf, too, but its frame has a size that no table can tell. */
static kept __attribute__((__no_stack_protector__))
void vmlab_chain_alloca(const struct request *request)
{
	char *room = __builtin_alloca(READ_ONCE(room_size));

	barrier_data(room);
	while (!signal_pending(current))
		barrier_data(room);
}

static kept void vmlab_chain_tiny(void)
{
	stay();
}

/* In its body: the call before the loop has made it save where it returns to. */
static kept void vmlab_chain_body(const struct request *request)
{
	unsigned int rounds = 0;

	vmlab_chain_tiny();
	while (!signal_pending(current))
		if (!(++rounds & 0xfffff))
			vmlab_chain_tiny();
	stay();
}

/* Only what comes after the loop needs a frame, and not always. */
static kept void vmlab_chain_wrap(const struct request *request)
{
	while (!signal_pending(current))
		barrier();
	if (unlikely(READ_ONCE(room_size) == 0)) {
		vmlab_chain_tiny();
		stay();
	}
}

static kept void vmlab_chain_mid(void)
{
	vmlab_chain_tiny();
	stay();
}

static kept void vmlab_chain_saves(void)
{
	REMEMBER(vmlab_chain_tiny());
}

/* Anywhere in prologues and epilogues. */
static kept void vmlab_chain_loop(const struct request *request)
{
	while (!signal_pending(current)) {
		vmlab_chain_mid();
		vmlab_chain_saves();
	}
	stay();
}

/* In a leaf of the kernel's own, and on the way there, which can lead over a stub. */
static kept void vmlab_chain_far(const struct request *request)
{
	while (!signal_pending(current))
		WRITE_ONCE(values[0], int_sqrt(~READ_ONCE(values[1])));
	stay();
}

/* In a function written in assembly, of which nobody tells what its frame is. */
static kept void vmlab_chain_copy(const struct request *request)
{
	static char from[8192], to[8192];

	while (!signal_pending(current)) {
		memcpy(to, from, READ_ONCE(room_size) * 40);
		barrier_data(to);
	}
	stay();
}

#define CHAIN(name, end)					\
	static void act_chain_##name(const struct request *request)	\
	{							\
		vmlab_chain_a(end, request);			\
		stay();						\
	}

CHAIN(sleep, vmlab_chain_sleep)
CHAIN(leaf, vmlab_chain_leaf)
CHAIN(krp, vmlab_chain_krp)
CHAIN(fg, vmlab_fg_leaf)
CHAIN(touch, vmlab_chain_touch)
CHAIN(alloca, vmlab_chain_alloca)
CHAIN(body, vmlab_chain_body)
CHAIN(wrap, vmlab_chain_wrap)
CHAIN(loop, vmlab_chain_loop)
CHAIN(far, vmlab_chain_far)
CHAIN(copy, vmlab_chain_copy)

const struct act chain_acts[] = {
	{ "chain_sleep", act_chain_sleep },
	{ "chain_touch", act_chain_touch, ACT_MEMORY },
	{ "chain_leaf", act_chain_leaf, ACT_PREEMPTED },
	{ "chain_krp", act_chain_krp, ACT_PREEMPTED },
	{ "chain_fg", act_chain_fg, ACT_PREEMPTED },
	{ "chain_alloca", act_chain_alloca, ACT_PREEMPTED },
	{ "chain_body", act_chain_body, ACT_PREEMPTED },
	{ "chain_wrap", act_chain_wrap, ACT_PREEMPTED },
	{ "chain_loop1", act_chain_loop, ACT_PREEMPTED },
	{ "chain_loop2", act_chain_loop, ACT_PREEMPTED },
	{ "chain_loop3", act_chain_loop, ACT_PREEMPTED },
	{ "chain_loop4", act_chain_loop, ACT_PREEMPTED },
	{ "chain_far1", act_chain_far, ACT_PREEMPTED },
	{ "chain_far2", act_chain_far, ACT_PREEMPTED },
	{ "chain_copy", act_chain_copy, ACT_PREEMPTED },
#ifdef CONFIG_ARM64
	{ "hurt_skip", act_chain_body, ACT_THREAD | ACT_PREEMPTED },
#endif
#if defined(CONFIG_X86_64) && defined(CONFIG_UNWINDER_ORC)
	{ "hurt_circle", act_chain_alloca, ACT_THREAD | ACT_PREEMPTED },
#endif
	{}
};
