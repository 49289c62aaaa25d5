# SPDX-License-Identifier: LGPL-2.1-or-later
# Every kind of frame that an x86_64 function has, for a table of it in two formats.

	.macro	function name
	.globl	\name
	.hidden	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.endm

	.macro	end name
	.cfi_endproc
	.size	\name, . - \name
	.endm

	.text
	function leaf
	leaq	1(%rdi), %rax
	ret
	end	leaf

	function pushes
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	pushq	%r12
	.cfi_def_cfa_offset 24
	.cfi_offset %r12, -24
	subq	$40, %rsp
	.cfi_def_cfa_offset 64
	call	leaf
	addq	$40, %rsp
	.cfi_def_cfa_offset 24
	popq	%r12
	.cfi_def_cfa_offset 16
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	end	pushes

	function frame_pointer
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	subq	%rdi, %rsp
	call	leaf
	leave
	.cfi_def_cfa %rsp, 8
	ret
	end	frame_pointer

	function frame_pointer_saved_third
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	pushq	%r12
	.cfi_def_cfa_offset 24
	.cfi_offset %r12, -24
	pushq	%rbp
	.cfi_def_cfa_offset 32
	.cfi_offset %rbp, -32
	xorl	%ebp, %ebp
	call	leaf
	popq	%rbp
	.cfi_restore %rbp
	.cfi_def_cfa_offset 24
	popq	%r12
	.cfi_def_cfa_offset 16
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	end	frame_pointer_saved_third

	function early_return
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	testq	%rdi, %rdi
	jz	1f
	.cfi_remember_state
	popq	%rbp
	.cfi_restore %rbp
	.cfi_def_cfa %rsp, 8
	ret
1:	.cfi_restore_state
	call	somewhere@PLT
	popq	%rbp
	.cfi_restore %rbp
	.cfi_def_cfa %rsp, 8
	ret
	end	early_return

	function locals_of_4k
	subq	$4096, %rsp
	.cfi_def_cfa_offset 4104
	call	elsewhere@PLT
	addq	$4096, %rsp
	.cfi_def_cfa_offset 8
	ret
	end	locals_of_4k

	function locals_of_1m
	subq	$1048576, %rsp
	.cfi_def_cfa_offset 1048584
	call	leaf
	addq	$1048576, %rsp
	.cfi_def_cfa_offset 8
	ret
	end	locals_of_1m

	function medium
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	.fill	300, 1, 0x90
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	.fill	300, 1, 0x90
	leave
	.cfi_def_cfa %rsp, 8
	ret
	end	medium

	function large
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	.fill	66000, 1, 0x90
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	nop
	leave
	.cfi_def_cfa %rsp, 8
	ret
	end	large

	function many_rows
	.set	size, 8
	.rept	40
	pushq	%rax
	.set	size, size + 8
	.cfi_def_cfa_offset size
	.endr
	.rept	40
	popq	%rax
	.set	size, size - 8
	.cfi_def_cfa_offset size
	.endr
	ret
	end	many_rows

	function outermost
	.cfi_undefined %rip
	call	leaf
	hlt
	end	outermost

	function interrupted
	.cfi_signal_frame
	.cfi_def_cfa %rsp, 40
	.cfi_offset %rip, -40
	nop
	ud2
	end	interrupted

	# A stack aligned to 32 bytes as GCC does it: r10 is the argument pointer, then saved.
	function realigned
	leaq	8(%rsp), %r10
	.cfi_def_cfa %r10, 0
	andq	$-32, %rsp
	pushq	-8(%r10)
	pushq	%rbp
	movq	%rsp, %rbp
	.cfi_escape 0x10, 6, 2, 0x76, 0
	pushq	%r10
	.cfi_escape 0x0f, 3, 0x76, 0x78, 6
	call	leaf
	popq	%r10
	.cfi_def_cfa %r10, 0
	popq	%rbp
	leaq	-8(%r10), %rsp
	.cfi_def_cfa %rsp, 8
	ret
	end	realigned

	function by_another_register
	movq	%rsp, %rax
	.cfi_def_cfa_register %rax
	andq	$-64, %rsp
	movq	%rax, %rsp
	.cfi_def_cfa_register %rsp
	ret
	end	by_another_register
