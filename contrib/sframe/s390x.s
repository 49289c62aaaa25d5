# SPDX-License-Identifier: LGPL-2.1-or-later
# Every kind of frame that an s390x function has, for a table of it in two formats.

	.macro	function name
	.globl	\name
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
	aghi	%r2, 1
	br	%r14
	end	leaf

	function leaf_with_locals
	aghi	%r15, -64
	.cfi_def_cfa_offset 224
	stg	%r2, 8(%r15)
	aghi	%r15, 64
	.cfi_def_cfa_offset 160
	br	%r14
	end	leaf_with_locals

	function saved
	stmg	%r11, %r15, 88(%r15)
	.cfi_offset %r11, -72
	.cfi_offset %r12, -64
	.cfi_offset %r13, -56
	.cfi_offset %r14, -48
	.cfi_offset %r15, -40
	aghi	%r15, -176
	.cfi_def_cfa_offset 336
	brasl	%r14, leaf
	lmg	%r11, %r15, 264(%r15)
	.cfi_restore %r15
	.cfi_restore %r14
	.cfi_restore %r13
	.cfi_restore %r12
	.cfi_restore %r11
	.cfi_def_cfa_offset 160
	br	%r14
	end	saved

	function return_address_only
	stmg	%r14, %r15, 112(%r15)
	.cfi_offset %r14, -48
	.cfi_offset %r15, -40
	aghi	%r15, -160
	.cfi_def_cfa_offset 320
	brasl	%r14, leaf
	lmg	%r14, %r15, 272(%r15)
	.cfi_restore %r15
	.cfi_restore %r14
	.cfi_def_cfa_offset 160
	br	%r14
	end	return_address_only

	function frame_pointer_only
	stg	%r11, 88(%r15)
	.cfi_offset %r11, -72
	lgr	%r11, %r2
	lg	%r11, 88(%r15)
	.cfi_restore %r11
	br	%r14
	end	frame_pointer_only

	function by_frame_pointer
	stmg	%r11, %r15, 88(%r15)
	.cfi_offset %r11, -72
	.cfi_offset %r14, -48
	.cfi_offset %r15, -40
	aghi	%r15, -160
	.cfi_def_cfa_offset 320
	lgr	%r11, %r15
	.cfi_def_cfa_register %r11
	sgr	%r15, %r2
	brasl	%r14, leaf
	lmg	%r11, %r15, 248(%r11)
	.cfi_restore %r15
	.cfi_restore %r14
	.cfi_restore %r11
	.cfi_def_cfa %r15, 160
	br	%r14
	end	by_frame_pointer

	function saved_in_float_registers
	ldgr	%f0, %r11
	.cfi_register %r11, %f0
	ldgr	%f2, %r14
	.cfi_register %r14, %f2
	lgr	%r11, %r15
	.cfi_def_cfa_register %r11
	lgdr	%r14, %f2
	.cfi_restore %r14
	lgdr	%r11, %f0
	.cfi_restore %r11
	.cfi_def_cfa_register %r15
	br	%r14
	end	saved_in_float_registers

	function locals_of_64k
	agfi	%r15, -65536
	.cfi_def_cfa_offset 65696
	nopr
	agfi	%r15, 65536
	.cfi_def_cfa_offset 160
	br	%r14
	end	locals_of_64k

	function outermost
	.cfi_undefined %r14
	brasl	%r14, leaf
	j	.
	end	outermost

	function interrupted
	.cfi_signal_frame
	.cfi_def_cfa %r15, 480
	.cfi_offset %r14, -48
	nopr
	j	.
	end	interrupted
