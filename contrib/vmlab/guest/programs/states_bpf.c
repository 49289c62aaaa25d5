// SPDX-License-Identifier: GPL-2.0
/*
 * Tasks inside BPF programs and trampolines. The programs are a few instructions
 * each, written by hand; the functions that they attach to are found in the BTF of
 * the running kernel, so no library is needed.
 */
#include "states.h"
#include <linux/bpf.h>
#include <linux/btf.h>

#define INSTRUCTION(opcode, destination, source, offset, immediate) \
	((struct bpf_insn){ .code = (opcode), .dst_reg = (destination), \
			    .src_reg = (source), .off = (offset), .imm = (immediate) })
#define MOVE(to, from) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)
#define SET(to, value) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value)
#define ADD(to, value) INSTRUCTION(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value)
#define LOAD(to, from, offset) \
	INSTRUCTION(BPF_LDX | BPF_DW | BPF_MEM, to, from, offset, 0)
#define WIDE_LOW(to, value) \
	INSTRUCTION(BPF_LD | BPF_DW | BPF_IMM, to, 0, 0, (uint32_t)(value))
#define WIDE_HIGH(value) INSTRUCTION(0, 0, 0, 0, (uint32_t)((uint64_t)(value) >> 32))
#define CALL(helper) INSTRUCTION(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define JUMP_NOT_ZERO(reg, offset) INSTRUCTION(BPF_JMP | BPF_JNE | BPF_K, reg, 0, offset, 0)
#define RETURN INSTRUCTION(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

#define LOOPS 8000

static int bpf(int command, union bpf_attr *attr, size_t size)
{
	return syscall(SYS_bpf, command, attr, size);
}

/* ---- BTF ---- */

struct btf {
	char *data;
	struct btf_header *header;
	unsigned int type_count;
};

static int read_btf(const char *name, struct btf *btf)
{
	const size_t limit = 64 << 20;
	size_t used = 0;
	ssize_t got;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/btf/%s", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	/* Untouched pages cost nothing. */
	btf->data = mmap(NULL, limit, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	while ((got = read(fd, btf->data + used, limit - used)) > 0)
		used += got;
	close(fd);
	btf->header = (void *)btf->data;
	return used > sizeof(*btf->header) ? 0 : -1;
}

/* The size of what follows a type, by its kind. */
static size_t tail_size(const struct btf_type *type)
{
	unsigned int count = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case 17:	/* declaration tag */
		return 4;
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return count * sizeof(struct btf_member);
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		return count * 8;
	case BTF_KIND_DATASEC:
	case 19:	/* 64-bit enumeration */
		return count * 12;
	}
	return 0;
}

/*
 * The number of a function among the types, from 1; 0 if there is none. Strings of a
 * module's BTF are numbered after those of the kernel's, which "strings" bytes hold.
 */
static unsigned int find_function(struct btf *btf, const char *name, size_t strings)
{
	char *base = btf->data + btf->header->hdr_len;
	char *place = base + btf->header->type_off, *end = place + btf->header->type_len;
	char *names = base + btf->header->str_off;
	unsigned int number = 0, found = 0;

	while (place < end) {
		struct btf_type *type = (void *)place;

		number++;
		if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC &&
		    type->name_off >= strings &&
		    !strcmp(names + type->name_off - strings, name))
			found = number;
		place += sizeof(*type) + tail_size(type);
	}
	btf->type_count = number;
	return found;
}

static void forget_btf(struct btf *btf)
{
	munmap(btf->data, 64 << 20);
}

/* A descriptor of a module's BTF, found by name among all there are. */
static int module_btf(const char *module)
{
	union bpf_attr attr = {};
	struct bpf_btf_info info;
	unsigned int id = 0;
	char name[64];
	int fd;

	for (;;) {
		memset(&attr, 0, sizeof(attr));
		attr.start_id = id;
		if (bpf(BPF_BTF_GET_NEXT_ID, &attr, sizeof(attr)))
			return -1;
		id = attr.next_id;
		memset(&attr, 0, sizeof(attr));
		attr.btf_id = id;
		fd = bpf(BPF_BTF_GET_FD_BY_ID, &attr, sizeof(attr));
		if (fd < 0)
			continue;
		memset(&info, 0, sizeof(info));
		info.name = (uintptr_t)name;
		info.name_len = sizeof(name);
		memset(&attr, 0, sizeof(attr));
		attr.info.bpf_fd = fd;
		attr.info.info_len = sizeof(info);
		attr.info.info = (uintptr_t)&info;
		if (!bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)) &&
		    !strcmp(name, module))
			return fd;
		close(fd);
	}
}

struct target {
	int btf_fd;		/* of a module's BTF; 0 for the kernel's */
	unsigned int id;
};

static int find_target(const char *module, const char *function, struct target *target)
{
	struct btf kernel, own;

	memset(target, 0, sizeof(*target));
	if (read_btf("vmlinux", &kernel))
		return -1;
	target->id = find_function(&kernel, function, 0);
	if (module) {
		target->btf_fd = module_btf(module);
		if (target->btf_fd < 0 || read_btf(module, &own))
			return -1;
		target->id = find_function(&own, function, kernel.header->str_len);
		if (target->id)
			target->id += kernel.type_count;
		forget_btf(&own);
	}
	forget_btf(&kernel);
	if (!target->id)
		fprintf(stderr, "states: BTF does not know %s\n", function);
	return target->id ? 0 : -1;
}

/* ---- programs ---- */

static int load(struct bpf_insn *code, size_t count, unsigned int type,
		unsigned int attach, unsigned int flags, const struct target *target)
{
	static char log[4096];
	union bpf_attr attr = {};
	int fd;

	attr.prog_type = type;
	attr.expected_attach_type = attach;
	attr.prog_flags = flags;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)"GPL";
	if (target) {
		attr.attach_btf_id = target->id;
		attr.attach_btf_obj_fd = target->btf_fd;
	}
	strcpy(attr.prog_name, "vmlab");
	fd = bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
	if (fd < 0) {	/* again, for what the verifier has to say */
		attr.log_buf = (uintptr_t)log;
		attr.log_size = sizeof(log);
		attr.log_level = 1;
		bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
		fprintf(stderr, "states: BPF: %s: %.200s\n", strerror(errno), log);
	}
	return fd;
}

static int attach(int program)
{
	union bpf_attr attr = {};

	attr.raw_tracepoint.prog_fd = program;
	return bpf(BPF_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr));
}

static int load_and_attach(struct bpf_insn *code, size_t count, unsigned int type,
			   unsigned int kind, unsigned int flags,
			   const char *module, const char *function)
{
	struct target target;
	int fd;

	if (find_target(module, function, &target))
		return -1;
	fd = load(code, count, type, kind, flags, &target);
	return fd < 0 ? -1 : attach(fd);
}

/* ---- states ---- */

/* A program that sleeps: it reads a page of its caller which is held. */
void state_bpf_syscall(void)
{
	struct bpf_insn code[] = {
		LOAD(BPF_REG_3, BPF_REG_1, 0),
		MOVE(BPF_REG_1, BPF_REG_10),
		ADD(BPF_REG_1, -8),
		SET(BPF_REG_2, 1),
		CALL(BPF_FUNC_copy_from_user),
		SET(BPF_REG_0, 0),
		RETURN,
	};
	uint64_t context = (uintptr_t)held_page();
	union bpf_attr attr = {};
	int fd = load(code, COUNT(code), BPF_PROG_TYPE_SYSCALL, 0, BPF_F_SLEEPABLE, NULL);

	if (fd < 0 || !context)
		return;
	attr.test.prog_fd = fd;
	attr.test.ctx_in = (uintptr_t)&context;
	attr.test.ctx_size_in = sizeof(context);
	bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr));
}

static struct bpf_insn nothing[] = { SET(BPF_REG_0, 0), RETURN };

/* Blocked in a function that a trampoline called, to run a program when it returns. */
void state_bpf_fexit(void)
{
	if (load_and_attach(nothing, COUNT(nothing), BPF_PROG_TYPE_TRACING,
			    BPF_TRACE_FEXIT, 0, NULL, KERNEL_CALL("rt_sigsuspend")) >= 0) {
		sigset_t none;

		sigemptyset(&none);
		sigsuspend(&none);
	}
}

void state_bpf_module(void)
{
	if (load_and_attach(nothing, COUNT(nothing), BPF_PROG_TYPE_TRACING,
			    BPF_TRACE_FEXIT, 0, "vmlab_states", "vmlab_bpf_sleep") >= 0)
		module_state("bpf_sleep", NULL, 0);
}

/* A program that a trampoline calls, and that sleeps. Needs "bpf" among lsm=. */
void state_bpf_lsm(void)
{
	uint64_t page = (uintptr_t)held_page();
	struct bpf_insn code[] = {
		WIDE_LOW(BPF_REG_3, page),
		WIDE_HIGH(page),
		MOVE(BPF_REG_1, BPF_REG_10),
		ADD(BPF_REG_1, -8),
		SET(BPF_REG_2, 1),
		CALL(BPF_FUNC_copy_from_user),
		SET(BPF_REG_0, 0),
		RETURN,
	};

	if (page && load_and_attach(code, COUNT(code), BPF_PROG_TYPE_LSM, BPF_LSM_MAC,
				    BPF_F_SLEEPABLE, NULL, "bpf_lsm_socket_listen") >= 0)
		listen(socket(AF_UNIX, SOCK_STREAM, 0), 1);
}

/* Preempted in a program that a trampoline called at a function's entry. */
void state_bpf_spin(void)
{
	struct bpf_insn code[] = {
		SET(BPF_REG_1, LOOPS),
		ADD(BPF_REG_1, -1),
		JUMP_NOT_ZERO(BPF_REG_1, -2),
		SET(BPF_REG_0, 0),
		RETURN,
	};

	if (load_and_attach(code, COUNT(code), BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, 0,
			    NULL, KERNEL_CALL("getpgid")) < 0)
		return;
	give_way();
	for (;;)
		syscall(SYS_getpgid, 0);
}
