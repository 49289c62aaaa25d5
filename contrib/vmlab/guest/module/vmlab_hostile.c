// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_hostile - a module that gives itself, its functions and its threads names from
 * ../hostile.h, and its log lines too. No build system would; an attacker's module, or a
 * stray write, does.
 */
#include "../hostile.h"
#include "acts.h"
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/proc_fs.h>
#include <linux/string.h>

/* Longer than what they are renamed to. */
static kept void vmlab_hostile_innermost_function_whose_name_is_made_hostile_as_the_module_loads(void)
{
	for (;;)
		msleep(1000000);
}

static kept void vmlab_hostile_middle_function_whose_name_is_made_hostile_as_the_module_loads(void)
{
	vmlab_hostile_innermost_function_whose_name_is_made_hostile_as_the_module_loads();
	stay();
}

static kept void vmlab_hostile_outer_function_whose_name_is_made_hostile_as_the_module_loads(void)
{
	vmlab_hostile_middle_function_whose_name_is_made_hostile_as_the_module_loads();
	stay();
}

static const struct {
	const char *prefix, *name;
} renamed[] = {
	{ "vmlab_hostile_outer", HOSTILE_OUTER },
	{ "vmlab_hostile_middle", HOSTILE_MIDDLE },
	{ "vmlab_hostile_innermost", HOSTILE_INNER },
};

/* Where the kernel, and a reader of a dump, look for the names of a module's functions. */
static void rename_functions(struct mod_kallsyms *symbols)
{
	unsigned int i, j;

	for (i = 0; i < symbols->num_symtab; i++) {
		char *name = symbols->strtab + symbols->symtab[i].st_name;

		for (j = 0; j < ARRAY_SIZE(renamed); j++)
			if (strstarts(name, renamed[j].prefix))
				strscpy(name, renamed[j].name, strlen(name) + 1);
	}
}

static int hostile_thread(void *unused)
{
	vmlab_hostile_outer_function_whose_name_is_made_hostile_as_the_module_loads();
	stay();
	return 0;
}

static ssize_t hostile_write(struct file *file, const char __user *text, size_t size,
			     loff_t *offset)
{
	vmlab_hostile_outer_function_whose_name_is_made_hostile_as_the_module_loads();
	stay();
	return size;
}

static const struct proc_ops hostile_ops = {
	.proc_write = hostile_write,
};

static int __init vmlab_hostile_init(void)
{
	static const char *const comms[] = { HOSTILE_COMMS };
	int i;

	if (!proc_create(HOSTILE_ENTRY, 0200, NULL, &hostile_ops))
		return -ENOMEM;
	rename_functions(&THIS_MODULE->core_kallsyms);
	strscpy(THIS_MODULE->name, HOSTILE_MODULE, sizeof(THIS_MODULE->name));
	for (i = 0; i < ARRAY_SIZE(comms); i += 6)
		if (IS_ERR(kthread_run(hostile_thread, NULL, "%s", comms[i])))
			return -ENOMEM;
	printk(KERN_NOTICE "livepatch: \033[2J<script>alert(3)</script>\342\200\256=1+1 '; --\n");
	printk(KERN_NOTICE "livepatch: torn\nlivepatch: 'x': forged\r\b\b\377\302\233J\n");
	return 0;
}

/* No exit: somebody sleeps in it. */
module_init(vmlab_hostile_init);
MODULE_DESCRIPTION("Names that are to do harm");
MODULE_LICENSE("GPL");
