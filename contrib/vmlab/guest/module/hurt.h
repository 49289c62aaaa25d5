/* SPDX-License-Identifier: GPL-2.0 */
/* Damage, after the verdicts: the oracle takes it down, and hurt.c says what is damaged how. */
#ifndef VMLAB_HURT_H
#define VMLAB_HURT_H

#include <linux/sched.h>

/*
 * Damages a task, of which the kernel has just given these entries; false if it does not
 * know what to do to a task of that name. Called when all CPUs are held.
 */
extern bool (*vmlab_hurt)(struct task_struct *task, const unsigned long *entries, int count);

/* Overwrites a word on behalf of a task, read-only or not, and takes it down. */
void vmlab_damage(struct task_struct *task, void *word, unsigned long value);

/* What is on the stack for an entry: loongarch64 tells where a call is, not where it returns to. */
static inline unsigned long vmlab_return_address(unsigned long entry)
{
	return entry + (IS_ENABLED(CONFIG_LOONGARCH) ? 4 : 0);
}

/* The address of anything that the kernel has a name for, or 0. */
unsigned long vmlab_address(const char *name);

#endif
