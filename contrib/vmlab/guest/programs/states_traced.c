// SPDX-License-Identifier: GPL-2.0
/* Blocked below functions of the kernel that init has graph-traced through tracefs. */
#include "states.h"

void state_fg_nanosleep(void)
{
	struct timespec forever = { 1000000, 0 };

	clock_nanosleep(CLOCK_BOOTTIME, 0, &forever, NULL);
}

void state_fg_pipe(void)
{
	int fds[2];
	char byte;

	make_pipe(fds);
	read(fds[0], &byte, 1);
}
