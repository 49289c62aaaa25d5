// SPDX-License-Identifier: GPL-2.0
/* Waiting for another process: pipes, locks, queues, sockets. */
#include "states.h"
#include <linux/futex.h>
#include <linux/netlink.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/uio.h>
#include <sys/un.h>

static char buffer[65536];

void state_pipe(void)
{
	int fds[2];

	make_pipe(fds);
	read(fds[0], buffer, 1);
}

void state_pipefull(void)
{
	int fds[2];

	make_pipe(fds);
	fill(fds[1]);
	write(fds[1], buffer, 4096);
}

void state_vmsplice(void)
{
	struct iovec part = { buffer, 4096 };
	int fds[2];

	make_pipe(fds);
	fill(fds[1]);
	vmsplice(fds[1], &part, 1, 0);
}

void state_fifo(void)
{
	mkfifo("/tmp/fifo", 0600);
	open("/tmp/fifo", O_RDONLY);
}

void state_eventfd(void)
{
	int fd = eventfd(0, 0);
	uint64_t value;

	if (fd >= 0)
		read(fd, &value, sizeof(value));
}

void state_futex(void)
{
	int word = 1;

	wait_forever_on(&word);
}

static int *shared_word(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void state_futex_pi(void)
{
	int *word = shared_word();

	if (!forked()) {
		name_child("own");
		syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
		pause();
	}
	sleep_ms(300);
	syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
}

void state_futex_waitv(void)
{
#ifdef SYS_futex_waitv
	static uint32_t word;
	struct futex_waitv one = { 0, (uintptr_t)&word, FUTEX_32, 0 };

	syscall(SYS_futex_waitv, &one, 1, 0, NULL, 0);
#endif
}

struct text_message {
	long type;
	char text[4096];
};

void state_msgrcv(void)
{
	int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	static struct text_message message;

	if (id >= 0)
		msgrcv(id, &message, sizeof(message.text), 0, 0);
}

void state_msgsnd(void)
{
	int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	static struct text_message message = { .type = 1 };

	while (id >= 0 && !msgsnd(id, &message, sizeof(message.text), 0))
		;
}

void state_semop(void)
{
	struct sembuf down = { 0, -1, 0 };
	int id = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);

	if (id >= 0)
		semop(id, &down, 1);
}

void state_mq(void)
{
	mqd_t queue = mq_open("/vmlab", O_CREAT | O_RDWR, 0600, NULL);

	if (queue >= 0)
		mq_receive(queue, buffer, sizeof(buffer), NULL);
}

static struct sockaddr_un unix_name(const char *path)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };

	strcpy(name.sun_path, path);
	return name;
}

static int unix_listener(const char *path)
{
	struct sockaddr_un name = unix_name(path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	unlink(path);
	if (fd < 0 || bind(fd, (void *)&name, sizeof(name)) || listen(fd, 0))
		return -1;
	return fd;
}

void state_accept(void)
{
	int fd = unix_listener("/tmp/accept");

	if (fd >= 0)
		accept(fd, NULL, NULL);
}

/* The second connection finds the listener's queue full. */
void state_connect(void)
{
	struct sockaddr_un name = unix_name("/tmp/connect");
	int i;

	unix_listener("/tmp/connect");
	for (i = 0; i < 3; i++)
		connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof(name));
}

static int socket_pair(int type)
{
	int fds[2];

	return socketpair(AF_UNIX, type, 0, fds) ? -1 : fds[0];
}

void state_recvmsg(void)
{
	struct iovec part = { buffer, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	recvmsg(socket_pair(SOCK_STREAM), &message, 0);
}

void state_recvfrom(void)
{
	recvfrom(socket_pair(SOCK_DGRAM), buffer, 1, 0, NULL, NULL);
}

void state_sendmsg(void)
{
	struct iovec part = { buffer, 4096 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	int fd = socket_pair(SOCK_STREAM);

	fill(fd);
	sendmsg(fd, &message, 0);
}

void state_netlink(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);

	if (fd >= 0)
		recv(fd, buffer, sizeof(buffer), 0);
}

void state_udp(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd >= 0)
		recv(fd, buffer, sizeof(buffer), 0);
}

void state_tcp(void)
{
	struct sockaddr_in name = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd >= 0 && !bind(fd, (void *)&name, sizeof(name)) && !listen(fd, 1))
		accept(fd, NULL, NULL);
}
