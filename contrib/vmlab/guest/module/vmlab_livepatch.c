// SPDX-License-Identifier: GPL-2.0
/*
 * vmlab_livepatch - a livepatch whose transition cannot end, because tasks sleep in
 * the functions that it replaces.
 */
#include <linux/init.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>

static void replacement(void)
{
}

static struct klp_func module_functions[] = {
	{ .old_name = "vmlab_krp_outer", .new_func = replacement },
	{ .old_name = "vmlab_fg_deep", .new_func = replacement },
	{ .old_name = "read_memory", .new_func = replacement },
	{ .old_name = "vmlab_lp_sleep", .new_func = replacement },
	{}
};

static struct klp_object objects[] = {
	{ .name = "vmlab_states", .funcs = module_functions },
	{}
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objects,
};

static int __init vmlab_livepatch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit vmlab_livepatch_exit(void)
{
}

module_init(vmlab_livepatch_init);
module_exit(vmlab_livepatch_exit);
MODULE_DESCRIPTION("A livepatch that stalls");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
