// SPDX-License-Identifier: GPL-2.0
/*
 * states - processes in every state that matters to a stack walk.
 *
 *	states start PATTERN...	start those of such names, wait until they have settled
 *	states act NAME		enter a state of the kernel's own
 *	states crowd COUNT	start as many processes, asleep in a few ways
 *	states threads COUNT	start as many threads in processes of all sizes
 *	states move		start some that never stay where they are, or at all
 *	states trigger FILE	fork a child that never runs, then write to FILE
 *	states kexec KERNEL INITRAMFS CMDLINE	load a kernel to run after a panic
 *
 * Each state is one small function, run in its own process (named after it) that
 * never returns on its own. States that a kernel does not offer end with a
 * message and are simply absent. States of the kernel's own (see ../module/acts.h)
 * are entered by writing their names to /proc/vmlab_states.
 */
#include "states.h"
#include <fnmatch.h>
#include <stdbool.h>

/*
 * Attaching BPF programs waits until every task has slept or left the kernel, which
 * the spinning states and the module's acts never do: they start later.
 */
#define BPF_MS 4000

static const struct state quiet_states[] = { QUIET_STATES(LIST_STATE) };
static const struct state spin_states[] = { SPIN_STATES(LIST_STATE) };

static void report_missing(const char *name)
{
	fprintf(stderr, "states: %s is not available: %s\n", name, strerror(errno));
	_exit(1);
}

/* Whether a process's name is like one of the patterns, which end with NULL. */
static bool wanted(char **patterns, const char *name)
{
	for (; *patterns; patterns++)
		if (!fnmatch(*patterns, name, 0))
			return true;
	return false;
}

static void start_states(const struct state *states, size_t count, char **patterns)
{
	size_t i;

	for (i = 0; i < count; i++) {
		if (!wanted(patterns, states[i].name) || forked())
			continue;
		name_self(states[i].name);
		states[i].run();
		report_missing(states[i].name);
	}
}

/* Become the process of an act, named after it. */
static void enter_act(const char *act)
{
	char name[40];

	snprintf(name, sizeof(name), "u_%s", act);
	name_self(name);
	give_way();
	module_state(act, NULL, 0);
	report_missing(act);
}

/* One process for each act that the module lists. */
static void start_acts(char **patterns)
{
	FILE *list = fopen("/proc/vmlab_states", "r");
	char act[32], name[40];

	while (list && fscanf(list, "%31s", act) == 1) {
		snprintf(name, sizeof(name), "u_%s", act);
		if (wanted(patterns, name) && !forked())
			enter_act(act);
	}
}

/* Many processes asleep in a few ways, for timings. */
static void start_crowd(int count)
{
	int pipes[2];

	if (pipe(pipes))
		report_missing("crowd");
	for (; count > 0; count--) {
		char byte;

		if (forked())
			continue;
		name_self("crowd");
		if (count % 4 == 0)
			pause();
		if (count % 4 == 1)
			poll(NULL, 0, -1);
		if (count % 4 == 2 && read(pipes[0], &byte, 1) < 0)
			report_missing("crowd");
		sleep(1000000);
	}
}

int main(int argc, char **argv)
{
	setvbuf(stderr, NULL, _IOLBF, 0);
	if (argc >= 3 && !strcmp(argv[1], "start")) {
		start_states(quiet_states, COUNT(quiet_states), argv + 2);
		sleep_ms(BPF_MS);
		start_states(spin_states, COUNT(spin_states), argv + 2);
		start_acts(argv + 2);
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "act"))
		enter_act(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "crowd")) {
		start_crowd(atoi(argv[2]));
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "threads")) {
		start_crowd_of_threads(atoi(argv[2]));
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "move"))
		return move();
	if (argc == 3 && !strcmp(argv[1], "trigger"))
		return trigger(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "kexec"))
		return load_crash_kernel(argv[2], argv[3], argv[4]);
	fprintf(stderr, "usage: states start PATTERN... | act NAME | crowd COUNT | threads COUNT | "
			"move | trigger FILE | kexec KERNEL INITRAMFS CMDLINE\n");
	return 2;
}
