// SPDX-License-Identifier: LGPL-2.1-or-later
// Every kind of frame that an aarch64 function has, for a table of it in two formats.

	.macro	function name
	.globl	\name
	.type	\name, %function
\name:
	.cfi_startproc
	.endm

	.macro	end name
	.cfi_endproc
	.size	\name, . - \name
	.endm

	.macro	push_record size
	stp	x29, x30, [sp, -\size]!
	.cfi_def_cfa_offset \size
	.cfi_offset 29, -\size
	.cfi_offset 30, 8 - \size
	.endm

	.macro	pop_record size
	ldp	x29, x30, [sp], \size
	.cfi_restore 30
	.cfi_restore 29
	.cfi_def_cfa_offset 0
	.endm

	.text
	function leaf
	add	x0, x0, 1
	ret
	end	leaf

	function leaf_with_locals
	sub	sp, sp, 64
	.cfi_def_cfa_offset 64
	str	x0, [sp, 8]
	add	sp, sp, 64
	.cfi_def_cfa_offset 0
	ret
	end	leaf_with_locals

	function record
	push_record 32
	mov	x29, sp
	str	x19, [sp, 16]
	.cfi_offset 19, -16
	bl	leaf
	ldr	x19, [sp, 16]
	.cfi_restore 19
	pop_record 32
	ret
	end	record

	function by_frame_pointer
	push_record 48
	mov	x29, sp
	.cfi_def_cfa_register 29
	sub	sp, sp, x0
	bl	leaf
	mov	sp, x29
	.cfi_def_cfa_register 31
	pop_record 48
	ret
	end	by_frame_pointer

	function early_return
	cbz	x0, 1f
	push_record 16
	mov	x29, sp
	bl	leaf
	cbz	x0, 2f
	.cfi_remember_state
	pop_record 16
1:	ret
2:	.cfi_restore_state
	bl	record
	pop_record 16
	ret
	end	early_return

	function locals_of_4k
	push_record 16
	mov	x29, sp
	sub	sp, sp, 4096
	.cfi_def_cfa_offset 4112
	bl	leaf
	add	sp, sp, 4096
	.cfi_def_cfa_offset 16
	pop_record 16
	ret
	end	locals_of_4k

	function locals_of_1m
	push_record 16
	mov	x29, sp
	sub	sp, sp, 1048576
	.cfi_def_cfa_offset 1048592
	bl	leaf
	add	sp, sp, 1048576
	.cfi_def_cfa_offset 16
	pop_record 16
	ret
	end	locals_of_1m

	function signed_a
	paciasp
	.cfi_negate_ra_state
	push_record 16
	mov	x29, sp
	bl	leaf
	pop_record 16
	autiasp
	.cfi_negate_ra_state
	ret
	end	signed_a

	function signed_b
	.cfi_b_key_frame
	pacibsp
	.cfi_negate_ra_state
	push_record 16
	bl	leaf
	pop_record 16
	autibsp
	.cfi_negate_ra_state
	ret
	end	signed_b

	function medium
	push_record 16
	.fill	100, 4, 0xd503201f
	mov	x29, sp
	.cfi_def_cfa_register 29
	.fill	100, 4, 0xd503201f
	.cfi_def_cfa_register 31
	pop_record 16
	ret
	end	medium

	function large
	push_record 16
	.fill	17000, 4, 0xd503201f
	mov	x29, sp
	.cfi_def_cfa_register 29
	.fill	10, 4, 0xd503201f
	.cfi_def_cfa_register 31
	pop_record 16
	ret
	end	large

	function many_rows
	push_record 16
	.set	size, 16
	.rept	40
	sub	sp, sp, 16
	.set	size, size + 16
	.cfi_def_cfa_offset size
	.endr
	.rept	40
	add	sp, sp, 16
	.set	size, size - 16
	.cfi_def_cfa_offset size
	.endr
	pop_record 16
	ret
	end	many_rows

	function outermost
	.cfi_undefined 30
	bl	leaf
	brk	0
	end	outermost

	function interrupted
	.cfi_signal_frame
	.cfi_def_cfa 31, 336
	.cfi_offset 29, -96
	.cfi_offset 30, -88
	nop
	brk	0
	end	interrupted

	function link_register_only
	str	x30, [sp, -16]!
	.cfi_def_cfa_offset 16
	.cfi_offset 30, -16
	bl	leaf
	ldr	x30, [sp], 16
	.cfi_restore 30
	.cfi_def_cfa_offset 0
	ret
	end	link_register_only

	function frame_pointer_only
	str	x29, [sp, -16]!
	.cfi_def_cfa_offset 16
	.cfi_offset 29, -16
	nop
	ldr	x29, [sp], 16
	.cfi_restore 29
	.cfi_def_cfa_offset 0
	ret
	end	frame_pointer_only

	function by_another_register
	mov	x9, sp
	.cfi_def_cfa_register 9
	nop
	mov	sp, x9
	.cfi_def_cfa_register 31
	ret
	end	by_another_register

	function link_register_elsewhere
	mov	x9, x30
	.cfi_register 30, 9
	nop
	mov	x30, x9
	.cfi_restore 30
	ret
	end	link_register_elsewhere
