// SPDX-License-Identifier: GPL-2.0
/* Tasks that want a CPU for good: more of them than there are CPUs. */
#include "states.h"

void state_spinuser(void)
{
	give_way();
	if (!forked())
		name_child("two");
	for (;;)
		__asm__ volatile("" ::: "memory");
}

void state_spinyield(void)
{
	give_way();
	for (;;)
		sched_yield();
}

/* System calls without end: preempted in the kernel now and then. */
void state_spinsys(void)
{
	static char data[1 << 20];
	int fd = open("/dev/zero", O_RDONLY);

	give_way();
	while (read(fd, data, sizeof(data)) > 0)
		;
}

/* The same through the 32-bit entry; getppid() is 64 there. */
void state_spincompat(void)
{
#ifdef __x86_64__
	int result;

	give_way();
	do {
		result = 64;
		__asm__ volatile("int $0x80" : "+a"(result)
				 : : "r8", "r9", "r10", "r11", "memory");
	} while (result >= 0);
	errno = -result;
#endif
}

/* Page faults without end. */
void state_spinfault(void)
{
	const size_t size = 4 << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t i;

	give_way();
	for (;;) {
		for (i = 0; i < size; i += page_size())
			memory[i] = 1;
		madvise(memory, size, MADV_DONTNEED);
	}
}
