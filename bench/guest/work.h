/*
 * Fixed pieces of work, the same wherever they run: the host, a guest of favo,
 * a guest of QEMU. main.c times them; a piece does its work and returns a
 * checksum of the result, which depends on the scale alone, so that a wrong
 * processor is seen and not only a slow one.
 */
#ifndef WORK_H
#define WORK_H

#include <stddef.h>
#include <stdint.h>

/* A piece of work: `scale` times its full amount; returns the checksum. */
typedef uint64_t piece(double scale);

piece integer, sieve, sort, calls, indirect, sha256, bytecode;
piece nbody, vector, x87, matmul;
piece chase, copy, string;
piece syscalls, faults, forks, execs, pipes, atomics;

/* Whether the processor has what `matmul` needs: AVX2 and FMA. */
int has_avx2_fma(void);

/* The clock of the piece that runs starts here: preparation is done. */
void start_clock(void);

/* `amount` times `scale`, at least 1. */
uint64_t scaled(double scale, uint64_t amount);

/* Zeroed memory in 4 KiB pages, huge pages or not. Ends the program if there
 * is none. */
void *pages(size_t bytes);
void release(void *memory, size_t bytes);

/* Says what failed, with errno, and ends the program. */
__attribute__((noreturn)) void die(const char *what);

/* The next of a sequence of pseudorandom numbers (xorshift64*). */
static inline uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}

/* `sum` with `value` mixed in; order counts. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
	sum ^= value + 0x9e3779b97f4a7c15ull + (sum << 6) + (sum >> 2);
	return sum * 0xff51afd7ed558ccdull;
}

/* The bits of a double: equal only if the result is exact. */
static inline uint64_t bits(double value)
{
	union {
		double number;
		uint64_t bits;
	} both = { .number = value };
	return both.bits;
}

#endif
