/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An act is a way for a task to stay in the kernel. Each is run twice: by a kernel
 * thread named "k_NAME" and by a process named "u_NAME" that writes NAME to
 * /proc/vmlab_states. Reading that file lists the acts for processes.
 */
#ifndef VMLAB_ACTS_H
#define VMLAB_ACTS_H

#include <linux/sched.h>
#include <linux/types.h>

struct request {
	void __user *memory;	/* what the process wants read; NULL in a thread */
	size_t size;
};

struct act {
	const char *name;
	void (*run)(const struct request *request);
	unsigned int flags;
};

#define ACT_MEMORY	1	/* needs a process's memory: not listed, no thread */
#define ACT_THREAD	2	/* by a thread only */
#define ACT_PREEMPTED	4	/* only where the kernel preempts itself: it never offers the CPU */
#define ACT_ASKED	8	/* only when its very name is asked for: not listed */

/* A function that the compiler neither inlines nor clones nor renames. */
#define kept		noinline __attribute__((__noipa__))

/* Keeps a call from becoming a jump, and its frame from vanishing. */
#define stay()		barrier()

/* Each file's acts end with an act without a name. */
extern const struct act plain_acts[];
extern const struct act probed_acts[];
extern const struct act odd_acts[];
extern const struct act chain_acts[];
extern const struct act hurt_acts[];
extern const struct act patched_acts[];

int probed_init(void);		/* place the probes; before any act runs */
void hurt_init(void);		/* tell the oracle what to do to tasks named hurt_* */

void sleep_in(unsigned int state);	/* sleep in that state for good */
void spin(void);			/* run for good, preemptibly */
void offer_cpu(void);			/* let others run, if they want to */
void read_memory(const struct request *request);
void vmlab_late_is(void (*function)(void));	/* what the act lp_late waits for */
void waste_ms(unsigned int ms);		/* keep the CPU, whatever the context */

#endif
