// SPDX-License-Identifier: GPL-2.0
/* Load the kernel that takes over after a panic. */
#include "states.h"
#include <linux/kexec.h>

int load_crash_kernel(const char *kernel, const char *initramfs, const char *cmdline)
{
	int kernel_fd = open(kernel, O_RDONLY), initramfs_fd = open(initramfs, O_RDONLY);

	if (syscall(SYS_kexec_file_load, kernel_fd, initramfs_fd, strlen(cmdline) + 1,
		    cmdline, KEXEC_FILE_ON_CRASH)) {
		perror("states: kexec_file_load");
		return 1;
	}
	return 0;
}
