/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A livepatch module: its objects, each a list of functions, and VMLAB_PATCH(). It is
 * enabled as it is loaded; what init's steps do with it then is up to the scenario.
 */
#ifndef VMLAB_KLP_H
#define VMLAB_KLP_H

#include "acts.h"
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/uio.h>

#define REPLACED(name)	{ .old_name = #name, .new_func = new_##name }

#define VMLAB_PATCH(objects, atomic_replace)			\
	static struct klp_patch patch = {			\
		.mod = THIS_MODULE,				\
		.objs = objects,				\
		.replace = atomic_replace,			\
	};							\
	static int __init vmlab_klp_init(void)			\
	{							\
		return klp_enable_patch(&patch);		\
	}							\
	static void __exit vmlab_klp_exit(void)			\
	{							\
	}							\
	module_init(vmlab_klp_init);				\
	module_exit(vmlab_klp_exit);				\
	MODULE_DESCRIPTION("A livepatch of vmlab's");		\
	MODULE_LICENSE("GPL");					\
	MODULE_INFO(livepatch, "Y")

/* What the new functions do: nothing, for nobody calls them, or sleep for good. */
#define NEW_NOTHING(name)					\
	static kept void new_##name(void)			\
	{							\
		barrier();					\
	}

#define NEW_SLEEP(name, state)					\
	static kept void new_##name(void)			\
	{							\
		for (;;)					\
			sleep_in(state);			\
	}

#endif
