// SPDX-License-Identifier: GPL-2.0
/* The end of the story: two tasks that never ran, and the verdicts. */
#include "states.h"

static void pin_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/*
 * Real-time on one CPU, its children ordinary and bound to the same one: until
 * the write below blocks they cannot run, and when it blocks the CPU is stopped.
 */
int trigger(const char *path)
{
	struct sched_param priority = { .sched_priority = 50 };
	int fd = open(path, O_WRONLY), i;

	if (fd < 0) {
		perror(path);
		return 1;
	}
	name_self("trigger");
	pin_to(0);
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority))
		perror("states: sched_setscheduler");
	name_self("neverran");
	for (i = 0; i < 2; i++)
		if (!forked())
			for (;;)
				pause();
	name_self("trigger");
	write(fd, "1", 1);
	perror("states: trigger");
	return 1;
}
