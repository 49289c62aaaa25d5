// SPDX-License-Identifier: GPL-2.0
/* vmlab_klp_hostile - a livepatch of vmlab_hostile and the kernel, with a name like theirs. */
#include "../hostile.h"
#include "klp.h"

NEW_NOTHING(hostile_outer)

static ssize_t new_pipe_read(struct kiocb *request, struct iov_iter *to)
{
	return -EINTR;
}

static struct klp_func kernel_functions[] = {
	REPLACED(pipe_read),
	{}
};

static struct klp_func module_functions[] = {
	{ .old_name = HOSTILE_OUTER, .new_func = new_hostile_outer },
	{}
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = HOSTILE_MODULE, .funcs = module_functions },
	{}
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objects,
};

static int __init vmlab_klp_hostile_init(void)
{
	strscpy(THIS_MODULE->name, HOSTILE_PATCH, sizeof(THIS_MODULE->name));
	return klp_enable_patch(&patch);
}

static void __exit vmlab_klp_hostile_exit(void)
{
}

module_init(vmlab_klp_hostile_init);
module_exit(vmlab_klp_hostile_exit);
MODULE_DESCRIPTION("A livepatch with a name that is to do harm");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
