/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the states program share. */
#ifndef VMLAB_STATES_H
#define VMLAB_STATES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What the kernel calls the function of a system call. */
#if defined(__x86_64__)
#define KERNEL_CALL(name) "__x64_sys_" name
#elif defined(__aarch64__)
#define KERNEL_CALL(name) "__arm64_sys_" name
#elif defined(__s390x__)
#define KERNEL_CALL(name) "__s390x_sys_" name
#elif defined(__loongarch__)
#define KERNEL_CALL(name) "__se_sys_" name
#else
#define KERNEL_CALL(name) "sys_" name
#endif

struct state {
	const char *name;	/* becomes the process's name, so 15 characters at most */
	void (*run)(void);	/* returns only if the state cannot be had */
};

/* Every state of one file, as X(name): used to declare and to list them. */
#define DECLARE_STATE(name) void state_##name(void);
#define LIST_STATE(name) { #name, state_##name },

#define TIME_STATES(X) X(nanosleep) X(clocksleep) X(pause) X(sigsuspend) \
	X(sigtimedwait) X(signalfd) X(timerfd) X(select) X(pselect) X(poll) \
	X(ppoll) X(epoll) X(restart) X(compat)
#define IPC_STATES(X) X(pipe) X(pipefull) X(vmsplice) X(fifo) X(eventfd) X(futex) \
	X(futex_pi) X(futex_waitv) X(msgrcv) X(msgsnd) X(semop) X(mq) X(accept) \
	X(recvmsg) X(recvfrom) X(sendmsg) X(connect) X(netlink) X(udp) X(tcp)
#define FILE_STATES(X) X(flock) X(ofdlock) X(inotify) X(fanotify) X(io_getevents) \
	X(io_uring) X(io_wq) X(io_sqpoll) X(splice) X(tty) X(kmsg) X(mounts)
#define PROCESS_STATES(X) X(waitpid) X(waitid) X(pidfd) X(vfork) X(zombie) \
	X(threads) X(deadleader) X(exec) X(coredump) X(stopped) X(ptraced) \
	X(ptrace_sys) X(trapped) X(seccomp) X(frozen) X(many)
#define SPIN_STATES(X) X(spinuser) X(spinyield) X(spinsys) X(spinfault) X(spincompat)
#define FAULT_STATES(X) X(uffd_user) X(uffd_pipe) X(uffd_read) X(uffd_module) X(uffd_krp) \
	X(uffd_chain)
#define BPF_STATES(X) X(bpf_syscall) X(bpf_fexit) X(bpf_module) X(bpf_lsm) X(bpf_spin)
/* For tracefs to trace: see init. */
#define TRACED_STATES(X) X(fg_nanosleep) X(fg_pipe)
/* For whoever prints names. */
#define HOSTILE_STATES(X) X(hostile)
/* All but those that spin, which start later. */
#define QUIET_STATES(X) TIME_STATES(X) IPC_STATES(X) FILE_STATES(X) PROCESS_STATES(X) \
	FAULT_STATES(X) BPF_STATES(X) TRACED_STATES(X) HOSTILE_STATES(X)

QUIET_STATES(DECLARE_STATE)
SPIN_STATES(DECLARE_STATE)

void start_crowd_of_threads(int count);
int trigger(const char *path);
int move(void);
int load_crash_kernel(const char *kernel, const char *initramfs, const char *cmdline);

/* ---- helpers: states_common.c ---- */

void name_self(const char *name);	/* the calling thread's name */
pid_t forked(void);			/* fork(), fatal on failure */
void name_child(const char *suffix);	/* "parent" becomes "parent/suffix" */
void make_pipe(int fds[2]);
void fill(int fd);			/* write until it would block */
void sleep_ms(long ms);
void give_way(void);			/* lowest priority, for those who spin */
void write_text(const char *path, const char *text);
int module_state(const char *name, void *memory, size_t size);
size_t page_size(void);
void *new_page(void);			/* zeroed and private */
void *held_page(void);			/* whoever touches it waits; NULL: cannot be */

/* A futex word nobody wakes. */
_Noreturn void wait_forever_on(int *word);

#endif
