// SPDX-License-Identifier: GPL-2.0
/* Waiting for time, for signals, and for one of several files. */
#include "states.h"
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static const struct timespec forever = { 1000000, 0 };

void state_nanosleep(void)
{
	syscall(SYS_nanosleep, &forever, NULL);
}

void state_clocksleep(void)
{
	struct timespec when;

	clock_gettime(CLOCK_REALTIME, &when);
	when.tv_sec += 1000000;
	clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &when, NULL);
}

void state_pause(void)
{
	pause();
}

void state_sigsuspend(void)
{
	sigset_t none;

	sigemptyset(&none);
	sigsuspend(&none);
}

static void block_usr1(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGUSR1);
	sigprocmask(SIG_BLOCK, set, NULL);
}

void state_sigtimedwait(void)
{
	sigset_t set;

	block_usr1(&set);
	sigtimedwait(&set, NULL, &forever);
}

void state_signalfd(void)
{
	struct signalfd_siginfo info;
	sigset_t set;
	int fd;

	block_usr1(&set);
	fd = signalfd(-1, &set, 0);
	if (fd >= 0)
		read(fd, &info, sizeof(info));
}

void state_timerfd(void)
{
	struct itimerspec when = { .it_value = forever };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t count;

	if (fd >= 0 && !timerfd_settime(fd, 0, &when, NULL))
		read(fd, &count, sizeof(count));
}

void state_select(void)
{
	struct timeval time = { 1000000, 0 };
	int fds[2];
	fd_set set;

	make_pipe(fds);
	FD_ZERO(&set);
	FD_SET(fds[0], &set);
	select(fds[0] + 1, &set, NULL, NULL, &time);
}

void state_pselect(void)
{
	pselect(0, NULL, NULL, NULL, &forever, NULL);
}

void state_poll(void)
{
	struct pollfd poller = { .events = POLLIN };
	int fds[2];

	make_pipe(fds);
	poller.fd = fds[0];
	poll(&poller, 1, -1);
}

void state_ppoll(void)
{
	ppoll(NULL, 0, &forever, NULL);
}

void state_epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	int fds[2], fd = epoll_create1(0);

	make_pipe(fds);
	if (fd >= 0 && !epoll_ctl(fd, EPOLL_CTL_ADD, fds[0], &event))
		epoll_wait(fd, &event, 1, -1);
}

/* Stopped and continued, a sleep goes on as a system call of its own. */
void state_restart(void)
{
	pid_t pid = forked();

	if (!pid) {
		name_child("kid");
		state_nanosleep();
		_exit(1);
	}
	sleep_ms(300);
	kill(pid, SIGSTOP);
	waitpid(pid, NULL, WUNTRACED);
	kill(pid, SIGCONT);
	for (;;)
		pause();
}

/* The 32-bit system call entry of a 64-bit kernel: pause() has no arguments. */
void state_compat(void)
{
#ifdef __x86_64__
	int result = 29;

	__asm__ volatile("int $0x80" : "+a"(result) : : "r8", "r9", "r10", "r11", "memory");
	errno = -result;
#endif
}
