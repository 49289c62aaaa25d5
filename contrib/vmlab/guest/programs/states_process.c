// SPDX-License-Identifier: GPL-2.0
/* Parents, threads, tracers, stopped, frozen and dead tasks. */
#include "states.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>

#define THREADS 8
#define CROWD 30

void state_waitpid(void)
{
	if (!forked()) {
		name_child("kid");
		pause();
	}
	waitpid(-1, NULL, 0);
}

void state_waitid(void)
{
	siginfo_t info;

	if (!forked()) {
		name_child("kid");
		pause();
	}
	waitid(P_ALL, 0, &info, WEXITED);
}

void state_pidfd(void)
{
#ifdef SYS_pidfd_open
	struct pollfd poller = { .events = POLLIN };

	pid_t pid = forked();

	if (!pid) {
		name_child("kid");
		for (;;)
			pause();
	}
	poller.fd = syscall(SYS_pidfd_open, pid, 0);
	if (poller.fd >= 0)
		poll(&poller, 1, -1);
#endif
}

void state_vfork(void)
{
	pid_t pid = vfork();

	if (!pid) {
		name_self("vfork/kid");
		for (;;)
			pause();
	}
}

void state_zombie(void)
{
	if (!forked()) {
		name_child("dead");
		_exit(0);
	}
	for (;;)
		pause();
}

static void *sleeping_thread(void *number)
{
	static int word;

	name_child("thread");
	if ((long)number % 2)
		wait_forever_on(&word);
	for (;;)
		pause();
}

static void start_threads(void)
{
	pthread_t thread;
	long i;

	for (i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, sleeping_thread, (void *)i);
}

void state_threads(void)
{
	start_threads();
	for (;;)
		pause();
}

/* A dead thread group leader, kept by the threads that live on. */
void state_deadleader(void)
{
	start_threads();
	syscall(SYS_exit, 0);
}

static void *executing_thread(void *unused)
{
	char *const arguments[] = { "states", NULL };

	sleep_ms(300);
	name_child("exec");
	execv("/bin/states", arguments);
	return NULL;
}

/* A thread's execve() waits until the others are dead; the first one cannot die. */
void state_exec(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, executing_thread, NULL);
	module_state("dstate", NULL, 0);
}

/* Dies of a page fault, and its core goes to a program (see init) that never reads. */
void state_coredump(void)
{
	static char volume[1 << 20];
	volatile uintptr_t nowhere = 8;

	memset(volume, 1, sizeof(volume));
	*(volatile int *)nowhere = 0;
}

void state_stopped(void)
{
	raise(SIGSTOP);
}

/* Stopped by a signal while traced. */
void state_ptraced(void)
{
	if (!forked()) {
		name_child("stop");
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	for (;;)
		pause();
}

/* Stopped at the entry of a system call. */
void state_ptrace_sys(void)
{
	pid_t pid = forked();

	if (!pid) {
		name_child("in");
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		getppid();
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	ptrace(PTRACE_SYSCALL, pid, NULL, NULL);
	for (;;)
		pause();
}

/* Stopped by its tracer at a breakpoint, so within an exception. */
void state_trapped(void)
{
	if (!forked()) {
		name_child("trap");
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
#ifdef __x86_64__
		__asm__ volatile("int3");
#else
		__builtin_trap();
#endif
	}
	for (;;)
		pause();
}

/* A system call that waits for another process's decision. */
void state_seccomp(void)
{
#ifdef SECCOMP_FILTER_FLAG_NEW_LISTENER
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		    SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) >= 0)
		syscall(SYS_getppid);
#endif
}

void state_frozen(void)
{
	char text[16];
	pid_t pid;

	if (mkdir("/sys/fs/cgroup/frozen", 0700))
		return;
	pid = forked();
	if (!pid) {
		name_child("ice");
		for (;;)
			pause();
	}
	snprintf(text, sizeof(text), "%d", pid);
	write_text("/sys/fs/cgroup/frozen/cgroup.procs", text);
	write_text("/sys/fs/cgroup/frozen/cgroup.freeze", "1");
	for (;;)
		pause();
}

void state_many(void)
{
	int i;

	for (i = 0; i < CROWD; i++) {
		if (!forked()) {
			name_child("one");
			for (;;)
				pause();
		}
	}
	for (;;)
		wait(NULL);
}
