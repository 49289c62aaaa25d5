// SPDX-License-Identifier: GPL-2.0
/* Waiting for files: locks, notifications, asynchronous input and output. */
#include "states.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <termios.h>

static char buffer[4096];

static int temporary(const char *path)
{
	return open(path, O_CREAT | O_RDWR, 0600);
}

void state_flock(void)
{
	flock(temporary("/tmp/flock"), LOCK_EX);
	flock(temporary("/tmp/flock"), LOCK_EX);	/* another open file */
}

void state_ofdlock(void)
{
	struct flock lock = { .l_type = F_WRLCK };

	fcntl(temporary("/tmp/ofdlock"), F_OFD_SETLKW, &lock);
	fcntl(temporary("/tmp/ofdlock"), F_OFD_SETLKW, &lock);
}

void state_inotify(void)
{
	int fd = inotify_init();

	if (fd >= 0)
		read(fd, buffer, sizeof(buffer));
}

/* The child opens a file and waits for a permission that nobody gives. */
void state_fanotify(void)
{
	int fd = fanotify_init(FAN_CLASS_CONTENT, O_RDONLY);

	if (fd < 0)
		return;
	close(temporary("/tmp/fanotify"));
	if (fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "/tmp/fanotify"))
		return;
	if (!forked()) {
		name_child("open");
		open("/tmp/fanotify", O_RDONLY);
		_exit(1);
	}
	pause();
}

void state_io_getevents(void)
{
	aio_context_t context = 0;
	struct io_event event;

	if (!syscall(SYS_io_setup, 1, &context))
		syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
}

struct ring {
	int fd;
	struct io_uring_params params;
	char *submit;
	struct io_uring_sqe *entries;
};

static int make_ring(struct ring *ring, unsigned int flags)
{
	memset(ring, 0, sizeof(*ring));
	ring->params.flags = flags;
	ring->params.sq_thread_idle = 1;
	ring->fd = syscall(SYS_io_uring_setup, 4, &ring->params);
	if (ring->fd < 0)
		return -1;
	ring->submit = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			    IORING_OFF_SQ_RING);
	ring->entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			     IORING_OFF_SQES);
	return ring->submit == MAP_FAILED || ring->entries == MAP_FAILED ? -1 : 0;
}

/* Queue a read of one byte from a pipe that stays empty. */
static void queue_read(struct ring *ring, int sqe_flags)
{
	unsigned int *tail = (void *)(ring->submit + ring->params.sq_off.tail);
	unsigned int *array = (void *)(ring->submit + ring->params.sq_off.array);
	struct io_uring_sqe *entry = &ring->entries[0];
	int fds[2];

	make_pipe(fds);
	memset(entry, 0, sizeof(*entry));
	entry->opcode = IORING_OP_READ;
	entry->flags = sqe_flags;
	entry->fd = fds[0];
	entry->addr = (uintptr_t)buffer;
	entry->len = 1;
	array[0] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

static void enter_ring(struct ring *ring, unsigned int submit)
{
	syscall(SYS_io_uring_enter, ring->fd, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}

void state_io_uring(void)
{
	struct ring ring;

	if (!make_ring(&ring, 0)) {
		queue_read(&ring, 0);
		enter_ring(&ring, 1);
	}
}

/* The read is handed to a worker thread at once, which blocks in it. */
void state_io_wq(void)
{
	struct ring ring;

	if (!make_ring(&ring, 0)) {
		queue_read(&ring, IOSQE_ASYNC);
		enter_ring(&ring, 1);
	}
}

void state_io_sqpoll(void)
{
	struct ring ring;

	if (!make_ring(&ring, IORING_SETUP_SQPOLL)) {
		queue_read(&ring, 0);
		enter_ring(&ring, 0);
	}
}

void state_splice(void)
{
	int from[2], to[2];

	make_pipe(from);
	make_pipe(to);
	splice(from[0], NULL, to[1], NULL, 1, 0);
}

void state_tty(void)
{
	int leader = posix_openpt(O_RDWR | O_NOCTTY), fd;

	if (leader < 0 || grantpt(leader) || unlockpt(leader))
		return;
	fd = open(ptsname(leader), O_RDWR | O_NOCTTY);
	if (fd >= 0)
		read(fd, buffer, 1);
}

void state_kmsg(void)
{
	int fd = open("/dev/kmsg", O_RDONLY);

	while (fd >= 0)
		if (read(fd, buffer, sizeof(buffer)) < 0 && errno != EPIPE)
			return;
}

/* poll() on /proc/self/mounts ends in a wait queue of the mount namespace. */
void state_mounts(void)
{
	struct pollfd poller = { .events = POLLPRI };

	poller.fd = open("/proc/self/mounts", O_RDONLY);
	poll(&poller, 1, -1);
}
