// SPDX-License-Identifier: GPL-2.0
/* For who looks at a system that runs: tasks that move, and tasks that come and go. */
#include "states.h"

#define MOVERS 6
#define SHORT_NS 5000000L
#define PAUSE_MS 40
#define LIFE_MS 60

/* Asleep in one system call or in the other, for as long each time. */
static void move_about(int number)
{
	const struct timespec little = { .tv_nsec = SHORT_NS << number };

	name_self("mover");
	for (;;) {
		nanosleep(&little, NULL);
		ppoll(NULL, 0, &little, NULL);
	}
}

static void *live_briefly(void *unused)
{
	sleep_ms(LIFE_MS);
	return NULL;
}

/* Processes and threads without end, each for a few milliseconds. */
static void come_and_go(void)
{
	name_self("storm");
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		if (!forked()) {
			pthread_t thread;

			name_self("storm/kid");
			if (!pthread_create(&thread, NULL, live_briefly, NULL))
				pthread_join(thread, NULL);
			_exit(0);
		}
		sleep_ms(PAUSE_MS);
	}
}

int move(void)
{
	int i;

	for (i = 0; i < MOVERS; i++)
		if (!forked())
			move_about(i);
	if (!forked())
		come_and_go();
	return 0;
}
