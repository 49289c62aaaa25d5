/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Names that would do something to whoever prints them carelessly: to a terminal, a page,
 * a spreadsheet, a database, a line of text, a path. Those below are bytes, not all UTF-8.
 */
#ifndef VMLAB_HOSTILE_H
#define VMLAB_HOSTILE_H

/* Of processes and threads: 15 bytes at most. */
#define HOSTILE_COMMS							\
	"\033[2J\033[31mred",		/* clears the screen */		\
	"\033]0;title\a",		/* renames the window */	\
	"\033P+q544e\033\\",		/* asks the terminal for an answer */ \
	"\302\2331;1H C1",		/* moves the cursor: CSI as U+009B */ \
	"</script><b>x",						\
	"<img src=//a>",						\
	"{{data}}&amp;",						\
	"=cmd|'/C'!A0",							\
	"+1+1", "-2+3", "@SUM(1+1)",					\
	"x;=1+1;y 99",			/* ends a folded stack, a cell */ \
	"\357\274\2351+1",		/* a full-width = */		\
	"'; DROP TABLE",						\
	"\"); --",							\
	"%s%n{0}%(x)s",							\
	"../../etc/pass",						\
	"$(reboot)`id`",						\
	"\342\200\256gpj.exe",		/* reversed: U+202E */		\
	"a\342\200\213b\357\273\277",	/* no width: U+200B, U+FEFF */	\
	"\343\205\244",			/* a blank that is a letter: U+3164 */ \
	"\\x1b[31m\\n",			/* harmless: it has no control */ \
	"",								\
	"   "

/* The same, which a kernel's log would tear apart. */
#define HOSTILE_COMMS_TORN						\
	"a\nPID 1 proven",		/* forges a line */		\
	"a\rreliable  ",		/* overwrites one */		\
	"\t=1+1",							\
	"\b\b\b\177\v\f",						\
	"\377\376\200\23331m",		/* no UTF-8; a CSI of Latin-1 */ \
	"\355\263\277\355\240\200",	/* surrogates, which UTF-8 has not */ \
	"\342\200\250x\302\205y"	/* lines end: U+2028, U+0085 */

#define HOSTILE_HOST	"\033]0;h\a<b>=1+1\n../x"
#define HOSTILE_FOLDER	"/tmp/\033[5m<img src=x onerror=alert(1)>"
#define HOSTILE_FIFO	HOSTILE_FOLDER "/=cmd|'..'!A1\n\342\200\256\377\033]0;f\a"
/* Below /proc: to write to it is to sleep. */
#define HOSTILE_ENTRY	"\033[7m<i>=1+1\n\302\233J"

#define HOSTILE_MODULE	"../../../tmp/m\n=m,<b>\033[35m\342\200\256\033]0;m\a"
#define HOSTILE_PATCH	"'; DROP--\033[41m<u>=2+2;\342\200\256../../p %s"
/* Of functions, the innermost last; the first is to be replaced. */
#define HOSTILE_OUTER	"=2+3;\033[32m<script>alert(2)</script>\342\200\256 f"
#define HOSTILE_MIDDLE	"@SUM(1)\n#0 0x0 PID 1 proven\r\033[1A\"',%s"
#define HOSTILE_INNER	"../../../etc/passwd\033]0;s\a\377\302\233J\tend"

#endif
