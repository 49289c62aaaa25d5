// SPDX-License-Identifier: GPL-2.0
/* Helpers of the states program. */
#include "states.h"
#include <linux/futex.h>
#include <sys/resource.h>

void name_self(const char *name)
{
	prctl(PR_SET_NAME, name, 0, 0, 0);
}

void name_child(const char *suffix)
{
	char name[16], full[48];

	prctl(PR_GET_NAME, name, 0, 0, 0);
	snprintf(full, sizeof(full), "%s/%s", name, suffix);
	full[15] = 0;
	name_self(full);
}

pid_t forked(void)
{
	pid_t pid = fork();

	if (pid < 0) {
		perror("states: fork");
		exit(1);
	}
	return pid;
}

void make_pipe(int fds[2])
{
	if (pipe(fds)) {
		perror("states: pipe");
		exit(1);
	}
}

void fill(int fd)
{
	static const char zeros[4096];
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while (write(fd, zeros, sizeof(zeros)) > 0)
		;
	fcntl(fd, F_SETFL, flags);
}

void sleep_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

void give_way(void)
{
	setpriority(PRIO_PROCESS, 0, 19);
}

void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "states: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* Enter a state of the module: "NAME ADDRESS SIZE", ADDRESS for it to read from. */
int module_state(const char *name, void *memory, size_t size)
{
	int fd = open("/proc/vmlab_states", O_WRONLY);
	char text[80];

	if (fd < 0)
		return -1;
	snprintf(text, sizeof(text), "%s %lx %zu", name, (unsigned long)memory, size);
	return write(fd, text, strlen(text));
}

size_t page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

void *new_page(void)
{
	return mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
}

_Noreturn void wait_forever_on(int *word)
{
	for (;;)
		syscall(SYS_futex, word, FUTEX_WAIT, *word, NULL, NULL, 0);
}
