// SPDX-License-Identifier: GPL-2.0
/* Processes, files and a host with names from ../hostile.h. */
#include "../hostile.h"
#include "states.h"

static void read_fifo(void)
{
	char byte;

	if (read(open(HOSTILE_FIFO, O_RDWR), &byte, 1) < 0)
		perror("states: hostile");
}

static void write_entry(void)
{
	if (write(open("/proc/" HOSTILE_ENTRY, O_WRONLY), "x", 1) < 0)
		perror("states: hostile");
}

static void sleep_quietly(void)
{
	pause();
}

/* One process for each name, by turns in each of these. */
static void start_with(const char *const *names, size_t count, void (*const *run)(void),
		       size_t ways)
{
	size_t i;

	for (i = 0; i < count; i++) {
		if (forked())
			continue;
		name_self(names[i]);
		run[i % ways]();
		_exit(1);
	}
}

void state_hostile(void)
{
	static const char *const names[] = { HOSTILE_COMMS }, *const torn[] = { HOSTILE_COMMS_TORN };
	static void (*const blocked[])(void) = { read_fifo, write_entry, sleep_quietly };
	static void (*const quiet[])(void) = { sleep_quietly };

	sethostname(HOSTILE_HOST, sizeof(HOSTILE_HOST) - 1);
	mkdir(HOSTILE_FOLDER, 0755);
	if (mkfifo(HOSTILE_FIFO, 0600))
		return;
	start_with(names, COUNT(names), blocked, COUNT(blocked));
	start_with(torn, COUNT(torn), quiet, COUNT(quiet));
	pause();
}
