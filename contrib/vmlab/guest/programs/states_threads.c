// SPDX-License-Identifier: GPL-2.0
/* Very many threads, in processes of all sizes, asleep as servers' threads are. */
#include "states.h"
#include <sys/resource.h>

#define STACK_BYTES (64 * 1024)	/* of addresses; a page or two are touched */

/* What a thread can wait for without a process of its own, and how many of a hundred do. */
static const struct {
	struct state state;
	int share;
} ways[] = {
#define WAY(name, share) { LIST_STATE(name) share },
	WAY(futex, 36) WAY(epoll, 16) WAY(nanosleep, 10) WAY(poll, 8) WAY(pipe, 6)
	WAY(ppoll, 4) WAY(eventfd, 4) WAY(recvmsg, 3) WAY(recvfrom, 2) WAY(clocksleep, 2)
	WAY(timerfd, 2) WAY(pselect, 1) WAY(pause, 1) WAY(sigsuspend, 1) WAY(sigtimedwait, 1)
	WAY(signalfd, 1) WAY(netlink, 1) WAY(udp, 1)
};

/* Sizes of processes, over and over. */
static const int sizes[] = {
	1, 4, 1, 16, 1, 4, 64, 1, 16, 1, 4, 1, 256, 1, 4, 16, 1, 1, 64, 1024,
};

static int share_of_all(void)
{
	size_t i;
	int sum = 0;

	for (i = 0; i < COUNT(ways); i++)
		sum += ways[i].share;
	return sum;
}

/* Sleep in the way that a number falls to; numbers side by side fall to different ones. */
static void *sleep_somehow(void *number)
{
	size_t i;
	int place = (unsigned long)number * 37 % share_of_all();

	for (i = 0; place >= ways[i].share; i++)
		place -= ways[i].share;
	name_self(ways[i].state.name);
	ways[i].state.run();
	fprintf(stderr, "states: thread %s: %s\n", ways[i].state.name, strerror(errno));
	for (;;)
		pause();
}

/* A process of so many threads, of which the first number is given. Tells when all are there. */
static void be_process(long first, int size, int ready)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int i;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	for (i = 1; i < size; i++) {
		errno = pthread_create(&thread, &attributes, sleep_somehow, (void *)(first + i));
		if (errno) {
			perror("states: pthread_create");
			_exit(1);
		}
	}
	write(ready, "", 1);
	close(ready);
	sleep_somehow((void *)first);
}

void start_crowd_of_threads(int count)
{
	struct rlimit files = { 1 << 16, 1 << 16 };
	struct rlimit processes = { RLIM_INFINITY, RLIM_INFINITY };
	int ready[2], done = 0, which = 0;
	char byte;

	setrlimit(RLIMIT_NOFILE, &files);
	setrlimit(RLIMIT_NPROC, &processes);
	make_pipe(ready);
	while (done < count) {
		int size = sizes[which++ % COUNT(sizes)];

		if (size > count - done)
			size = count - done;
		if (!forked()) {
			close(ready[0]);
			be_process(done, size, ready[1]);
		}
		if (which % 64 == 0)
			fprintf(stderr, "states: %d threads\n", done);
		if (read(ready[0], &byte, 1) != 1)
			exit(1);
		done += size;
	}
}
