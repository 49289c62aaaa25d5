// SPDX-License-Identifier: GPL-2.0
/*
 * Page faults that are held: the page belongs to a userfaultfd that nobody reads,
 * so whoever touches it waits, in user mode or in the kernel.
 */
#include "states.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

void *held_page(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	void *page = new_page();

	range.range.start = (uintptr_t)page;
	range.range.len = page_size();
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
		return NULL;
	return page;
}

void state_uffd_user(void)
{
	volatile char *page = held_page();

	if (page)
		*page = 1;
}

/* The kernel copies from the page ... */
void state_uffd_pipe(void)
{
	char *page = held_page();
	int fds[2];

	make_pipe(fds);
	if (page)
		write(fds[1], page, 100);
}

/* ... or to it. */
void state_uffd_read(void)
{
	char *page = held_page();
	int fd = open("/dev/zero", O_RDONLY);

	if (page)
		read(fd, page, 100);
}

void state_uffd_module(void)
{
	char *page = held_page();

	if (page)
		module_state("read", page, 100);
}

/* Below a kretprobed function. */
void state_uffd_krp(void)
{
	char *page = held_page();

	if (page)
		module_state("krp_read", page, 100);
}

/* In a leaf function, without a call. */
void state_uffd_chain(void)
{
	char *page = held_page();

	if (page)
		module_state("chain_touch", page, 100);
}
